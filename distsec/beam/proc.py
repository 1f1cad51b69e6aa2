"""Typed reads of /proc: who a process is, whose child, in which session, and what its tree listens on.

A process may vanish between any two reads: such a read answers None (or leaves the process out) and never
raises. A format that proc(5) does not describe raises ValueError: that is a bug here or a kernel unlike all
others, and nothing may be concluded from it. Only reads; signals live in `session` and `node`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distsec.errors import PermissionRefused
from distsec.pki.account import Account

MAX_GENERATIONS = 256
"""How far `descends_from` walks up. Wrappers stack a handful deep; a longer chain is no chain of ours."""

CLOCK_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
"""Unit of `Stat.start_time` (proc(5), field 22)."""

_TCP_LISTEN = "0A"  # TCP_LISTEN in include/net/tcp_states.h, as printed by tcp4_seq_show
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says. `start_time` is clock ticks since boot; `state` one letter, `Z` for a
    zombie."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    terminal: int
    start_time: int

    @property
    def alive(self) -> bool:
        """Whether it can still run code: neither a zombie nor dead."""
        return self.state not in {"Z", "X", "x"}


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A listening TCP socket. `address` is an IP literal, `0.0.0.0` or `::` for all interfaces."""

    pid: int
    address: str
    port: int


def stat(pid: int) -> Stat | None:
    """Reads /proc/PID/stat; None when there is no such process."""
    content = _read(pid, "stat")
    return None if content is None else parse_stat(content)


def parse_stat(content: bytes) -> Stat:
    """Reads the bytes of a stat file. Raises ValueError where they are not what proc(5) describes.

    The name is the one field that a process chooses itself: it may hold blanks, parentheses and newlines,
    so it ends at the last `)` of the whole text, behind which there are only a letter and numbers.
    """
    opening, closing = content.find(b" ("), content.rfind(b")")
    fields = content[closing + 1 :].split()
    if opening < 1 or closing <= opening or len(fields) < 20 or len(fields[0]) != 1:
        raise ValueError("a /proc/PID/stat that proc(5) does not describe")
    return Stat(
        pid=int(content[:opening]),
        name=content[opening + 2 : closing].decode("utf-8", "backslashreplace"),
        state=fields[0].decode("ascii"),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        terminal=int(fields[4]),
        start_time=int(fields[19]),
    )


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; with the pid it names one process until the next
    boot."""
    found = stat(pid)
    return None if found is None else found.start_time


def parent(pid: int) -> int | None:
    """The pid of its parent (0 for the kernel's own), None when there is no such process."""
    found = stat(pid)
    return None if found is None else found.parent


def same_process(pid: int, start_time: int) -> bool:
    """Whether `pid` is still the process that started at `start_time`, running or not yet reaped."""
    found = stat(pid)
    return found is not None and found.start_time == start_time


def owner(pid: int) -> int | None:
    """Its effective uid (/proc/PID/status; the owner of the directory is root for undumpable processes)."""
    content = _read(pid, "status")
    if content is None:
        return None
    for line in content.splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[2])
    raise ValueError("a /proc/PID/status without a line Uid:")


