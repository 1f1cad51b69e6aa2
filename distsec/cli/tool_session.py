"""The session in which a tool has a terminal of its own (`cli.relay`): made, and kept by a process of ours.

    relay      root, in the operator's session: has the operator's terminal, and the other end of the tool's
      keeper   root, leads the new session: so the tool can be stopped and continued (a process group whose
               parent is in another session cannot), brought to the front and put behind
        tool   the node's user

The keeper tells the relay when the tool has stopped or ended, and does what it is told. When the relay is
gone the keeper is killed, and with that the tool (PR_SET_PDEATHSIG); whatever else reads or writes that
terminal is hung up on.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import termios
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

_KEPT_OUT = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
"""What the keeper does not mind; SIGTTOU, or it could not put itself in front."""

STOPPED, ENDED, KILLED = b"s", b"e", b"k"
"""What the keeper tells, each with a number: of a signal, an exit code, a signal."""

FRONT, BEHIND, SIGNAL = b"f", b"b", b"n"
"""What it is told; SIGNAL with its number. FRONT it tells back when it is so: a ^C that came before were
nobody's.
"""

_message = Struct("=ci")
MESSAGE_BYTES: Final = _message.size

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a tool is started with: `slave`, its own terminal; `terminals`, the descriptors that are to be it,
    and `others`, terminals that it must not have; `front`: whether it begins in front.
    """

    slave: int
    terminals: tuple[int, ...]
    others: tuple[int, ...]
    front: bool


def tell(channel: socket.socket, what: bytes, number: int = 0) -> None:
    channel.send(_message.pack(what, number))


def heard(channel: socket.socket) -> tuple[bytes, int] | None:
    """What the other end has told; None: it is gone."""
    try:
        received = channel.recv(MESSAGE_BYTES)
    except ConnectionError:
        return None
    return _message.unpack(received) if len(received) == MESSAGE_BYTES else None


def begin(standing: Standing, channel: socket.socket, relay: int) -> int:
    """In a child of `relay`: leads a session from here on, and returns in its own child, which is to become
    the tool, the keeper's pid. `channel` leads to the relay.
    """
    end_with(relay)
    os.setsid()
    fcntl.ioctl(standing.slave, termios.TIOCSCTTY, 0)
    for descriptor in standing.terminals:
        os.dup2(standing.slave, descriptor)
    for descriptor in standing.others:
        os.close(descriptor)
    before = {number: signal.getsignal(number) for number in (*_KEPT_OUT, signal.SIGCHLD)}
    for number in _KEPT_OUT:
        signal.signal(number, signal.SIG_IGN)
    keeper = os.getpid()
    tool = os.fork()
    if tool != 0:
        _keep(tool, standing, channel)
    os.setpgid(0, 0)
    if standing.front:
        os.tcsetpgrp(standing.slave, os.getpid())  # SIGTTOU is ignored still
    _as_before(before)
    return keeper


def _as_before(handlers: Mapping[signal.Signals, Any]) -> None:
    """What was ignored stays ignored; of the rest a program that is yet to come knows nothing."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else signal.SIG_DFL)


def end_with(parent: int) -> None:
    """This process is killed when `parent`, which has begun it, ends. To be said again by one that has become
    another user: it is forgotten then.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)  # it was too late


def close_all_but(kept: Iterable[int]) -> None:
    """Closes what a process of ours holds for the tool alone, so that pipes end when the tool closes them. Of
    the standard streams /dev/null is left.
    """
    keep = set(kept)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, 2} - keep:
        os.dup2(nothing, descriptor)
    for descriptor in open_descriptors():
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def open_descriptors() -> list[int]:
    return sorted(int(each) for each in os.listdir("/proc/self/fd"))  # noqa: PTH208


# ---- the keeper ----------


def _keep(tool: int, standing: Standing, channel: socket.socket) -> NoReturn:
    """Until the tool has ended and the relay knows."""
    slave = standing.slave
    try:
        with contextlib.suppress(OSError):
            os.setpgid(tool, tool)  # by whom of us comes first
        if standing.front:
            _in_front(slave, tool)
            tell(channel, FRONT)
        awake, wake = os.pipe()
        os.set_blocking(awake, False)
        os.set_blocking(wake, False)
        close_all_but((slave, channel.fileno(), awake, wake))
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()  # select(2) knows no descriptor above 1023
        for each in (channel.fileno(), awake):
            poll.register(each, select.POLLIN)
        running = True
        while True:
            running = running and _tell_what_happened(tool, slave, channel)
            ready = dict(poll.poll())
            if awake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(awake, 4096)
            if channel.fileno() in ready:
                if (order := heard(channel)) is None:
                    os._exit(0)
                _obey(*order, tool, slave)
                if order[0] == FRONT:
                    tell(channel, FRONT)
    finally:
        os._exit(1)  # the tool with it


def _tell_what_happened(tool: int, slave: int, channel: socket.socket) -> bool:
    """Whether it still runs. One that has ended is left to be waited for: its pid is nobody else's."""
    while (seen := os.waitid(os.P_PID, tool, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)) is not None:
        if seen.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, tool, os.WSTOPPED | os.WNOHANG)
            tell(channel, STOPPED, seen.si_status)
            continue
        _in_front(slave, os.getpgrp())  # or what the tool leaves running were hung up on when we end
        tell(channel, ENDED if seen.si_code == os.CLD_EXITED else KILLED, seen.si_status)
        return False
    return True


def _obey(order: bytes, number: int, tool: int, slave: int) -> None:
    if order in {FRONT, BEHIND}:
        _in_front(slave, tool if order == FRONT else os.getpgrp())
        number = signal.SIGCONT
    with contextlib.suppress(OSError):
        os.killpg(tool, number)


def _in_front(slave: int, group: int) -> None:
    with contextlib.suppress(OSError):  # a terminal that is hung up has no front
        os.tcsetpgrp(slave, group)
