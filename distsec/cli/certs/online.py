"""`distsec certs renew` where the orchestrator issues: returns when the new certificates are served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from distsec.cli.options import client
from distsec.cli.progress import waiting
from distsec.cli.status_words import shown
from distsec.errors import CommandFailed, DistsecError
from distsec.model.text import escape

if TYPE_CHECKING:
    from distsec.control.client import ControlClient


def renew(
    names: tuple[str, ...], everything: bool, *, recycle: bool, as_json: bool, config: str | None
) -> int | None:
    """Exit code 70 where a node does not serve its new certificate, or a link of it is not proven."""
    if everything == bool(names):
        raise click.UsageError("name nodes or use --all, not both" if names else "name a node, or use --all")
    orchestrator = client(config)
    before = _serials(orchestrator)
    chosen = set(names) or set(before)

    def so_far() -> str:
        now = _serials(orchestrator)
        done = sum(1 for name in chosen if now.get(name) != before.get(name))
        return f", {done} of {len(chosen)} have a new one"

    with waiting(f"renewing {'all nodes' if everything else ', '.join(map(escape, names))}", so_far):
        answer = orchestrator.renew(names, everything=everything, recycle=recycle)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        for node in answer.get("nodes", []):
            _tell(node)
    return None if answer.get("done") else CommandFailed.exit_code


def _serials(orchestrator: ControlClient) -> dict[str, str | None]:
    try:
        nodes = orchestrator.status().get("nodes", [])
    except DistsecError:
        return {}
    return {str(node.get("name")): (node.get("certificate") or {}).get("serial") for node in nodes}


def _tell(node: Mapping[str, Any]) -> None:
    name, serial = shown(node.get("node")), shown(node.get("serial"))
    if not node.get("done"):
        state = f"serves serial {serial}, and not all is well" if node.get("served") else "is not renewed"
        click.echo(f"distsec: {name} {state}: {shown(node.get('why'))}", err=True)
    elif not node.get("running"):
        click.echo(f"{name} has serial {serial} from its next start on")
    else:
        number = len(node.get("links_proven", []))
        links = f"{number} link{'' if number == 1 else 's'} proven with it"
        click.echo(f"{name} serves serial {serial}, {links}")
    for peer, why in node.get("links_left", {}).items():
        click.echo(f"distsec: warning: the link of {name} with {shown(peer)}: {shown(why)}", err=True)
