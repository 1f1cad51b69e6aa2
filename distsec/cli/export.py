"""`distsec export`: what this host says of itself, for `distsec import` on the others."""

from __future__ import annotations

import os
import re
import shlex
import socket
import time
from pathlib import Path

import click

from distsec.cli.options import config_option

_ADDRESS = "write the one IP address of this host that the others reach"


@click.command("export")
@click.option("--host", metavar="NAME", help="What to call this host. [default: its host name]")
@click.option(
    "--address", metavar="IP", help="Where others reach this host: for nodes that listen on every interface."
)
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="[default: stdout]")
@config_option
def command(host: str | None, address: str | None, out: Path | None, config: str | None) -> None:
    """Writes a document with the nodes of this host: names, addresses, ports, certificates, the CA.

    Nothing in it is secret. It is signed by this host and by every node that it names, so that it may travel
    over any channel; `distsec import` on the other hosts checks it against the CA that they trust.

    \b
    distsec export --out here.json
    distsec export | ssh other distsec import --yes -
    """
    from distsec.beam.host_document import KIND
    from distsec.beam.host_export import export
    from distsec.cli.ca_place import find_ca
    from distsec.cli.carried import check_replaceable, write_carried
    from distsec.cli.certs.exchange import STDIO
    from distsec.cli.passphrases import Given
    from distsec.config.addresses import AddressInvalid, is_everywhere, is_loopback, listening_address
    from distsec.errors import UsageError
    from distsec.model.text import escape

    target = out or STDIO
    check_replaceable(target, KIND)
    if address is not None:
        try:
            address = listening_address(address)
        except AddressInvalid as error:
            raise UsageError(f"--address: {error}", do=_ADDRESS) from None
        if is_loopback(address) or is_everywhere(address):
            raise UsageError(f"--address: nobody on another host reaches {address}", do=_ADDRESS)
    place = find_ca(None, config)
    assert place.spec is not None, "there is a configuration, or ConfigError was raised"
    document, content = export(place.spec, place.store(Given()), host or _host_name(), time.time(), address)
    write_carried(target, content, KIND)
    left = sorted(str(n.name) for n in place.spec.nodes if n.name not in {e.name for e in document.nodes})
    nodes = ", ".join(str(node.name) for node in document.nodes)
    click.echo(f"{document.host}, serial {document.serial}: {escape(nodes, 4000)}", err=True)
    if left:
        click.echo(f"denied here, and left out: {', '.join(left)}", err=True)
    if target != STDIO:
        click.echo(f"next: on each other host: distsec import {shlex.quote(os.fspath(target))}", err=True)


def _host_name() -> str:
    """Raises UsageError where this host has none of its own."""
    from distsec.errors import NameInvalid, UsageError
    from distsec.model.hosts import check_host_name

    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63]
    try:
        return check_host_name(name)
    except NameInvalid:
        raise UsageError("this host has no name to be told from others by", do="add --host NAME") from None
