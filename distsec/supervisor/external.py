"""The process of a node, as an interface, and the VM that something else started: it is watched and guarded,
and is nobody's child here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Protocol

from distsec.beam import proc, session
from distsec.beam.node import Exit
from distsec.errors import RuntimeMissing
from distsec.pki.account import acting_as


class Process(Protocol):
    """One process of a node and all below it; see beam.node.NodeProcess."""

    pid: int
    start_time: int

    async def wait(self) -> Exit: ...
    def contains(self, pid: int) -> bool: ...
    def listeners(self) -> list[proc.Listener]: ...
    def signal_group(self, number: signal.Signals) -> bool: ...
    async def abandon(self) -> None: ...


class ExternalProcess:
    """Watched by pidfd, signalled alone, never as a group: what else is in its session is not known."""

    def __init__(self, pid: int, start_time: int | None = None) -> None:
        """`start_time`: which process with that number is meant; None: whoever has it now. Raises
        RuntimeMissing when it is gone already.
        """
        started = proc.start_time(pid) if start_time is None else start_time
        handle = session.open_handle(session.Member(pid, started)) if started is not None else None
        if started is None or handle is None:
            raise RuntimeMissing(f"process {pid} is gone")
        self.pid = pid
        self.start_time = started
        self._handle = handle
        self._exited = asyncio.Event()
        asyncio.get_running_loop().add_reader(handle, self.close)

    async def wait(self) -> Exit:
        await self._exited.wait()
        return Exit()

    def contains(self, pid: int) -> bool:
        """Whether `pid` is the VM, or below it."""
        return proc.same_process(self.pid, self.start_time) and proc.descends_from(pid, self.pid)

    def listeners(self) -> list[proc.Listener]:
        processes = proc.tree(self.pid)
        with acting_as(proc.account(self.pid)):
            return proc.listening(processes)

    def signal_group(self, number: signal.Signals) -> bool:
        if self._exited.is_set():
            return False
        try:
            signal.pidfd_send_signal(self._handle, number)
        except ProcessLookupError:
            return False
        return True

    async def abandon(self) -> None:
        self.close()

    def close(self) -> None:
        """It has exited, or is watched no more. May be called twice."""
        if not self._exited.is_set():
            self._exited.set()
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
