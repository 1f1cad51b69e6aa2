"""`distsec run`: the orchestrator in the foreground, as systemd starts it."""

from __future__ import annotations

import os

import click

from distsec.cli.options import config_option


@click.command("run")
@click.option(
    "--passphrase-fd",
    metavar="N",
    type=click.IntRange(0, 65535),
    help="An open descriptor with the passphrase of the CA's key, if that is sealed.",
)
@config_option
def command(passphrase_fd: int | None, config: str | None) -> int:
    """Runs the orchestrator: starts the nodes, watches and guards them.

    Its log is JSON lines on stderr. SIGTERM ends it, and the nodes as `on_exit` says; SIGHUP reloads.

    A sealed CA key is opened with [certificates.ca] passphrase_file, the systemd credential
    distsec-ca-passphrase or --passphrase-fd. Without a passphrase the nodes run; nothing new is issued.
    """
    from distsec.config.load import find_config
    from distsec.daemon import run

    return run(find_config(config, os.environ), passphrase_fd)
