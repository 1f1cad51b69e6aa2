"""The terminal that an operator sits at, as the relay has it (`cli.relay`): found, set and set back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from typing import Any, Final

from distsec.errors import CommandFailed

_SIZE_BYTES: Final = 8  # struct winsize
_TIOCGDEV: Final = (0x8004_5432, 0x4004_5432)
"""Which terminal it is, also by another name (/dev/tty, /dev/console); as most machines and as a few say."""

_GONE: Final = (termios.error, OSError, ValueError)
"""What a terminal answers that is not there any more; the next read tells."""


class OperatorTerminal:
    """`descriptor` is -1 once it has gone; then nothing here does anything."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._before: list[Any] | None = None  # its settings, and those that we have made
        self._raw: list[Any] | None = None

    @classmethod
    def find(cls, held: Sequence[int]) -> OperatorTerminal | None:
        """The terminal that controls this process, else the first of those that it has: opened anew, since
        O_NONBLOCK is of what was opened, and that the operator's shell has too. Raises CommandFailed.
        """
        for name in ("/dev/tty", *(f"/proc/self/fd/{each}" for each in held)):
            with contextlib.suppress(OSError):
                return cls(os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
        if held:
            raise CommandFailed(
                "this terminal cannot be opened anew, and what runs as another user must not have it",
                do="redirect the standard streams",
            )
        return None

    def is_same(self, descriptor: int) -> bool:
        return _device(descriptor) == _device(self.descriptor)

    @property
    def here(self) -> bool:
        """Whether our process group is in front; a terminal that does not control us knows of no front."""
        try:
            return os.tcgetpgrp(self.descriptor) == os.getpgrp()
        except OSError:
            return True

    @property
    def line_waits(self) -> bool:
        """Whether a whole line is to be read, which is handed out where nobody has set it otherwise; asked in
        this order, since who had may have read it and set it back.
        """
        try:
            canonical = bool(termios.tcgetattr(self.descriptor)[3] & termios.ICANON)
            poll = select.poll()
            poll.register(self.descriptor, select.POLLIN)
            return canonical and any(seen & select.POLLIN for _, seen in poll.poll(0))
        except _GONE:
            return False

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    # ---- its settings

    def make_raw(self) -> None:
        """Every key is passed on, and what is printed is shown as it is."""
        with contextlib.suppress(*_GONE):
            now = termios.tcgetattr(self.descriptor)
            if now != self._raw:
                self._before = now
                _whatever_interrupts(lambda: tty.setraw(self.descriptor, termios.TCSADRAIN))
                self._raw = termios.tcgetattr(self.descriptor)

    def restore(self) -> None:
        """Unless it is no more as we have set it: whoever did that has it now."""
        before = self._before
        if before is not None and self.here:
            with contextlib.suppress(*_GONE):
                if termios.tcgetattr(self.descriptor) == self._raw:
                    _whatever_interrupts(
                        lambda: termios.tcsetattr(self.descriptor, termios.TCSADRAIN, before)
                    )

    # ---- another that is to be like it

    def copy_settings(self, other: int, *, line_ends: bool) -> None:
        """`line_ends`: also what becomes of a line's end that is printed (OPOST); else that is left to this
        one, which is not raw. Raises termios.error.
        """
        settings = termios.tcgetattr(self.descriptor)
        if not line_ends:
            settings[1] &= ~termios.OPOST
        termios.tcsetattr(other, termios.TCSANOW, settings)

    def hand_over_line_ends(self, other: int) -> None:
        """This one is raw now: what it made of them before is for the other to do."""
        if self._before is not None and self._before[1] & termios.OPOST:
            with contextlib.suppress(*_GONE):
                settings = termios.tcgetattr(other)
                settings[1] |= termios.OPOST
                termios.tcsetattr(other, termios.TCSANOW, settings)

    def copy_size(self, other: int) -> None:
        """Who is in front at the other one is told (SIGWINCH), if it has changed."""
        with contextlib.suppress(*_GONE):
            size = fcntl.ioctl(self.descriptor, termios.TIOCGWINSZ, bytes(_SIZE_BYTES))
            fcntl.ioctl(other, termios.TIOCSWINSZ, size)


def _device(descriptor: int) -> int:
    """Which terminal that is."""
    number = bytearray(4)
    for request in _TIOCGDEV:
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, request, number)
            return int.from_bytes(number, sys.byteorder)
    return os.fstat(descriptor).st_rdev


def _whatever_interrupts(call: Callable[[], object]) -> None:
    """`termios` does not go on by itself after a signal."""
    while True:
        try:
            call()
            return
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise
