"""Whom a compromised node may have reached: earliest times of taint along contacts that respect time.

A link is remote code execution both ways, so whoever was linked with a tainted node *while or after* it was
tainted is tainted from then on. Pure. Times are Unix seconds; `core.contacts` keeps who was linked with whom.

What is asked for errs on one side only: a pair has one interval, from when it was first linked to when it was
last, and gaps in it count as linked; two links that touch in the same second count as overlapping. So nobody
is left out whom a finer record would name (tests/unit/test_taint.py holds it to a search over all paths).
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

EVERYBODY = "*"
"""In place of a peer: that node's contacts are too many to tell apart, or their record was lost."""


@dataclass(frozen=True, slots=True)
class Contact:
    """`one` and `other` were linked at some time in [first, last]; `last` None: they may be still."""

    one: str
    other: str
    first: int
    last: int | None = None


def spread(
    contacts: Iterable[Contact], sources: Set[str], since: float = 0, everybody: Set[str] = frozenset()
) -> Mapping[str, float]:
    """Name → the earliest time from which it may be tainted, if `sources` are from `since` on.

    `everybody`: the names that EVERYBODY stands for. The sources are among the result.
    """
    meetings: defaultdict[str, list[tuple[str, int, float]]] = defaultdict(list)
    for contact in contacts:
        last = math.inf if contact.last is None else contact.last
        for one, other in _pairs(contact, everybody):
            meetings[one].append((other, contact.first, last))
            meetings[other].append((one, contact.first, last))
    # Dijkstra's algorithm: a path's "length" is the time at which it arrives, which never falls along it.
    tainted: dict[str, float] = {}
    reached = [(since, source) for source in sources]
    heapq.heapify(reached)
    while reached:
        time, name = heapq.heappop(reached)
        if name in tainted:
            continue
        tainted[name] = time
        for other, first, last in meetings[name]:
            if time <= last and other not in tainted:
                heapq.heappush(reached, (max(time, first), other))
    return tainted


def _pairs(contact: Contact, everybody: Set[str]) -> Iterable[tuple[str, str]]:
    if EVERYBODY not in (contact.one, contact.other):
        return [(contact.one, contact.other)]
    known = contact.other if contact.one == EVERYBODY else contact.one
    return [(known, other) for other in everybody if other != known]
