"""A cluster under `distsec run` to measure, and what is measured of its processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.system.cluster import free_ports

DISTSEC = str(Path(sys.executable).parent / "distsec")
HZ = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 90.0


def node_names(count: int) -> list[str]:
    return [f"n{number:02}@127.0.0.1" for number in range(count)]


def configuration(commands: Mapping[str, list[str] | None], *, connect: str = "mesh") -> str:
    """`distsec.toml` of the nodes that are the keys; without a command something else starts the node.

    Their ports are none of those that the kernel takes for connections: one of the tests' that run beside a
    quick bench could keep a node down.
    """
    tables = "".join(
        f'[[nodes]]\nname = "{node}"\nport = {port}\n'
        + (f"command = {json.dumps(command)}\n" if command else "")
        for (node, command), port in zip(commands.items(), free_ports(len(commands)), strict=True)
    )
    return (
        '[cluster]\nname = "bench"\nstate_dir = "state"\non_exit = "stop"\nstop_deadline_seconds = 5\n'
        f"[security.distribution]\nallowed_nodes = {json.dumps(list(commands))}\n"
        f'connect = "{connect}"\n[metrics]\nlisten = "127.0.0.1:0"\n{tables}'
    )


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dsb", dir="/tmp"))  # short: sockets of nodes are in it
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def orchestrator(place: Path, config: str) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """`distsec run` in `place`, and the seconds from the command to all of its nodes RUNNING."""
    file = place / "distsec.toml"
    file.write_text(config)
    subprocess.run([DISTSEC, "init", str(place)], check=True, stdout=subprocess.DEVNULL)
    with (place / "run.log").open("wb") as log:
        begun = time.monotonic()
        process = subprocess.Popen([DISTSEC, "run", "-c", str(file)], stdout=log, stderr=log)
        try:
            try:
                until(lambda: all_running(file, process), "nodes RUNNING")
            except SystemExit as error:
                raise SystemExit(f"{error}\n{(place / 'run.log').read_text()[-2000:]}") from None
            yield process, time.monotonic() - begun
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(READY_SECONDS)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {what}: not within {READY_SECONDS:.0f} s")
        time.sleep(0.05)


def status(config: Path) -> dict[str, Any]:
    done = subprocess.run([DISTSEC, "status", "--json", "-c", str(config)], capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"nodes": []}
    return answer


def all_running(config: Path, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise SystemExit("bench: distsec run ended")
    states = [node["state"] for node in status(config)["nodes"]]
    if "FATAL" in states:
        raise SystemExit("bench: a node is FATAL")
    return bool(states) and all(state == "RUNNING" for state in states)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / HZ


def busy_seconds(pid: int) -> float:
    """CPU seconds of the threads of a process, to the nanosecond (Linux, sched-stats.rst)."""
    nanoseconds = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
