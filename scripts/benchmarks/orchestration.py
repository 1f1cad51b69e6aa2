"""What the orchestrator costs: idle, at the start of a cluster, and as a command."""

from __future__ import annotations

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from scripts.benchmarks.clusters import (
    DISTSEC,
    configuration,
    cpu_seconds,
    directory,
    node_names,
    orchestrator,
    resident_megabytes,
    status,
    until,
)
from scripts.benchmarks.rows import Row, in_turn


def bare_nodes(count: int) -> str:
    """A configuration of `count` nodes that do nothing."""
    return configuration({name: ["erl", "-noinput"] for name in node_names(count)})


def idle(quick: bool) -> list[Row]:
    rows = []
    for count in (3, 20):
        with directory() as place, orchestrator(place, bare_nodes(count)) as (process, _):
            nodes = [int(node["pid"]) for node in status(place / "distsec.toml")["nodes"]]
            time.sleep(2.0)  # the mesh settles
            before, nodes_before = cpu_seconds(process.pid), sum(map(cpu_seconds, nodes))
            seconds = 5.0 if quick else 20.0
            time.sleep(seconds)
            own = (cpu_seconds(process.pid) - before) / seconds * 100
            theirs = (sum(map(cpu_seconds, nodes)) - nodes_before) / seconds * 100
            memory, node_memory = resident_megabytes(process.pid), sum(map(resident_megabytes, nodes))
            rows += [
                Row(
                    f"idle, {count} nodes: CPU of one core",
                    f"{own:.1f} %",
                    f"nodes {theirs:.1f} %",
                    own / theirs if theirs else None,
                ),
                Row(
                    f"idle, {count} nodes: resident memory",
                    f"{memory:.0f} MB",
                    f"nodes {node_memory:.0f} MB",
                    memory / node_memory,
                ),
            ]
    return rows


def start(quick: bool) -> list[Row]:
    count = 4 if quick else 10
    with directory() as place, orchestrator(place, bare_nodes(count)) as (_, guarded):
        pass
    with directory() as place:
        script = "".join(
            f"erl -noinput -name {node} -setcookie x -start_epmd false -erl_epmd_port {29300 + number}"
            f" -kernel inet_dist_use_interface '{{127,0,0,1}}'"
            f" -eval {shlex.quote(f'file:write_file({json.dumps(str(place / node))}, [])')} &\n"
            for number, node in enumerate(node_names(count))
        )
        begun = time.monotonic()
        shell = subprocess.Popen(
            ["sh", "-c", script + "wait"],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: len(list(place.iterdir())) == count, f"{count} plain nodes")
            plain = time.monotonic() - begun
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    return [
        Row(
            f"start of {count} nodes, guarded and proven",
            f"{guarded:.2f} s",
            f"shell script {plain:.2f} s",
            guarded / plain,
        )
    ]


def status_time(quick: bool) -> list[Row]:
    runs = 5 if quick else 15
    rows = []
    with directory() as place, orchestrator(place, bare_nodes(3)):
        config = str(place / "distsec.toml")
        click = [sys.executable, "-c", "import click"]
        for what, command in (
            ("distsec status", [DISTSEC, "status", "-c", config]),
            ("distsec status --json", [DISTSEC, "status", "--json", "-c", config]),
            ("distsec --help", [DISTSEC, "--help"]),
        ):
            taken = in_turn({"command": wall_time(command), "click": wall_time(click)}, runs, warm_up=1)
            took, base = (statistics.median(taken[each]) for each in ("command", "click"))
            rows.append(Row(what, f"{took * 1000:.0f} ms", f"import click {base * 1000:.0f} ms", took / base))
    return rows


def wall_time(command: list[str]) -> Callable[[], float]:
    """Runs it, for the seconds that it took."""

    def run() -> float:
        begun = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - begun

    return run
