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
@click.option(
    "--bind",
    metavar="IP|tailscale",
    help="Where nodes listen that have no address of their own; in place of [security.distribution] bind.",
)
@click.option(
    "--confirm-network", is_flag=True, help="Every interface is meant, where 0.0.0.0 or :: is listened on."
)
@config_option
def command(passphrase_fd: int | None, bind: str | None, confirm_network: bool, config: str | None) -> int:
    """Runs the orchestrator: starts the nodes, watches and guards them.

    Its log is JSON lines on stderr, or entries with fields where stderr is systemd's journal. SIGTERM ends
    it, and the nodes as `on_exit` says; SIGHUP reloads.

    A sealed CA key is opened with [certificates.ca] passphrase_file, the systemd credential
    distsec-ca-passphrase or --passphrase-fd. Without a passphrase the nodes run; nothing new is issued.

    Nodes listen on loopback unless their name, their address or --bind says otherwise. An address must be
    one of this host's; `tailscale` is the one that it has in its tailnet.

    \b
    distsec run -c /etc/distsec/distsec.toml
    distsec run --bind 10.0.0.5
    distsec run --bind tailscale
    """
    from distsec.config.binding import Network
    from distsec.config.load import find_config
    from distsec.daemon import run

    network = Network(bind=bind, confirmed=confirm_network)
    return run(find_config(config, os.environ), passphrase_fd, network)
