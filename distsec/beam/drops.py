"""Keys and certificates that somebody else puts into a node's directory: noticed and read, never followed.

Two places: `key.pem` and `certificate.pem` of the directory itself, replaced; and the same two names in its
`incoming/`, which is ours alone to empty. Whoever writes there is trusted with nothing but the attempt: no
symbolic link is followed, no FIFO waited for, no file of another user or of more than 64 KiB read. What the
content is worth is judged elsewhere (`pki.pairs`).

inotify(7) tells of changes at once; it may lose some, and has limits per user, so that the caller looks by
itself now and then as well.
"""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from struct import Struct

from distsec.errors import StoreError
from distsec.model.secret import Secret
from distsec.pki.forms import ENTRUSTED_MODE, READABLE_MODE
from distsec.pki.pairs import CERTIFICATE, KEY, MAX_PEM_BYTES

INCOMING = "incoming"
NAMES = frozenset({KEY, CERTIFICATE, INCOMING})
"""Changes of anything else in a node's directory, which the node writes all the time, are passed over."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class DropFault(StrEnum):
    """What is wrong with the files as files; beside `acceptance.Flaw` the reasons of CertificateRefused."""

    INCOMPLETE = "incomplete"  # one of the two is missing
    UNSAFE_FILE = "unsafe_file"  # a symbolic link, another owner, others may read the key, no regular file
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Drop:
    """What was found; `stamp` is equal as long as neither file is touched. `fault` None: both were read."""

    stamp: tuple[object, ...]
    key: Secret | None = None
    certificate: bytes | None = None
    fault: DropFault | None = None
    what: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing at all."""
        return self.key is None and self.certificate is None and self.fault is DropFault.INCOMPLETE


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes | None
    stamp: tuple[int, ...] | None
    fault: DropFault | None = None
    what: str = ""


def read_drop(directory: Path, *, entrusted: bool = False) -> Drop:
    """The two files in `directory` as they are now. A directory that is not there holds none. `entrusted`: it
    may be open to the group of its node's user, and the files then too (`pki.forms`).
    """
    try:
        handle = os.open(directory, _OPEN | os.O_DIRECTORY)
    except OSError as error:
        fault = DropFault.INCOMPLETE if error.errno == errno.ENOENT else DropFault.UNSAFE_FILE
        return Drop(
            (), fault=fault, what="there is no such directory" if error.errno == errno.ENOENT else _why(error)
        )
    try:
        found = os.fstat(handle)
        group = found.st_gid if stat.S_IMODE(found.st_mode) == ENTRUSTED_MODE and entrusted else None
        if found.st_uid != os.geteuid() or (group is None and stat.S_IMODE(found.st_mode) & 0o077):
            return Drop((), fault=DropFault.UNSAFE_FILE, what="others may write into the directory")
        key = _read(handle, KEY, forbidden=0o077, group=group)
        certificate = _read(handle, CERTIFICATE, forbidden=0o022, group=group)
    finally:
        os.close(handle)
    stamp = (key.stamp, certificate.stamp)
    for file in (key, certificate):
        if file.fault not in {None, DropFault.INCOMPLETE}:
            return Drop(stamp, fault=file.fault, what=file.what)
    missing = [name for name, file in ((KEY, key), (CERTIFICATE, certificate)) if file.content is None]
    return Drop(
        stamp,
        key=None if key.content is None else Secret(key.content),
        certificate=certificate.content,
        fault=DropFault.INCOMPLETE if missing else None,
        what=f"{' and '.join(missing)} missing" if missing else "",
    )


