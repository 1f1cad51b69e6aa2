"""`distsec run` as a service: when it says READY, what STATUS shows, and what the watchdog is fed by."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from distsec.core import node_status as life
from distsec.errors import ConfigError
from distsec.model.cluster import NodeState
from distsec.observe.sd_notify import Notifier
from distsec.supervisor.readiness import Readiness
from tests.unit.daemon_process import CONFIG, MAIN, Daemon, one_daemon
from tests.unit.fake_machine import FakeMachine, cluster_spec, node_spec
from tests.unit.observe.systemd import Systemd
from tests.unit.test_supervisor import A, B, Cluster, until
from tests.waiting import wait_until


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with one_daemon() as made:
        yield made


@pytest.fixture
def systemd(daemon: Daemon) -> Iterator[Systemd]:
    with Systemd(daemon.directory / "notify") as made:
        yield made


def test_tells_systemd_when_it_is_ready_reloading_and_stopping(daemon: Daemon, systemd: Systemd) -> None:
    daemon.start(NOTIFY_SOCKET=str(systemd.path))
    systemd.wait("READY=1")
    assert systemd.wait_status("policy generation").startswith(
        "0 of 1 node RUNNING (a@127.0.0.1 STOPPED not_started), 0 violations; policy generation "
    )
    daemon.ready()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    systemd.wait("RELOADING=1")
    systemd.wait("READY=1", times=2)
    assert [int(moment) > 0 for moment in systemd.lines("MONOTONIC_USEC")] == [True]
    daemon.process.send_signal(signal.SIGTERM)
    systemd.wait("STOPPING=1")
    assert daemon.ended() == 0
    systemd.wait_status("stopping the nodes")
    order = [line.split(b"\n")[0] for line in systemd.words]
    assert order.index(b"STOPPING=1") > order.index(b"RELOADING=1")


def test_a_configuration_that_cannot_be_used_says_so_in_the_status(daemon: Daemon, systemd: Systemd) -> None:
    daemon.write(CONFIG + "\n[nonsense]\n[more]\n")
    daemon.start(NOTIFY_SOCKET=str(systemd.path))
    assert daemon.ended() == ConfigError.exit_code
    told = systemd.wait_status("nonsense")
    assert told.endswith("(and 1 more)")
    assert systemd.lines("READY") == []


@pytest.mark.parametrize("restart", ["never", "always"])
def test_a_node_that_fails_keeps_ready_from_nobody_and_stands_in_the_status(
    daemon: Daemon, systemd: Systemd, restart: str
) -> None:
    daemon.write(CONFIG + f'restart = "{restart}"\n', command='command = ["false"]')
    daemon.start(NOTIFY_SOCKET=str(systemd.path))
    systemd.wait("READY=1")
    systemd.wait_status(
        "(a@127.0.0.1 STOPPED exited)" if restart == "never" else "(a@127.0.0.1 BACKOFF exited)"
    )
    assert max(map(int, systemd.lines("EXTEND_TIMEOUT_USEC"))) <= 60_000_000


HANGS = """
import asyncio, pathlib, threading
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.policy import PolicyDesk
asked = pathlib.Path({path!r})
tick, settle = ManagedNode.tick, PolicyDesk.settle
def hang(self):
    if asked.exists() and {blocks}:
        asked.with_name("hung").touch()
        threading.Event().wait()
    tick(self)
async def wait(self):
    if asked.exists():
        asked.with_name("hung").touch()
        await asyncio.Event().wait()
    await settle(self)
