"""How long the cluster's own processes could have run and did not: what a deadline may be stretched by.

The mesh has to be whole within WHOLE_SECONDS of the last fault. That is a promise about this software, and a
machine on which four test processes want two cores is not its fault. So what is measured is
the kernel's own count of the time that threads of this cluster waited on a run queue
(`/proc/PID/task/*/schedstat`, its second field; Documentation/scheduler/sched-stats.rst). A quiet machine
gives nothing, and nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterable
from pathlib import Path

WHOLE_SECONDS = 10.0

MOST_ALLOWED_SECONDS = 20.0
"""Beyond it a round fails whatever the machine did."""


def waited_seconds(pids: Iterable[int]) -> dict[int, float]:
    """By thread id: how long each thread of these processes has waited for a core since it began."""
    found: dict[int, float] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):  # gone meanwhile
                    found[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


def allowance(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds that the deadline may be stretched by. Threads that ended in between are not known, and count
    for nothing. Pure."""
    waited = sum(max(0.0, seconds - before.get(thread, 0.0)) for thread, seconds in after.items())
    return min(waited, MOST_ALLOWED_SECONDS)


def cpu_seconds() -> float:
    """Of all processes that this one sees: in a place of its own those that it has started, ended or not."""
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    ticks = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            used += sum(map(int, fields[11:15])) / ticks
    return used
