"""Which fault begins when: made by a seed, one round after the other. Pure: no clock, no I/O.

    plan(7, 3, ("n1", "n2", "n3"))      the third round of seed 7, the same whenever it is asked for

A round has a window in which faults begin and end, and then quiet. Each has one grave fault, of which every
kind has its turn, some more at random moments, and in the last seconds one that breaks the mesh; several may
be under way at the same time. What would make a fault meaningless is left out: two spans of one kind at once,
an orchestrator that is killed while it is stopped, a node that dies so often within a round that its back-off
alone takes longer than a round may.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from random import Random
from typing import Any

WINDOW_SECONDS = 38.0
"""Of a round: in it every fault begins and ends."""

STOP_ORCHESTRATOR_SECONDS = 30.0

MOST_DEATHS = 2
"""Of one node within a round: the back-off doubles with each."""

MINOR_FAULTS = (3, 6)


class Kind(StrEnum):
    KILL_NODE = "kill node"  # SIGKILL
    KILL_ORCHESTRATOR = "kill orchestrator"  # SIGKILL; started again at once
    RESTART_ORCHESTRATOR = "restart orchestrator"  # SIGTERM; started again at once
    STOP_ORCHESTRATOR = "stop orchestrator"  # SIGSTOP … SIGCONT
    STOP_NODE = "stop node"  # SIGSTOP … SIGCONT, for less or more than net_ticktime
    CUT_AGENT = "cut agent"  # an agent's connection, shut from outside
    CUT_LINK = "cut link"  # a link between two nodes, shut from outside
    FULL_DISK = "full disk"  # of the state directory … room again
    RENEW = "renew certificates"
    ROTATE_CA = "rotate CA"  # the next phase, or back
    ROTATE_COOKIE = "rotate cookies"
    DENY = "deny"  # … allow
    RELOAD = "reload"  # another configuration, and SIGHUP


GRAVE = (
    Kind.STOP_ORCHESTRATOR,
    Kind.KILL_ORCHESTRATOR,
    Kind.FULL_DISK,
    Kind.DENY,
    Kind.ROTATE_CA,
    Kind.STOP_NODE,
)
"""One of these in each round, all of them within so many rounds."""

MINOR = {
    Kind.KILL_NODE: 5,
    Kind.KILL_ORCHESTRATOR: 2,
    Kind.RESTART_ORCHESTRATOR: 1,
    Kind.STOP_NODE: 2,
    Kind.CUT_AGENT: 3,
    Kind.CUT_LINK: 3,
    Kind.RENEW: 2,
    Kind.ROTATE_CA: 2,
    Kind.ROTATE_COOKIE: 2,
    Kind.DENY: 1,
    Kind.RELOAD: 2,
}
"""How often, in proportion."""

LAST = {Kind.KILL_NODE: 3, Kind.CUT_LINK: 1, Kind.STOP_NODE: 1}
"""One of these ends a round, so that the mesh always has something to mend."""

LAST_SECONDS = 3.0

_SECONDS = {
    Kind.STOP_ORCHESTRATOR: (STOP_ORCHESTRATOR_SECONDS, STOP_ORCHESTRATOR_SECONDS),
    Kind.FULL_DISK: (4.0, 9.0),
    Kind.DENY: (3.0, 9.0),
}
"""How long a fault lasts, at least and at most; others are over at once, and see _STOPPED_SECONDS."""

_STOPPED_SECONDS = ((0.5, 2.5), (7.0, 14.0))
"""Of a node: below net_ticktime (4 s in this cluster), and well above."""

_OF_ORCHESTRATOR = frozenset({Kind.KILL_ORCHESTRATOR, Kind.RESTART_ORCHESTRATOR, Kind.STOP_ORCHESTRATOR})
_OF_NODE = frozenset({Kind.KILL_NODE, Kind.STOP_NODE, Kind.CUT_AGENT, Kind.CUT_LINK, Kind.RENEW, Kind.DENY})

ONCE_A_ROUND = frozenset(
    {Kind.STOP_ORCHESTRATOR, Kind.FULL_DISK, Kind.DENY, Kind.ROTATE_COOKIE, Kind.ROTATE_CA}
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`at`: seconds after the round began; `seconds`: how long it lasts, 0 for what is over at once.
    `target`: a node; `how`: which of several ways."""

    at: float
    kind: Kind
    target: str = ""
    seconds: float = 0.0
    how: str = ""

    @property
    def end(self) -> float:
        return self.at + self.seconds

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        rest = " ".join(filter(None, (self.target, self.how)))
        return f"{self.at:5.1f} s  {self.kind}{' ' + rest if rest else ''}{lasting}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A round: its faults in the order in which they begin."""

    seed: int
    number: int
    faults: tuple[Fault, ...]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"seed": self.seed, "round": self.number, "faults": [asdict(fault) for fault in self.faults]}


