"""Unix sockets with care: one that is private from the moment it exists, and who is at its other end.

Sources: unix(7) for SO_PEERCRED and sun_path; Linux takes the mode of the socket's inode, which fchmod(2)
sets before bind(2), for the file that bind makes (net/unix/af_unix.c:unix_bind), so that no umask is in play.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

from distsec.errors import PortInUse, StoreError
from distsec.pki import files
from distsec.pki.forms import ENTRUSTED_MODE

MAX_PATH_BYTES: Final = 107  # sizeof(sun_path) - 1; Erlang's {local, Path} has the same limit

_UCRED: Final = Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that listens at `path`. `inode` tells our file from one that somebody put in its place."""

    socket: socket.socket
    path: Path
    inode: tuple[int, int]

    def is_there(self) -> bool:
        """Whether who connects to `path` comes here."""
        try:
            found = self.path.lstat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.inode

    def close(self) -> None:
        """Stops listening and removes the file, if it is still ours."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if self.is_there():
                self.path.unlink()


def listen(path: Path, backlog: int = 16, *, gid: int | None = None) -> Listening:
    """Listens at `path`, mode 0600, in a directory that only we can enter. What is there is removed only if
    it is a socket of ours at which nobody listens.

    `gid`: a group that may connect too, and make files in the directory, which is sticky: 1770. Whatever is
    not ours there then gives way. Raises StoreError (the directory or the file cannot be used) or PortInUse
    (somebody listens there).
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise StoreError(
            f"the path of a Unix socket may have {MAX_PATH_BYTES} bytes, this has {len(os.fsencode(path))}",
            where=str(path),
            do="choose a shorter state_dir",
        )
    _check_directory(path.parent, gid)
    _remove_stale(path, yields=gid is not None)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)
        if gid is None:
            listener.bind(os.fspath(path))
        else:
            _bind_among_others(listener, path, gid)
        listener.listen(backlog)
        made = path.lstat()
    except OSError as error:
        listener.close()
        raise StoreError(
            f"cannot listen: {error.strerror}", where=str(path), do="make the directory usable"
        ) from None
    return Listening(listener, path, (made.st_dev, made.st_ino))


def _bind_among_others(listener: socket.socket, path: Path, gid: int) -> None:
    """Under a name that nobody knows, then in the place of whatever is at `path`."""
    fresh = path.with_name(f".{secrets.token_hex(4)}")  # no longer than agent.sock
    listener.bind(os.fspath(fresh))
    os.chown(fresh, -1, gid, follow_symlinks=False)
    fresh.chmod(0o660)  # ours, in a sticky directory: nobody else can have put a link there
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        files.take_place(directory, fresh.name, path.name)
    finally:
        os.close(directory)


def _check_directory(directory: Path, gid: int | None) -> None:
    try:
        found = directory.lstat()
    except OSError as error:
        raise StoreError(
            f"cannot use the directory: {error.strerror}", where=str(directory), do="run distsec init"
        ) from None
    mode = stat.S_IMODE(found.st_mode)
    closed = not mode & 0o066 if gid is None else mode == ENTRUSTED_MODE and found.st_gid == gid
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not closed:
        raise StoreError(
            "a socket needs a directory that is ours alone",
            where=str(directory),
            do="chown it, and chmod 0700",
        )


def _remove_stale(path: Path, *, yields: bool) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        if yields:
            return
        raise StoreError(
            "something that is not a socket of ours is there", where=str(path), do="move it away"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # a full backlog: somebody listens
    raise PortInUse(
        "somebody listens there", where=str(path), do="stop the other orchestrator of this state_dir"
    )


def peer_credentials(connected: socket.socket) -> tuple[int, int]:
    """The pid and uid that were at the other end when it connected (SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


class ProcessHandle:
    """One process, not its number: a pid that is used again does not look alive (pidfd_open(2))."""

    __slots__ = ("_descriptor",)

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when the process has ended."""
        self._descriptor = os.pidfd_open(pid)

    def ended(self) -> bool:
        """Whether it has ended."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Gives the descriptor back. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
