"""Keeps the operator's terminal from a program that root starts as somebody else.

A process can be traced, and its descriptors taken, by whoever has its user. One that holds root's terminal
would hand over what root types there, also when it has ended. So the program gets a pseudo-terminal and a
session of its own (`cli.tool_session`), and this process stays root and passes on what is typed and printed.
What a program prints still reaches the terminal as it is, escape sequences too.

It is the process that asked the orchestrator: when it ends, so does the program, and the other way round.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import stat
import sys
import termios
import time
from collections.abc import Iterator
from typing import Final, NoReturn

from distsec.cli import job_control, tool_session
from distsec.cli.job_control import Act, Deed, Job, Pass, Stop
from distsec.cli.operator_terminal import OperatorTerminal
from distsec.cli.tool_session import Standing
from distsec.errors import CommandFailed, UsageError

BUFFER_BYTES: Final = 64 * 1024
"""In each direction; what is more waits with whom it comes from."""

LAST_BYTES: Final = 4 * BUFFER_BYTES
"""Of what a terminal still holds when its program has ended; more can only be of others that it has left."""

_LOOK_AGAIN_SECONDS = 1.0
"""Of a program that is not in front: whether the operator's terminal is for it now."""

_PASSED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
    signal.SIGTSTP,
)
_ALWAYS_HEARD = (signal.SIGCONT, signal.SIGWINCH)
_GIVES_UP = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
"""While what the program has left is printed."""


