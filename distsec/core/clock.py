"""What time it is where the wall clock may have been set: it against a clock that nobody can set. Pure.

The same comparison is made in the nodes (erlang/src/distsec_clock.erl), which judge by it what has expired
(docs/adr/0011-clock-steps.md). The orchestrator tells of steps, and stamps policies with the time that it
believes: the nodes never go back behind that of a policy, so a clock that is a day ahead for an hour must not
be what they are stamped with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from distsec.model.events import ClockShift, EventType, SecurityEvent, Severity

STEP_SECONDS: Final = 60.0
"""Less from one look to the next is a clock that is set right now and then. As in distsec_clock."""

BELIEVED_AFTER_SECONDS: Final = 600.0
"""For so long a clock that was set ahead has to say so. As in distsec_clock."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Both at one moment, in seconds: `wall` is Unix time, `steady` runs on while the machine sleeps."""

    wall: float
    steady: float

    @property
    def offset(self) -> float:
        return self.wall - self.steady


@dataclass(frozen=True, slots=True)
class Belief:
    """What is remembered from look to look. `offset`: Unix time minus steady time as it was last believed."""

    offset: float
    seen: Clocks
    ahead_since: float | None = None
    """The steady time since which the wall clock has been far ahead of what is believed."""

    @classmethod
    def beginning(cls, clocks: Clocks) -> Belief:
        """What the wall clock says at first is believed: there is nothing to hold against it."""
        return cls(clocks.offset, clocks)

    def time(self, steady: float) -> float:
        """Unix seconds, in which no step of the wall clock is."""
        return self.offset + steady

    def look(self, now: Clocks) -> tuple[float, Belief]:
        """By how many seconds the wall clock was set ahead since the last look (below 0: back; 0: it was
        not), and what is believed now. Small differences are followed, but not backwards.
        """
        shift = now.offset - self.seen.offset
        stepped = shift if abs(shift) > STEP_SECONDS else 0.0
        ahead = now.offset - self.offset
        later = replace(self, seen=now)
        if ahead <= 0:
            return stepped, replace(later, ahead_since=None)
        if ahead <= STEP_SECONDS:
            return stepped, replace(later, offset=now.offset, ahead_since=None)
        if self.ahead_since is None or stepped:  # another step begins the wait anew
            return stepped, replace(later, ahead_since=now.steady)
        if now.steady - self.ahead_since >= BELIEVED_AFTER_SECONDS:
            return stepped, replace(later, offset=now.offset, ahead_since=None)
        return stepped, later


def clock_stepped(node: str, shift: ClockShift, seconds: int, now: float) -> SecurityEvent:
    """That `node` ("" for the orchestrator) found its wall clock set ahead or back by so many seconds."""
    return SecurityEvent(
        EventType.CLOCK_STEPPED,
        Severity.WARNING,
        node,
        now,
        reason=shift,
        detail=f"the clock was set {shift} by {seconds} s: {_CONSEQUENCES[shift]}",
        seconds=seconds,
    )


_CONSEQUENCES: Final = {
    ClockShift.AHEAD: "what has expired by it is refused for as long as it says so",
    ClockShift.BACK: "what had expired stays expired, and what is not yet valid by it is refused",
}
