"""Why a node halted itself, as it wrote that down before it did."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

from distsec.beam import proc
from distsec.model.text import escape

MAX_REFUSED_BYTES = 4096


def take_refusal(path: Path, since: int | None) -> tuple[str, str] | None:
    """What `guard.refused` at `path` says: (code, text), escaped; told once. The node wrote that itself:
    nothing of it is trusted.

    `since`: when the process that is asked about began (clock ticks since boot). What is older was written by
    one before it, and is passed over for good; None takes any.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        line = file.read(MAX_REFUSED_BYTES).split(b"\n", 1)[0]
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    if since is not None and status.st_mtime < _unix_seconds(since):
        return None
    code, _, text = line.partition(b" ")
    return (escape(code, 40), escape(text.strip(), 1024)) if code else None


def _unix_seconds(ticks: int) -> float:
    """A moment in clock ticks since boot, as files are stamped."""
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / proc.CLOCK_TICKS_PER_SECOND
    return time.time() - ago