def _read(directory: int, name: str, *, forbidden: int, group: int | None) -> _File:
    try:
        descriptor = os.open(name, _OPEN, dir_fd=directory)
    except FileNotFoundError:
        return _File(None, None, DropFault.INCOMPLETE)
    except OSError as error:
        return _File(None, _stamp(directory, name), DropFault.UNSAFE_FILE, f"{name}: {_why(error)}")
    try:
        found = os.fstat(descriptor)
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode, found.st_uid)
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISREG(found.st_mode):
            return _File(None, stamp, DropFault.UNSAFE_FILE, f"{name} is no regular file")
        if found.st_uid != os.geteuid():
            return _File(None, stamp, DropFault.UNSAFE_FILE, f"{name} belongs to uid {found.st_uid}")
        if mode & forbidden & ~(READABLE_MODE if found.st_gid == group else 0):
            return _File(None, stamp, DropFault.UNSAFE_FILE, f"{name} is open to others (mode {mode:04o})")
        content = _bytes(descriptor, MAX_PEM_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_PEM_BYTES:
        return _File(None, stamp, DropFault.TOO_LARGE, f"{name} has more than {MAX_PEM_BYTES} bytes")
    return _File(content, stamp)


def _bytes(descriptor: int, most: int) -> bytes:
    content = b""
    while len(content) < most and (more := os.read(descriptor, most - len(content))):
        content += more
    return content


def _stamp(directory: int, name: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode, found.st_uid)


def _why(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link, which is not followed"
    return os.strerror(error.errno).lower() if error.errno else "cannot be read"


# ---- inotify(7) -------------------------------------------------------------------------------------------

IN_CLOSE_WRITE, IN_MOVED_TO, IN_DELETE, IN_CREATE = 0x8, 0x80, 0x200, 0x100
IN_ONLYDIR, IN_DONT_FOLLOW, IN_Q_OVERFLOW, IN_IGNORED = 0x01000000, 0x02000000, 0x4000, 0x8000
_MASK = IN_CLOSE_WRITE | IN_MOVED_TO | IN_DELETE | IN_CREATE | IN_ONLYDIR | IN_DONT_FOLLOW
_EVENT = Struct("iIII")  # struct inotify_event: wd, mask, cookie, len; then `len` bytes of a name
_BUFFER_BYTES = 64 * 1024

PAUSE_SECONDS = 0.05
"""Between two reads: a node that writes without end into its own directory must not keep us busy. What comes
meanwhile waits in the kernel, whose queue is bounded too."""

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Calls `changed(directory)` when one of NAMES in a watched directory was written, and `changed(None)`
    when events were lost. Belongs to the running event loop.
    """

    def __init__(self, changed: Callable[[Path | None], object]) -> None:
        """Raises StoreError where this user has no inotify left (fs.inotify.max_user_instances)."""
        self._changed = changed
        self._directories: dict[int, Path] = {}
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise StoreError(f"no inotify: {os.strerror(ctypes.get_errno()).lower()}", do="see inotify(7)")
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def watch(self, directory: Path) -> bool:
        """From now on. False: it cannot be watched (not there, or this user watches too many)."""
        found: int = _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _MASK)
        if found >= 0:
            self._directories[found] = directory
        return found >= 0

    @property
    def watched(self) -> frozenset[Path]:
        return frozenset(self._directories.values())

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _listen(self) -> None:
        self._loop.add_reader(self._descriptor, self._ready)

    def _ready(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._listen)
        try:
            received = os.read(self._descriptor, _BUFFER_BYTES)
        except BlockingIOError:
            return
        changed: dict[Path | None, None] = {}  # each once, in order
        for descriptor, mask, name in _events(received):
            if mask & IN_Q_OVERFLOW:
                changed[None] = None
            elif mask & IN_IGNORED:
                self._directories.pop(descriptor, None)  # it is gone; the next look finds another
            elif name in NAMES and (directory := self._directories.get(descriptor)) is not None:
                changed[directory] = None
        for each in changed:
            self._changed(each)


def _events(received: bytes) -> Iterator[tuple[int, int, str]]:
    at = 0
    while at + _EVENT.size <= len(received):
        descriptor, mask, _, length = _EVENT.unpack_from(received, at)
        at += _EVENT.size
        yield descriptor, mask, os.fsdecode(received[at : at + length].rstrip(b"\0"))
        at += length