def plan(
    seed: int,
    number: int,
    nodes: Sequence[str],
    *,
    without: Collection[Kind] = (),
    window_seconds: float = WINDOW_SECONDS,
) -> Plan:
    """Round `number`, from 1. `without`: kinds that cannot be had here (a full disk, without a mount).

    Depends on its arguments alone. Raises ValueError for fewer than two nodes.
    """
    if len(nodes) < 2:
        raise ValueError("chaos takes at least two nodes")
    draw = Random(f"{seed} {number}")
    faults: list[Fault] = []
    if _orchestrator_lives(number):
        without = {*without, Kind.KILL_ORCHESTRATOR, Kind.RESTART_ORCHESTRATOR}
    grave = _grave(seed, number, without)
    if grave is not None:
        _add(faults, grave, draw, nodes, window_seconds, MOST_TRIES)
    kinds = [kind for kind in MINOR if kind not in without]
    for _ in range(draw.randint(*MINOR_FAULTS)):
        kind = draw.choices(kinds, [MINOR[kind] for kind in kinds])[0]
        _add(faults, kind, draw, nodes, window_seconds, 8)
    if last := [kind for kind in LAST if kind not in without]:
        kind = draw.choices(last, [LAST[each] for each in last])[0]
        _add(faults, kind, draw, nodes, window_seconds, MOST_TRIES, ends_after=window_seconds - LAST_SECONDS)
    return Plan(seed, number, tuple(sorted(faults, key=lambda fault: (fault.at, fault.kind, fault.target))))


MOST_TRIES = 100


def _orchestrator_lives(number: int) -> bool:
    """In every other cycle, so that what it leaks has the time to show."""
    return (number - 1) // len(GRAVE) % 2 == 1


def _grave(seed: int, number: int, without: Collection[Kind]) -> Kind | None:
    """Of each cycle of rounds a deck that is shuffled anew. None: the one whose turn it is cannot be had."""
    cycle, place = divmod(number - 1, len(GRAVE))
    deck = list(GRAVE)
    Random(f"{seed} deck {cycle}").shuffle(deck)
    return None if deck[place] in without else deck[place]


def _add(
    faults: list[Fault],
    kind: Kind,
    draw: Random,
    nodes: Sequence[str],
    window_seconds: float,
    tries: int,
    ends_after: float = 0.0,
) -> None:
    """Adds one of that kind, where one fits beside the others."""
    for _ in range(tries):
        fault = _one(kind, draw, nodes, window_seconds)
        if ends_after and fault.end < ends_after:
            late = round(draw.uniform(ends_after, window_seconds), 1)
            fault = replace(fault, at=round(max(0.5, late - fault.seconds), 1))
        if fits(fault, faults, window_seconds):
            faults.append(fault)
            return


def _one(kind: Kind, draw: Random, nodes: Sequence[str], window_seconds: float) -> Fault:
    least, most = _SECONDS.get(kind, (0.0, 0.0))
    if kind is Kind.STOP_NODE:
        least, most = draw.choice(_STOPPED_SECONDS)
    seconds = round(draw.uniform(least, most), 1)
    at = round(draw.uniform(0.5, max(1.0, window_seconds - seconds)), 1)
    how = ""
    target = draw.choice(list(nodes)) if kind in _OF_NODE else ""
    if kind is Kind.CUT_AGENT:
        how = draw.choice(("at the orchestrator", "at the node"))
    elif kind is Kind.ROTATE_CA:
        how = draw.choices(("forward", "back"), (5, 1))[0]
    elif kind is Kind.RENEW and draw.random() < 0.5:
        target = ""  # all of them
    return Fault(at, kind, target, seconds, how)


def fits(fault: Fault, others: Sequence[Fault], window_seconds: float = WINDOW_SECONDS) -> bool:
    """Whether it means anything beside the others. See the module."""
    if fault.end > window_seconds:
        return False
    same = [other for other in others if other.kind is fault.kind]
    if fault.kind in ONCE_A_ROUND and same:
        return False
    if fault.kind is Kind.KILL_NODE:
        deaths = sum(other.target == fault.target for other in same)
        if deaths >= MOST_DEATHS:
            return False
    if fault.kind is Kind.STOP_NODE and any(
        other.target == fault.target and _overlap(fault, other) for other in same
    ):
        return False
    return not any(
        Kind.STOP_ORCHESTRATOR in {fault.kind, other.kind} and _overlap(fault, other)
        for other in others
        if {fault.kind, other.kind} <= _OF_ORCHESTRATOR
    )


def _overlap(one: Fault, other: Fault) -> bool:
    return one.at <= other.end and other.at <= one.end
