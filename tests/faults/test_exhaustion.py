"""An orchestrator that has run out of file descriptors or processes: it goes on, says so now and then, starts
what it could not start as soon as it can, and what a client may take of it has a bound."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distsec.control.http import MAX_CONNECTIONS as CONTROL
from distsec.control.scrape import MAX_CONNECTIONS as METRICS
from tests.releases import OTPS, Otp
from tests.system.cluster import HOST, Cluster
from tests.system.open_package import for_all
from tests.system.other_users import ORCHESTRATOR, UserCluster, require_users
from tests.waiting import wait_until

LIMIT = 160
"""Of descriptors: little enough to be taken by clients in a moment. A quarter of it is kept for the nodes."""

KEPT = LIMIT // 4
LOOKING_SECONDS = 6.0
BACK_SECONDS = 90.0
STEP_SECONDS = 5.0
MINUTE = 60.0
TCP_OPEN, UNIX_LISTENER = {"01", "08"}, "00010000"
"""States of /proc/net/tcp: ESTABLISHED, CLOSE_WAIT; and the flags of a listener in /proc/net/unix."""


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """One release: it is the orchestrator that is under test."""
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def cluster(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams, ["a", "b"]) as made:
        made.start()
        yield made


def orchestrator(cluster: Cluster) -> int:
    assert cluster.orchestrator is not None and cluster.orchestrator.poll() is None
    return cluster.orchestrator.pid


def descriptors(pid: int) -> set[int]:
    return {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def without_clients(cluster: Cluster) -> set[int]:
    """Its descriptors once nobody is connected to its metrics or its control socket, the clients of the test
    before among them: it hears of the end of a connection later than who has ended it."""
    pid = orchestrator(cluster)
    cluster.wait(lambda: connections(cluster, pid) == 0, "the end of all clients' connections", 60)
    return descriptors(pid)


def connections(cluster: Cluster, pid: int) -> int:
    """At its metrics and its control socket, also those that wait to be accepted; proc(5)."""
    tcp = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    unix = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    control = str(cluster.state / "control.sock")
    return sum(
        int(each[1].partition(":")[2], 16) == cluster.metrics_port and each[3] in TCP_OPEN for each in tcp
    ) + sum(each[-1] == control and each[3] != UNIX_LISTENER for each in unix)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def limited(cluster: Cluster, what: str, least: int) -> Iterator[Callable[[int], None]]:
    """Lowers a limit of the orchestrator meanwhile, "nofile" or "nproc"; what it yields sets another."""
    # whose it is must ask for it: root may not everywhere (CAP_SYS_RESOURCE)
    own = [*cluster.enter, "prlimit", "--pid", str(orchestrator(cluster))]

    def limit(number: int) -> None:
        subprocess.run([*own, f"--{what}={number}:"], check=True, timeout=30)

    before = subprocess.run(
        [*own, f"--{what}", "--raw", "--noheadings", "--output=SOFT"],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert before == "unlimited" or int(before) > least
    limit(least)
    try:
        yield limit
    finally:
        subprocess.run([*own, f"--{what}={before}:"], check=True, timeout=30)


@contextlib.contextmanager
def clients(cluster: Cluster, each: int, again: bool = True) -> Iterator[list[socket.socket]]:
    """So many connections to the metrics and to the control socket that send nothing; and, `again`, others
    in the place of those."""
    held: list[socket.socket] = []
    over = threading.Event()

    def connect(control: bool) -> None:
        made = socket.socket(socket.AF_UNIX if control else socket.AF_INET)
        made.settimeout(0.2)
        held.append(made)
        with contextlib.suppress(OSError):
            made.connect(str(cluster.state / "control.sock") if control else (HOST, cluster.metrics_port))

    def hold() -> None:
        while not over.wait(0.02):
            for control in (False, True):
                connect(control)
            while len(held) > 2 * each:
                held.pop(0).close()

    for _ in range(each):
        connect(False)
        connect(True)
    thread = threading.Thread(target=hold, name="clients", daemon=True)
    try:
        if again:
            thread.start()
        yield held
    finally:
        over.set()
        if again:
            thread.join(30)
        for one in held:
            one.close()


def ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def lines(cluster: Cluster, since: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cluster.orchestrator_lines()[since:]]


def kill(cluster: Cluster, name: str) -> int:
    pid = cluster.pid(name)
    os.kill(pid, signal.SIGKILL)
    return pid


def started(cluster: Cluster) -> int:
    return len(cluster.events("NodeStarted", node=cluster.node("b")))


def test_clients_cannot_take_the_descriptors_that_the_nodes_need(cluster: Cluster) -> None:
    pid, said, starts = orchestrator(cluster), len(cluster.orchestrator_lines()), started(cluster)
    before, began = without_clients(cluster), time.monotonic()

    def refusing() -> list[dict[str, Any]]:
        return [line for line in lines(cluster, said) if "connections are refused" in str(line)]

    with limited(cluster, "nofile", LIMIT), clients(cluster, 150):
        cluster.wait(lambda: len(descriptors(pid)) > LIMIT - KEPT - 5, "clients that take what they may", 60)
        kill(cluster, "b")
        cluster.wait(lambda: started(cluster) == starts + 1, "b to be started again", BACK_SECONDS)
        cluster.wait(
            lambda: cluster.erl("a", f"lists:member({cluster.node('b')!r}, nodes())") == "true",
            "a link with b",
            BACK_SECONDS,
        )
        assert max(descriptors(pid)) < LIMIT
        cluster.wait(refusing, "a word about it", 60)
        # the metrics' and the control socket's own, each once a minute
        told, minutes = refusing(), (time.monotonic() - began) // MINUTE
        assert len(told) <= 2 * (1 + minutes)
        assert all("the last are kept for the nodes" in line["what"] for line in told)
    cluster.wait_running(seconds=BACK_SECONDS)
    cluster.wait(lambda: len(descriptors(pid)) <= len(before) + 2, "the end of all connections", 60)
    cluster.wait(lambda: cluster.status()["healthy"], "all to be well")


def test_what_clients_may_hold_has_a_bound_and_an_operator_has_an_answer(cluster: Cluster) -> None:
    pid = orchestrator(cluster)
    most = len(without_clients(cluster)) + METRICS + CONTROL
    with clients(cluster, 2 * CONTROL, again=False) as held:
        cluster.wait(lambda: sum(map(ended, held)) > CONTROL, "the end of those that are too many", 60)
        assert len(descriptors(pid)) <= most + 10
        cluster.wait(lambda: cluster.distsec("status", check=False).returncode == 0, "an answer", 60)


def one_by_one(cluster: Cluster, limit: Callable[[int], None]) -> dict[str, Any]:
    """Gives it descriptors until it sees that b is gone, which takes fewer than to start it, and fails to."""
    open_all_the_time = set.intersection(*(descriptors(orchestrator(cluster)) for _ in range(20)))
    free = sorted(set(range(3, 4096)) - open_all_the_time)
    for highest in free[: KEPT // 4]:
        limit(highest + 1)
        with contextlib.suppress(AssertionError):
            return cluster.wait_event(
                "NodeStateChanged", STEP_SECONDS, node=cluster.node("b"), reason="start_failed"
            )
    raise AssertionError(f"b was not seen to fail; {started(cluster)} starts")


def test_without_any_descriptor_it_goes_on_and_starts_a_node_as_soon_as_it_can(cluster: Cluster) -> None:
    pid, said, starts = orchestrator(cluster), len(cluster.orchestrator_lines()), started(cluster)
    before = without_clients(cluster)
    with limited(cluster, "nofile", 3) as limit:
        with clients(cluster, 20):
            kill(cluster, "b")
            cluster.wait(
                lambda: "no file descriptor is left" in str(lines(cluster, said)), "a word about it", 60
            )
            used, began = processor_seconds(pid), time.monotonic()
            wait_until(lambda: time.monotonic() > began + LOOKING_SECONDS, "the end of the look", 60)
            assert processor_seconds(pid) - used < 0.3 * (time.monotonic() - began)
            told = lines(cluster, said)
            assert len(told) < 40, told
            assert any("no file descriptor is left" in str(line) for line in told)
            assert not [line for line in told if line["event"] == "AgentRefused"]
            assert started(cluster) == starts
        cluster.wait(lambda: len(descriptors(pid)) <= len(before), "the end of all connections", 60)
        failed = one_by_one(cluster, limit)
        assert "no file descriptor is left to this process" in failed["detail"]
        assert started(cluster) == starts
    cluster.wait(lambda: started(cluster) == starts + 1, "b to be started again", BACK_SECONDS)
    cluster.wait_running(seconds=BACK_SECONDS)
    cluster.wait_meshed()
    cluster.wait(lambda: cluster.status()["healthy"], "all to be well")
    cluster.wait(lambda: len(descriptors(pid)) <= len(before) + 2, "its descriptors to be as before", 60)
    failed = [line for line in lines(cluster, said) if line["event"] == "a task failed"]
    assert failed == []


@pytest.fixture
def unprivileged(otp: Otp, beams: Path) -> Iterator[Cluster]:
    """Its orchestrator is not root, of whom the kernel counts no processes."""
    require_users()
    copy = for_all(beams)
    try:
        with UserCluster(otp, copy, orchestrator=ORCHESTRATOR) as made:
            yield made
    finally:
        shutil.rmtree(copy)


def test_a_node_that_no_process_can_be_made_for_is_tried_until_one_can(unprivileged: Cluster) -> None:
    cluster = unprivileged
    cluster.start()
    with limited(cluster, "nproc", 1):
        kill(cluster, "b")
        cluster.wait_states(BACK_SECONDS, a="RUNNING", b="BACKOFF")
        failed = cluster.wait_event("NodeStateChanged", node=cluster.node("b"), reason="start_failed")
        assert "no process or thread can be started" in failed["detail"]
        starts = started(cluster)
        # what an operator asks for takes threads, and finds them
        cluster.distsec("cookie", "rotate", check=False)
        cluster.distsec("certs", "renew", cluster.node("a"))
        assert started(cluster) == starts
    cluster.wait_running(seconds=BACK_SECONDS)
    cluster.wait_meshed()
    assert started(cluster) == starts + 1
    assert cluster.terminate() == 0
