"""Looks for flags that take the guard out of force: before a node is started, and while it boots.

`flags` judges; this reads. Before the start there are the command, its environment and the files that they
name. A wrapper, a release's vm.args or a variable that a script sets show only in the arguments of the
emulator, between its exec and its first listener, some 100 ms later: so a node that boots is looked at again
and again until its agent says hello. The guard in the node stops most of these by itself (`distsec_guard`);
what it cannot stop is what ends OTP's start before it runs, or leaves it out.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from distsec.beam import proc, session
from distsec.beam.flags import ForbiddenFlag, find_forbidden, find_forbidden_in_vm

LOOK_SECONDS = 0.03
"""Between two looks. No BEAM comes to listen within three times this after its exec (measured: 150 ms)."""

_ORPHANS_EVERY_LOOKS = 10
"""Who has lost his parent is found by a pass over all of /proc only, which costs 20 µs a process."""

_MAX_FILE_BYTES = 1 << 20
_EMULATOR = re.compile(r"beam(\.\w+)*")
"""The base name of argv[0]: beam.smp, and beam.debug.smp and others (erts/etc/common/erlexec.c)."""


def find_before_start(
    node: str, command: Sequence[str], environment: Mapping[str, str], directory: Path
) -> ForbiddenFlag | None:
    """The first such flag in the command, its environment, or the files that they name. Blocks (reads files).

    `directory`: where the command starts, which its relative names are seen from.
    """
    return find_forbidden(node, command, environment, lambda name: _read(directory / name))


class BootWatch:
    """The emulators below one process that was started for a node. Belongs to one thread at a time.

    `generated`: the words that distsec itself gives (aflags.flag_words).
    """

    def __init__(self, node: str, leader: int, generated: Sequence[str]) -> None:
        self._node = node
        self._leader = leader
        self._generated = tuple(generated)
        self._looks = 0
        self._judged: set[tuple[session.Member, tuple[str, ...]]] = set()
        self._condemned: list[session.Member] = []

    def look(self) -> ForbiddenFlag | None:
        """The first such flag of an emulator that is there now. Blocks for a few reads of /proc."""
        for member, argv in self._emulators():
            if (member, argv) in self._judged:
                continue
            self._judged.add((member, argv))
            found = find_forbidden_in_vm(self._node, self._generated, argv)
            if found is not None:
                self._condemned.append(member)
                return found
        return None

    def end(self) -> None:
        """KILLs the emulators that `look` found something of, also where they left the process group."""
        for member in self._condemned:
            if (handle := session.open_handle(member)) is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)

    def _emulators(self) -> Iterator[tuple[session.Member, tuple[str, ...]]]:
        self._looks += 1
        pending = [self._leader]
        if self._looks % _ORPHANS_EVERY_LOOKS == 0:
            pending.extend(self._orphans())
        seen = set(pending)
        while pending:
            pid = pending.pop()
            started = proc.start_time(pid)
            argv = proc.arguments(pid)
            if started is None:
                continue
            if argv and _EMULATOR.fullmatch(argv[0].rpartition("/")[2]):
                yield session.Member(pid, started), argv  # what it starts itself is the application's own
                continue
            fresh = [child for child in proc.children(pid) if child not in seen]
            seen.update(fresh)
            pending.extend(fresh)

    def _orphans(self) -> list[int]:
        """Those of the session whose parent has gone; an emulator's children have sessions of their own."""
        members = {each.pid: each.parent for each in proc.session_members(self._leader)}
        return [pid for pid, parent in members.items() if parent not in members and pid != self._leader]


def _read(path: Path) -> bytes | None:
    """At most 1 MiB of a regular file; None for anything else. A FIFO does not hold this up."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)
