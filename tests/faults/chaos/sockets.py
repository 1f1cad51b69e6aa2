"""Shuts other processes' connections from outside, as a failing network or a kernel that kills sockets would.

pidfd_getfd(2) gives a copy of another process's descriptor (as root), and shutdown(2) on the copy is one on
the socket itself: both ends see the connection end, and nobody has closed it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

_PIDFD_GETFD = 438  # asm-generic/unistd.h, the same on every architecture
_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Whether this process may do it to another one."""
    return os.geteuid() == 0 and hasattr(os, "pidfd_open")


Wanted = Callable[[socket.socket], bool]


def accepted_at(path: Path) -> Wanted:
    """Connections that were accepted at that Unix socket."""
    return lambda one: one.family == socket.AF_UNIX and _connected(one) and one.getsockname() == str(path)


def connected_to(path: Path) -> Wanted:
    """Connections that were made to that Unix socket."""
    return lambda one: one.family == socket.AF_UNIX and _connected(one) and one.getpeername() == str(path)


def accepted_on(port: int) -> Wanted:
    """Connections that were accepted at that TCP port."""
    return lambda one: one.family == socket.AF_INET and _connected(one) and one.getsockname()[1] == port


def shut(pid: int, wanted: Wanted, most: int = 1) -> int:
    """Shuts up to `most` such sockets that the process has open; how many."""
    done = 0
    for descriptor in _sockets(pid):
        if done == most:
            break
        with contextlib.suppress(OSError), _copy(pid, descriptor) as one:
            if wanted(one):
                one.shutdown(socket.SHUT_RDWR)
                done += 1
    return done


def _connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:  # it listens, or has ended
        return False
    return True


def _sockets(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()).startswith("socket:["):
                    yield int(entry.name)


def _copy(pid: int, descriptor: int) -> socket.socket:
    """Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        copy = _libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
    finally:
        os.close(process)
    return socket.socket(fileno=copy)
