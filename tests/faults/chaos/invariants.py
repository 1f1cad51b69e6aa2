"""What must hold at the end of each round, looked at from outside. Each function yields what does not, as
texts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.faults.chaos.cluster import ChaosCluster
from tests.faults.chaos.ledger import Ledger
from tests.system.intruder import string
from tests.system.processes import belonging_to, describe

REFUSALS = "distsec_security_refusals_total"
AGREE_SECONDS = 60.0
"""For log and metrics to say the same: a flood has to come through, and a probe's echo is waited for for 10 s
(supervisor.echoes)."""

ZOMBIE_SECONDS = 30.0
"""For whoever waits for a child that has ended to come to it, on a busy machine."""

SAMPLES = 5
PAUSE_SECONDS = 0.2
MOST_LEFTOVERS = 24
"""Temporary files of writers that were killed; the next writer in the same directory removes them."""


def settle(ask: Callable[[], list[str]], seconds: float, tick: Callable[[float], None]) -> list[str]:
    """Asks until there is nothing to say, or for so long; what was said last. `tick(s)` waits."""
    until = time.monotonic() + seconds
    while (found := ask()) and time.monotonic() < until:
        tick(0.5)
    return found


# ---- log, metrics, nodes
# ------------------------------------------------------------------------------------


def agreement(cluster: ChaosCluster, ledger: Ledger) -> list[str]:
    """Whether the lines, /metrics and the nodes' own counts agree now. To be asked while no intruder
    dials."""
    found: list[str] = []
    living = set()
    for name in cluster.names:
        within = cluster.told(name)
        living.add(within.launch)
        found += ledger.against(within)
    found += ledger.ended(living)
    shown: dict[tuple[str, str, str], float] = {}
    for sample in cluster.samples(REFUSALS):
        key = (sample.labels["node"], sample.labels["direction"], sample.labels["reason"])
        shown[key] = shown.get(key, 0.0) + sample.value
    return found + list(ledger.metrics(cluster.runs, shown, living))


def status_code(cluster: ChaosCluster) -> list[str]:
    """`distsec status` says that all is well, with its exit code and with its document."""
    done = cluster.distsec("status", "--json", check=False)
    if done.returncode != 0:
        plain = cluster.distsec("status", check=False)
        return [f"distsec status: exit code {done.returncode}\n{plain.stdout}{plain.stderr}"]
    document = json.loads(done.stdout)
    wrong = [node["name"] for node in document["nodes"] if node["state"] != "RUNNING"]
    links = {
        (node["name"], link["peer"])
        for node in document["nodes"]
        for link in node["links"]
        if link["verdict"] == "allow"
    }
    names = [cluster.node(name) for name in cluster.names]
    wanted = {(one, other) for one in names for other in names if one != other}
    if wrong or links != wanted:
        return [f"distsec status: exit code 0, but {wrong} do not run or the links differ: {links ^ wanted}"]
    return []


def findings(cluster: ChaosCluster) -> set[tuple[str, str]]:
    """What `distsec check` finds above info: code and severity."""
    done = cluster.distsec("check", "--json", check=False, seconds=120.0)
    assert done.returncode in {0, 1, 2}, f"distsec check: {done.returncode}\n{done.stderr}"
    return {
        (each["code"], each["severity"])
        for each in json.loads(done.stdout)["findings"]
        if each["severity"] != "info"
    }


# ---- intruders
# ----------------------------------------------------------------------------------------------


def intruders(cluster: ChaosCluster) -> Iterator[str]:
    """Nothing was executed, no link came up."""
    for file in cluster.booty.iterdir():
        yield f"{file.name} executed what a stranger asked for"
    for name, (tried, linked, ups) in cluster.hammered().items():
        if linked or ups:
            yield f"the intruder {name} had {linked} links and {ups} nodeups in {tried} attempts"


# ---- processes
# ----------------------------------------------------------------------------------------------


def processes(cluster: ChaosCluster, private: bool) -> list[str]:
    """One BEAM a node, one orchestrator, what each of them needs, and nothing else; no zombies."""
    roots = {cluster.beam_pid(name): name for name in cluster.names}
    if None in roots or len(roots) != len(cluster.names):
        return [f"not every node has a BEAM: {roots}"]
    expected = set(filter(None, roots)) | cluster.children()
    mine = _everything() if private else set(belonging_to(cluster.directory))
    found = []
    for pid in sorted(mine - {1, os.getpid()}):
        state, parent = _state(pid)
        if state == "Z":
            found.append(f"a zombie: {pid}, child of {describe(parent)}")
        elif state and not _below(pid, expected):
            found.append(f"a stray process: {describe(pid)}")
    for name in cluster.names:
        beams = _beams_of(cluster, name, mine)
        if len(beams) != 1:
            found.append(f"{name} has {len(beams)} BEAMs: {beams}")
    return found


def _beams_of(cluster: ChaosCluster, name: str, pids: Iterable[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"beam" in arguments[0] and os.fsencode(cluster.watched[name].path) in arguments:
                found.append(pid)
    return found


def _everything() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def _state(pid: int) -> tuple[str, int]:
    """Its state ("" where it is gone) and its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def _below(pid: int, roots: Collection[int]) -> bool:
    while pid > 1:
        if pid in roots:
            return True
        pid = _state(pid)[1]
    return False


