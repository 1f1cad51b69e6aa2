"""Who is left of a node when its process has gone, and how they are ended without ever touching a reused pid.

A node's command leads a session of its own. When the leader dies, its children may live on: a wrapper's
helper, or the BEAM itself whose shell was killed. Such a rest is unguarded in the sense that nobody watches
it, and the node would run twice after a restart; so it is ended before the node counts as gone.

What belongs to a dead leader is decided on evidence, for its pid may belong to somebody else by now:

* it is in the session and the number cannot have been given away yet (`held`: our own zombie holds it), or
  it began before a moment at which the leader was known to live;
* it is in the session, or is a BEAM without a terminal that left it (`erl -detached`), and carries the
  node's `mark`: its environment names the node's own log directory (ERL_CRASH_DUMP), or its stdout or
  stderr is the node's log.

A BEAM with a terminal is an operator's shell and is left alone. Signals go through pidfds only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distsec.beam import proc
from distsec.pki.account import Account, acting_as

KILL_DEADLINE_SECONDS = 5.0
"""How long after SIGKILL a process may still be there (in the kernel, on a dead disk) before it is given
up."""

_BEAM = re.compile(r"erl|erlexec|beam(\.\w+)*")
"""What a BEAM's process is called, from the script `erl` to beam.smp (erts/etc/common/erlexec.c). Its helper
erl_child_setup is not among them: it has a session of its own and goes when its BEAM goes.
"""


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One process, by pid and start time (clock ticks since boot)."""

    pid: int
    start_time: int


def leftovers(
    leader: Member | None,
    log: Path,
    *,
    held: bool = False,
    known_alive: int | None = None,
    account: Account | None = None,
) -> list[Member]:
    """What lives of the node whose log is `log` and whose leader was `leader` (None: not known), the leader
    excluded.

    `held`: the leader's pid cannot have been reused (it is a zombie of ours). `known_alive`: clock ticks
    since boot at which the leader still lived; what began before that in its session is its.
    `account`: whom it ran as, where that is not ourselves: the mark is read as that user, so that no other
    one's process can carry it. One pass over /proc.
    """
    mark = Mark(log, account)
    reused = leader is not None and (proc.start_time(leader.pid) or leader.start_time) != leader.start_time
    found = []
    for each in proc.everything():
        if not each.alive or each.pid == os.getpid():
            continue
        inside = (
            leader is not None
            and not reused
            and each.session == leader.pid
            and each.start_time >= leader.start_time
        )
        if inside:
            before = known_alive is not None and each.start_time <= known_alive
            ours = held or before or mark.is_on(each.pid)
        else:
            ours = _BEAM.fullmatch(each.name) is not None and each.terminal == 0 and mark.is_on(each.pid)
        if ours and not (leader is not None and each.pid == leader.pid):
            found.append(Member(each.pid, each.start_time))
    return found


async def end(members: Iterable[Member], grace_seconds: float) -> list[Member]:
    """Ends processes: SIGTERM (and SIGCONT, for one that is stopped), `grace_seconds`, SIGKILL.

    Returns those that are still there after all that, or that may not be signalled. Nothing is sent to a
    pid whose start time differs.
    """
    handles: list[tuple[Member, int]] = []
    try:
        for member in members:
            if (handle := open_handle(member)) is not None:
                handles.append((member, handle))  # noqa: PERF401  each must be in the list when the next one raises
        for number in (signal.SIGTERM, signal.SIGCONT):
            for _, handle in handles:
                _send(handle, number)
        await _all_gone([handle for _, handle in handles], grace_seconds)
        for _, handle in handles:
            _send(handle, signal.SIGKILL)
        await _all_gone([handle for _, handle in handles], KILL_DEADLINE_SECONDS)
    finally:
        for _, handle in handles:
            os.close(handle)
    return [member for member, _ in handles if lives(member)]


def open_handle(member: Member) -> int | None:
    """A pidfd of exactly that process, or None when it is gone. The caller closes it.

    The handle first, the start time second: if the pid has the right start time now, it had it when it was
    opened.
    """
    try:
        handle = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return None
    if proc.same_process(member.pid, member.start_time):
        return handle
    os.close(handle)
    return None


def lives(member: Member) -> bool:
    """Whether that process can still run code."""
    found = proc.stat(member.pid)
    return found is not None and found.start_time == member.start_time and found.alive


def ticks_now() -> int:
    """The clock of `proc.start_time`: ticks since boot, suspended time included (CLOCK_BOOTTIME)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * proc.CLOCK_TICKS_PER_SECOND)


class Mark:
    """Whether a process was started as part of the node that owns this log."""

    def __init__(self, log: Path, account: Account | None = None) -> None:
        self._account = account
        # With the separator, so that the directory of `a` is none of `a-2`.
        self._directory = os.fsencode(log.parent) + b"/"
        try:
            found = log.lstat()
            self._file: tuple[int, int] | None = (found.st_dev, found.st_ino)
        except OSError:
            self._file = None

    def is_on(self, pid: int) -> bool:
        with acting_as(self._account):
            started = proc.environment_holds(pid, b"ERL_CRASH_DUMP=" + self._directory)
            return started or self._writes_to_log(pid)

    def _writes_to_log(self, pid: int) -> bool:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):
                found = Path(f"/proc/{pid}/fd/{descriptor}").stat()
                if (found.st_dev, found.st_ino) == self._file:
                    return True
        return False


def _send(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(handle, number)


async def _all_gone(handles: list[int], deadline_seconds: float) -> None:
    """Waits until every pidfd is readable (its process has exited), at most that long."""
    loop = asyncio.get_running_loop()
    waiting = {handle: loop.create_future() for handle in handles}

    def gone(handle: int) -> None:
        loop.remove_reader(handle)
        if not waiting[handle].done():
            waiting[handle].set_result(None)

    try:
        for handle in waiting:
            loop.add_reader(handle, gone, handle)
        if waiting:
            await asyncio.wait(waiting.values(), timeout=deadline_seconds)
    finally:
        for handle in waiting:
            loop.remove_reader(handle)
