"""The emulators on this host, from /proc: arguments, environment, sockets, and where their files are.

Everything but the pid was chosen by the process; it is bounded here and escaped where it is told. What this
user may not see is said in `Found.unseen`, since "not looked at" must not pass for "nothing wrong".
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from distsec.beam import proc
from distsec.errors import PermissionRefused
from distsec.model.cookies import PLACEHOLDER
from distsec.model.text import escape
from distsec.posture.collect import cookies
from distsec.posture.collect.emulator import EMULATOR, Flags, parse
from distsec.posture.collect.reading import read_proc

MAX_BEAMS: Final = 256
MAX_NAMED: Final = 10
EPMD_PORT: Final = 4369  # EPMD_PORT_NO in erts/epmd/src/epmd.h
EPMD_SECONDS: Final = 1.0
MAX_EPMD_BYTES: Final = 64 * 1024

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Beam:
    """A running emulator. `environ` and `listeners` are None where they may not be seen; `root`: what its
    paths begin with, as seen from here; `here`: it is in our network namespace."""

    pid: int
    uid: int | None
    flags: Flags
    cookies: tuple[bytes, ...] = field(repr=False)
    environ: bytes | None = field(repr=False)
    listeners: tuple[Address, ...] | None
    root: Path
    directory: Path
    here: bool

    @property
    def label(self) -> str:
        """For people: its node name and pid."""
        node = self.flags.node
        return f"{escape(node, 120)} (process {self.pid})" if node else f"process {self.pid}"

    def variable(self, name: str) -> str | None:
        """A variable of its environment."""
        for entry in (self.environ or b"").split(b"\0"):
            key, found, value = entry.partition(b"=")
            if found and key == name.encode():
                return os.fsdecode(value)
        return None

    def path(self, text: str) -> Path:
        """A file that it names, as it is found from here."""
        absolute = text if text.startswith("/") else os.path.normpath(f"{self.directory}/{text}")
        return self.root / absolute.lstrip("/") if self.root != Path("/") else Path(absolute)


@dataclass(slots=True)
class Found:
    """One pass over /proc. `wrappers`: other processes that carry a cookie in their arguments; `epmds`:
    (address, port, holder) of what listens as an epmd on this host; `elsewhere`: (label, pid) of epmds in
    other network namespaces."""

    beams: list[Beam] = field(default_factory=list)
    wrappers: list[tuple[str, tuple[bytes, ...]]] = field(default_factory=list)
    epmds: set[tuple[str, int, str]] = field(default_factory=set)
    elsewhere: list[tuple[str, int]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def find() -> Found:
    """Every emulator that this user may see. Never raises for what it finds."""
    found = Found()
    if not Path("/proc/1").exists():
        found.unseen.append("processes of other users: /proc hides them (hidepid)")
    ours = _namespace("self", "net")
    no_environment, no_sockets, epmds = [], [], []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):  # noqa: PTH208
        content = read_proc(pid, "cmdline")
        if not content or pid == os.getpid():
            continue
        argv = [os.fsdecode(word) for word in content.removesuffix(b"\0").split(b"\0")]
        program = argv[0].rpartition("/")[2]
        if program == "epmd":
            epmds.append(pid)
        elif not EMULATOR.fullmatch(program):
            if b"-setcookie\0" in content and (carried := _carried(content)):
                found.wrappers.append((f"process {pid} ({escape(program, 40)})", tuple(carried)))
        elif len(found.beams) >= MAX_BEAMS:
            found.unseen.append(
                f"more than {MAX_BEAMS} emulators run here; process {pid} and later are left out"
            )
            break
        else:
            beam = _beam(pid, argv, content, ours)
            found.beams.append(beam)
            if beam.environ is None:
                no_environment.append(pid)
            if beam.listeners is None and beam.flags.distributed:
                no_sockets.append(pid)
    _tell(found, "the environment", "emulators", no_environment)
    _tell(found, "the sockets", "emulators", no_sockets)
    _find_epmds(found, epmds)
    return found


def _carried(cmdline: bytes) -> list[bytes]:
    """The cookies of a wrapper; what stands in the place of one is judged where it gets to, in the VM."""
    return [cookie for cookie in cookies.in_arguments(cmdline) if cookie != PLACEHOLDER.encode()]


def epmd_names(port: int) -> dict[str, int]:
    """Name → port of the nodes that the epmd on loopback knows (NAMES_REQ); empty where none answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), EPMD_SECONDS) as connection:
            connection.settimeout(EPMD_SECONDS)
            connection.sendall(b"\0\x01n")
            answer = b""
            while len(answer) < MAX_EPMD_BYTES and (data := connection.recv(4096)):
                answer += data
    except OSError:
        return {}
    names = {}
    for line in answer[4:].decode("utf-8", "replace").splitlines():
        words = line.split()  # "name a at port 45123"
        if len(words) == 5 and words[0] == "name" and words[4].isdecimal() and len(words[4]) < 6:
            names[words[1]] = int(words[4])
    return names


def _beam(pid: int, argv: list[str], cmdline: bytes, ours: str | None) -> Beam:
    environ = read_proc(pid, "environ")
    network, mount = _namespace(pid, "net"), _namespace(pid, "mnt")
    try:
        listeners: tuple[Address, ...] | None = tuple(
            (each.address, each.port) for each in proc.listening([pid])
        )
    except (PermissionRefused, ValueError, OSError):
        listeners = None
    elsewhere = mount is not None and mount != _namespace("self", "mnt")
    return Beam(
        pid=pid,
        uid=_owner(pid),
        flags=parse(argv),
        cookies=tuple(cookies.in_arguments(cmdline)),
        environ=environ,
        listeners=listeners,
        root=Path(f"/proc/{pid}/root") if elsewhere else Path("/"),
        directory=_directory(pid),
        here=network is None or network == ours,
    )


def _find_epmds(found: Found, pids: list[int]) -> None:
    """Those of this host, and whatever listens at epmd's port in our namespace (systemd, for one). One in
    another network namespace is none of this host's, whatever address it listens at there.
    """
    ports = {EPMD_PORT}
    for beam in found.beams:
        text = beam.variable("ERL_EPMD_PORT") or ""
        if beam.here and text.isdecimal() and len(text) < 6:
            ports.add(int(text))
    elsewhere, no_sockets = [], []
    for pid in pids:
        if proc.shares_network(pid) is False:
            elsewhere.append(pid)
            continue
        try:
            for each in proc.listening([pid]):
                found.epmds.add((each.address, each.port, f"epmd (process {pid})"))
        except (PermissionRefused, ValueError, OSError):
            no_sockets.append(pid)  # at the ports that are known it is seen below all the same
    _tell(found, "the sockets", "epmds", no_sockets)
    found.elsewhere += [(f"epmd (process {pid})", pid) for pid in elsewhere[:MAX_NAMED]]
    seen = {(address, port) for address, port, _ in found.epmds}
    for address, port in proc.all_listening(os.getpid()):
        if port in ports and (address, port) not in seen:
            found.epmds.add((address, port, "whoever holds epmd's port"))


def _tell(found: Found, what: str, whose: str, pids: list[int]) -> None:
    if pids:
        named = ", ".join(map(str, pids[:MAX_NAMED])) + (", …" if len(pids) > MAX_NAMED else "")
        found.unseen.append(f"{what} of {len(pids)} {whose} of other users (process {named})")


def _owner(pid: int) -> int | None:
    try:
        return proc.owner(pid)
    except ValueError:
        return None


def _namespace(pid: int | str, kind: str) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:
        return None


def _directory(pid: int) -> Path:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return Path("/")
