"""What this process, or this host, has run out of: descriptors, processes, threads, memory.

It passes, and says nothing of whoever was looked at, started or accepted when it happened. So who meets it
concludes nothing from it: it waits, and tries again.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

RETRY_SECONDS = 1.0
"""Before it is tried again what could not be done: often enough to go on soon, seldom enough not to spin."""

TOLD_EVERY_SECONDS = 60.0

_MOST_CAUSES = 8

_SHORT: Mapping[int, str] = {
    errno.EMFILE: "no file descriptor is left to this process; raise its limit (LimitNOFILE= of the unit)",
    errno.ENFILE: "no file descriptor is left on this host; raise fs.file-max",
    errno.EAGAIN: "no process or thread can be started; raise the limit (TasksMax=, LimitNPROC=, pids.max)",
    errno.ENOMEM: "no memory is left",
}
"""EAGAIN is what fork(2) and pthread_create(3) fail with; and a lock that somebody has, of which whoever
meets it says so, `from None`."""

_NO_THREAD = "can't start new thread"
"""Python's RuntimeError (Modules/_threadmodule.c, thread_PyThread_start_new_thread)."""


def shortage(error: BaseException) -> str | None:
    """What has run out, and what to do, where that is what `error` comes from; None: it is something else."""
    cause: BaseException | None = error
    understood = False
    for _ in range(_MOST_CAUSES):
        match cause:
            case None:
                return None
            case OSError(errno=errno.EAGAIN) if understood:
                return None
            case OSError(errno=int(number)) if number in _SHORT:
                return _SHORT[number]
            case RuntimeError() if _NO_THREAD in str(cause):
                return _SHORT[errno.EAGAIN]
            case MemoryError():
                return _SHORT[errno.ENOMEM]
        understood = understood or (cause.__suppress_context__ and cause.__cause__ is None)
        cause = cause.__cause__ or cause.__context__
    return None
