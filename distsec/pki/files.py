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
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator

TEMPORARY_PREFIX = ".distsec-new-"


def create_new(directory: int, name: str, content: bytes, mode: int = 0o600) -> bool:
    """Creates `name` in the open `directory` with all of `content`. False, and nothing changed, when it
    exists.
    """
    with _temporary(directory, content, mode) as temporary:
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
    with _temporary(directory, content, mode) as temporary:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)


@contextlib.contextmanager
def _temporary(directory: int, content: bytes, mode: int) -> Iterator[str]:
    """A new, synced file with `content`; its name, locked while the block runs and gone after it."""
    _remove_leftovers(directory)
    descriptor, name = _open_temporary(directory)
    try:
        os.fchmod(descriptor, mode)  # the umask may have taken bits away
        _write_all(descriptor, content)
        os.fsync(descriptor)
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed: that was the point
            os.unlink(name, dir_fd=directory)
        os.close(descriptor)


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


def _remove_leftovers(directory: int) -> None:
    for entry in os.listdir(directory):
        if entry.startswith(TEMPORARY_PREFIX):
            with contextlib.suppress(OSError):  # somebody else's, or being written: not ours to remove
                _remove_if_abandoned(directory, entry)


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
