"""Files that are whole or absent: created or replaced in one step, relative to an open directory.

A new content is written under a temporary name, synced, and given its name by link(2) (create) or rename(2)
(replace). Whoever reads the name sees all of the old content, all of the new one, or nothing. A file has its
mode before it has a byte, whatever the umask. The functions raise OSError; `pki.store` and `cli.init` say
what it means.

A writer that dies leaves its temporary file. It held a lock on it (flock(2), which the kernel releases), so a
later writer in the same directory can tell it from one that is still being written, and removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

TEMPORARY_PREFIX = ".distsec-new-"
SPOILED_PREFIX = ".distsec-spoiled-"
"""Of a directory that was found in the place of a file."""

OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""To read: a symlink is refused, and a FIFO must not make us wait."""

_ATTEMPTS = 100
"""At a name that somebody else makes and removes again and again; each has about an even chance."""

_LOOKED_AT = 1000
"""Entries of a directory in which leftovers are looked for: a node may have filled its own."""

_RENAME_EXCHANGE = 2
_IN_THE_WAY = frozenset({errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Form:
    """How a file is kept: its `mode`, and whose it is. None: ours, and of our group.

    Where we may not give it away (no CAP_CHOWN), it stays ours and 0600: closed rather than open.
    """

    mode: int = 0o600
    uid: int | None = None
    gid: int | None = None


def is_taken(directory: int, name: str) -> bool:
    """Whether anything, even a dangling symlink, has that name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_already(directory: int, name: str, content: bytes, form: Form) -> bool:
    """Whether `name` is what `force` would make of it: a file of that content, of that form to the last bit
    of its mode, and with no other name. What is somebody else's by `form` is not looked into.
    """
    if form.uid is not None:
        return False
    try:
        descriptor = os.open(name, OPEN_FILE, dir_fd=directory)
    except OSError:  # the writer says what is wrong
        return False
    try:
        found = os.fstat(descriptor)  # first: `open` raises for a directory, and leaves it open
        kept = (
            stat.S_ISREG(found.st_mode)
            and stat.S_IMODE(found.st_mode) == form.mode
            and found.st_uid == os.geteuid()
            and found.st_gid in ({os.getegid()} if form.gid is None else {form.gid})
            and found.st_nlink == 1
            and found.st_size == len(content)
        )
        return kept and os.pread(descriptor, len(content) + 1, 0) == content
    finally:
        os.close(descriptor)


def create_new(directory: int, name: str, content: bytes, mode: int = 0o600, gid: int | None = None) -> bool:
    """Creates `name` in the open `directory` with all of `content`. False, and nothing changed, when it
    exists.
    """
    with _temporary(directory, content, Form(mode, None, gid)) as temporary:
        try:
            os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            return False
    os.fsync(directory)
    return True


def replace(directory: int, name: str, content: bytes, mode: int = 0o600) -> None:
    """Gives `name` in the open `directory` the `content` in one step. A symlink of that name is replaced
    itself.
    """
    with _temporary(directory, content, Form(mode)) as temporary:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


def force(directory: int, name: str, content: bytes, form: Form) -> None:
    """As `replace`, in a directory of ours in which somebody else may make files: a directory in the way, and
    one that is put there again and again, is moved aside.
    """
    with _temporary(directory, content, form) as temporary:
        take_place(directory, temporary, name)
    os.fsync(directory)


def take_place(directory: int, temporary: str, name: str) -> None:
    """Renames `temporary` to `name` whatever is there; a directory is renamed (SPOILED_PREFIX), and never
    emptied.
    """
    for _ in range(_ATTEMPTS):
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            return
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
        with contextlib.suppress(FileNotFoundError):
            _exchange(directory, temporary, name)
            with contextlib.suppress(OSError):  # the name is ours by now, whatever becomes of the other
                move_aside(directory, temporary)
            return
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))


def move_aside(directory: int, name: str) -> None:
    """Takes that name away from whatever has it: a directory is renamed, anything else removed."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(IsADirectoryError):  # it has become one meanwhile
            try:
                if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    aside = SPOILED_PREFIX + secrets.token_hex(8)
                    os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
                else:
                    os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                pass
            return
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))


def _exchange(directory: int, one: str, other: str) -> None:
    """renameat2(2): no moment in which one of the two names is free for somebody else."""
    names = os.fsencode(one), os.fsencode(other)
    if _libc.renameat2(directory, names[0], directory, names[1], _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def _temporary(directory: int, content: bytes, form: Form) -> Iterator[str]:
    """A new, synced file with `content`; its name, locked while the block runs and gone after it."""
    remove_leftovers(directory)
    descriptor, name = _open_temporary(directory)
    try:
        give(descriptor, form)  # before it holds anything
        _write_all(descriptor, content)
        os.fsync(descriptor)
        yield name
    finally:
        # It was renamed: that was the point. What has the name now is somebody else's, a directory perhaps.
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        os.close(descriptor)


def give(descriptor: int, form: Form) -> None:
    """Brings an open file of ours to `form`, and on the way there it is never wider than before or after."""
    os.fchmod(descriptor, 0o600)  # the umask may have taken bits away
    try:
        if form.gid is not None:
            os.fchown(descriptor, -1, form.gid)
    except PermissionError:
        return
    os.fchmod(descriptor, form.mode)
    if form.uid is not None:
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, form.uid, -1)  # the last: its mode is no longer ours to change then


def _open_temporary(directory: int) -> tuple[int, str]:
    """Creates and locks a temporary file; tries another name if a remover of leftovers was faster."""
    while True:
        name = TEMPORARY_PREFIX + secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor, name
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            os.unlink(name, dir_fd=directory)
            raise
        os.close(descriptor)


def remove_leftovers(directory: int) -> None:
    """Removes what writers that were killed have left in it."""
    with os.scandir(directory) as entries:
        names = [each.name for each in islice(entries, _LOOKED_AT) if each.name.startswith(TEMPORARY_PREFIX)]
    for name in names:
        with contextlib.suppress(OSError):  # somebody else's, or being written: not ours to remove
            _remove_if_abandoned(directory, name)


def _remove_if_abandoned(directory: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        written = os.write(descriptor, view)
        if written <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view = view[written:]
