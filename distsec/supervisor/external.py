"""The process of a node that something else starts: it is watched and guarded, and is nobody's child here."""

from __future__ import annotations

import asyncio
import os
import signal

from distsec.beam import proc, session
from distsec.beam.node import Exit
from distsec.errors import RuntimeMissing


class ExternalProcess:
    """A VM that something else started: watched by pidfd, signalled alone, never as a group."""

    def __init__(self, pid: int) -> None:
        """Raises RuntimeMissing when it is gone already."""
        started = proc.start_time(pid)
        handle = session.open_handle(session.Member(pid, started)) if started is not None else None
        if started is None or handle is None:
            raise RuntimeMissing(f"process {pid} is gone")
        self.pid = pid
        self.start_time = started
        self._handle = handle
        self._exited = asyncio.Event()
        asyncio.get_running_loop().add_reader(handle, self._gone)

    async def wait(self) -> Exit:
        await self._exited.wait()
        return Exit()

    def contains(self, pid: int) -> bool:
        """Whether `pid` is the VM, or below it."""
        return proc.same_process(self.pid, self.start_time) and proc.descends_from(pid, self.pid)

    def listeners(self) -> list[proc.Listener]:
        return proc.listening(proc.tree(self.pid))

    def signal_group(self, number: signal.Signals) -> bool:
        if self._exited.is_set():
            return False
        try:
            signal.pidfd_send_signal(self._handle, number)
        except ProcessLookupError:
            return False
        return True

    async def abandon(self) -> None:
        self._gone()

    def _gone(self) -> None:
        if not self._exited.is_set():
            self._exited.set()
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
