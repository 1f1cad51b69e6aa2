"""`distsec certs list` and `distsec certs revoke SERIAL|NODE`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from distsec.cli.options import client, config_option
from distsec.cli.policy import acknowledged
from distsec.cli.progress import waiting
from distsec.cli.status_words import remaining, shown
from distsec.model.text import escape


@click.group()
def command() -> None:
    """The certificates of the nodes."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@config_option
def list_all(as_json: bool, config: str | None) -> None:
    """Shows the certificate of each managed node, and the serials that are revoked."""
    document = client(config).certificates()
    if as_json:
        click.echo(json.dumps(document))
        return
    rows = [_row(each, time.time()) for each in document.get("certificates", [])]
    for columns in [("NODE", "SERIAL", "EXPIRES", "STATE"), *rows]:
        click.echo(
            "  ".join(f"{text:<{width}}" for text, width in zip(columns, _widths(rows), strict=True)).rstrip()
        )
    for node, why in document.get("unknown", {}).items():
        click.echo(f"distsec: warning: {shown(node)}: no certificate can be read: {shown(why)}", err=True)
    own = {each.get("serial") for each in document.get("certificates", [])}
    others = [serial for serial in document.get("revoked", []) if serial not in own]
    if others:
        click.echo("\nrevoked, of no node now:")
        for serial in others:
            click.echo(f"  {shown(serial)}")


def _row(certificate: Mapping[str, Any], now: float) -> tuple[str, str, str, str]:
    left = remaining(certificate.get("not_after"), now)
    state = "revoked" if certificate.get("revoked") else "expired" if left == "expired" else "valid"
    return shown(certificate.get("node")), shown(certificate.get("serial")), left, state


def _widths(rows: list[tuple[str, str, str, str]]) -> tuple[int, ...]:
    return tuple(
        max(len(row[column]) for row in [("NODE", "SERIAL", "EXPIRES", ""), *rows]) for column in range(4)
    )


@command.command()
@click.argument("what", metavar="SERIAL|NODE")
@config_option
def revoke(what: str, config: str | None) -> None:
    """Has every node refuse a certificate from now on, and ends the links that were made with it.

    WHAT is a serial number in hexadecimal, as `distsec certs list` and `distsec status --json` show it, or a
    node: the certificate that it has now. A revocation is for good. The name stays allowed: a node that shows
    another certificate for it is let in. To keep the name out use `distsec deny`.
    """
    orchestrator = client(config)
    with waiting(f"revoking {escape(what)}"):
        answer = orchestrator.revoke(what)
    serials = ", ".join(escape(str(serial)) for serial in answer.get("serials", []))
    click.echo(acknowledged(f"{serials} is revoked", answer))
    for node in answer.get("current_of", []):
        click.echo(_WARNING.format(node=escape(str(node))), err=True)


_WARNING = (
    "distsec: warning: that is the certificate {node} has now: it runs on without links;"
    " to give it another, stop it, remove its certificate.pem, run `distsec init`, and start it"
)
