"""Nodes that a reload adds while something else changes what a node is to have."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from distsec.core.rotation import WANTED, Ca, Command, Phase, Rotation
from distsec.model.cluster import NodeSpec, NodeState
from distsec.model.names import NodeName
from distsec.supervisor.succession import Held
from tests.unit.fake_machine import FakeMachine, FakeSuccession, cluster_spec, node_spec
from tests.unit.test_supervisor import NEW, A, B, Cluster, running, until, up

D = "d@127.0.0.1"


class Phases(FakeSuccession):
    """There is a second CA. What is in force is what was saved; `bundles` are the nodes' trust bundles."""

    def __init__(self, machine: FakeMachine, phase: Phase) -> None:
        self.machine = machine
        self.phase = phase
        self.bundles: dict[str, tuple[str, ...]] = {}
        for node in machine.spec.nodes:
            self.write_bundle(node)

    def rotation(self) -> Rotation:
        return Rotation(self.phase)

    def save(self, phase: Phase, now: float) -> None:
        self.phase = phase

    def create(self, cluster: str, now: float) -> None:
        pass

    def discard(self) -> None:
        pass

    def write_bundle(self, node: NodeSpec) -> None:
        self.bundles[str(node.name)] = WANTED[self.phase].bundle

    def held(self, node: NodeSpec) -> Held:
        return Held(self.machine.records.serial(node), Ca.OLD, self.bundles[str(node.name)])


@pytest.mark.parametrize(
    ("phase", "command", "wanted"),
    [
        (Phase.IDLE, Command.PREPARE, (Ca.OLD, Ca.NEW)),
        (Phase.PREPARED, Command.ROLLBACK, (Ca.OLD,)),
    ],
    ids=["prepare", "rollback"],
)
@pytest.mark.asyncio
async def test_a_node_that_is_added_while_a_ca_rotation_steps_on_has_what_the_step_wants(
    phase: Phase, command: Command, wanted: tuple[str, ...]
) -> None:
    made, go_on = asyncio.Event(), asyncio.Event()

    def prepare(machine: FakeMachine) -> None:
        machine.succession = Phases(machine, phase)

    async with up("a", machine=prepare) as cluster:
        files: Any = cluster.machine.succession
        cluster.completed = lambda new: [files.write_bundle(node) for node in new.nodes]

        async def preflight(node: NodeSpec) -> None:
            made.set()
            await go_on.wait()

        cluster.machine.preflight = preflight  # type: ignore[method-assign]
        add(cluster)
        reload = asyncio.create_task(cluster.supervisor.reload())
        await made.wait()  # d has its files, and is no node yet
        step = asyncio.create_task(cluster.supervisor.authority.command(command))
        await asyncio.wait({step}, timeout=0.3)  # as far as it gets
        go_on.set()
        assert (await reload)["added"] == [D]
        await step
        assert files.bundles == {A: wanted, D: wanted}
        assert (await cluster.supervisor.authority.status())["phase"] == files.phase


def add(cluster: Cluster) -> None:
    """d is new."""
    old = cluster.supervisor.spec
    nodes = (*old.nodes, node_spec("d"))
    cluster.next_spec = replace(old, nodes=nodes, allowed_nodes=tuple(node.name for node in nodes))


# ---- right after a start -----------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_reload_that_is_asked_for_while_nodes_are_taken_over_waits_for_that() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    cluster = Cluster(cluster_spec(node_spec("a"), node_spec("b")))

    async def adopt(node: NodeSpec) -> None:
        entered.set()
        await go_on.wait()

    cluster.machine.adopt = adopt  # type: ignore[method-assign]
    old = cluster.supervisor.spec
    cluster.next_spec = replace(old, nodes=old.nodes[:1], allowed_nodes=old.allowed_nodes[:1])
    ended = asyncio.Event()

    async def run() -> None:
        async with cluster.supervisor.running():
            await ended.wait()

    orchestrator = asyncio.create_task(run())
    await entered.wait()
    reload = asyncio.create_task(cluster.supervisor.reload())
    await asyncio.wait({reload}, timeout=0.3)  # as far as it gets
    go_on.set()
    assert (await reload)["removed"] == [B]
    await cluster.states(a=NodeState.RUNNING)
    assert list(cluster.supervisor.nodes) == [A]
    assert cluster.fake(B).process is None, "it is removed, and runs"
    ended.set()
    await orchestrator


@pytest.mark.asyncio
async def test_who_has_not_said_hello_yet_has_not_acknowledged_and_is_asked_again_by_the_same_reload() -> (
    None
):
    async with running("a", machine=silence, start_deadline_seconds=60.0) as cluster:
        await until(lambda: cluster.fake(A).process)
        spec = cluster.supervisor.spec
        cluster.next_spec = replace(spec, allowed_nodes=(*spec.allowed_nodes, NodeName.parse(NEW)))
        for _ in range(2):
            assert (await cluster.supervisor.reload())["missing"] == [A]
        cluster.fake(A).hello()
        await until(lambda: cluster.supervisor.nodes[A].status.agent)
        assert (await cluster.supervisor.reload())["missing"] == []
        assert cluster.fake(A).policies[-1]["peers"][NEW] == "open"


def silence(machine: FakeMachine) -> None:
    machine.nodes[A].says_hello = False
