"""`distsec status`: every node and every link, and an exit code that says how it is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from distsec.cli.console import console
from distsec.cli.group import show_error
from distsec.cli.health import ALL_WELL, NO_ANSWER, assess
from distsec.cli.options import client, config_option
from distsec.errors import DistsecError, Unavailable, UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from distsec.control.client import ControlClient

REDRAW_SECONDS = 2.0


@click.command(epilog="Exit code: 0 all well, 1 degraded, 2 a violation, 3 no answer from the orchestrator.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--watch", is_flag=True, help="Draw it anew every 2 seconds until Ctrl-C; needs a terminal.")
@config_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, watch: bool, config: str | None) -> None:
    """Shows every node and every link of the cluster.

    A violation is a link that is up and not allowed, or a guard that is not in force. Refusals are neither a
    violation nor trouble: they are what the guard is for.

    \b
    distsec status
    distsec status --json | jq '.nodes[] | {name, state}'
    distsec status --watch
    """
    if watch and as_json:
        raise click.UsageError("--watch draws, --json is one document: use one of them")
    if watch and not sys.stdout.isatty():
        raise UsageError("--watch needs a terminal", do="use --json in a script, or `distsec events -f`")
    orchestrator = client(config)
    if watch:
        ctx.exit(watch_on(orchestrator, console(), time.sleep))
    try:
        status = orchestrator.status()
    except Unavailable as error:
        show_error(error)
        ctx.exit(NO_ANSWER)
    health = assess(status)
    if as_json:
        click.echo(json.dumps(status))
    else:
        from distsec.cli.status_view import view

        console().print(view(status, health, time.time()))
    ctx.exit(health.exit_code)


def watch_on(orchestrator: ControlClient, screen: Console, wait: Callable[[float], object]) -> int:
    """Draws until Ctrl-C; returns the exit code of what was drawn last."""
    from rich.live import Live

    code = ALL_WELL
    try:
        with Live(console=screen, screen=True, auto_refresh=False) as live:
            while True:
                code, drawn = _look(orchestrator)
                live.update(drawn, refresh=True)
                wait(REDRAW_SECONDS)
    except KeyboardInterrupt:
        return code


def _look(orchestrator: ControlClient) -> tuple[int, RenderableType]:
    """One look; an orchestrator that is gone for a moment (a restart) does not end the watch."""
    from rich.text import Text

    from distsec.cli.status_view import BAD, view
    from distsec.model.text import escape

    try:
        status = orchestrator.status()
    except Unavailable as error:
        return NO_ANSWER, Text(escape(str(error), 1024), BAD)
    except DistsecError as error:
        return error.exit_code, Text(escape(str(error), 1024), BAD)
    health = assess(status)
    return health.exit_code, view(status, health, time.time())
