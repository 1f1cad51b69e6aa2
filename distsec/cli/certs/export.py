"""`distsec certs export`: certificates, the trust bundle, the CRL; a key only into a file of its own."""

from __future__ import annotations

from pathlib import Path

import click

from distsec.cli.candidates import listed_nodes
from distsec.cli.options import config_option
from distsec.cli.passphrases import Given

_PATH = click.Path(path_type=Path)


@click.command("export")
@click.argument("node", metavar="NODE", required=False, shell_complete=listed_nodes)
@click.option("--ca", "authority", is_flag=True, help="What the nodes trust: in a rotation both CAs.")
@click.option("--crl", "revoked", is_flag=True, help="The signed list of revoked certificates.")
@click.option("--out", metavar="FILE", type=_PATH, help="Where to. [default: stdout; - is stdout too]")
@click.option("--with-key", metavar="FILE", type=_PATH, help="NODE's private key as well: a new file, 0600.")
@config_option
def command(
    node: str | None,
    authority: bool,
    revoked: bool,
    out: Path | None,
    with_key: Path | None,
    config: str | None,
) -> None:
    """Prints NODE's certificate with its chain, the CA certificates that nodes trust, or the CRL, in PEM.

    NODE is managed here, or was issued a certificate here. A private key is never printed: --with-key FILE
    writes it into a new file that is closed to other users.

    \b
    distsec certs export a@10.0.0.1 --out a.pem
    distsec certs export --ca --out bundle.pem
    distsec certs export --crl | openssl crl -noout -text
    distsec certs export a@10.0.0.1 --out a.pem --with-key a.key
    """
    from distsec.beam import exports
    from distsec.cli.ca_place import find_ca
    from distsec.cli.certs.exchange import STDIO, write_file

    chosen = [bool(node), authority, revoked]
    if sum(chosen) != 1:
        raise click.UsageError("name a NODE, or --ca, or --crl: one of them")
    if with_key is not None and node is None:
        raise click.UsageError("--with-key goes with a NODE")
    if with_key is not None and with_key == STDIO:
        raise click.UsageError("a private key is never printed: name a file")
    place = find_ca(None, config)
    assert place.spec is not None, "there is a configuration, or ConfigError was raised"
    store = place.store(Given())
    if node is not None:
        if with_key is not None:
            exports.write_key(store, place.spec, node, with_key)
        content = exports.certificate(store, place.spec, node)
    elif authority:
        content = exports.bundle(store)
    else:
        content = exports.lists(store)
    write_file(out if out is not None else STDIO, content)
