"""The orchestrator that runs on a state directory, for commands that have changed something in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from distsec.cli.progress import waiting
from distsec.control.client import ControlClient
from distsec.control.wire import SOCKET_NAME
from distsec.errors import CommandFailed, DistsecError, Unavailable
from distsec.model.text import escape

if TYPE_CHECKING:
    from distsec.pki.store import Store


def orchestrator(store: Store) -> ControlClient:
    """Whether one runs or not."""
    return ControlClient(f"{store.root}/{SOCKET_NAME}")


def running(store: Store) -> bool:
    """Whether one answers."""
    try:
        orchestrator(store).health()
    except Unavailable:
        return False
    except DistsecError:
        return True  # and does not answer to us
    return True


def served(store: Store, names: Sequence[str]) -> None:
    """Has these nodes serve what was installed for them, if an orchestrator runs. Raises CommandFailed for
    those that do not.
    """
    if not running(store):
        click.echo("no orchestrator runs: the nodes take it up when they start", err=True)
        return
    with waiting(f"{', '.join(map(escape, names))}: has it served"):
        answer = orchestrator(store).serve(names)
    left = [each for each in answer.get("nodes", []) if not each.get("done")]
    if left:
        why = "; ".join(
            f"{escape(str(each.get('node')))}: {escape(str(each.get('why')), 1024)}" for each in left
        )
        raise CommandFailed(f"installed, and not served everywhere: {why}", do="see `distsec status`")


def told_of_issue(store: Store, serial: str) -> None:
    """Lets it be in the events of the orchestrator, if one runs. That has issued nothing itself, so nothing
    depends on its answer.
    """
    try:
        orchestrator(store).told_of_issue(serial)
    except DistsecError:
        return
