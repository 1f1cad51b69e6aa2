"""The file descriptors of the process that runs the tests."""

from __future__ import annotations

import gc
from pathlib import Path


def open_descriptors() -> int:
    """How many are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def closed_what_is_left() -> int:
    """How many are open, and no fewer later by themselves: what an earlier test has left to the garbage
    collector (a transport of a loop that is closed) is closed now, and not while this one counts.
    """
    gc.collect()
    return open_descriptors()
