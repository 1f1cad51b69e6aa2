"""Counters that stay exact over restarts of a node and over dropped events. Pure.

Two sources tell of the same happenings: the events that arrive one by one, at once but perhaps not all of
them; and the heartbeat's cumulative counts, which are exact but a second late and start at 0 with every
launch of the VM. What is shown of a key is

    base + max(counted from events, told by the heartbeat)

where `base` is the sum of what the launches before have come to. It never decreases, whatever a node claims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

MAX_COUNT = 2**53
"""The largest integer that Prometheus' floats hold exactly; a node that claims more is held to this."""


class LaunchCounter(Generic[Key]):
    """Counts per key, of the launches of one node. Callers hold the number of keys bounded."""

    def __init__(self, zeros: Iterable[Key] = ()) -> None:
        self._base: Counter[Key] = Counter(dict.fromkeys(zeros, 0))
        self._counted: Counter[Key] = Counter()
        self._told: Counter[Key] = Counter()

    def begin_launch(self) -> None:
        """A new VM counts from 0: what the last one came to is added to the base."""
        for key in self._counted.keys() | self._told.keys():
            self._base[key] += max(self._counted[key], self._told[key])
        self._counted.clear()
        self._told.clear()

    def count(self, key: Key, amount: int = 1) -> None:
        """`amount` of `key` arrived as events."""
        self._counted[key] += amount

    def tell(self, key: Key, total: int) -> None:
        """The node says that there were `total` since it was launched. Less than it said before is not
        believed."""
        self._told[key] = max(self._told[key], min(int(total), MAX_COUNT))

    def __getitem__(self, key: Key) -> int:
        return self._base[key] + max(self._counted[key], self._told[key])

    def items(self) -> Iterator[tuple[Key, int]]:
        """Each key that was ever counted, or was given as a zero, with what is shown of it."""
        for key in {**self._base, **self._counted, **self._told}:
            yield key, self[key]
