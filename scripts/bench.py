"""What distsec costs, measured in one run so that the ratios mean something on a noisy machine.

    idle    CPU and memory of an idle orchestrator with 3 and with 20 nodes, against the nodes themselves
    port    events per second from a node's ring to metrics and log, against pushing them into the ring
    start   time until 10 nodes are RUNNING, against a shell script that starts the same 10 until they answer
    status  wall time of `distsec status`, against `python -c "import click"`

Everything runs on loopback in a directory of its own and is ended by pid. `--quick` measures for less time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distsec.beam.link import AgentServer
from distsec.beam.messages import EventKind, LaneEvent, Message
from distsec.beam.provision import agent_key, provision
from distsec.beam.security_events import to_security_event
from distsec.config.load import load
from distsec.observe.bus import Bus
from distsec.observe.log import EventLog, make_logger
from distsec.observe.metrics import Metrics
from distsec.pki.store import Store
from distsec.supervisor.machine import LocalMachine

DISTSEC = str(Path(sys.executable).parent / "distsec")
HZ = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ratio` is value / baseline where there is one."""

    what: str
    value: str
    baseline: str = ""
    ratio: float | None = None


# ---- a cluster to measure ---------------------------------------------------------------------------------


def names(count: int) -> list[str]:
    return [f"n{number}@127.0.0.1" for number in range(count)]


def configuration(nodes: list[str], command: list[str] | None) -> str:
    start = f"command = {json.dumps(command)}\n" if command else ""
    tables = "".join(f'[[nodes]]\nname = "{node}"\n{start}' for node in nodes)
    return (
        '[cluster]\nname = "bench"\nstate_dir = "state"\non_exit = "stop"\nstop_deadline_seconds = 5\n'
        f"[security.distribution]\nallowed_nodes = {json.dumps(nodes)}\n"
        f'[metrics]\nlisten = "127.0.0.1:0"\n{tables}'
    )


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dsb", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def orchestrator(place: Path, count: int) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A running cluster of `count` nodes, and the seconds from the command to all RUNNING."""
    config = place / "distsec.toml"
    config.write_text(configuration(names(count), ["erl", "-noinput"]))
    subprocess.run([DISTSEC, "init", str(place)], check=True, stdout=subprocess.DEVNULL)
    with (place / "run.log").open("wb") as log:
        begun = time.monotonic()
        process = subprocess.Popen([DISTSEC, "run", "-c", str(config)], stdout=log, stderr=log)
        try:
            until(lambda: running(config) == count, f"{count} nodes RUNNING")
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
    return json.loads(done.stdout) if done.stdout else {"nodes": []}


def running(config: Path) -> int:
    return sum(node["state"] == "RUNNING" for node in status(config)["nodes"])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / HZ


def resident_megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- measurements -----------------------------------------------------------------------------------------


def idle(quick: bool) -> list[Row]:
    rows = []
    for count in (3, 20):
        with directory() as place, orchestrator(place, count) as (process, _):
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


BURST = 8000
"""Events at once: below the ring's 8,192, so that none may be lost."""


def port(quick: bool) -> list[Row]:
    return asyncio.run(_port(3 if quick else 10))


