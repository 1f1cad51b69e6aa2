"""The user that a node runs as, and seeing this host through its eyes for a moment.

`acting_as` gives one thread the file system identity (setfsuid(2)) of that user and takes it back: what it
opens is what that user may open, whoever has put a link there, and the kernel shows it /proc of that user's
processes, which without CAP_SYS_PTRACE it shows to nobody else. It needs CAP_SETUID and CAP_SETGID. Signals,
sockets and other threads are not concerned, and nobody can trace this process because of it: the kernel asks
for the real, effective and saved identities, which stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distsec.errors import PermissionRefused

_NOBODY_AT_ALL = 0xFFFFFFFF
"""(uid_t) -1, which changes nothing: setfsuid(2) then tells who it is, and has no other way of telling."""

_libc = ctypes.CDLL(None, use_errno=True)
for _function in (_libc.setfsuid, _libc.setfsgid):
    _function.argtypes, _function.restype = [ctypes.c_uint32], ctypes.c_uint32


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this host. `groups`: the ids of all its groups, the primary one (`gid`) among them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def find_account(name: str) -> Account | None:
    """The user of that name as the host knows it now; None: there is none."""
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL in it
        return None
    groups = tuple(sorted({found.pw_gid, *os.getgrouplist(name, found.pw_gid)}))
    return Account(name, found.pw_uid, found.pw_gid, groups, found.pw_dir)


@contextlib.contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """This thread opens files, and reads /proc, as `account` would; None: as ever. Nothing may be awaited
    within, and no thread begun, which would go on as `account`. Raises PermissionRefused where the kernel
    does not let us.
    """
    if account is None:
        yield
        return
    before = _libc.setfsuid(_NOBODY_AT_ALL), _libc.setfsgid(_NOBODY_AT_ALL)
    try:
        if not _become(account.uid, account.gid):
            raise PermissionRefused(
                f"may not act as the user {account.name}", do="run with CAP_SETUID and CAP_SETGID, or as root"
            )
        yield
    finally:
        if not _become(*before):
            os.abort()  # it cannot happen; going on as somebody else must not


def account_of_uid(uid: int) -> Account:
    """The user with that number, also one that the host knows no more."""
    try:
        found = find_account(pwd.getpwuid(uid).pw_name)
    except KeyError:
        found = None
    return found if found is not None and found.uid == uid else Account(f"uid {uid}", uid, uid, (uid,))


def home_of(account: Account) -> str | None:
    """Its home directory; None where that is not its own: many a system user has one that is shared."""
    try:
        with acting_as(account):
            found = Path(account.home).stat()
    except (OSError, ValueError):
        return None
    return account.home if stat.S_ISDIR(found.st_mode) and found.st_uid == account.uid else None


def may_replace(account: Account, path: Path) -> bool:
    """Whether `account` may change the file at `path`, or put another in its place, as far as owners and
    modes tell. What cannot be looked at may be replaced.
    """
    try:
        resolved = path.resolve(strict=True)
        return any(_may_write(account, each.stat()) for each in (resolved, *resolved.parents))
    except (OSError, RuntimeError):
        return True


def _may_write(account: Account, found: os.stat_result) -> bool:
    if found.st_uid == account.uid:
        return True
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return False
    by_group = found.st_gid in account.groups and found.st_mode & stat.S_IWGRP
    return bool(by_group or found.st_mode & stat.S_IWOTH)


def _become(uid: int, gid: int) -> bool:
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    return (_libc.setfsuid(_NOBODY_AT_ALL), _libc.setfsgid(_NOBODY_AT_ALL)) == (uid, gid)
