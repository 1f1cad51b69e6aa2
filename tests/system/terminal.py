"""A command on a terminal of its own (pty), as a person sits at it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from tests.waiting import POLL_SECONDS, OutOfTime

SECONDS = 60.0
_never = threading.Event()


class Terminal:
    """`size` is (rows, columns); (0, 0): one that does not know its size, as under `docker exec`.

    `deaf`: started by `nohup`, so that the end of its terminal is for it the end of its input.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: str = "/",
        size: tuple[int, int] = (24, 80),
        deaf: bool = False,
    ) -> None:
        self.output = b""
        self._seen = 0
        self._code: int | None = None
        master, self._slave = pty.openpty()
        self._master = master
        self.resize(*size)
        self._settings = termios.tcgetattr(self._slave)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # What began these tests (nohup, a shell's `&`) may have had them ignored, by all below it.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGQUIT, signal.SIG_DFL)
                signal.signal(signal.SIGHUP, signal.SIG_IGN if deaf else signal.SIG_DFL)
                os.setsid()
                fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)
                for descriptor in (0, 1, 2):
                    os.dup2(self._slave, descriptor)
                os.closerange(3, 256)
                os.chdir(directory)
                os.execve(command[0], list(command), dict(environment))
            finally:
                os._exit(127)

    def resize(self, rows: int, columns: int) -> None:
        """The window has another size; its foreground process is told (SIGWINCH)."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self, text: str, seconds: float = SECONDS) -> None:
        """Waits until `text` is shown behind what was waited for before."""
        deadline = time.monotonic() + seconds
        while (at := self.output.find(text.encode(), self._seen)) < 0:
            if not self._read(deadline):
                late = time.monotonic() >= deadline
                raise (OutOfTime if late else AssertionError)(f"waited for {text!r}; shown:\n{self.text}")
        self._seen = at + len(text.encode())

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """The window is closed."""
        os.close(self._slave)
        os.close(self._master)
        self._master = self._slave = -1

    def exit_code(self, seconds: float = SECONDS) -> int:
        """Waits for its end; negative: the signal that ended it."""
        deadline = time.monotonic() + seconds
        while self._code is None:
            late = time.monotonic() >= deadline
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif late:
                raise OutOfTime(f"it has not ended; shown:\n{self.text}")
            elif self._master < 0 or not self._read(min(deadline, time.monotonic() + 0.1)):
                _never.wait(POLL_SECONDS)
        while self._master >= 0 and self._read(time.monotonic()):
            pass
        return self._code

    @property
    def device(self) -> int:
        """Its number, by which it is told from others (st_rdev)."""
        return os.fstat(self._slave).st_rdev

    @property
    def name(self) -> str:
        """/dev/pts/N"""
        return os.ttyname(self._slave)

    @property
    def as_before(self) -> bool:
        """Whether the terminal's settings are those from before the command."""
        return termios.tcgetattr(self._slave) == self._settings

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        with contextlib.suppress(OSError):
            self.output += os.read(self._master, 65536)
            return True
        return False

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for descriptor in (self._master, self._slave):
            if descriptor >= 0:
                os.close(descriptor)
