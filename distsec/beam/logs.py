"""A node's output: the file that it writes to, and its rotation by copy and truncate.

The node's stdout and stderr are this file, opened O_APPEND: the node holds the descriptor for as long as it
lives and goes on when nobody is there (a pipe whose reader died ends a node of OTP 27 and 29 at its next
print). So the file cannot be renamed away; it is copied to `output.log.1` and truncated, and the appending
writer goes on at 0.

What is lost: whatever the node writes between the last byte copied and the truncation (microseconds), and,
of a file that grew beyond `max_bytes` between two rotations, all but the newest `max_bytes`. On a full disk
the oldest copies go first; if the newest output still does not fit, it is truncated without a copy, because
a log must never fill the disk that the node lives on. `Rotation.lost` says how much went.

The directory may belong to the node, which may be compromised: no symlink is followed in its last two
components or the file, and a file that is not regular, has another owner or a second name (a hard link) is
refused. What is in the place of a copy makes way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distsec.errors import StoreError
from distsec.model.text import escape
from distsec.pki import files

COPIES_KEPT = 3
"""`output.log.1`, the newest, to `output.log.3`."""

_CHUNK_BYTES = 256 * 1024
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did: bytes `kept` in the newest copy and bytes `lost` as far as that can be known."""

    kept: int
    lost: int


@dataclass(frozen=True, slots=True)
class OutputLog:
    """The log at `path` (absolute), rotated when it is longer than `max_bytes`."""

    path: Path
    max_bytes: int

    def open(self) -> int:
        """A descriptor to append to, close-on-exec, the file being made 0600 where it is missing. The
        caller closes it.

        Raises StoreError when the path is anything but a regular file of our own with one name.
        """
        with self._directory() as directory:
            try:
                return self._open(directory, os.O_WRONLY | os.O_CREAT)
            except FileNotFoundError as error:
                raise self._refused("its directory was removed") from error

    def rotate(self) -> Rotation | None:
        """Rotates if the file is longer than `max_bytes`, else does nothing and answers None.

        Blocks for as long as copying at most twice `max_bytes` takes, so it is called in a thread. One
        caller at a time. Raises StoreError when something in the directory is not what it should be;
        nothing is truncated then.
        """
        with self._directory() as directory:
            try:
                log = self._open(directory, os.O_RDWR)
            except FileNotFoundError:
                return None
            try:
                size = os.fstat(log).st_size
                return self._rotate(directory, log, size) if size > self.max_bytes else None
            except OSError as error:
                raise self._refused(error.strerror or "cannot be rotated") from error
            finally:
                os.close(log)

    def _rotate(self, directory: int, log: int, size: int) -> Rotation:
        fresh = f"{self.path.name}.new"
        files.move_aside(directory, fresh)  # left by a rotation that was interrupted
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        begin = size - self.max_bytes
        kept = 0
        try:
            copy = os.open(fresh, flags, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
        else:
            try:
                kept = self._copy(directory, log, begin, copy)
            finally:
                os.close(copy)
        if kept:
            for number in range(COPIES_KEPT - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    files.take_place(directory, self._copy_name(number), self._copy_name(number + 1))
            files.take_place(directory, fresh, self._copy_name(1))
        else:
            files.move_aside(directory, fresh)
        written = os.fstat(log).st_size
        os.ftruncate(log, 0)
        return Rotation(kept=kept, lost=max(0, written - kept))

    def _copy(self, directory: int, log: int, begin: int, copy: int) -> int:
        """Copies from `begin` to the end, which moves meanwhile, at most 2 * `max_bytes`; 0 when it did not
        fit."""
        oldest = COPIES_KEPT
        copied = 0
        while copied < 2 * self.max_bytes:
            chunk = os.pread(log, min(_CHUNK_BYTES, 2 * self.max_bytes - copied), begin + copied)
            if not chunk:
                break
            while chunk:
                try:
                    written = os.write(copy, chunk)
                except OSError as error:
                    if error.errno not in _NO_SPACE:
                        raise
                    if not oldest:
                        return 0
                    files.move_aside(directory, self._copy_name(oldest))
                    oldest -= 1
                    continue
                copied += written
                chunk = chunk[written:]
        return copied

    def _copy_name(self, number: int) -> str:
        return f"{self.path.name}.{number}"

    @contextlib.contextmanager
    def _directory(self) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        opened: list[int] = []
        try:
            try:
                opened.append(os.open(self.path.parent.parent, flags))
                opened.append(os.open(self.path.parent.name, flags, dir_fd=opened[0]))
            except OSError as error:
                raise self._refused(f"its directory cannot be used ({error.strerror})") from error
            yield opened[-1]
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _open(self, directory: int, flags: int) -> int:
        # O_NONBLOCK: opening a FIFO that somebody put there must not wait for its reader.
        flags |= os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            descriptor = os.open(self.path.name, flags, 0o600, dir_fd=directory)
        except FileNotFoundError:
            raise
        except OSError as error:
            what = (
                "it is a symbolic link"
                if error.errno == errno.ELOOP
                else error.strerror or "cannot be opened"
            )
            raise self._refused(what) from error
        try:
            self._check(os.fstat(descriptor))
            os.fchmod(descriptor, 0o600)
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise self._refused("it is no regular file")
        if found.st_uid != os.geteuid():
            raise self._refused(f"it belongs to uid {found.st_uid}")
        if found.st_nlink != 1:
            raise self._refused("it has a second name (a hard link)")

    def _refused(self, what: str) -> StoreError:
        return StoreError(
            f"the node's output cannot be kept here: {what}",
            where=escape(str(self.path), 1024),
            do="put it right; if nobody did this on purpose, treat the node as compromised",
        )
