"""The state directory: the only writer of keys, and the one place that checks modes, owners and symlinks.

Every operation walks from the root to its file by open directories (openat(2) with O_NOFOLLOW) and checks
each on the way, so that nothing which is swapped in the meantime leads it elsewhere. Directories are 0700,
files 0600, from the moment they exist and whatever the umask; all belong to the user who runs the
orchestrator (`pki.forms` has what differs for a node with a user of its own). What does not is refused, never
repaired: somebody may have read it. In a directory that is entrusted to a node's user, what is not ours in
the place of a file of ours is moved out of the way when that is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from distsec.errors import StoreError
from distsec.pki import files, forms, handover
from distsec.pki.account import Account, acting_as
from distsec.pki.files import OPEN_FILE
from distsec.pki.files import SPOILED_PREFIX as SPOILED_PREFIX
from distsec.pki.forms import DIRECTORY_MODE, FILE_MODE, check_file, check_owner, refused, symlink
from distsec.pki.keyring import Keyring

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Nothing that is kept here comes near it; a larger file is none of ours."""

_LOCK_FILE = "lock"
_LOCK_POLL_SECONDS = 0.05
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        self.accounts: Mapping[str, Account] = {}
        """Directory (`nodes/<node>`) → whom it is for; as far as this process knows."""
        self._changing: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
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
                return files.is_taken(directory, parts.name)
        except _Missing:
            return False
        except OSError as error:
            raise refused(self.path(relative), error) from error

    def read(self, relative: str) -> bytes:
        """All of a private file: a regular one, ours, and closed to everybody else."""
        path, parts = self.path(relative), _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                group = self._group(directory, parts.parent)
                speaker = self._speaker(parts) if group is not None else None
                with acting_as(speaker):
                    descriptor = os.open(parts.name, OPEN_FILE, dir_fd=directory)
                with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor
                    check_file(path, os.fstat(descriptor), group, None if speaker is None else speaker.uid)
                    content = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise refused(path, error) from error
        if len(content) > MAX_FILE_BYTES:
            raise StoreError(
                f"is larger than {MAX_FILE_BYTES} bytes", where=str(path), do="this is no file of distsec"
            )
        return content

    def create(self, relative: str, content: bytes) -> bool:
        """Creates the file, and the directories above it. False, and nothing written, if it is taken."""
        path, parts = self.path(relative), _parts(relative)
        with self._unmoved(parts), self._directory(parts.parent, create=True) as directory:
            try:
                group = self._group(directory, parts.parent)
                if group is not None:
                    self._evict(directory, parts)
                if files.is_taken(directory, parts.name):
                    return False
                form = forms.form_of(parts, group, None)
                return files.create_new(directory, parts.name, content, form.mode, form.gid)
            except OSError as error:
                raise refused(path, error) from error

    def write(self, relative: str, content: bytes) -> None:
        """Replaces the file in one step, or creates it; one that is just so already takes no room. On an
        error the old content is still there.
        """
        path, parts = self.path(relative), _parts(relative)
        with self._unmoved(parts), self._directory(parts.parent, create=True) as directory:
            try:
                group = self._group(directory, parts.parent)
                if group is None:
                    self._check_replaceable(directory, path)
                    if not files.is_already(directory, parts.name, content, files.Form(FILE_MODE)):
                        files.replace(directory, parts.name, content, FILE_MODE)
                    return
                self._evict(directory, parts)
                form = forms.form_of(parts, group, self._account(parts))
                if not files.is_already(directory, parts.name, content, form):
                    files.force(directory, parts.name, content, form)
            except OSError as error:
                raise refused(path, error) from error

    def remove(self, relative: str) -> bool:
        """Removes the file, or a symbolic link of that name itself. False, and nothing changed, if there is
        none.
        """
        return self._take_away(relative, lambda directory, name: os.unlink(name, dir_fd=directory))

    def _take_away(self, relative: str, how: Callable[[int, str], None]) -> bool:
        path, parts = self.path(relative), _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                how(directory, parts.name)
                os.fsync(directory)
        except (_Missing, FileNotFoundError):
            return False
        except OSError as error:
            raise refused(path, error) from error
        return True

    def make_way(self, relative: str) -> bool:
        """Moves whatever is no regular file out of the way of one; True: there was something.

        A directory is renamed beside itself (SPOILED_PREFIX), never emptied: it may hold anything. A symbolic
        link, a FIFO or a socket is removed itself, and so is a file of a node's user in the place of ours.
        Whoever can write there can do all that too.
        """
        path, parts = self.path(relative), _parts(relative)
        try:
            with self._directory(parts.parent) as directory:
                found = os.stat(parts.name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    entrusted = self._group(directory, parts.parent) is not None
                    return entrusted and self._evict(directory, parts)
                files.move_aside(directory, parts.name)
                os.fsync(directory)
        except (_Missing, FileNotFoundError):
            return False
        except OSError as error:
            raise refused(path, error) from error
        return True

    def discard(self, relative: str) -> None:
        """Takes that name from whatever has it: a directory is moved aside, anything else removed."""
        self._take_away(relative, files.move_aside)

    def entrust(self, directory: str, account: Account | None) -> bool:
        """Makes `directory` (`nodes/<node>`) that of a node which runs as `account`; None: as ourselves.
        True: it was another's before. Whoever is killed in between leaves it closed to all but us.
        """
        path, parts = self.path(directory), _parts(directory)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._unmoved(parts))
                for way in (PurePosixPath(), parts.parent) if account is not None else ():
                    with self._directory(way, create=True) as descriptor:
                        handover.open_way(descriptor)
                log = stack.enter_context(self._directory(parts / forms.LOG, create=True))
                node = stack.enter_context(self._directory(parts))
                return handover.hand_over(node, log, self.root, parts, account)
        except OSError as error:
            raise refused(path, error) from error

    def close_way(self) -> None:
        """No node has a user of its own: nobody needs to pass through the directories above theirs."""
        for way in (PurePosixPath(), PurePosixPath(forms.NODES)):
            with contextlib.suppress(_Missing), self._directory(way) as descriptor:
                handover.close_way(descriptor)

    def group(self, directory: str) -> int | None:
        """The group to which the directory is entrusted; None: it is private."""
        parts = _parts(directory)
        with self._directory(parts) as descriptor:
            return self._group(descriptor, parts)

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
                    check_file(path, found, self._group(directory, parts.parent))
                    os.unlink(parts.name, dir_fd=directory)
                    os.fsync(directory)
                    stream.write(bytes(found.st_size))
                    os.fsync(descriptor)
        except (_Missing, FileNotFoundError):
            return
        except OSError as error:
            raise refused(path, error) from error

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
                raise refused(path, error) from error
        try:
            check_owner(path, os.fstat(descriptor))
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
        descriptor, at = self._open_root(create), PurePosixPath()
        try:
            for part in parts.parts:
                at /= part
                below = self._open_directory(at, part, descriptor, create)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_root(self, create: bool) -> int:
        return self._open_directory(PurePosixPath(), str(self.root), None, create)

    def _open_directory(self, parts: PurePosixPath, name: str, parent: int | None, create: bool) -> int:
        made, path = False, self.root / parts
        if create:
            try:
                if parent is not None and self._group(parent, parts.parent) is not None:
                    self._evict(parent, parts, directory_wanted=True)
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
                raise refused(path, error) from error
        try:
            descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
        except FileNotFoundError as error:
            raise _Missing("does not exist", where=str(path), do="run `distsec init`") from error
        except OSError as error:
            if error.errno == errno.ENOTDIR and _is_symlink(name, parent):
                raise symlink(path) from error
            raise refused(path, error) from error
        try:
            if made:
                os.fchmod(descriptor, DIRECTORY_MODE)  # the umask may have taken bits away
                if parent is not None:
                    os.fsync(parent)
            forms.check_directory(path, parts, os.fstat(descriptor))
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
        check_file(path, found)

    # ---- what a node's user has to do with it

    @contextlib.contextmanager
    def _unmoved(self, parts: PurePosixPath) -> Iterator[None]:
        """Nobody in this process hands that node's directory over meanwhile."""
        if parts.parts[:1] != (forms.NODES,):
            yield
            return
        with self._changing["/".join(parts.parts[:2])]:
            yield

    @staticmethod
    def _group(directory: int, parts: PurePosixPath) -> int | None:
        return forms.group_of(parts, os.fstat(directory)) if forms.may_be_entrusted(parts) else None

    def _account(self, parts: PurePosixPath) -> Account | None:
        return self.accounts.get("/".join(parts.parts[:2]))

    def _speaker(self, parts: PurePosixPath) -> Account | None:
        """Whose a file is that a node writes itself."""
        return self._account(parts) if parts.name in forms.SAID_BY_NODE else None

    def _evict(self, directory: int, parts: PurePosixPath, *, directory_wanted: bool = False) -> bool:
        """Takes the name at `parts` away from whatever is not ours, or is of another kind."""
        try:
            found = os.stat(parts.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        kind = stat.S_ISDIR if directory_wanted else lambda mode: stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
        speaker = self._speaker(parts)
        ours = {os.geteuid(), *(() if speaker is None else (speaker.uid,))}
        if found.st_uid in ours and kind(found.st_mode):
            return False
        files.move_aside(directory, parts.name)
        return True


def read_private(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Up to `limit` bytes and one more of a private file that is elsewhere: a regular one, ours or root's, no
    symbolic link, and closed to everybody else. Raises StoreError.
    """
    try:
        descriptor = os.open(path, OPEN_FILE)
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor
            found = os.fstat(descriptor)
            check_file(path, found, owners=(0, os.geteuid()))
            return stream.read(limit + 1)
    except OSError as error:
        raise refused(path, error) from error


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


def _is_symlink(name: str, parent: int | None) -> bool:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return stat.S_ISLNK(found.st_mode)


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
