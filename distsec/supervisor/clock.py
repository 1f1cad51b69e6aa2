"""The clocks of this host as the orchestrator finds them: tells of steps, and says what time to go by."""

from __future__ import annotations

import time
from collections.abc import Callable

from distsec.core.clock import Belief, Clocks, clock_stepped
from distsec.model.events import ClockShift
from distsec.observe.bus import Bus


def read_clocks() -> Clocks:
    """This host's. CLOCK_BOOTTIME (clock_gettime(2)) runs on in suspend: to sleep is no step."""
    return Clocks(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))


class ClockWatch:
    """Looks at both clocks at each tick, and publishes ClockStepped where the wall clock was set since."""

    def __init__(self, bus: Bus, read: Callable[[], Clocks] = read_clocks) -> None:
        self._bus = bus
        self._read = read
        self._belief = Belief.beginning(read())

    def read(self) -> Clocks:
        """Both clocks as they are."""
        return self._read()

    def believed(self) -> float:
        """Unix seconds, without a step of the wall clock that may be undone (see core.clock)."""
        return self._belief.time(self._read().steady)

    def tick(self) -> None:
        now = self._read()
        stepped, self._belief = self._belief.look(now)
        if stepped:
            shift = ClockShift.AHEAD if stepped > 0 else ClockShift.BACK
            self._bus.publish(clock_stepped("", shift, round(abs(stepped)), now.wall))
