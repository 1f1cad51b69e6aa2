"""`distsec certs rotate-ca status | prepare | activate | prune | rollback`: a new CA, and no link ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.cli.status_words import remaining, shown
from distsec.errors import DistsecError
from distsec.model.text import escape

if TYPE_CHECKING:
    from distsec.control.client import ControlClient

_DOES = {
    "idle": "one CA, trusted by every node",
    "creating": "the new CA is being made; nobody trusts it yet",
    "preparing": "nodes are told to trust the new CA too; the old one issues",
    "prepared": "every node trusts both CAs; the old one issues",
    "activating": "nodes are given certificates of the new CA; both are trusted",
    "activated": "every node serves a certificate of the new CA; both are trusted",
    "pruning": "nodes are told to trust the new CA alone",
    "retiring": "every node refuses the old CA; its key is being destroyed",
    "rolling_back": "the nodes go back to the old CA",
}
_ANSWERS = {
    "prepare": "every node trusts the new CA besides the old one",
    "activate": "every node serves a certificate of the new CA, and every link is proven with it",
    "prune": "every node refuses the old CA, and its key is destroyed",
    "rollback": "the old CA is the only one again, and the new one is removed",
}
_NEXT = "distsec certs rotate-ca"


@click.group("rotate-ca")
def command() -> None:
    """Brings in a new CA in three steps, with every link up throughout.

    \b
      distsec certs rotate-ca prepare    every node trusts the new CA too
      distsec certs rotate-ca activate   every node has a certificate of it
      distsec certs rotate-ca prune      the old CA is gone, and proven refused

    Until `prune` has destroyed the old key, `rollback` leads back. `status` shows
    how far it is. Each returns when every node has answered; where one does not,
    it says who, and running it again goes on.
    """


@command.command(short_help="Show the CAs, how far it is, and what each node has.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@config_option
def status(as_json: bool, config: str | None) -> None:
    """Shows the CAs, how far a rotation has come, and what each node has."""
    answer = client(config).ca_rotation()
    if as_json:
        click.echo(json.dumps(answer))
        return
    for line in _lines(answer, time.time()):
        click.echo(line)


@command.command(short_help="Make a new CA, which every node trusts too.")
@config_option
def prepare(config: str | None) -> None:
    """Makes a new CA in ca/next/ and has every node trust it besides the old one.

    The old one goes on issuing. The new key is sealed if the old one is.
    """
    _step("prepare", "preparing", config)


_elsewhere = click.option(
    "--elsewhere",
    is_flag=True,
    help="Also though listed nodes are not run here: they have been brought the new CA.",
)


@command.command(short_help="Give every node a certificate of the new CA.")
@_elsewhere
@config_option
def activate(elsewhere: bool, config: str | None) -> None:
    """Gives every node a key and certificate of the new CA, and has every link proven with it."""
    _step("activate", "activating", config, elsewhere)


@command.command(short_help="Have every node trust the new CA alone.")
@_elsewhere
@config_option
def prune(elsewhere: bool, config: str | None) -> None:
    """Has every node trust the new CA alone, sees each refuse a certificate of the old one, and destroys that
    one's key. There is no way back from it.
    """
    _step("prune", "pruning", config, elsewhere)


@command.command(short_help="Go back to the old CA, from whatever step it is at.")
@config_option
def rollback(config: str | None) -> None:
    """Goes back to the old CA, from whatever step it is at, and removes the new one."""
    _step("rollback", "rolling back", config)


def _step(step: str, doing: str, config: str | None, elsewhere: bool = False) -> None:
    orchestrator = client(config)
    with waiting(doing, lambda: _so_far(orchestrator)):
        answer = orchestrator.rotate_ca(step, elsewhere=elsewhere)
    nodes = len(answer.get("nodes", []))
    click.echo(f"{shown(answer.get('phase'))}: {_ANSWERS[step]} ({nodes} node{'' if nodes == 1 else 's'})")
    for node, why in answer.get("behind", {}).items():
        text = f"{shown(node)} has the files, and has not read them: {shown(why)}"
        click.echo(f"distsec: warning: {text}", err=True)
    if others := answer.get("elsewhere"):
        names = ", ".join(escape(str(name)) for name in others)
        click.echo(f"not run here: {names}; bring them `distsec certs export --ca`")
    if (following := answer.get("next")) is not None:
        back = " (or `rollback`)" if following != "prepare" else ""
        click.echo(f"next: `{_NEXT} {shown(following)}`{back}")


def _so_far(orchestrator: ControlClient) -> str:
    try:
        answer = orchestrator.ca_rotation()
    except DistsecError:
        return ""
    names = [escape(str(name)) for name in answer.get("waiting", [])]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    looking = f", waiting for {', '.join(names[:2])}{more}" if names else ""
    return f", {escape(str(answer.get('step')))}{looking}"


def _lines(answer: Mapping[str, Any], now: float) -> Iterator[str]:
    phase = str(answer.get("phase"))
    yield f"phase  {escape(phase)}: {_DOES.get(phase, 'unknown to this version')}"
    if (doing := answer.get("under_way")) is not None:
        yield f"now    `{_NEXT} {shown(doing)}` is under way"
    elif (following := answer.get("next")) is not None:
        yield f"next   `{_NEXT} {shown(following)}`"
    yield ""
    rows: list[tuple[str, ...]] = [("CA", "SERIAL", "EXPIRES", "TRUSTED", "ISSUES")]
    for each in answer.get("authorities", []):
        left = remaining(each.get("not_after"), now)
        words = ("yes" if each.get(key) else "no" for key in ("trusted", "issuing"))
        rows.append((shown(each.get("role")), shown(each.get("serial")), left, *words))
    yield from _table(rows)
    yield ""
    table = [("NODE", "RUNS", "CERTIFICATE OF", "TRUSTS")]
    for node in answer.get("nodes", []):
        runs = "yes" if node.get("running") else "no"
        trusts = ", ".join(map(shown, node.get("trusts", []))) or "-"
        table.append((shown(node.get("node")), runs, shown(node.get("leaf") or "another"), trusts))
    yield from _table(table)
    for node in answer.get("nodes", []):
        if node.get("why"):
            yield f"{shown(node.get('node'))}: {shown(node.get('why'))}"
    if others := answer.get("elsewhere"):
        yield f"not run here: {', '.join(escape(str(name)) for name in others)}"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