def keep_terminal(uid: int) -> int | None:
    """None: this process has no terminal to be kept, and goes on. Else it stays behind, and ends as its
    grandchild ends, in which this returns the pid of that one's parent: there every terminal is the new one,
    which belongs to `uid`. For a process that will become that user; it then calls
    `tool_session.end_with`.

    Raises UsageError for standard streams that are two terminals, CommandFailed without a pseudo-terminal.
    """
    held = [each for each in tool_session.open_descriptors() if os.isatty(each) and os.get_inheritable(each)]
    terminal = OperatorTerminal.find(held)
    if terminal is None:
        return None
    same = tuple(filter(terminal.is_same, held))
    others = tuple(each for each in held if each not in same)
    if min(others, default=3) < 3:
        raise UsageError(
            "the standard streams are two terminals, and what runs as another user gets one",
            do="redirect the other to a pipe: `| cat >/dev/pts/N`",
        )
    front = job_control.begins_in_front(
        reads_terminal=0 in same, in_pipeline=_is_pipe(1) or _is_pipe(2), here=terminal.here
    )
    try:
        master, slave = os.openpty()
        terminal.copy_settings(slave, line_ends=front)
        terminal.copy_size(slave)
        os.fchown(slave, uid, -1)  # so that it can open it by its name (/dev/stderr)
    except (OSError, termios.error) as error:
        raise CommandFailed(
            f"what runs as another user gets a terminal of its own, and there is none to be had: {error}",
            do="mount /dev/pts",
        ) from None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    relay = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        terminal.close()
        ours.close()
        os.close(master)
        return tool_session.begin(Standing(slave, same, others, front), theirs, relay)
    theirs.close()
    tool_session.close_all_but((terminal.descriptor, master, ours.fileno(), 2))
    return _stay(_Relay(terminal, master, ours, Job(front=front), reads_terminal=0 in same), keeper)


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _stay(relay: _Relay, keeper: int) -> NoReturn:
    """Ends as the program has ended."""
    try:
        what, number = relay.run()
    finally:
        relay.leave()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(keeper, 0)
    if what == tool_session.ENDED:
        sys.exit(number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what there is to see is in the program's
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    sys.exit(128 + number)


class _Relay:
    """Between the operator's `terminal` and the `master` of the program's."""

    def __init__(
        self,
        terminal: OperatorTerminal,
        master: int,
        channel: socket.socket,
        job: Job,
        *,
        reads_terminal: bool,
    ) -> None:
        self._terminal, self._master, self._channel = terminal, master, channel
        self._job = job
        self._reads_terminal = reads_terminal
        self._keys, self._printed = bytearray(), bytearray()
        self._end: tuple[bytes, int] | None = None
        self._left_to_read = LAST_BYTES
        self._look_at = 0.0  # of the monotonic clock: whether a line waits
        self._shows_whole = job.front
        self._awaits_front = job.front  # so long keys wait
        self._awake, wake = os.pipe()
        for each in (self._awake, wake, master):
            os.set_blocking(each, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (*_PASSED, *_ALWAYS_HEARD):
            if number in _ALWAYS_HEARD or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)  # it comes by the pipe

    def run(self) -> tuple[bytes, int]:
        """Until the program has ended and all it has printed is shown; returns how (`tool_session.heard`).
        Raises CommandFailed where that is not known.
        """
        self._do(self._job.begun())
        while self._end is None or self._has_more():
            self._round()
        return self._end

    def leave(self) -> None:
        """The terminal is set as before. However this ends."""
        self._terminal.restore()
        self._hang_up()
        self._channel.close()

    # ---- what comes and goes

    def _round(self) -> None:
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        if self._end is None:
            poll.register(self._channel, select.POLLIN)
        if self._terminal.descriptor >= 0:
            poll.register(self._terminal.descriptor, self._awaited_of_terminal())
        if self._master >= 0:
            poll.register(self._master, self._awaited_of_master())
        ready = dict(poll.poll(self._patience()))
        if self._awake in ready:
            self._hear_signals()
        if self._channel.fileno() in ready:
            self._hear_keeper()
        if happened := ready.get(self._terminal.descriptor, 0):
            self._at_terminal(happened)
        if happened := ready.get(self._master, 0):
            self._at_master(happened)

    def _awaited_of_terminal(self) -> int:
        room = len(self._keys) < BUFFER_BYTES and self._master >= 0 and self._end is None
        reads = (
            room
            and not self._awaits_front
            and (self._job.front or (self._reads_terminal and time.monotonic() >= self._look_at))
        )
        return (select.POLLIN if reads else 0) | (select.POLLOUT if self._printed else 0)

    def _awaited_of_master(self) -> int:
        room = len(self._printed) < BUFFER_BYTES
        keys = self._keys and not self._awaits_front
        return (select.POLLIN if room else 0) | (select.POLLOUT if keys else 0)

    def _patience(self) -> float | None:
        """Milliseconds, or None: for ever."""
        if self._job.front or not self._reads_terminal or self._end is not None:
            return None
        return max(0.0, self._look_at - time.monotonic()) * 1000 or _LOOK_AGAIN_SECONDS * 1000

    def _at_terminal(self, happened: int) -> None:
        if happened & select.POLLOUT and self._printed:
            with self._terminal_may_go():
                del self._printed[: os.write(self._terminal.descriptor, self._printed)]
        if happened & select.POLLIN and not self._job.front:
            self._look_at = time.monotonic() + _LOOK_AGAIN_SECONDS
            if self._terminal.line_waits:
                self._do(self._job.line_waits(here=self._terminal.here))
        elif happened & select.POLLIN and not self._terminal.here:  # it was taken from us
            self._do(self._job.signalled(signal.SIGCONT, here=False))
        elif happened & select.POLLIN:
            with self._terminal_may_go():
                typed = os.read(self._terminal.descriptor, BUFFER_BYTES - len(self._keys))
                self._keys += typed
                if not typed:
                    self._terminal_gone()
        if happened & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            self._terminal_gone()

    @contextlib.contextmanager
    def _terminal_may_go(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            pass
        except OSError:
            self._terminal_gone()

    def _terminal_gone(self) -> None:
        """The window was closed: so is the program's."""
        self._terminal.close()
        self._printed.clear()
        self._hang_up()

    def _at_master(self, happened: int) -> None:
        try:
            if happened & select.POLLOUT and self._keys:
                del self._keys[: os.write(self._master, self._keys)]
            if happened & select.POLLIN:
                self._printed += os.read(self._master, BUFFER_BYTES - len(self._printed))
            elif happened & (select.POLLHUP | select.POLLERR):
                self._hang_up()
        except BlockingIOError:
            pass
        except OSError:  # EIO: nobody has it open any more
            self._hang_up()

    def _has_more(self) -> bool:
        """Of what an ended program has printed."""
        if self._master >= 0:
            try:
                size = min(BUFFER_BYTES - len(self._printed), self._left_to_read)
                if size and (more := os.read(self._master, size)):
                    self._printed += more
                    self._left_to_read -= len(more)
                elif not self._left_to_read:
                    self._hang_up()
            except OSError:  # all was read
                self._hang_up()
        return bool(self._printed) and self._terminal.descriptor >= 0

    def _hang_up(self) -> None:
        if self._master >= 0:
            os.close(self._master)
        self._master = -1
        self._keys.clear()

    # ---- what happens

    def _hear_signals(self) -> None:
        for number in self._signals():
            if self._end is not None and number in _GIVES_UP:
                self._printed.clear()
                self._hang_up()
            self._do(self._job.signalled(number, here=self._terminal.here))

    def _signals(self) -> bytes:
        try:
            return os.read(self._awake, 4096)
        except BlockingIOError:
            return b""

    def _hear_keeper(self) -> None:
        told = tool_session.heard(self._channel)
        if told is None:
            raise CommandFailed("the process that keeps the program's session was killed, and so the program")
        what, number = told
        if what == tool_session.FRONT:
            self._awaits_front = False
        elif what == tool_session.STOPPED:
            self._do(self._job.stopped(number, here=self._terminal.here))
        else:
            self._end = told

    def _do(self, deeds: list[Deed]) -> None:
        for deed in deeds:
            match deed:
                case Act.RAW:
                    self._terminal.make_raw()
                case Act.RESTORE:
                    self._terminal.restore()
                case Act.RESIZE:
                    self._terminal.copy_size(self._master)
                case Act.FRONT:
                    if not self._shows_whole:
                        self._terminal.hand_over_line_ends(self._master)
                        self._shows_whole = True
                    self._awaits_front = True
                    self._tell(tool_session.FRONT)
                case Act.BEHIND:
                    self._look_at = 0.0
                    self._tell(tool_session.BEHIND)
                case Act.HANG_UP:
                    self._hang_up()
                case Pass(number):
                    self._tell(tool_session.SIGNAL, number)
                case Stop(number):
                    self._stop(number)

    def _tell(self, what: bytes, number: int = 0) -> None:
        with contextlib.suppress(ConnectionError):  # of its end we hear by the same way
            tool_session.tell(self._channel, what, number)

    def _stop(self, number: int) -> None:
        """All of our process group, as the terminal would have done; SIGSTOP is meant for one process."""
        handler = None if number == signal.SIGSTOP else signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid() if number == signal.SIGSTOP else 0, number)
        if handler is not None:
            signal.signal(number, handler)
        came = self._signals()
        self._do(self._job.resumed(number, here=self._terminal.here, was_stopped=signal.SIGCONT in came))
        for other in came:
            if other not in {number, signal.SIGCONT}:
                self._do(self._job.signalled(other, here=self._terminal.here))
