"""`distsec run`: the orchestrator in the foreground, as systemd starts it."""

from __future__ import annotations

import os

import click

from distsec.cli.options import config_option


@click.command("run")
@config_option
def command(config: str | None) -> int:
    """Runs the orchestrator: starts the nodes, watches and guards them.

    Its log is JSON lines on stderr. SIGTERM ends it, and the nodes as `on_exit` says; SIGHUP reloads.
    """
    from distsec.config.load import find_config
    from distsec.daemon import run

    return run(find_config(config, os.environ))
