"""The state directory: the only writer of keys, and the one place that checks modes, owners and symlinks.

Every operation walks from the root to its file by open directories (openat(2) with O_NOFOLLOW) and checks
each on the way, so that nothing which is swapped in the meantime leads it elsewhere. Directories are 0700,
files 0600, from the moment they exist and whatever the umask; all belong to the user who runs the
orchestrator. What does not is refused, never repaired: somebody may have read it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shlex
import stat
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from distsec.errors import StoreError
from distsec.pki import files
from distsec.pki.keyring import Keyring

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
MAX_FILE_BYTES = 4 * 1024 * 1024
"""Nothing that is kept here comes near it; a larger file is none of ours."""

SPOILED_PREFIX = ".distsec-spoiled-"
"""Of a directory that was found in the place of a file."""

_LOCK_FILE = "lock"
_LOCK_POLL_SECONDS = 0.05
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not make us wait
_SYMLINK = frozenset({errno.ELOOP, errno.EMLINK})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Store:
    """The state directory below `root`; paths of its methods are relative to that, with `/`.

    `keyring` opens the sealed keys that are in it; None: they stay closed.
    Creating a Store makes the directory (its parent must exist) or checks the one that is there. Every method
    raises StoreError: a symlink on the way, another owner, a file that others can read, a full or read-only
    disk.
    """

    def __init__(self, root: Path, keyring: Keyring | None = None) -> None:
        self.root = root.absolute()
        self.keyring = keyring or Keyring()
        os.close(self._open_root(create=True))

    def path(self, relative: str) -> Path:
        """The absolute path, unchecked: for texts, and for programs that open it themselves."""
        return self.root / _parts(relative)

    def ensure_directory(self, relative: str) -> Path:
        """Makes the directory and those above it, or checks the ones that are there. Returns its absolute
        path.
        """
        with self._directory(_parts(relative), create=True):
            return self.path(relative)

    def exists(self, relative: str) -> bool:
        """Whether anything, even a dangling symlink, has that name."""
        parts = _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                os.stat(parts.name, dir_fd=directory, follow_symlinks=False)
        except _Missing:
            return False
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._refused(self.path(relative), error) from error
        return True

    def read(self, relative: str) -> bytes:
        """All of a private file: a regular one, ours, and closed to everybody else."""
        path, parts = self.path(relative), _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                descriptor = os.open(parts.name, _OPEN_FILE, dir_fd=directory)
                with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor
                    _check_file(path, os.fstat(descriptor))
                    content = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise self._refused(path, error) from error
        if len(content) > MAX_FILE_BYTES:
            raise StoreError(
                f"is larger than {MAX_FILE_BYTES} bytes", where=str(path), do="this is no file of distsec"
            )
        return content

    def create(self, relative: str, content: bytes) -> bool:
        """Creates the file, and the directories above it. False, and nothing changed, if it is taken."""
        path, parts = self.path(relative), _parts(relative)
        with self._directory(parts.parent, create=True) as directory:
            try:
                return files.create_new(directory, parts.name, content, FILE_MODE)
            except OSError as error:
                raise self._refused(path, error) from error

    def write(self, relative: str, content: bytes) -> None:
        """Replaces the file in one step, or creates it. On an error the old content is still there."""
        path, parts = self.path(relative), _parts(relative)
        with self._directory(parts.parent, create=True) as directory:
            try:
                self._check_replaceable(directory, path)
                files.replace(directory, parts.name, content, FILE_MODE)
            except OSError as error:
                raise self._refused(path, error) from error

    def remove(self, relative: str) -> bool:
        """Removes the file, or a symbolic link of that name itself. False, and nothing changed, if there is
        none.
        """
        path, parts = self.path(relative), _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                os.unlink(parts.name, dir_fd=directory)
                os.fsync(directory)
        except (_Missing, FileNotFoundError):
            return False
        except OSError as error:
            raise self._refused(path, error) from error
        return True

    def make_way(self, relative: str) -> bool:
        """Moves whatever is no regular file out of the way of one; True: there was something.

        A directory is renamed beside itself (SPOILED_PREFIX), never emptied: it may hold anything. A symbolic
        link, a FIFO or a socket is removed itself. Whoever can write there can do all that too.
        """
        path, parts = self.path(relative), _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                found = os.stat(parts.name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    return False
                if stat.S_ISDIR(found.st_mode):
                    aside = SPOILED_PREFIX + secrets.token_hex(8)
                    os.rename(parts.name, aside, src_dir_fd=directory, dst_dir_fd=directory)
                else:
                    os.unlink(parts.name, dir_fd=directory)
                os.fsync(directory)
        except (_Missing, FileNotFoundError):
            return False
        except OSError as error:
            raise self._refused(path, error) from error
        return True

    def wipe(self, relative: str) -> None:
        """Removes a private file and overwrites what it held; nothing if there is none. Whoever is killed in
        between has removed it: nobody finds it half overwritten. What a journal, a snapshot, a copy-on-write
        file system or the disk itself has kept of it is out of our reach.
        """
        path, parts = self.path(relative), _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                descriptor = os.open(parts.name, flags, dir_fd=directory)
                with open(descriptor, "wb", buffering=0, closefd=True) as stream:  # noqa: PTH123
                    found = os.fstat(descriptor)
                    _check_file(path, found)
                    os.unlink(parts.name, dir_fd=directory)
                    os.fsync(directory)
                    stream.write(bytes(found.st_size))
                    os.fsync(descriptor)
        except (_Missing, FileNotFoundError):
            return
        except OSError as error:
            raise self._refused(path, error) from error

    @contextlib.contextmanager
    def locked(self, wait_seconds: float = 10.0) -> Iterator[None]:
        """Keeps other commands from changing the state meanwhile (flock(2)). StoreError if they take too
        long.
        """
        path = self.path(_LOCK_FILE)
        with self._directory(PurePosixPath()) as directory:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(_LOCK_FILE, flags, FILE_MODE, dir_fd=directory)
            except OSError as error:
                raise self._refused(path, error) from error
        try:
            _check_owner(path, os.fstat(descriptor))
            os.fchmod(descriptor, FILE_MODE)
            _lock(descriptor, path, wait_seconds)
            yield
        finally:
            os.close(descriptor)  # and with it the lock

    # ---- the way to a file
    # ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _directory(self, parts: PurePosixPath, create: bool = False) -> Iterator[int]:
        """The checked, open directory at `parts` below the root. Raises _Missing if it is not there."""
        descriptor, path = self._open_root(create), self.root
        try:
            for part in parts.parts:
                path /= part
                below = self._open_directory(path, part, descriptor, create)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_root(self, create: bool) -> int:
        return self._open_directory(self.root, str(self.root), None, create)

    def _open_directory(self, path: Path, name: str, parent: int | None, create: bool) -> int:
        made = False
        if create:
            try:
                os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)
                made = True
            except FileExistsError:
                pass
            except FileNotFoundError as error:
                raise StoreError(
                    "cannot be made, because the directory above it does not exist",
                    where=str(path),
                    do="make that one, or choose another state_dir",
                ) from error
            except OSError as error:
                raise self._refused(path, error) from error
        try:
            descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
        except FileNotFoundError as error:
            raise _Missing("does not exist", where=str(path), do="run `distsec init`") from error
        except OSError as error:
            if error.errno == errno.ENOTDIR and _is_symlink(name, parent):
                raise _symlink(path) from error
            raise self._refused(path, error) from error
        try:
            if made:
                os.fchmod(descriptor, DIRECTORY_MODE)  # the umask may have taken bits away
                if parent is not None:
                    os.fsync(parent)
            _check_directory(path, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check_replaceable(self, directory: int, path: Path) -> None:
        """What is replaced must be a file of ours, so that a symlink or a foreign file is noticed, not
        papered over.
        """
        try:
            found = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        _check_file(path, found)

    @staticmethod
    def _refused(path: Path, error: OSError) -> StoreError:
        """What the operating system's `error` at `path` means to the operator."""
        where = str(path)
        if error.errno in _SYMLINK:
            return _symlink(path)
        if error.errno in _FULL:
            return StoreError(
                "the disk is full; nothing was changed", where=where, do="make room and run it again"
            )
        if error.errno == errno.EROFS:
            return StoreError("is on a read-only file system", where=where, do="choose another state_dir")
        if error.errno in {errno.EACCES, errno.EPERM}:
            return StoreError(
                "permission denied",
                where=where,
                do=f"run as the owner of the state directory (you are uid {os.geteuid()})",
            )
        if error.errno == errno.ENOENT:
            return StoreError("does not exist", where=where, do="run `distsec init`")
        reason = os.strerror(error.errno) if error.errno else "unusable"
        return StoreError(reason.lower(), where=where, do="see to it and run it again")


