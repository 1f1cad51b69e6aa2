"""Whether others had the machine while something was measured: then it is measured again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.clusters import HZ, busy_seconds

MOST_OF_OTHERS = 0.1
"""Of all CPUs. What needs both of them loses about that much, and what needs one nothing."""


class Calm:
    """Looks at the time from one call of `was_calm` to the next. Ours are this process and all below it."""

    def __init__(self) -> None:
        self._processors = os.cpu_count() or 1
        self._ours = list(descendants(os.getpid()))
        self._before = self._now()

    def was_calm(self) -> bool:
        """Whether others used less than MOST_OF_OTHERS since the last call, or since the beginning."""
        before, self._before = self._before, self._now()
        elapsed, machine, ours = (now - then for now, then in zip(self._before, before, strict=True))
        return machine - ours < MOST_OF_OTHERS * self._processors * elapsed

    def _now(self) -> tuple[float, float, float]:
        return time.monotonic(), _machine_seconds(), sum(map(_seconds, self._ours))


def _machine_seconds() -> float:
    """CPU seconds that were not idle (proc(5), /proc/stat: user, nice, system; irq, softirq, steal)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / HZ


def _seconds(pid: int) -> float:
    try:
        return busy_seconds(pid)
    except OSError:
        return 0.0  # it has ended


def descendants(pid: int) -> Iterator[int]:
    """The process, what it started, and so on; whatever their sessions are."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from descendants(int(child))