def account(pid: int) -> Account | None:
    """The user and group that it acts as, for `acting_as`; None for our own, and for one that is gone."""
    content = _read(pid, "status")
    if content is None:
        return None
    ids = {line[:4]: int(line.split()[2]) for line in content.splitlines() if line[:4] in {b"Uid:", b"Gid:"}}
    uid, gid = ids[b"Uid:"], ids[b"Gid:"]
    return None if uid in {0, os.geteuid()} else Account(f"uid {uid}", uid, gid, (gid,))


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether `pid` is `ancestor`, below it, or in the session that `ancestor` leads.

    The session counts because a wrapper in the middle may have died, which hands its children to init;
    nobody can enter a session from outside (setsid(2) only makes new ones). A parent that is younger than
    its child is a reused pid, and ends the walk.
    """
    root = stat(ancestor)
    current = stat(pid)
    if root is None or current is None:
        return False
    if current.session == ancestor and current.start_time >= root.start_time:
        return True
    for _ in range(MAX_GENERATIONS):
        if current.pid == ancestor:
            return current.start_time == root.start_time
        above = stat(current.parent) if current.parent > 0 else None
        if above is None or above.start_time > current.start_time:
            return False
        current = above
    return False


def tree(pid: int) -> list[int]:
    """`pid`, all below it and all in the session that it leads, ascending; one pass over /proc. Empty if
    none lives."""
    children: dict[int, list[int]] = {}
    present: set[int] = set()
    found: set[int] = set()
    for each in everything():
        present.add(each.pid)
        children.setdefault(each.parent, []).append(each.pid)
        if each.session == pid:
            found.add(each.pid)
    pending = [*found, *({pid} & present)]
    found.update(pending)
    while pending:
        fresh = [child for child in children.get(pending.pop(), ()) if child not in found]
        found.update(fresh)
        pending.extend(fresh)
    return sorted(found)


def children(pid: int) -> list[int]:
    """The pids of its children; a few reads (CONFIG_PROC_CHILDREN). One that is just being forked may be
    missing."""
    found: list[int] = []
    try:
        threads = os.listdir(_PROC / str(pid) / "task")  # noqa: PTH208  names are enough
    except OSError:
        return found
    for thread in threads:
        content = _read(pid, f"task/{thread}/children")
        found.extend(int(child) for child in (content or b"").split())
    return found


def arguments(pid: int) -> tuple[str, ...]:
    """The arguments it was given by exec, as the file system encodes them; empty when it is gone, a zombie,
    or between two programs."""
    content = _read(pid, "cmdline")
    return tuple(os.fsdecode(word) for word in content.removesuffix(b"\0").split(b"\0")) if content else ()


def session_members(session: int) -> list[Stat]:
    """All processes of that session that can still run code, its leader included."""
    return [each for each in everything() if each.session == session and each.alive]


def everything() -> Iterator[Stat]:
    """Every process that this one may see, in one pass over /proc."""
    for entry in os.listdir(_PROC):  # noqa: PTH208  names are enough, and a pass must be cheap
        if entry.isdecimal() and (found := stat(int(entry))) is not None:
            yield found


def listening(pids: Iterable[int]) -> list[Listener]:
    """The listening TCP sockets that these processes hold, sorted.

    Each process is asked in its own network namespace (/proc/PID/net). Raises PermissionRefused when the
    file descriptors of one of them may not be read: then nothing is known of its sockets, and that must not
    pass for none.
    """
    tables: dict[str, dict[int, tuple[str, int]]] = {}
    found: set[Listener] = set()
    for pid in pids:
        inodes = _socket_inodes(pid)
        namespace = _link(pid, "ns/net")
        if not inodes or namespace is None:
            continue
        if namespace not in tables:
            tables[namespace] = _listening_inodes(pid)
        table = tables[namespace]
        found.update(Listener(pid, *table[inode]) for inode in inodes if inode in table)
    return sorted(found)


def all_listening(pid: int) -> set[tuple[str, int]]:
    """(address, port) of every listening TCP socket in the network namespace of `pid`, whoever holds it."""
    return set(_listening_inodes(pid).values())


def shares_network(pid: int) -> bool | None:
    """Whether the process is in our network namespace: what it listens on elsewhere is not on this host. None
    where that may not be seen, and of one that is gone.
    """
    try:
        theirs, ours = _link(pid, "ns/net"), _link(os.getpid(), "ns/net")
    except PermissionRefused:
        return None
    return None if theirs is None or ours is None else theirs == ours


def holder(port: int) -> Stat | None:
    """A process in our network namespace that listens on `port`, if it is one whose sockets may be seen.
    One pass over /proc.
    """
    sockets = {inode for inode, (_, each) in _listening_inodes(os.getpid()).items() if each == port}
    for process in everything() if sockets else ():
        with contextlib.suppress(PermissionRefused, OSError):
            if sockets & _socket_inodes(process.pid):
                return process
    return None


def listening_uid(address: str, port: int) -> int | None:
    """The uid of a listener in our network namespace that nobody can listen at `address`:`port` beside. This
    anybody may see of everybody. None: there is none.
    """
    taken = {(each, port) for each in (address, "0.0.0.0", "::")}  # noqa: S104 - compared, not bound
    for table in ("net/tcp", "net/tcp6"):
        for line in (_read(os.getpid(), table) or b"").decode("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _TCP_LISTEN and parse_address(fields[1]) in taken:
                return int(fields[7])
    return None


def finds_same(pid: int, path: Path) -> bool | None:
    """Whether what the process finds at the absolute `path` is what we find there: in a container the same
    name is another file. None where that cannot be seen, and of one that is gone.
    """
    root = _PROC / str(pid) / "root"
    try:
        ours = path.stat()
        root.stat()
    except OSError:
        return None
    try:
        return os.path.samestat(ours, (root / path.relative_to("/")).stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None


def parse_address(text: str) -> tuple[str, int]:
    """Reads `0100007F:1F90` as /proc/net/tcp and tcp6 print it: 32-bit words in the byte order of this
    machine.

    Raises ValueError for anything else. An IPv4 address that is mapped into IPv6 is given as the IPv4
    address.
    """
    words, separator, port = text.partition(":")
    if not separator or len(words) not in {8, 32} or len(port) != 4:
        raise ValueError("an address that /proc/net/tcp does not print")
    raw = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address), int(port, 16)


def environment_holds(pid: int, mark: bytes) -> bool:
    """Whether the environment that the process was started with holds `mark`; False where it may not be
    read."""
    content = _read(pid, "environ")
    return content is not None and mark in content


def _read(pid: int, what: str) -> bytes | None:
    """A file below /proc/PID, None when the process is gone or does not let itself be read."""
    try:
        return (_PROC / str(pid) / what).read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _link(pid: int, what: str) -> str | None:
    try:
        return str((_PROC / str(pid) / what).readlink())
    except PermissionError as error:
        raise _unreadable(pid) from error
    except (FileNotFoundError, ProcessLookupError):
        return None


def _socket_inodes(pid: int) -> set[int]:
    directory = _PROC / str(pid) / "fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208  names are enough
    except PermissionError as error:
        raise _unreadable(pid) from error
    except (FileNotFoundError, ProcessLookupError):
        return set()
    links = (_link(pid, f"fd/{descriptor}") for descriptor in descriptors)
    matches = (_SOCKET_LINK.fullmatch(link) for link in links if link is not None)
    return {int(match[1]) for match in matches if match is not None}


def _listening_inodes(pid: int) -> dict[int, tuple[str, int]]:
    found: dict[int, tuple[str, int]] = {}
    for table in ("net/tcp", "net/tcp6"):  # tcp6 is missing where the kernel has no IPv6
        try:
            with (_PROC / str(pid) / table).open(encoding="ascii") as lines:
                next(lines, None)  # the heading
                for line in lines:
                    fields = line.split()
                    if fields[3] == _TCP_LISTEN:
                        found[int(fields[9])] = parse_address(fields[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            if error.errno != 22:  # EINVAL: proc_net of a process that has just exited
                raise
    return found


def _unreadable(pid: int) -> PermissionRefused:
    return PermissionRefused(
        f"the open files of process {pid} may not be read, so its sockets are unknown",
        do="run all of the node as one user, the orchestrator's or its own (user in its [[nodes]])",
    )
