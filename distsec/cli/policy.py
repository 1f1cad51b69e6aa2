"""`distsec allow NODE` and `distsec deny NODE`: both return when every node has acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.errors import UsageError
from distsec.model.text import escape


@click.command()
@click.argument("node", metavar="NODE")
@click.option(
    "--identity", metavar="ID", help="Its SPIFFE ID, where it is not the one that its name implies."
)
@config_option
def allow(node: str, identity: str | None, config: str | None) -> None:
    """Lets NODE into the cluster, on every node or, if one does not acknowledge, on none.

    A link is remote code execution: whoever is let in can run anything in every node it links with.
    """
    orchestrator = client(config)
    with waiting(f"allowing {escape(node)}"):
        answer = orchestrator.allow(node, identity)
    click.echo(_told(f"{escape(node)} is allowed", answer))


@click.command()
@click.argument("node", metavar="NODE")
@click.option("--compromised", is_flag=True, help="Re-key everything it was linked with. Not built yet.")
@config_option
def deny(node: str, compromised: bool, config: str | None) -> None:
    """Keeps NODE out of the cluster and ends its links."""
    if (
        compromised
    ):  # said before the orchestrator is asked: in an incident nobody should wait for this answer
        raise UsageError(
            "deny --compromised is not built yet: nothing would be re-keyed",
            do="use `distsec deny NODE`, and re-key by hand every node that was linked with it",
        )
    orchestrator = client(config)
    with waiting(f"denying {escape(node)}"):
        answer = orchestrator.deny(node)
    click.echo(_told(f"{escape(node)} is denied", answer))


def _told(what: str, answer: Mapping[str, Any]) -> str:
    generation = answer.get("generation")
    acknowledged = answer.get("acknowledged")
    text = what if generation is None else f"{what}: policy generation {generation}"
    if isinstance(acknowledged, list):
        number = len(acknowledged)
        return f"{text}, acknowledged by {number} node{'' if number == 1 else 's'}"
    return text
