"""An orchestrator that was stopped (SIGSTOP, a debugger) while nodes were to prove themselves to it."""

from __future__ import annotations

import pytest

from distsec.core import node_status as life
from distsec.core.lifecycle import step
from distsec.model.cluster import NodeState
from tests.unit.fake_machine import cluster_spec, node_spec
from tests.unit.later import later
from tests.unit.test_supervisor import A, Cluster, until

DEADLINE_SECONDS = 30.0


@pytest.mark.asyncio
@pytest.mark.parametrize("adopted", [True, False])
async def test_a_node_that_was_to_say_hello_meanwhile_has_its_deadline_still(
    monkeypatch: pytest.MonkeyPatch, adopted: bool
) -> None:
    cluster = Cluster(cluster_spec(node_spec("a"), start_deadline_seconds=DEADLINE_SECONDS))
    cluster.machine.leftover = {A: adopted}
    fake = cluster.fake(A)
    fake.says_hello = False
    async with cluster.supervisor.running():
        await until(lambda: cluster.supervisor.nodes[A].status.pid is not None)
        process, due = fake.process, cluster.supervisor.nodes[A].status.due
        later(monkeypatch, DEADLINE_SECONDS + 1)  # as if it had not run: what is due is due at once
        await until(lambda: cluster.supervisor.nodes[A].status.due != due)
        assert cluster.state(A) is NodeState.STARTING
        fake.hello()
        await cluster.states(a=NodeState.RUNNING)
        assert fake.process is process


@pytest.mark.asyncio
async def test_also_where_the_stop_began_in_the_last_moment_before_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(cluster_spec(node_spec("a"), start_deadline_seconds=DEADLINE_SECONDS))
    fake = cluster.fake(A)
    fake.says_hello = False
    async with cluster.supervisor.running():
        node = cluster.supervisor.nodes[A]
        await until(lambda: node.status.pid is not None and node.status.due is not None)
        due = node.status.due
        assert due is not None
        later(monkeypatch, DEADLINE_SECONDS + 70)
        node._look(due, due)  # the next one was that of the deadline itself
        assert cluster.state(A) is NodeState.STARTING
        fake.hello()
        await cluster.states(a=NodeState.RUNNING)


def test_what_it_had_left_of_the_deadline_it_has_still_and_no_more() -> None:
    status = life.NodeStatus(life.Rules(start_deadline_seconds=DEADLINE_SECONDS))
    for event, at in (
        (life.StartRequested(), 0.0),
        (life.ProcessStarted(4711), 0.0),
        (life.Resumed(100.0), 110.0),
        (life.Tick(), 110.0),
        (life.Tick(), 129.9),
    ):
        status, effects = step(status, event, at)
        assert status.state is NodeState.STARTING
        assert isinstance(event, life.Tick) or status.due is None or life.ScheduleTick(status.due) in effects
    assert step(status, life.Tick(), 130.0)[0].state is NodeState.STOPPING


def test_where_nothing_is_waited_for_it_changes_nothing() -> None:
    status = life.NodeStatus()
    assert step(status, life.Resumed(100.0), 110.0) == (status, ())
    starting, _ = step(status, life.StartRequested(), 0.0)
    assert step(starting, life.Resumed(100.0), 110.0) == (starting, ())
