"""For how long a connected agent has been silent, while the orchestrator itself was there to hear it. Pure.

An agent says something every second. One that does not is in a VM that is stopped, or as good as: its
connection stays open for as long as the kernel keeps it, and would look well forever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SILENT_SECONDS = 5.0
"""An agent that is silent for this long is taken for lost."""

LONGEST_TICK_SECONDS = 1.5
"""What one tick adds at most. Where the orchestrator itself was stopped or suspended, the clock has gone on
and what the agents said is still to be read; that is nobody's silence."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Of one agent. `heard_at`, `ticked_at`: of the last message and the last tick, seconds of one clock."""

    seconds: float = 0.0
    heard_at: float = 0.0
    ticked_at: float = 0.0

    @property
    def lost(self) -> bool:
        return self.seconds >= SILENT_SECONDS

    def heard(self, now: float) -> Silence:
        """It has said something."""
        return replace(self, seconds=0.0, heard_at=now)

    def tick(self, now: float, *, connected: bool) -> Silence:
        """Once a second or so. An agent that is not connected is not silent."""
        passed = min(now - max(self.heard_at, self.ticked_at), LONGEST_TICK_SECONDS)
        return replace(self, seconds=self.seconds + passed if connected else 0.0, ticked_at=now)
