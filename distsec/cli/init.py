"""`distsec init DIR`: a configuration, a CA, and a private directory for each node."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from distsec.cli.passphrases import Given, passphrase_options

if TYPE_CHECKING:
    from distsec.cli.initialise import Initialised

MODES = ("production", "hybrid", "development")


@click.command("init")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="CLUSTER", help="The cluster's name. [default: after the directory]")
@click.option("--node", "nodes", metavar="NAME", multiple=True, help="A node, as name@host; may be repeated.")
@click.option("--mode", type=click.Choice(MODES), help="How links are protected. [default: production]")
@click.option("--seal", is_flag=True, help="Seal the CA's key with a passphrase.")
@click.option(
    "--trust",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The certificate of the cluster's CA, whose key is on another host.",
)
@click.option(
    "--request",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write signing requests for the nodes that have no certificate; goes with --trust.",
)
@passphrase_options
def command(
    directory: Path,
    name: str | None,
    nodes: tuple[str, ...],
    mode: str | None,
    seal: bool,
    trust: Path | None,
    request: Path | None,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
) -> None:
    """Make a cluster in DIR: configuration, CA, keys and certificates.

    Run it again to add what is missing. It never replaces a key, and changes an existing configuration only
    to add the nodes that are named.

    On a further host of a cluster (docs/hosts.md) --trust brings the CA that is there already; certificates
    are asked for with --request, and signed where the CA's key is.

    \b
    distsec init /etc/distsec --name shop --node web@10.0.0.5 --node jobs@10.0.0.5
    distsec init . --trust ca.pem --node b@10.0.0.2 --request ask.pem
    distsec init ./try --node a@127.0.0.1 --node b@127.0.0.1
    """
    from distsec.cli.ca_place import CaPlace
    from distsec.cli.initialise import initialise  # heavy: cryptography, pydantic
    from distsec.model.cluster import Mode

    given = Given(passphrase_fd, passphrase_file)
    if trust is not None and seal:
        raise click.UsageError("--seal is for a key, and --trust is of a CA whose key is on another host")
    brought = None
    if trust is not None:
        from distsec.beam.imports import Brought
        from distsec.cli.certs.exchange import read_file

        brought = Brought(read_file(trust), os.fspath(trust))
    if request is not None:
        from distsec.cli.certs.exchange import check_replaceable

        check_replaceable(request)

    done = initialise(
        directory,
        name=name,
        nodes=nodes,
        mode=Mode(mode) if mode else None,
        environment=os.environ,
        now=time.time(),
        open_store=lambda spec: CaPlace(Path(spec.state_dir), spec).store(given, sealing=seal),
        seal=seal,
        trust=brought,
        asking=request is not None,
    )
    for warning in done.spec.warnings:
        click.echo(f"warning: {warning}", err=True)
    _print(done)
    _next(done, request)


def _print(done: Initialised) -> None:
    from distsec.model.text import escape

    config, state = Path(done.spec.config_file), Path(done.spec.state_dir)
    rows = [(str(config), done.config)]
    rows += [(str(state / group), _summary(*files)) for group, files in _by_directory(done).items()]
    rows = [(escape(path, limit=4096), what) for path, what in rows]
    width = max(len(path) for path, _ in rows)
    for path, what in rows:
        click.echo(f"{path:<{width}}  {what}")


def _next(done: Initialised, request: Path | None) -> None:
    """What is to be done, after the requests are written."""
    config = Path(done.spec.config_file)
    here = "" if config == Path.cwd() / config.name else f" -c {shlex.quote(str(config))}"
    if not done.lacking:
        click.echo(f"\nnext: distsec run{here}")
        return
    if request is None:
        click.echo(f"\nnext: distsec certs renew --offline --all --out ask.pem{here}")
        return
    from distsec.beam.offline import take_requests
    from distsec.cli.certs.exchange import write_file
    from distsec.pki.requests import read_requests
    from distsec.pki.store import Store

    content = take_requests(done.spec, Store(Path(done.spec.state_dir)), done.lacking)
    write_file(request, content)
    click.echo("")
    for each in read_requests(content, done.spec.name, str(request)):
        click.echo(f"{each.name}  key {each.fingerprint}")
    click.echo(
        f"\nnext, where the CA's key is: distsec certs sign {shlex.quote(str(request))} --out answer.pem"
    )
    click.echo(f"then here: distsec certs renew --offline --answer answer.pem{here}")
    click.echo(f"           distsec run{here}")


def _by_directory(done: Initialised) -> dict[str, tuple[list[str], list[str]]]:
    """Directory, or file at the top of the state directory → names of what was made and of what was kept."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for index, paths in enumerate((done.report.made, done.report.kept)):
        for path in map(PurePosixPath, paths):
            group = path if path.parent == PurePosixPath() else path.parent
            found.setdefault(str(group), ([], []))[index].append(path.name)
    return dict(sorted(found.items()))


def _summary(made: list[str], kept: list[str]) -> str:
    if not made:
        return "kept"
    if not kept:
        return "made"
    return f"made {', '.join(made)}; kept {', '.join(kept)}"
