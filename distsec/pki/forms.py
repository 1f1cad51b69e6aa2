"""Whose everything in the state directory is, and who else may see it: the rules, and what breaks them.

Directories are 0700 and files 0600, of the user who runs the orchestrator. Where a node runs as a user of
its own there are four exceptions, for its directory alone (`Store.entrust`):

* its directory and the `log/` in it are of the group of that user, 1770: the node makes files there, and
  cannot rename, replace or remove ours (the sticky bit; RestrictSUIDSGID= of systemd forbids a setgid bit);
* what it must read (READ_BY_NODE) is of that group, 0640;
* what it says (SAID_BY_NODE) is its own, and is read as that user;
* the directories on the way, the root and `nodes/`, may be passed through and not listed: 0711.

A directory tells by its own mode and group to whom it is entrusted, so that no record can differ from it.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Final

from distsec.errors import StoreError
from distsec.pki.account import Account
from distsec.pki.files import Form

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
WAY_MODE: Final = 0o711
ENTRUSTED_MODE: Final = 0o1770
READABLE_MODE: Final = 0o640

NODES: Final = "nodes"
SHELLS: Final = "shells"
LOG: Final = "log"
AGENT_SOCKET: Final = "agent.sock"

READ_BY_NODE: Final = frozenset(
    {
        *("key.pem", "certificate.pem", "trust.pem", "dist.conf", "policy.term", "cookie.term"),
        *("guard.term", "agent.key"),
    }
)
SAID_BY_NODE: Final = frozenset({"policy.mark", "guard.refused"})

_SYMLINK = frozenset({errno.ELOOP, errno.EMLINK})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_way(parts: PurePosixPath) -> bool:
    """Whether a node must pass through that directory to reach its own, or a tool of its to reach what it was
    given.
    """
    return str(parts) in {".", NODES, SHELLS} or str(parts.parent) == SHELLS


def may_be_entrusted(parts: PurePosixPath) -> bool:
    """Whether it is the directory of a node, or of its log."""
    names = parts.parts
    return len(names) in {2, 3} and names[0] == NODES and names[2:] in {(), (LOG,)}


def group_of(parts: PurePosixPath, found: os.stat_result) -> int | None:
    """The group to which a directory of ours is entrusted; None: it is private."""
    entrusted = may_be_entrusted(parts) and stat.S_IMODE(found.st_mode) == ENTRUSTED_MODE
    return found.st_gid if entrusted else None


def form_of(parts: PurePosixPath, group: int | None, account: Account | None) -> Form:
    """How a file at `parts` is kept in a directory of that group. `account`: whose node it is, if known."""
    if group is None or parts.parent.name == LOG:
        return Form(FILE_MODE)
    if parts.name in READ_BY_NODE:
        return Form(READABLE_MODE, None, group)
    if parts.name in SAID_BY_NODE and account is not None and account.gid == group:
        return Form(FILE_MODE, account.uid, group)
    return Form(FILE_MODE)


def check_directory(path: Path, parts: PurePosixPath, found: os.stat_result) -> None:
    """Raises StoreError unless it is as it should be."""
    check_owner(path, found)
    if group_of(parts, found) is None:
        _check_closed(path, found, WAY_MODE if is_way(parts) else DIRECTORY_MODE, "u=rwx,go=")


def check_file(
    path: Path,
    found: os.stat_result,
    group: int | None = None,
    speaker: int | None = None,
    *,
    owners: Collection[int] = (),
) -> None:
    """Raises StoreError unless it is a regular file of ours (or of one of `owners`), open to nobody else but,
    in a directory that is entrusted, its group; or one of the `speaker`, whoever else that one lets at it.
    """
    if stat.S_ISLNK(found.st_mode):
        raise symlink(path)
    if not stat.S_ISREG(found.st_mode):
        raise StoreError("is not a regular file", where=str(path), do="remove it")
    if found.st_uid == speaker:
        return
    if found.st_uid not in owners:
        check_owner(path, found)
    entrusted = group is not None and found.st_gid == group
    _check_closed(path, found, READABLE_MODE if entrusted else FILE_MODE, "u=rw,go=")


def check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"belongs to uid {found.st_uid}, not to you (uid {os.geteuid()})",
            where=str(path),
            do=f"run as that user (sudo -u '#{found.st_uid}' distsec …), or choose another state_dir",
        )


def symlink(path: Path) -> StoreError:
    return StoreError(
        "is a symbolic link, which is refused", where=str(path), do="put a real file or directory there"
    )


def linked(path: Path) -> StoreError:
    return StoreError(
        "has another name besides, so it may be another file than it is called, and is given to nobody",
        where=str(path),
        do=f"set fs.protected_hardlinks=1 (sysctl), see what it is (find / -xdev -samefile "
        f"{shlex.quote(str(path))}), and remove the name that distsec did not give it",
    )


def refused(path: Path, error: OSError) -> StoreError:
    """What the operating system's `error` at `path` means to the operator."""
    where = str(path)
    if error.errno in _SYMLINK:
        return symlink(path)
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


def _check_closed(path: Path, found: os.stat_result, allowed: int, wanted: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077 & ~allowed:
        raise StoreError(
            f"can be reached by other users (mode {mode:04o})",
            where=str(path),
            do=f"if nobody has read it, run: chmod {wanted} {shlex.quote(str(path))}",
        )