async def _port(rounds: int) -> list[Row]:
    with directory() as place:
        config = place / "distsec.toml"
        node = names(1)[0]
        config.write_text(configuration([node], None))
        spec = load(config, os.environ)
        store = Store(Path(spec.state_dir))
        provision(spec, store, time.time())
        machine = LocalMachine(spec, store, os.environ)
        expected = BURST * rounds
        seen, bus, metrics = Tally(expected), Bus(), Metrics()
        with (place / "events.log").open("w") as log:
            event_log = EventLog(make_logger(log))
            bus.subscribe(event_log, "log")
            bus.subscribe(metrics.event, "metrics")

            def on_message(name: str, message: Message) -> None:
                if isinstance(message, LaneEvent) and message.kind is EventKind.REFUSAL:
                    bus.publish(to_security_event(message, name, time.time()))
                    seen.add(message)

            key = agent_key(store, spec.nodes[0].name)
            where = store.path(f"nodes/{node}/agent.sock")
            server = AgentServer(node, where, key, lambda *_: True, on_message, _ignore, _ignore)
            await server.start()
            flags = machine.outside(spec.nodes[0])["env"]["ERL_AFLAGS"]
            environment = {**os.environ, "ERL_AFLAGS": flags}
            source = (
                'F = #{identity => <<"spiffe://bench/node/127.0.0.1/x">>, address => <<"127.0.0.1:40000">>},'
                "Wait = fun W() -> case distsec_ring:read(refusals, 0, 10000, pass) of {[], _} -> ok;"
                " _ -> receive after 5 -> W() end end end,"
                "Put = fun() -> element(1, timer:tc(fun() ->"
                f" [distsec_report:refusal(in, not_allowed, F) || _ <- lists:seq(1, {BURST})] end)) end,"
                "receive after 1500 -> ok end,"
                f"T = lists:sum([begin P = Put(), Wait(), P end || _ <- lists:seq(1, {rounds})]),"
                'io:format("~b~n", [T]).'
            )
            process = await asyncio.create_subprocess_exec(
                "erl", "-noinput", "-eval", source, env=environment, stdout=asyncio.subprocess.PIPE
            )
            before = resident_megabytes(os.getpid())
            try:
                await asyncio.wait_for(seen.complete.wait(), READY_SECONDS)
                grown = resident_megabytes(os.getpid()) - before
                assert process.stdout is not None
                pushed = int(await asyncio.wait_for(process.stdout.readline(), 30)) / 1e6
            finally:
                process.kill()
                await process.wait()
                await server.close()
    rate, push_rate = expected / seen.seconds, expected / pushed
    return [
        Row(
            "port: events/s, ring to metrics and log",
            f"{rate:,.0f}",
            f"into the ring {push_rate:,.0f}",
            rate / push_rate,
        ),
        Row(f"port: lost of {expected:,} (bursts of {BURST:,})", f"{expected - seen.count}"),
        Row("port: memory grown meanwhile", f"{grown:.0f} MB"),
    ]


class Tally:
    """Counts events; the clock runs within a burst only (the node waits for the last acknowledgement)."""

    def __init__(self, expected: int) -> None:
        self.count = 0
        self.seconds = 0.0
        self.complete = asyncio.Event()
        self._expected = expected
        self._since: float | None = None

    def add(self, message: LaneEvent) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        self.count += 1
        if self.count % BURST == 0:
            self.seconds += now - self._since
            self._since = None
        if self.count == self._expected:
            self.complete.set()


def _ignore(*_: object) -> None: ...


def start(quick: bool) -> list[Row]:
    count = 4 if quick else 10
    with directory() as place, orchestrator(place, count) as (_, guarded):
        pass
    with directory() as place:
        script = "".join(
            f"erl -noinput -name {node} -setcookie x -start_epmd false -erl_epmd_port {29300 + number}"
            f" -kernel inet_dist_use_interface '{{127,0,0,1}}'"
            f" -eval {shlex.quote(f'file:write_file({json.dumps(str(place / node))}, [])')} &\n"
            for number, node in enumerate(names(count))
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
    with directory() as place, orchestrator(place, 3):
        config = str(place / "distsec.toml")
        click = [sys.executable, "-c", "import click"]
        for what, command in (
            ("distsec status", [DISTSEC, "status", "-c", config]),
            ("distsec status --json", [DISTSEC, "status", "--json", "-c", config]),
            ("distsec --help", [DISTSEC, "--help"]),
        ):
            took, base = in_turn(command, click, runs)
            rows.append(Row(what, f"{took * 1000:.0f} ms", f"import click {base * 1000:.0f} ms", took / base))
    return rows


def in_turn(command: list[str], baseline: list[str], runs: int) -> tuple[float, float]:
    """Median wall seconds of both, run in turn, so that a machine that slows down slows both."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for times, each in zip(taken, (command, baseline), strict=True):
            begun = time.monotonic()
            subprocess.run(each, stdout=subprocess.DEVNULL, check=True)
            times.append(time.monotonic() - begun)
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


MEASUREMENTS: dict[str, Callable[[bool], list[Row]]] = {
    "idle": idle,
    "port": port,
    "start": start,
    "status": status_time,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="idle|port|start|status", help="default: all")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--quick", action="store_true", help="fewer runs, smaller figures")
    options = parser.parse_args()
    if unknown := set(options.what) - set(MEASUREMENTS):
        parser.error(f"unknown measurement: {', '.join(sorted(unknown))}")
    rows = []
    for what in options.what or MEASUREMENTS:
        print(f"bench: {what} …", file=sys.stderr, flush=True)
        rows += MEASUREMENTS[what](options.quick)
    if options.json:
        print(json.dumps({"schema": 1, "rows": [asdict(row) for row in rows]}))
        return
    width = max(len(row.what) for row in rows)
    for row in rows:
        ratio = f"{row.ratio:8.3f} x" if row.ratio is not None else ""
        print(f"{row.what:<{width}}  {row.value:>10}  {row.baseline:<26} {ratio}".rstrip())


if __name__ == "__main__":
    main()