ManagedNode.tick, PolicyDesk.settle = hang, wait
"""


@pytest.mark.parametrize("blocks", [True, False], ids=["the event loop", "the supervising loop alone"])
def test_a_loop_that_hangs_feeds_no_watchdog(daemon: Daemon, systemd: Systemd, blocks: bool) -> None:
    asked = daemon.directory / "hang"
    program = HANGS.format(path=str(asked), blocks=blocks) + MAIN
    daemon.start(program=program, NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="3000000")
    systemd.wait("WATCHDOG=1", times=3)
    asked.touch()
    wait_until(asked.with_name("hung").exists, "it to hang, however late it comes to that")

    def quiet_for() -> float:
        if len(systemd.read()) > quiet["words"]:
            quiet.update(words=len(systemd.words), since=time.monotonic())
        return time.monotonic() - quiet["since"]

    quiet = {"words": 0, "since": time.monotonic()}
    wait_until(lambda: quiet_for() > 3.0, "three seconds without a word")
    assert daemon.process is not None and daemon.process.poll() is None
    if not blocks:
        assert daemon.client().status()["cluster"] == "demo", "its event loop is well"
    daemon.process.send_signal(signal.SIGABRT)  # what systemd does
    assert daemon.ended() == -signal.SIGABRT
    assert ("in hang" in daemon.told()) == blocks, "it says where it hung"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.asyncio
async def test_ready_waits_for_every_node_that_is_started_and_no_longer_than_the_deadline(
    systemd: Systemd,
) -> None:
    cluster = Cluster(cluster_spec(node_spec("a"), node_spec("b"), node_spec("c", command=())))
    cluster.fake(B).says_hello = False
    clock = Clock()
    readiness = Readiness(cluster.supervisor, Notifier(str(systemd.path)), clock)
    async with cluster.supervisor.running():
        await cluster.states(a=NodeState.RUNNING)
        for clock.now in (0.0, 1.0, 2.0, 4.9):
            readiness.tick()
        assert systemd.lines("READY") == [] and len(systemd.lines("EXTEND_TIMEOUT_USEC")) == 1
        assert len(systemd.lines("STATUS")) == 1, "it is told when it changes"
        assert "1 of 3 nodes RUNNING (b@127.0.0.1 STARTING, c@127.0.0.1 STOPPED" in systemd.lines("STATUS")[0]
        clock.now = 5.0  # start_deadline_seconds of cluster_spec
        readiness.tick()
        assert systemd.lines("READY") == ["1"]
        readiness.tick()
        assert systemd.lines("READY") == ["1"], "once"


@pytest.mark.asyncio
async def test_a_node_that_was_decided_once_is_not_waited_for_again(systemd: Systemd) -> None:
    cluster = Cluster(cluster_spec(node_spec("a"), node_spec("b")))
    cluster.fake(B).says_hello = False
    clock = Clock()
    readiness = Readiness(cluster.supervisor, Notifier(str(systemd.path)), clock)
    async with cluster.supervisor.running():
        await cluster.states(a=NodeState.RUNNING)
        readiness.tick()
        a = cluster.supervisor.nodes[A]
        a.feed(life.StopRequested())
        a.feed(life.StartRequested())
        await until(lambda: a.status.state is not NodeState.RUNNING)
        b = cluster.supervisor.nodes[B]
        cluster.fake(B).says_hello = True
        cluster.fake(B).hello()
        await until(lambda: b.status.state is NodeState.RUNNING)
        cluster.fake(A).says_hello = False
        readiness.tick()
        assert systemd.lines("READY") == ["1"]


@pytest.mark.asyncio
async def test_a_word_that_is_not_taken_is_said_again(systemd: Systemd) -> None:
    machine = FakeMachine(cluster_spec(node_spec("a")))
    cluster = Cluster(machine.spec, machine)
    clock = Clock()
    readiness = Readiness(cluster.supervisor, Notifier(str(systemd.path)), clock)
    stuffed = Notifier(str(systemd.path))
    async with cluster.supervisor.running():
        await cluster.states(a=NodeState.RUNNING)
        while stuffed.send("STATUS=stuffed"):
            pass
        readiness.tick()
        assert not readiness.ready
        systemd.read()
        readiness.tick()
        assert readiness.ready and "READY=1" in [line.decode().split("\n")[0] for line in systemd.read()[-1:]]
        assert systemd.lines("STATUS")[-1].startswith("1 node RUNNING, 0 violations")
