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
@passphrase_options
def command(
    directory: Path,
    name: str | None,
    nodes: tuple[str, ...],
    mode: str | None,
    seal: bool,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
) -> None:
    """Make a cluster in DIR: configuration, CA, keys and certificates.

    Run it again to add what is missing. It never replaces a key, and changes an existing configuration only
    to add the nodes that are named.
    """
    from distsec.cli.ca_place import CaPlace
    from distsec.cli.initialise import initialise  # heavy: cryptography, pydantic
    from distsec.model.cluster import Mode

    given = Given(passphrase_fd, passphrase_file)

    done = initialise(
        directory,
        name=name,
        nodes=nodes,
        mode=Mode(mode) if mode else None,
        environment=os.environ,
        now=time.time(),
        open_store=lambda spec: CaPlace(Path(spec.state_dir), spec).store(given, sealing=seal),
        seal=seal,
    )
    for warning in done.spec.warnings:
        click.echo(f"warning: {warning}", err=True)
    _print(done)


def _print(done: Initialised) -> None:
    from distsec.model.text import escape

    config, state = Path(done.spec.config_file), Path(done.spec.state_dir)
    rows = [(str(config), done.config)]
    rows += [(str(state / group), _summary(*files)) for group, files in _by_directory(done).items()]
    rows = [(escape(path, limit=4096), what) for path, what in rows]
    width = max(len(path) for path, _ in rows)
    for path, what in rows:
        click.echo(f"{path:<{width}}  {what}")
    here = config == Path.cwd() / config.name
    click.echo("\nnext: " + ("distsec run" if here else f"distsec run -c {shlex.quote(str(config))}"))


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
