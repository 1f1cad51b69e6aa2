"""`distsec start | stop | restart NODE… | --all`."""

from __future__ import annotations

import click

from distsec.cli.candidates import managed_nodes
from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.model.text import escape

_DONE = {"start": "started", "stop": "stopped", "restart": "restarted"}
_DOING = {"start": "starting", "stop": "stopping", "restart": "restarting"}


def _run(action: str, names: tuple[str, ...], everything: bool, config: str | None) -> None:
    if everything and names:
        raise click.UsageError("name nodes or use --all, not both")
    if not everything and not names:
        raise click.UsageError("name at least one node, or use --all")
    orchestrator = client(config)
    with waiting(f"{_DOING[action]} {'all nodes' if everything else ', '.join(map(escape, names))}"):
        answer = orchestrator.nodes(action, names, everything=everything)
    for name in answer.get("nodes", []):
        click.echo(f"{_DONE[action]} {escape(str(name))}")


_names = click.argument("names", metavar="NODE…", nargs=-1, shell_complete=managed_nodes)
_everything = click.option("--all", "everything", is_flag=True, help="All nodes of the configuration.")


@click.command()
@_names
@_everything
@config_option
def start(names: tuple[str, ...], everything: bool, config: str | None) -> None:
    """Starts nodes; returns when each runs and its guard is proven.

    \b
    distsec start poller@127.0.0.1
    distsec start --all
    """
    _run("start", names, everything, config)


@click.command()
@_names
@_everything
@config_option
def stop(names: tuple[str, ...], everything: bool, config: str | None) -> None:
    """Stops nodes; returns when they have ended. They stay stopped until `distsec start`.

    \b
    distsec stop poller@127.0.0.1 agent@127.0.0.1
    distsec stop --all
    """
    _run("stop", names, everything, config)


@click.command()
@_names
@_everything
@config_option
def restart(names: tuple[str, ...], everything: bool, config: str | None) -> None:
    """Stops and starts nodes.

    \b
    distsec restart poller@127.0.0.1
    """
    _run("restart", names, everything, config)
