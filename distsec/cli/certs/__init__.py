"""`distsec certs`: one module a subcommand, none of them imported before it runs."""

from __future__ import annotations

import click

from distsec.cli.group import LazyGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "list": ("distsec.cli.certs.listing:command", "Show the certificate of each node, and what is revoked."),
    "issue": ("distsec.cli.certs.issue:command", "Make a certificate for a node that runs elsewhere."),
    "import": ("distsec.cli.certs.imports:command", "Bring your own CA, or a node's own certificate."),
    "export": ("distsec.cli.certs.export:command", "Take away certificates, the trust bundle, or the CRL."),
    "revoke": (
        "distsec.cli.certs.revoke:command",
        "Have every node refuse a certificate, and end its links.",
    ),
    "renew": ("distsec.cli.certs.renew:command", "Give nodes a new key and certificate."),
    "rotate-ca": ("distsec.cli.certs.rotate_ca:command", "Bring in a new CA, in steps that end no link."),
    "seal": ("distsec.cli.certs.seal:seal", "Seal the CA's key with a passphrase, or change it."),
    "unseal": ("distsec.cli.certs.seal:unseal", "Keep the CA's key as it is, without a passphrase."),
    "sign": ("distsec.cli.certs.sign:command", "Sign requests of nodes, where the CA's key is."),
}
"""Name → where the subcommand is, and its line in `distsec certs --help`."""


@click.group(cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """The certificates of the nodes, and their life."""
