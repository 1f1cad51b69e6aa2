"""`distsec certs list`: the certificates that there are, and what is revoked."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from distsec.cli.options import client, config_option
from distsec.cli.status_words import remaining, shown

_HEADER = ("NODE", "SERIAL", "EXPIRES", "STATE")
_COLUMNS = 80


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@config_option
def command(as_json: bool, config: str | None) -> None:
    """Shows the certificate of each node, and what is revoked.

    \b
    valid          as it should be
    expiring       due to be renewed
    expired        links with it are refused
    not yet valid  its time is still to come: is a clock wrong?
    revoked        every node refuses it
    """
    document = client(config).certificates()
    if as_json:
        click.echo(json.dumps(document))
        return
    now = time.time()
    own, others = document.get("certificates", []), document.get("issued", [])
    tables = [[_row(each, now) for each in table] for table in (own, others)]
    widths = [max(len(row[column]) for row in [_HEADER, *tables[0], *tables[1]]) for column in range(3)]
    _print(_HEADER, widths)
    for row in tables[0]:
        _print(row, widths)
    if others:
        click.echo("\nof nodes that are not managed here:")
        for row in tables[1]:
            _print(row, widths)
    _print_issuers([*own, *others])
    if rotation := document.get("ca_rotation"):
        phase = shown(rotation.get("phase")).replace("_", " ")
        click.echo(f"rotation of the CA: {phase} (see `distsec certs rotate-ca status`)")
    for node, why in document.get("unknown", {}).items():
        click.echo(f"distsec: warning: {shown(node)}: no certificate can be read: {shown(why)}", err=True)
    _print_revoked(document, {each.get("serial") for each in [*own, *others]}, now)


def _print(row: Sequence[str], widths: Iterable[int]) -> None:
    *cells, last = row
    text = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)]
    click.echo("  ".join([*text, last]).rstrip())


def _row(certificate: Mapping[str, Any], now: float) -> tuple[str, str, str, str]:
    left = remaining(certificate.get("not_after"), now)
    before = "revoked" if certificate.get("revoked") else "expired" if left == "expired" else "valid"
    state = shown(certificate.get("state", before)).replace("_", " ")
    return shown(certificate.get("node")), shown(certificate.get("serial")), left, state


def _print_issuers(certificates: Iterable[Mapping[str, Any]]) -> None:
    """One line where all have the same; else whose it is."""
    issuers: dict[str, list[str]] = {}
    for each in certificates:
        issuers.setdefault(shown(each.get("issuer")), []).append(shown(each.get("node")))
    for issuer, nodes in issuers.items():
        text = f"issuer: {issuer}" + (f"  ({', '.join(nodes)})" if len(issuers) > 1 else "")
        click.echo("\n" + _wrapped(text))


def _wrapped(text: str) -> str:
    """In 80 columns; no word is broken, so that it can be searched for."""
    if len(text) <= _COLUMNS:
        return text
    return textwrap.fill(
        text, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _print_revoked(document: Mapping[str, Any], known: Iterable[Any], now: float) -> None:
    if identities := document.get("revoked_identities", []):
        click.echo("\nrevoked identities, with whatever certificate:")
        for identity in identities:
            click.echo(f"  {shown(identity)}")
    held = set(known)
    if others := [serial for serial in document.get("revoked", []) if serial not in held]:
        click.echo("\nrevoked, of no node now:")
        for serial in others:
            click.echo(f"  {shown(serial)}")
    for each in document.get("lists", []):
        if each.get("behind"):
            click.echo(f"distsec: warning: {behind(each)}", err=True)
        else:
            left = remaining(each.get("next_update"), now)
            click.echo(
                f"\nlist (CRL) {shown(each.get('number'))}: {shown(each.get('entries'))} revoked, {left}"
            )


def behind(revocations: Mapping[str, Any]) -> str:
    """What is said of a list that is not what it should be."""
    why = shown(revocations.get("behind"))
    return f"the list {shown(revocations.get('file'))} (CRL) is behind; the nodes are not: {why}"
