"""What this process may do that others may not, and the users that nodes run as (`[[nodes]].user`).

The orchestrator is root, or any user with the four NEEDED capabilities and no other. They are its own: before
anything is started, the ambient and inheritable sets are emptied, so that whatever is executed from then on
(nodes, epmd, tools) has none. Sources: capabilities(7), "Transformation of capabilities during execve()".
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from distsec.errors import ConfigError, PermissionRefused, Problem
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.text import escape
from distsec.pki.account import Account, acting_as, find_account

NEEDED: Final = {"CAP_CHOWN": 0, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}  # linux/capability.h

_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def keep_from_children() -> None:
    """No child inherits a capability from here on. Before the first thread: each has its own sets.

    Raises PermissionRefused where the kernel, or a filter of system calls, does not let us.
    """
    if _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0:
        raise _not_dropped()
    header, sets = _Header(_CAPABILITY_VERSION_3, 0), (_Sets * 2)()
    if _libc.capget(ctypes.byref(header), ctypes.byref(sets)) != 0:
        raise _not_dropped()
    if any(half.inheritable for half in sets):
        for half in sets:
            half.inheritable = 0
        if _libc.capset(ctypes.byref(header), ctypes.byref(sets)) != 0:
            raise _not_dropped()


def missing_capabilities() -> list[str]:
    """Those of NEEDED that are not in force."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    return [name for name, number in NEEDED.items() if not effective >> number & 1]


def node_accounts(spec: ClusterSpec) -> dict[str, Account]:
    """Name of a node → the user that it runs as; of those only that have one.

    Raises ConfigError for a user that cannot be a node's, PermissionRefused where this process may not
    switch to it.
    """
    accounts: dict[str, Account] = {}
    problems = []
    for index, node in enumerate(spec.nodes):
        if node.user is not None:
            wrong = unfit(node, os.geteuid(), os.getegid())
            account = find_account(node.user)
            if wrong is not None:
                problems.append(Problem(f"nodes[{index}].user", 0, *wrong))
            elif account is not None:
                accounts[str(node.name)] = account
    if problems:
        raise ConfigError(spec.config_file, problems)
    if accounts:
        _check_power(accounts)
    return accounts


def shared(accounts: Mapping[str, Account]) -> Iterator[str]:
    """What makes two nodes' keys one: a line for each pair of nodes of which one reads what the other has."""
    pairs = [(one, other) for one in accounts for other in accounts if one < other]
    for one, other in pairs:
        first, second = accounts[one], accounts[other]
        if first.uid == second.uid:
            yield f"{one} and {other} run as the same user {first.name}: each can read the other's key"
        elif second.gid in first.groups or first.gid in second.groups:
            yield f"{one} and {other} run as users of one group: one can read the other's key"


def others_in_group(account: Account) -> list[str]:
    """Who else is in the primary group of a node's user, and reads what the node does; by name."""
    found = {each.pw_name for each in pwd.getpwall() if each.pw_gid == account.gid}
    with contextlib.suppress(KeyError):
        found |= set(grp.getgrgid(account.gid).gr_mem)
    return sorted(found - {account.name})


def check_reach(account: Account, node: str, *paths: Path) -> None:
    """Raises PermissionRefused unless `account` may read each of `paths`; it names the directory at which the
    way ends.
    """
    for path in paths:
        with acting_as(account):
            closed = _closed(path)
        if closed is not None:
            raise PermissionRefused(
                f"the user {account.name} of {node} cannot get at {escape(str(path), 1024)}",
                where=escape(str(closed), 1024),
                do="let it through (chmod o+x; a file: chmod o+r), or put it elsewhere",
            )


def _closed(path: Path) -> Path | None:
    for directory in reversed(path.absolute().parents):
        if not os.access(directory, os.X_OK, effective_ids=True):
            return directory
    return None if os.access(path, os.R_OK, effective_ids=True) else path


def unfit(node: NodeSpec, uid: int, gid: int) -> tuple[str, str] | None:
    """What is wrong with the user of `node`, and what to do, where an orchestrator of `uid` and `gid` starts
    it; None: nothing, or it has none.
    """
    if node.user is None:
        return None
    account, name = find_account(node.user), escape(node.user)
    if account is None:
        return f"there is no user {name} on this host", f"make it (useradd --system {name}), or correct it"
    if account.uid == 0 or account.gid == 0:
        return f"{name} is root, or of its group, to which every file is open", "make a user for the node"
    if account.uid == uid or account.gid == gid:
        return (
            f"{name} is the orchestrator's own user, or of its group: nothing would be kept from the node",
            "make a user with a group of its own for the node, or remove the key",
        )
    return None


def _check_power(accounts: Mapping[str, Account]) -> None:
    name, account = next(iter(accounts.items()))
    if missing := missing_capabilities():
        raise PermissionRefused(
            f"{name} is to run as the user {account.name}, and this process may not switch users"
            f" (lacks {', '.join(missing)})",
            do="run distsec as root, or with AmbientCapabilities=CAP_SETUID CAP_SETGID CAP_CHOWN CAP_KILL in"
            " its unit (docs/configuration.md, Users)",
        )
    if not Path("/proc/1/stat").exists():
        raise PermissionRefused(
            f"{name} is to run as the user {account.name}, and /proc hides other users' processes",
            do="remove ProtectProc= from the unit, or mount /proc without hidepid",
        )


def _not_dropped() -> PermissionRefused:
    return PermissionRefused(
        f"its capabilities cannot be kept from what it starts ({os.strerror(ctypes.get_errno()).lower()})",
        do="let prctl, capget and capset through the filter of system calls",
    )
