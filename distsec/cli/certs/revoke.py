"""`distsec certs revoke SERIAL|NODE|IDENTITY`."""

from __future__ import annotations

import json

import click

from distsec.cli.candidates import listed_nodes
from distsec.cli.certs.listing import behind
from distsec.cli.options import client, config_option
from distsec.cli.policy import acknowledged
from distsec.cli.progress import waiting
from distsec.model.text import escape

REASONS = (
    *("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"),
    "privilegeWithdrawn",
)
"""As pki.crl.RevocationReason has them, which is slow to import; a test holds the two together."""


@click.command()
@click.argument("what", metavar="SERIAL|NODE|IDENTITY", shell_complete=listed_nodes)
@click.option("--reason", type=click.Choice(REASONS), help="Why, for the list (CRL) that others read.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@config_option
def command(what: str, reason: str | None, as_json: bool, config: str | None) -> None:
    """Has every node refuse a certificate from now on, and ends the links that were made with it.

    WHAT is a serial number in hexadecimal, as `distsec certs list` and `distsec status --json` show it; or a
    node: the certificate that it has now; or an identity: every certificate of it, also those that nobody
    has seen yet, until `distsec allow` of the node that it belongs to. A certificate is revoked for good.
    The name stays allowed: a node that shows another certificate for it is let in. To keep the name out use
    `distsec deny`.

    \b
    distsec certs revoke agent@10.0.0.2
    distsec certs revoke 3f:a0:12:… --reason keyCompromise
    distsec certs revoke spiffe://shop/node/10.0.0.2/agent
    distsec certs revoke dns:db1.example.net
    distsec certs revoke "dn:CN=poller,O=Example"
    """
    orchestrator = client(config)
    with waiting(f"revoking {escape(what)}"):
        answer = orchestrator.revoke(what, reason)
    if as_json:
        click.echo(json.dumps(answer))
        return
    identity = answer.get("identity")
    serials = [escape(str(serial)) for serial in answer.get("serials", [])]
    named = serials if identity is None else [escape(str(identity), 1024)]
    click.echo(acknowledged(f"{', '.join(named)} is revoked", answer))
    if identity is not None:
        click.echo(f"certificates of it that are known here: {', '.join(serials) or 'none'}")
    for node in answer.get("current_of", []):
        text = _REVOKED if identity is None else _REVOKED_IDENTITY
        click.echo(text.format(node=escape(str(node))), err=True)
    for each in answer.get("lists", []):
        if each.get("behind"):
            click.echo(f"distsec: warning: {behind(each)}", err=True)


_REVOKED = (
    "distsec: warning: that is the certificate {node} has now: it runs on without links;"
    " `distsec certs renew {node}` gives it another"
)
_REVOKED_IDENTITY = (
    "distsec: warning: {node} is known by that identity: it runs on without links, whatever certificate it is"
    " given, until `distsec allow {node}` and `distsec certs renew {node}`"
)
