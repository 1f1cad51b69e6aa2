"""`distsec certs issue NODE`: a certificate for a node that is not managed here."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import click

from distsec.cli.candidates import listed_nodes
from distsec.cli.options import config_option
from distsec.cli.passphrases import Given, ca_option, passphrase_options

DAYS = 365
"""Where neither --days nor a configuration says otherwise."""


@click.command("issue")
@click.argument("node", metavar="NODE", shell_complete=listed_nodes)
@click.option("--address", metavar="A", help="Where it listens. [default: as configured, or in its name]")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="A new directory. [default: ./NODE]"
)
@click.option("--days", type=click.IntRange(1, 3650), help="Its lifetime. [default: as configured, or 365]")
@click.option(
    "--csr", metavar="FILE", type=click.Path(path_type=Path), help="For the key in this request (PKCS#10)."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@passphrase_options
@ca_option
@config_option
def command(
    node: str,
    address: str | None,
    out: Path | None,
    days: int | None,
    csr: Path | None,
    as_json: bool,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
    ca_directory: Path | None,
    config: str | None,
) -> None:
    """Makes a key and a certificate for a node that runs elsewhere, with the bundle that it is to trust.

    They are in a directory of their own, closed to other users: key.pem, certificate.pem, trust.pem. Take it
    to the node over a channel that nobody reads. With --csr the key stays where it is, and there is no
    key.pem: what is issued follows from the name in the request, which must be NODE's, and nothing else.

    A certificate admits nobody: that is what `distsec allow NODE` is for. Nodes that are managed here have
    theirs already (`distsec certs renew`).

    \b
    distsec certs issue far@10.9.0.1
    distsec certs issue far@db.example.net --address 192.0.2.7 --days 30 --out /root/far
    distsec certs issue far@10.9.0.1 --csr far.csr --out far
    """
    from distsec.beam import issuing
    from distsec.cli.ca_place import find_ca
    from distsec.cli.certs.exchange import read_file
    from distsec.cli.certs.serving import told_of_issue
    from distsec.errors import DistsecError
    from distsec.model.names import NodeName
    from distsec.model.text import escape

    place = find_ca(ca_directory, config)
    store = place.store(Given(passphrase_fd, passphrase_file))
    name = NodeName.parse(node)
    request = None if csr is None else (read_file(csr), str(csr))
    lifetime = days or (place.spec.certificate_days if place.spec is not None else DAYS)
    directory = out if out is not None else Path(str(name))
    new = not os.path.lexists(directory)
    target = issuing.open_target(directory)
    try:
        made = issuing.issue_elsewhere(
            store, place.spec, name, address=address, days=lifetime, request=request, now=time.time()
        )
    except DistsecError:
        if new:
            with contextlib.suppress(OSError):
                target.root.rmdir()
        raise
    files = issuing.write_out(target, made)
    if as_json:
        click.echo(
            json.dumps({"schema": 1, **made.document(), "directory": str(target.root), "files": files})
        )
    else:
        click.echo(f"{escape(str(target.root), 4096)}  {', '.join(files)}")
        click.echo(f"{made.identity}, serial {made.serial}, until {made.until}")
    for warning in made.warnings:
        click.echo(f"distsec: warning: {warning}", err=True)
    told_of_issue(store, made.serial)
