"""`distsec allow NODE` and `distsec deny NODE`: both return when every node has acknowledged, a denial of a
compromised node when every node that it may have reached runs with new keys.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from distsec.cli.candidates import listed_nodes
from distsec.cli.events import parse_since
from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.core.wanted import TaintStage
from distsec.errors import DistsecError
from distsec.model.text import escape

if TYPE_CHECKING:
    from distsec.control.client import ControlClient


@click.command()
@click.argument("node", metavar="NODE", shell_complete=listed_nodes)
@click.option(
    "--identity",
    metavar="ID",
    help="What its certificate shows, where that is not what its name implies: spiffe://…, dns:HOST or"
    ' "dn:CN=…,O=…".',
)
@config_option
def allow(node: str, identity: str | None, config: str | None) -> None:
    """Lets NODE into the cluster, on every node or, if one does not acknowledge, on none.

    An identity of it that was revoked (`distsec certs revoke spiffe://…`) is good again.

    A link is remote code execution: whoever is let in can run anything in every node it links with.

    \b
    distsec allow poller@10.0.0.7
    distsec allow db@10.0.0.9 --identity dns:db1.example.net
    """
    orchestrator = client(config)
    with waiting(f"allowing {escape(node)}"):
        answer = orchestrator.allow(node, identity)
    click.echo(acknowledged(f"{escape(node)} is allowed", answer))
    for identity in answer.get("lifted", []):
        text = "is no longer revoked; the certificates of it that were stay so (`distsec certs renew`)"
        click.echo(f"{escape(str(identity), 1024)} {text}")


@click.command()
@click.argument("node", metavar="NODE", shell_complete=listed_nodes)
@click.option(
    "--compromised", is_flag=True, help="Also re-key and restart every node that it may have reached."
)
@click.option(
    "--since",
    metavar="T",
    help="With --compromised: since when it was, as in `distsec events --since`; else: always.",
)
@config_option
def deny(node: str, compromised: bool, since: str | None, config: str | None) -> None:
    """Keeps NODE out of the cluster and ends its links.

    That is enough for a node that ran nothing in another one. What a node has left behind in others while it
    was linked can let it in again, with keys that it has taken: then use --compromised. That revokes, ends,
    re-keys (key, certificate, agent key, cookies) and starts again every node that was linked with NODE, and
    those that were linked with these afterwards. NODE itself, if it is managed here, is stopped, and stays so
    until `distsec allow` and `distsec start`. In a full mesh that is every node.

    \b
    distsec deny poller@10.0.0.7
    distsec deny poller@10.0.0.7 --compromised --since 2h
    """
    if since is not None and not compromised:
        raise click.UsageError("--since goes with --compromised")
    orchestrator = client(config)
    if not compromised:
        with waiting(f"denying {escape(node)}"):
            answer = orchestrator.deny(node)
        click.echo(acknowledged(f"{escape(node)} is denied", answer))
        return
    begin = 0.0 if since is None else max(0.0, parse_since(since, time.time()))
    with waiting(f"containing {escape(node)}", lambda: _stages(orchestrator)):
        answer = orchestrator.deny(node, compromised=True, since=begin)
    click.echo(acknowledged(f"{escape(node)} is denied as compromised", answer))
    for line in _contained(answer):
        click.echo(line)


def _stages(orchestrator: ControlClient) -> str:
    """How far it has got, for a line that is drawn anew; nothing where the orchestrator does not say."""
    try:
        nodes = orchestrator.status().get("nodes", [])
    except DistsecError:
        return ""
    at = Counter((_stage(node), node.get("pid") is not None) for node in nodes)
    words = (
        (at[TaintStage.CONDEMNED, True], "ending"),
        (at[TaintStage.CONDEMNED, False], "ended"),
        (at[TaintStage.REKEYED, True] + at[TaintStage.REKEYED, False], "re-keyed and starting"),
    )
    return "".join(f", {number} {word}" for number, word in words if number)


def _stage(node: Mapping[str, Any]) -> str | None:
    taint = node.get("taint") or {}
    return str(taint.get("stage")) if node.get("tainted") else None


def _contained(answer: Mapping[str, Any]) -> Iterator[str]:
    names = {key: [escape(str(name)) for name in answer.get(key, [])] for key in _LISTS}
    held = answer.get("held")
    again = [name for name in names["rekeyed"] if name != held]
    yield f"revoked: {len(names['revoked'])} certificate{'' if len(names['revoked']) == 1 else 's'}"
    yield f"re-keyed and clean: {', '.join(again) or 'no other node was linked with it'}"
    if held is not None:
        yield f"re-keyed and held: {escape(str(held))} (until `distsec allow` and `distsec start`)"
    if names["elsewhere"]:
        yield f"tainted, not managed here, until `distsec allow` or `deny`: {', '.join(names['elsewhere'])}"
    if names["presumed"]:
        yield (
            "whose certificate that name came with is not remembered: taken for it are "
            + ", ".join(names["presumed"])
        )
    if names["unknown"]:
        yield f"no certificate could be read, what was shown is revoked: {', '.join(names['unknown'])}"
    if names["others"]:
        yield f"were linked too, and cannot be re-keyed here: {', '.join(names['others'])}"


_LISTS = ("rekeyed", "elsewhere", "others", "presumed", "revoked", "unknown")


def acknowledged(what: str, answer: Mapping[str, Any]) -> str:
    """`what` was done, in which generation, and how many nodes have said that they have it in force."""
    generation = answer.get("generation")
    acknowledged = answer.get("acknowledged")
    text = what if generation is None else f"{what}: policy generation {generation}"
    if isinstance(acknowledged, list) and (acknowledged or "rekeyed" not in answer):
        number = len(acknowledged)
        return f"{text}, acknowledged by {number} node{'' if number == 1 else 's'}"
    return text
