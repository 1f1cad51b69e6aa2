"""What goes on after an error that nobody foresaw: what runs for as long as the orchestrator does, and the
rest of what is to be done for a node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

from distsec.beam.shortage import RETRY_SECONDS, TOLD_EVERY_SECONDS, shortage

T = TypeVar("T")


class Note(Protocol):
    """See supervisor.Supervisor.note."""

    def __call__(self, level: str, text: str, **fields: Any) -> None: ...


async def persistently(
    run: Callable[[], Awaitable[None]], name: str, note: Note, *, only_shortages: bool = False
) -> None:
    """Runs `run` to its end, and where it raises, anew after RETRY_SECONDS, however often.

    A process that is out of descriptors for a moment makes anything raise, and one without its renewals
    would be found out by an expired certificate. The first error is told, and of what follows one a minute.
    `only_shortages`: what is no shortage (beam.shortage) is raised.
    """
    loop = asyncio.get_running_loop()
    told_at = -TOLD_EVERY_SECONDS
    while True:
        try:
            return await run()
        except Exception as error:
            short = shortage(error)
            if only_shortages and short is None:
                raise
            if loop.time() - told_at >= TOLD_EVERY_SECONDS:
                told_at = loop.time()
                what = f"{type(error).__name__}: {error}" if short is None else short
                note("error", "a task failed, and is begun anew", task=name, error=what)
        await asyncio.sleep(RETRY_SECONDS)


def carry_out(effects: Iterable[T], perform: Callable[[T], None], note: Note, node: str) -> None:
    """Performs each, also after one that raises, which is told: a record that cannot be removed must not
    cost a node its next start."""
    for effect in effects:
        try:
            perform(effect)
        except Exception as error:
            what, why = type(effect).__name__, shortage(error) or f"{type(error).__name__}: {error}"
            note("error", "something was not done for a node", node=node, what=what, error=why)
