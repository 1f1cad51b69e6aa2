"""Taking over what something else has started, against a machine in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distsec.beam.messages import AgentRefusal, Opened
from distsec.core import lifecycle
from distsec.core import node_status as life
from distsec.errors import CommandFailed, NotFound, UsageError
from distsec.model.cluster import NodeState
from distsec.model.events import EventType
from tests.unit.fake_machine import FakeProcess, cluster_spec, node_spec
from tests.unit.later import later
from tests.unit.test_supervisor import A, B, Cluster, until

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def stopped(**fields: Any) -> AsyncIterator[Cluster]:
    """a has a command and was stopped by an operator; b has none."""
    cluster = Cluster(cluster_spec(node_spec("a"), node_spec("b", command=()), **fields))
    async with cluster.supervisor.running():
        await cluster.states(a=NodeState.RUNNING)
        await cluster.supervisor.stop([A])
        yield cluster


def comes_up(cluster: Cluster, name: str) -> FakeProcess:
    """Something else starts it: it is there, and its agent has not knocked yet."""
    fake = cluster.fake(name)
    fake.says_hello = False
    fake.boot(cluster.supervisor.desk.wanted.document)
    assert fake.process is not None
    return fake.process


def knocks(cluster: Cluster, name: str, uid: int | None = None) -> bool:
    """Whether its agent may prove itself; then it does."""
    fake = cluster.fake(name)
    assert fake.process is not None
    server = fake.server
    assert server is not None
    accepted = bool(server.accept_peer(fake.process.pid, os.geteuid() if uid is None else uid))
    if accepted:
        server.pid = fake.process.pid
        server.on_message(name, Opened(fake.launch))
        server.on_message(name, fake.snapshot())
    return accepted


async def test_a_stopped_node_takes_no_vm_unless_it_is_asked_to() -> None:
    async with stopped() as cluster:
        process = comes_up(cluster, A)
        assert not knocks(cluster, A)
        adopting = asyncio.create_task(cluster.supervisor.adopt(A, None, None))
        await asyncio.sleep(0)
        assert not knocks(cluster, A, uid=os.geteuid() + 1), "of another user"
        assert knocks(cluster, A)
        assert await adopting == {"node": A, "pid": process.pid, "command": True}
        assert cluster.state(A) is NodeState.RUNNING
        assert ("take", A, str(process.pid)) in cluster.machine.order
        assert cluster.machine.records.stopped == frozenset(), "the operator's word"
        assert cluster.fake(A).starts == 2, "once here, once elsewhere"


async def test_a_connection_that_outlived_its_process_brings_in_no_other_with_that_pid() -> None:
    """A child of a hostile VM holds the socket; who has the pid by now may be anybody."""
    async with stopped() as cluster:
        for name in (A, B):
            comes_up(cluster, name)
            server = cluster.fake(name).server
            assert server is not None
            server.orphaned = True
        adopting = asyncio.create_task(cluster.supervisor.adopt(A, None, 0.05))
        await asyncio.sleep(0)
        assert knocks(cluster, A) and knocks(cluster, B)
        with pytest.raises(CommandFailed):
            await adopting
        assert not [each for each in cluster.machine.order if each[0] == "take"]
        assert cluster.supervisor.nodes[B].process is None


async def test_the_window_closes_again() -> None:
    async with stopped() as cluster:
        with pytest.raises(CommandFailed, match="no process said hello as a@"):
            await cluster.supervisor.adopt(A, None, 0.05)
        comes_up(cluster, A)
        assert not knocks(cluster, A)
        assert cluster.state(A) is NodeState.STOPPED
        assert cluster.machine.records.stopped == frozenset({A}), "the operator's word still counts"


async def test_a_vm_whose_guard_is_not_in_force_is_ended_and_not_taken_over() -> None:
    async with stopped() as cluster:
        cluster.fake(B).carrier = "inet_tcp"
        process = comes_up(cluster, B)
        adopting = asyncio.create_task(cluster.supervisor.adopt(B, None, None))
        await asyncio.sleep(0)
        assert knocks(cluster, B)
        with pytest.raises(CommandFailed, match="its carrier is inet_tcp, not inet_tls"):
            await adopting
        assert process.ended.done()
        await cluster.states(b=NodeState.FATAL)


async def test_what_keeps_it_from_saying_hello_is_told() -> None:
    async with stopped() as cluster:
        with pytest.raises(CommandFailed, match="there is no process 99999"):
            await cluster.supervisor.adopt(B, 99999, 0.05)
        process = comes_up(cluster, B)
        with pytest.raises(CommandFailed, match="is no VM with the environment of b@"):
            await cluster.supervisor.adopt(B, process.pid, 0.05)
        cluster.machine.foundlings.flagged.add(process.pid)
        with pytest.raises(CommandFailed, match=r"was started with the environment of b@.*said no hello"):
            await cluster.supervisor.adopt(B, process.pid, 0.05)
        adopting = asyncio.create_task(cluster.supervisor.adopt(B, None, 0.2))
        await asyncio.sleep(0)
        server = cluster.fake(B).server
        assert server is not None
        server.on_refused(B, "proof", "it went away when challenged")
        with pytest.raises(CommandFailed, match="came and was refused: it went away"):
            await adopting
        with pytest.raises(NotFound):
            await cluster.supervisor.adopt("x@127.0.0.1", None, None)


async def test_a_node_that_runs_is_no_other_process() -> None:
    async with stopped() as cluster:
        await cluster.supervisor.start([A])
        stranger = comes_up(cluster, B)
        with pytest.raises(UsageError, match="runs already, as process"):
            await cluster.supervisor.adopt(A, stranger.pid, None)
        running = cluster.supervisor.nodes[A].process
        assert running is not None
        assert (await cluster.supervisor.adopt(A, running.pid, None))["pid"] == running.pid


async def test_what_holds_the_port_already_is_waited_for_and_a_silent_one_is_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distsec.supervisor.adoption.KNOCK_SECONDS", 600.0)
    cluster = Cluster(cluster_spec(node_spec("a"), node_spec("b")))
    cluster.machine.foundlings.occupants = {A: 4711, B: 4712}
    async with cluster.supervisor.running():
        process = comes_up(cluster, A)
        await until(lambda: cluster.supervisor.nodes[A].acceptance.window is not None)
        assert knocks(cluster, A)
        await cluster.states(a=NodeState.RUNNING)
        assert cluster.state(B) is NodeState.STOPPED
        later(monkeypatch, 600.0)
        await cluster.states(b=NodeState.RUNNING)
        assert cluster.status(A)["pid"] == process.pid
        assert ("start", A) not in cluster.machine.order and ("start", B) in cluster.machine.order


async def test_a_node_that_was_stopped_stays_so_in_the_next_orchestrator_and_one_that_lives_is_stopped() -> (
    None
):
    cluster = Cluster(cluster_spec(node_spec("a"), node_spec("b")))
    cluster.machine.records.stopped = frozenset({A, B})
    cluster.machine.leftover = {B: True}
    async with cluster.supervisor.running():
        await cluster.states(a=NodeState.STOPPED, b=NodeState.STOPPED)
        assert cluster.fake(A).starts == 0 and cluster.fake(B).process is None
        assert cluster.supervisor.status()["healthy"], "stopped because it was told to"
        await cluster.supervisor.start([A])
        assert cluster.machine.records.stopped == frozenset({B})
        assert await cluster.supervisor.stop_all() == []
        assert cluster.machine.records.stopped == frozenset(), "the next one starts all"


async def test_an_adopted_node_of_another_version_is_left_and_one_that_we_started_is_not() -> None:
    for leftover in (True, False):
        # Whoever stands still by a second has it later; it is not to come before that is told.
        cluster = Cluster(cluster_spec(node_spec("a"), start_deadline_seconds=2.0))
        cluster.machine.leftover = {A: leftover}
        cluster.fake(A).says_hello = False
        async with cluster.supervisor.running():
            await until(lambda cluster=cluster: cluster.fake(A).process is not None)  # type: ignore[misc]
            server = cluster.fake(A).server
            assert server is not None
            server.on_refused(A, str(AgentRefusal.VERSION), "the agent speaks version 0; upgrade the agent")
            server.on_refused(A, str(AgentRefusal.VERSION), "the agent speaks version 0; upgrade the agent")
            assert len(cluster.of_type(EventType.AGENT_REFUSED)) == 1, "it comes again every 2 s"
            status = cluster.supervisor.nodes[A].status
            assert "upgrade the agent; `distsec restart a@127.0.0.1`" in status.detail
            if leftover:
                await until(lambda cluster=cluster: cluster.supervisor.nodes[A].status.overdue)  # type: ignore[misc]
                assert cluster.state(A) is NodeState.STARTING and cluster.fake(A).process is not None
                assert not cluster.supervisor.status()["healthy"]
            else:
                await cluster.states(a=NodeState.FATAL)
                assert "upgrade the agent" in (cluster.status(A)["detail"] or "")


async def test_a_node_of_a_state_directory_that_was_moved_is_started_anew() -> None:
    cluster = Cluster(cluster_spec(node_spec("a")))
    cluster.machine.leftover = {A: True}
    cluster.machine.foundlings.moved = {A: "/old/state"}
    async with cluster.supervisor.running():
        await cluster.states(a=NodeState.RUNNING)
        assert cluster.fake(A).starts == 2 and ("start", A) in cluster.machine.order
        assert "/old/state" in cluster.log.getvalue()


async def test_a_vm_of_another_version_that_something_else_starts_is_told_of_at_rest() -> None:
    rules = life.Rules(external=True)
    status, effects = lifecycle.step(
        life.NodeStatus(rules), life.AgentOfOtherVersion("upgrade the agent"), 0.0
    )
    assert (status.state, status.detail, effects) == (NodeState.STOPPED, "upgrade the agent", ())