def sample(pid: int) -> dict[str, float]:
    """What the operating system says of a process; the least of several looks, as a connection may come and
    go."""
    looks = []
    for _ in range(SAMPLES):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            looks.append(
                {
                    "descriptors": float(len(list(Path(f"/proc/{pid}/fd").iterdir()))),
                    "threads": _field(status, "Threads"),
                    "resident": _field(status, "VmRSS") * 1024,
                    "anonymous": _field(status, "RssAnon") * 1024,
                }
            )
        time.sleep(PAUSE_SECONDS / SAMPLES)
    return {what: min(look[what] for look in looks) for what in looks[0]} if looks else {}


def _field(status: str, name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return float(match[1]) if match else 0.0


# ---- files
# --------------------------------------------------------------------------------------------------


def files(cluster: ChaosCluster) -> list[str]:
    """Every file of the state directory is whole, and for nobody else to read. Terms are read by a node."""
    found: list[str] = []
    terms: list[Path] = []
    leftovers = 0
    for path in _below_directory(cluster.state):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # written anew meanwhile, or a writer's own
            continue
        if stat.S_IMODE(mode) & 0o077 and not stat.S_ISLNK(mode):
            found.append(f"{path}: mode {stat.S_IMODE(mode):04o}")
        if not stat.S_ISREG(mode):
            continue
        if path.name.startswith(".distsec-new-"):
            leftovers += 1
        elif path.suffix == ".term" or path.name == "dist.conf":
            terms.append(path)
        elif wrong := _wrong(path):
            found.append(f"{path}: {wrong}")
    if leftovers > MOST_LEFTOVERS:
        found.append(f"{leftovers} temporary files are left")
    names = ",".join(string(str(path)) for path in terms)
    bad = cluster.erl(cluster.names[0], f"[F || F <- [{names}], element(1, file:consult(F)) =/= ok]")
    if bad != "[]":
        found.append(f"no Erlang terms: {bad}")
    return found


def _below_directory(top: Path) -> list[Path]:
    """Everything, though some of it goes meanwhile."""
    found = [Path(at) / name for at, below, names in os.walk(top) for name in (*below, *names)]
    return sorted(found)


def _wrong(path: Path) -> str:
    """Why it is not whole; empty: it is, or is not there any more."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ""
    try:
        for check in _CHECKS.get(path.suffix or path.name, _CHECKS.get(path.name, ())):
            check(content)
    except Exception as error:
        return f"{type(error).__name__}: {error} ({len(content)} bytes)"
    return ""


def _json(content: bytes) -> None:
    json.loads(content)


def _pem(content: bytes) -> None:
    """Keys and certificates, in any order; at least one."""
    blocks = re.findall(rb"-----BEGIN ([A-Z0-9 ]+)-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n", content)
    if not blocks or content.count(b"-----BEGIN") != len(blocks):
        raise ValueError(f"{len(blocks)} whole blocks of {content.count(b'-----BEGIN')}")
    for text in re.findall(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n", content):
        x509.load_pem_x509_certificate(text)
    for text in re.findall(rb"-----BEGIN PRIVATE KEY-----[^-]+-----END PRIVATE KEY-----\n", content):
        load_pem_private_key(text, None)


def _hex_key(content: bytes) -> None:
    if not re.fullmatch(rb"[0-9a-f]{64}\n?", content):
        raise ValueError("not 32 bytes in hex")


def _mark(content: bytes) -> None:
    if not re.fullmatch(rb"distsec_mark 1 \d+\n?", content):
        raise ValueError("no mark")


_CHECKS: Mapping[str, tuple[Callable[[bytes], Any], ...]] = {
    ".json": (_json,),
    ".overlay": (_json,),
    ".rotation": (_json,),
    ".pem": (_pem,),
    "agent.key": (_hex_key,),
    ".secret": (_hex_key,),
    ".next": (_hex_key,),
    ".mark": (_mark,),
}
