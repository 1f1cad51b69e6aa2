"""`distsec import FILE`: takes what another host has exported; `--list`, `--forget HOST`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distsec.cli.options import config_option

if TYPE_CHECKING:
    from distsec.beam.host_import import Plan
    from distsec.errors import DistsecError
    from distsec.model.hosts import HostSpec
    from distsec.pki.store import Store


@click.command("import")
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Without asking.")
@click.option("--forget", metavar="HOST", help="Takes back all that was imported from HOST.")
@click.option("--list", "listing", is_flag=True, help="The hosts that were imported.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@config_option
def command(
    file: Path | None,
    dry_run: bool,
    yes: bool,
    forget: str | None,
    listing: bool,
    as_json: bool,
    config: str | None,
) -> None:
    """Takes the document that another host has exported: its nodes may link with those here, and are dialled.

    It is checked first (cluster, CA, signatures, age, names, addresses), then what would change is shown, and
    asked about. An orchestrator that runs lets new nodes in when all of its own know of them, and keeps out
    at once who is no longer in the document. FILE `-` is stdin, with --yes.

    Returns when they have acknowledged. Exit code 75: some have not (one that is starting, say). It is kept,
    and they are told again by themselves; repeat it to see that they have.

    \b
    distsec import there.json
    distsec import --dry-run there.json
    distsec import --list
    distsec import --forget there
    """
    if sum((file is not None, forget is not None, listing)) != 1:
        raise click.UsageError("name one of FILE, --forget HOST and --list")
    from distsec.cli.ca_place import find_ca
    from distsec.cli.passphrases import Given
    from distsec.pki.hosts import load_hosts

    place = find_ca(None, config)
    assert place.spec is not None, "there is a configuration, or ConfigError was raised"
    store = place.store(Given())
    if listing:
        _list(load_hosts(store), as_json)
        return
    from distsec.beam.host_import import plan_forget, plan_import
    from distsec.cli.certs.exchange import read_file
    from distsec.config.interfaces import addresses_here

    # The lock comes later, and the plan once more: nobody is kept waiting by who thinks about an answer.
    content = b"" if file is None else read_file(file)

    def planned() -> Plan:
        if forget is not None:
            return plan_forget(store, forget)
        assert place.spec is not None
        return plan_import(place.spec, store, content, str(file), time.time(), addresses_here())

    plan = planned()
    if not as_json:
        _show(plan, forget is not None)
    if dry_run:
        if as_json:
            click.echo(json.dumps(_document(plan, done=False)))
        return
    if not yes:
        _ask(plan, file, as_json)
    missing = _carry_out(planned, store)
    if as_json:
        click.echo(json.dumps({**_document(plan, done=True), "missing": missing}))
    if missing:
        raise _not_acknowledged(missing, forget is not None)


def _not_acknowledged(missing: list[str], forgotten: bool) -> DistsecError:
    """As `distsec deny` has it: it is kept, and told again to whoever was silent."""
    from distsec.errors import NotAcknowledged
    from distsec.model.text import escape

    who = ", ".join(map(escape, missing))
    what = f"it is kept, but {who} {'has' if len(missing) == 1 else 'have'} not acknowledged it"
    then = "they take it up when they answer, and who is new is let in then; repeat it to see that they have"
    if forgotten:
        then = "they take it up when they answer; stop them if that cannot wait"
    return NotAcknowledged(what, missing=missing, do=then)


def _ask(plan: Plan, file: Path | None, as_json: bool) -> None:
    from distsec.cli.certs.exchange import STDIO
    from distsec.errors import UsageError

    if as_json or file == STDIO or not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", do="look at what is shown, then add --yes")
    click.confirm("Take it?" if plan.added or not plan.removed else "Do it?", abort=True)


def _carry_out(planned: Any, store: Store) -> list[str]:
    """Saves, and has an orchestrator that runs take it over; who has not acknowledged. Raises DistsecError:
    where that refuses it, what was saved is taken back.
    """
    from distsec.cli.certs.serving import orchestrator, running
    from distsec.cli.progress import waiting
    from distsec.errors import CommandFailed, Unavailable
    from distsec.pki.hosts import load_hosts, save_hosts

    with store.locked():
        plan: Plan = planned()
        before = load_hosts(store)
        save_hosts(store, plan.hosts)
    if not running(store):
        click.echo("no orchestrator runs: it counts when one does", err=True)
        return []
    try:
        with waiting("the nodes are told"):
            answer = orchestrator(store).reload()
    except (CommandFailed, Unavailable):
        raise  # in force in part, or nobody knows: the next reload or start has it
    except Exception:
        with store.locked():
            save_hosts(store, before)
        raise
    return [str(name) for name in answer.get("missing", [])]


# ---- what is shown


def _show(plan: Plan, forgotten: bool) -> None:
    from distsec.model.text import escape

    host = plan.host
    if forgotten:
        click.echo(f"{host.name} is forgotten, and these are kept out:")
    else:
        made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(host.issued_at))
        click.echo(f"{host.name}  serial {host.serial}, of {made}")
        click.echo(f"key  {host.signing_key[:32]}\n     {host.signing_key[32:]}")
    for line in plan.lines:
        click.echo(f"  {escape(line, 400)}")
    if not plan.lines:
        click.echo("  nothing new" if plan.before else "  the same nodes")
    for warning in plan.warnings:
        click.echo(f"warning: {escape(warning, 400)}", err=True)


def _document(plan: Plan, *, done: bool) -> dict[str, Any]:
    return {
        "schema": 1,
        "host": plan.host.name,
        "serial": plan.host.serial,
        "done": done,
        "before": plan.before,
        "added": list(plan.added),
        "removed": list(plan.removed),
        "moved": list(plan.moved),
        "warnings": list(plan.warnings),
    }


def _list(hosts: tuple[HostSpec, ...], as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "host": host.name,
                "key": host.signing_key,
                "serial": host.serial,
                "issued_at": host.issued_at,
                "nodes": [
                    {"name": str(node.name), "address": node.address, "port": node.port}
                    for node in host.nodes
                ],
            }
            for host in hosts
        ]
        click.echo(json.dumps({"schema": 1, "hosts": rows}))
        return
    for host in hosts:
        age = max(0, int(time.time()) - host.issued_at)
        old = f"{age // 86400} d" if age >= 86400 else f"{age // 3600} h {age % 3600 // 60} min"
        click.echo(f"{host.name}  exported {old} ago, serial {host.serial}")
        for node in host.nodes:
            at = f"[{node.address}]" if ":" in node.address else node.address
            click.echo(f"  {node.name}  {at}:{node.port}")
    if not hosts:
        click.echo("none; `distsec export` on the other host writes what is to be imported here", err=True)
