"""The bus: every event goes through `publish`, once, and from there to all who listen.

Belongs to one event loop: `publish` is called from it, runs the subscribers in order before it returns, and
never waits. The most recent events are kept in three bounded rings (critical ones, refusals, the others), in
each of which every node has a fair share: neither a flood of refusals nor whatever a node that was taken over
makes up evicts what the other nodes reported.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self

from distsec.model.events import SecurityEvent, Severity

RECENT_EVENTS = 4096
"""Events kept of each of the three kinds: critical ones, refusals, and everything else."""

FOLLOWER_EVENTS = 1024
"""Events that wait for one slow follower before the oldest of them are dropped."""

REPORT_EVERY = 1000
"""A subscriber that fails is reported the first time and then once in so many failures."""

Subscriber = Callable[[SecurityEvent], object]
FailureReport = Callable[[str, int, Exception], object]


@dataclass(frozen=True, slots=True)
class Published:
    """An event with its `id`: from 1, growing by one, never used again within one orchestrator."""

    id: int
    event: SecurityEvent


class FairRing:
    """The most recent events, `size` in all. While it is full, who has more than a fair share of it loses an
    event for each that comes; a node with no more than `size` // nodes events loses none to another one.

    There are never more nodes in it than events, whatever nodes come and go.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._by_node: dict[str, deque[Published]] = {}

    def append(self, published: Published) -> None:
        """Takes the newest event, and drops one where that is one too many."""
        node = published.event.node
        own = self._by_node.setdefault(node, deque())
        own.append(published)
        self._count += 1
        if self._count > self._size:
            # Who floods is above its share, so that a flood costs the same however many nodes there are.
            flooding = len(own) > self._size // len(self._by_node)
            self._drop_oldest(node if flooding and len(own) > 1 else self._greediest())

    def __iter__(self) -> Iterator[Published]:
        """All of them, in order within each node only."""
        for events in self._by_node.values():
            yield from events

    def _greediest(self) -> str:
        """Who has most; of several, the one that came first."""
        return max(self._by_node, key=lambda node: len(self._by_node[node]))

    def _drop_oldest(self, node: str) -> None:
        events = self._by_node[node]
        events.popleft()
        self._count -= 1
        if not events:
            del self._by_node[node]


class Bus:
    """Hands events on. `on_failure(subscriber, failures, error)` hears of subscribers that raise."""

    def __init__(self, *, recent: int = RECENT_EVENTS, on_failure: FailureReport | None = None) -> None:
        self._subscribers: dict[object, tuple[str, Subscriber]] = {}
        self._failures: dict[str, int] = {}
        self._critical = FairRing(recent)
        self._refusals = FairRing(recent)
        self._others = FairRing(recent)
        self._followers: set[Follower] = set()
        self._on_failure = on_failure or _log_failure
        self._last_id = 0

    @property
    def last_id(self) -> int:
        """The id of the newest event; 0 before the first."""
        return self._last_id

    def publish(self, event: SecurityEvent) -> int:
        """Gives `event` to every subscriber, in the order in which they came, and returns its id. Never
        raises."""
        self._last_id += 1
        published = Published(self._last_id, event)
        self._ring(event).append(published)
        for name, subscriber in tuple(self._subscribers.values()):
            try:
                subscriber(event)
            except Exception as error:
                # Metrics that fail must not keep the event from the log, nor stop the node's supervision.
                self._report(name, error)
        for follower in tuple(self._followers):
            follower._offer(published)
        return self._last_id

    def subscribe(self, subscriber: Subscriber, name: str | None = None) -> Callable[[], None]:
        """Calls `subscriber` with each event from now on; what is returned ends that. `name` is for
        reports."""
        token = object()
        known_as = name or str(getattr(subscriber, "__qualname__", repr(subscriber)))
        self._subscribers[token] = (known_as, subscriber)

        def unsubscribe() -> None:
            self._subscribers.pop(token, None)

        return unsubscribe

    def recent(self, *, since: float = 0.0, after: int = 0, limit: int | None = None) -> list[Published]:
        """The events that are still kept, oldest first: at or after `since` (Unix seconds), with an id above
        `after`, and of these the newest `limit`."""
        kept = [
            published
            for published in chain(self._critical, self._refusals, self._others)
            if published.id > after and published.event.time >= since
        ]
        kept.sort(key=lambda published: published.id)
        return kept if limit is None else kept[max(0, len(kept) - limit) :]

    def follow(self, *, limit: int = FOLLOWER_EVENTS) -> Follower:
        """All events from now on, as an asynchronous iterator that is also a context manager. It never slows
        `publish`: whoever reads too slowly loses the oldest waiting events, and `take_dropped` says how
        many."""
        follower = Follower(self, limit)
        self._followers.add(follower)
        return follower

    def close(self) -> None:
        """Ends all followers once they have read what waits for them."""
        for follower in tuple(self._followers):
            follower.close()

    def _ring(self, event: SecurityEvent) -> FairRing:
        if event.severity >= Severity.CRITICAL:
            return self._critical
        return self._refusals if event.is_refusal else self._others

    def _report(self, name: str, error: Exception) -> None:
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        if failures % REPORT_EVERY == 1:
            try:
                self._on_failure(name, failures, error)
            except Exception as second:  # a report that fails has nowhere left to be reported but here
                _log_failure(name, failures, second)


class Follower:
    """One reader of the bus. Iterate it in one task only."""

    def __init__(self, bus: Bus, limit: int) -> None:
        self._bus = bus
        self._waiting: deque[Published] = deque(maxlen=limit)
        self._changed = asyncio.Event()
        self._dropped = 0
        self._closed = False

    def take_dropped(self) -> int:
        """How many events were lost since this was last asked."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def close(self) -> None:
        """Stops following; the iteration ends after what still waits."""
        self._closed = True
        self._bus._followers.discard(self)
        self._changed.set()

    def _offer(self, published: Published) -> None:
        self._dropped += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(published)
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Published:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def waiting(self) -> Iterator[Published]:
        """Takes what is there already, without waiting: for writing many events at once."""
        while self._waiting:
            yield self._waiting.popleft()


def _log_failure(name: str, failures: int, error: Exception) -> None:
    logging.getLogger("distsec.bus").error(
        "subscriber %s failed (%d times so far)", name, failures, exc_info=error
    )