def read_private(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Up to `limit` bytes and one more of a private file that is elsewhere: a regular one, ours or root's, no
    symbolic link, and closed to everybody else. Raises StoreError.
    """
    try:
        descriptor = os.open(path, _OPEN_FILE)
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor
            found = os.fstat(descriptor)
            _check_file(path, found, frozenset({0, os.geteuid()}))
            return stream.read(limit + 1)
    except OSError as error:
        raise Store._refused(path, error) from error


class _Missing(StoreError):
    """A directory on the way does not exist."""


def _parts(relative: str) -> PurePosixPath:
    """A path that stays below the root. Raises StoreError; `..` and absolute paths are bugs of the caller or
    attacks.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\0" in relative:
        raise StoreError(f"{relative[:80]!a} leads out of the state directory", do="choose another name")
    return path


def _symlink(path: Path) -> StoreError:
    return StoreError(
        "is a symbolic link, which is refused", where=str(path), do="put a real file or directory there"
    )


def _is_symlink(name: str, parent: int | None) -> bool:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return stat.S_ISLNK(found.st_mode)


def _check_directory(path: Path, found: os.stat_result) -> None:
    _check_owner(path, found)
    _check_closed(path, found, "u=rwx,go=")


def _check_file(path: Path, found: os.stat_result, owners: frozenset[int] | None = None) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _symlink(path)
    if not stat.S_ISREG(found.st_mode):
        raise StoreError("is not a regular file", where=str(path), do="remove it")
    if owners is None or found.st_uid not in owners:
        _check_owner(path, found)
    _check_closed(path, found, "u=rw,go=")


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"belongs to uid {found.st_uid}, not to you (uid {os.geteuid()})",
            where=str(path),
            do="run as that user, or choose another state_dir",
        )


def _check_closed(path: Path, found: os.stat_result, wanted: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise StoreError(
            f"can be reached by other users (mode {mode:04o})",
            where=str(path),
            do=f"if nobody has read it, run: chmod {wanted} {shlex.quote(str(path))}",
        )


def _lock(descriptor: int, path: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreError(
                    "another distsec is changing this state directory",
                    where=str(path),
                    do="wait for it and try again",
                ) from None
            time.sleep(_LOCK_POLL_SECONDS)
