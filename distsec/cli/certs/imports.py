"""`distsec certs import`: a node's own certificate, or a CA that is there already."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distsec.cli.candidates import managed_nodes
from distsec.cli.options import config_option
from distsec.cli.passphrases import Given, key_passphrase_options, passphrase_options

if TYPE_CHECKING:
    from distsec.beam.imports import Brought, Imported
    from distsec.cli.ca_place import CaPlace
    from distsec.model.secret import Secret


_PATH = click.Path(path_type=Path)


@click.command("import")
@click.option(
    "--node",
    metavar="NODE",
    shell_complete=managed_nodes,
    help="Whose certificate it is: a node that is managed here.",
)
@click.option(
    "--certificate", metavar="FILE", type=_PATH, help="Its certificate (PEM), the CAs above it after."
)
@click.option("--key", metavar="FILE", type=_PATH, help="Its private key (PEM), also with a passphrase.")
@click.option(
    "--ca-certificate", metavar="FILE", type=_PATH, help="A CA (PEM), the CAs above it after, up to a root."
)
@click.option("--ca-key", metavar="FILE", type=_PATH, help="The CA's key; without it the key is elsewhere.")
@click.option("--replace", is_flag=True, help="In the place of the CA that is there; nothing may run then.")
@click.option("--seal", is_flag=True, help="Seal the CA's key with a passphrase.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@key_passphrase_options
@passphrase_options
@config_option
def command(
    node: str | None,
    certificate: Path | None,
    key: Path | None,
    ca_certificate: Path | None,
    ca_key: Path | None,
    replace: bool,
    seal: bool,
    as_json: bool,
    key_passphrase_fd: int | None,
    key_passphrase_file: Path | None,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
    config: str | None,
) -> None:
    """Brings your own: a certificate with its key for a node, or the CA.

    What is brought is checked first, and refused with the reason: key and certificate belong together, the
    chain leads to a CA that the nodes trust, the identity is the node's (its SPIFFE ID, or what a
    [[security.distribution.rules]] binds it to), both TLS roles, ECDSA P-256 or P-384, Ed25519, or RSA of
    2048 bits and more. A key's own passphrase is taken off; asked for on the terminal, or --key-passphrase-*.

    A running node takes the new certificate up without losing a link. A CA comes before the nodes: after
    `distsec init`, with --replace, which makes every node's certificate anew.

    \b
    distsec certs import --node a@10.0.0.1 --certificate a.pem --key a.key
    distsec certs import --ca-certificate ca.pem --ca-key ca.key --replace --seal
    distsec certs import --ca-certificate ca.pem --replace        (its key stays elsewhere)
    """
    from distsec.cli.ca_place import find_ca

    place = find_ca(None, config)
    assert place.spec is not None, "there is a configuration, or ConfigError was raised"
    opener = _passphrase(Given(key_passphrase_fd, key_passphrase_file))
    if node is not None:
        if certificate is None or key is None or ca_certificate or ca_key or replace or seal:
            raise click.UsageError("--node goes with --certificate and --key, and with nothing of the CA's")
        done = _node(place, node, certificate, key, opener)
    elif ca_certificate is not None:
        if certificate is not None or key is not None:
            raise click.UsageError("--certificate and --key are a node's: add --node")
        given = Given(passphrase_fd, passphrase_file)
        done = _authority(place, ca_certificate, ca_key, opener, given, replace, seal)
    else:
        raise click.UsageError("name --node with --certificate and --key, or --ca-certificate")
    _show(done, node, as_json)


def _node(place: CaPlace, node: str, certificate: Path, key: Path, opener: Callable[[], Secret]) -> Imported:
    from distsec.beam.imports import import_node
    from distsec.cli.certs.serving import served

    assert place.spec is not None
    store = place.store(Given())
    brought = _file(certificate), _secret(key)
    done = import_node(place.spec, store, node, *brought, opener, time.time())
    served(store, [node])
    return done


def _authority(
    place: CaPlace,
    certificate: Path,
    key: Path | None,
    opener: Callable[[], Secret],
    given: Given,
    replace: bool,
    seal: bool,
) -> Imported:
    from distsec.beam.imports import import_authority
    from distsec.beam.provision import provision
    from distsec.cli.certs.serving import running
    from distsec.errors import CaKeyUnavailable, UsageError

    if seal and key is None:
        raise click.UsageError("--seal goes with --ca-key")
    assert place.spec is not None
    store = place.store(given, sealing=seal)
    if running(store):
        raise UsageError("the orchestrator runs", do="stop every node, then the orchestrator")
    brought = None if key is None else _secret(key)
    done = import_authority(
        place.spec, store, _file(certificate), brought, opener, time.time(), seal=seal, replace=replace
    )
    try:
        provision(place.spec, store, time.time())
    except CaKeyUnavailable:
        click.echo(
            "next: `distsec certs renew --offline --all --out FILE`, or `distsec certs import --node …`",
            err=True,
        )
    return done


def _show(done: Imported, node: str | None, as_json: bool) -> None:
    from distsec.model.text import escape

    if as_json:
        document: dict[str, Any] = {
            "schema": 1,
            "node": node,
            "serial": done.serial,
            "identity": done.identity,
            "issuer": done.issuer,
            "not_after": done.not_after,
            "before": done.before,
            "reissued": list(done.reissued),
        }
        click.echo(json.dumps(document))
        return
    how = "was there already" if done.before else "imported"
    click.echo(f"{escape(done.identity, 1024)}  {done.serial}  {how}")
    click.echo(f"issuer: {escape(done.issuer, 1024)}")
    if done.reissued:
        click.echo(f"certificates that are made anew: {', '.join(map(escape, done.reissued))}")


def _file(path: Path) -> Brought:
    """Raises UsageError."""
    from distsec.beam.imports import Brought
    from distsec.cli.certs.exchange import read_file

    return Brought(read_file(path), os.fspath(path))


def _secret(path: Path) -> Brought:
    """A key. That others could read it is said: it is taken all the same, since it is too late for that."""
    brought = _file(path)
    if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077 and b"ENCRYPTED" not in brought.content:
        text = f"others can read {click.format_filename(path)}: if somebody has, that key is not yours alone"
        click.echo(f"distsec: warning: {text}", err=True)
    return brought


def _passphrase(given: Given) -> Callable[[], Secret]:
    """Of the key that is brought: asked for only if it has one."""
    from distsec.errors import CaKeyUnavailable
    from distsec.pki import passphrase

    source = given.source() or passphrase.from_terminal("Passphrase of the key")

    def ask() -> Secret:
        if source is None:
            raise CaKeyUnavailable(
                "the key has a passphrase", do="give it with --key-passphrase-file or --key-passphrase-fd"
            )
        return source()

    return ask
