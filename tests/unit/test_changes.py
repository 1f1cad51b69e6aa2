"""Reloads that fail on the way, the end while somebody still asks, and disks that take their time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distsec.beam.node import Exit
from distsec.beam.provision import provision
from distsec.config.load import load
from distsec.core.wanted import Overlay
from distsec.errors import CommandFailed, StoreError, Unavailable
from distsec.model.cluster import NodeState, NotEnforced
from distsec.model.events import EventType
from distsec.pki.store import Store
from distsec.supervisor import operation
from distsec.supervisor.machine import LocalMachine
from tests.unit.fake_machine import FakeMachine, node_spec
from tests.unit.later import later
from tests.unit.test_supervisor import NEW, A, B, C, Cluster, running, until, up
from tests.waiting import PATIENCE_SECONDS

D = "d@127.0.0.1"
TAKEN = StoreError("is no socket", where="agent.sock")
FULL = StoreError("the disk is full")


def logged(cluster: Cluster, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in cluster.log.getvalue().splitlines()]
    return [line for line in lines if line["event"] == event]


class Disk:
    """From now on saving takes until `done`, in whoever's thread saves."""

    def __init__(self, machine: FakeMachine) -> None:
        self.busy, self.done = threading.Event(), threading.Event()
        self._save = machine.save_overlay
        machine.save_overlay = self._slow  # type: ignore[method-assign]

    def _slow(self, overlay: Overlay) -> None:
        self.busy.set()
        assert self.done.wait(PATIENCE_SECONDS)
        self._save(overlay)


def change(cluster: Cluster) -> None:
    """b is gone, d is new."""
    old = cluster.supervisor.spec
    nodes = (old.nodes[0], node_spec("d"))
    cluster.next_spec = replace(old, nodes=nodes, allowed_nodes=tuple(node.name for node in nodes))


# ---- reload --------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["open", "save"])
@pytest.mark.asyncio
async def test_a_reload_that_fails_before_anybody_is_told_changes_nothing(broken: str) -> None:
    async with up("a", "b") as cluster:
        before, wanted = cluster.supervisor.spec, cluster.supervisor.desk.wanted
        change(cluster)
        if broken == "open":
            cluster.next_spec = replace(cluster.next_spec, nodes=(*cluster.next_spec.nodes, node_spec("e")))  # type: ignore[type-var, union-attr]
            cluster.machine.open_errors["e@127.0.0.1"] = TAKEN
        else:
            cluster.machine.save_error = FULL
        with pytest.raises(StoreError):
            await cluster.supervisor.reload()
        await asyncio.sleep(0.05)
        assert cluster.supervisor.spec is before
        assert cluster.supervisor.desk.spec is before
        assert cluster.machine.spec is before
        assert cluster.supervisor.desk.wanted is wanted
        assert sorted(cluster.supervisor.nodes) == [A, B]
        assert (cluster.state(A), cluster.state(B)) == (NodeState.RUNNING, NodeState.RUNNING)
        assert cluster.fake(D).server is None  # closed again
        assert f'node="{D}"'.encode() not in cluster.metrics.render()
        assert len(cluster.of_type(EventType.CONFIGURATION_RELOADED, result="deny", reason="rejected")) == 1
        cluster.machine.open_errors.clear()
        cluster.machine.save_error = None
        await cluster.supervisor.reload()
        await cluster.states(d=NodeState.RUNNING)


@pytest.mark.asyncio
async def test_nobody_is_stopped_before_the_policy_is_saved() -> None:
    async with up("a", "b") as cluster:
        disk = Disk(cluster.machine)
        change(cluster)
        reload = asyncio.create_task(cluster.supervisor.reload())
        await until(disk.busy.is_set)
        assert cluster.state(B) is NodeState.RUNNING
        assert B in cluster.supervisor.nodes
        disk.done.set()
        await reload
        assert B not in cluster.supervisor.nodes


@pytest.mark.asyncio
async def test_a_reload_that_fails_later_says_what_is_not_applied() -> None:
    async with up("a", "b") as cluster:
        cluster.machine.write_error = FULL
        change(cluster)
        with pytest.raises(CommandFailed, match=r"in part.*the disk is full"):
            await cluster.supervisor.reload()
        assert cluster.supervisor.spec is cluster.next_spec
        assert sorted(cluster.supervisor.nodes) == [A, D]
        [event] = cluster.of_type(EventType.CONFIGURATION_RELOADED)
        assert (event.result, event.reason) == ("allow", "applied_in_part")
        assert "the disk is full" in (event.detail or "")
        assert f"added {D}" in (event.detail or "")


@pytest.mark.asyncio
async def test_a_removed_node_that_does_not_end_is_named_and_kept_in_sight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operation, "END_SLACK_SECONDS", 0.1)
    async with up("a", "b") as cluster:
        fake = cluster.fake(B)
        process = fake.process
        assert process is not None
        fake.ignores_stop = fake.ignores_term = True
        process.signal_group = lambda number: True  # type: ignore[method-assign]
        change(cluster)
        with pytest.raises(CommandFailed, match=f"{B} has not ended"):
            await cluster.supervisor.reload()
        assert B in cluster.supervisor.nodes
        cluster.next_spec = replace(cluster.supervisor.spec, nodes=(node_spec("a"), node_spec("b")))
        with pytest.raises(Unavailable, match=B):  # its socket is still in use
            await cluster.supervisor.reload()
        fake.die(Exit(signal=9))
        await until(lambda: B not in cluster.supervisor.nodes)
        await cluster.supervisor.reload()
        await cluster.states(b=NodeState.RUNNING)


@pytest.mark.asyncio
async def test_a_reload_tells_the_warnings_of_the_new_configuration() -> None:
    async with up("a") as cluster:
        spec = cluster.supervisor.spec
        cluster.next_spec = replace(
            spec, warnings=("x is unsafe",), not_enforced=(NotEnforced("nodes[0].user", "not built"),)
        )
        await cluster.supervisor.reload()
        assert [line["detail"] for line in logged(cluster, "configuration")] == ["x is unsafe"]
        [line] = logged(cluster, "not_enforced")
        assert (line["key"], line["detail"], line["level"]) == ("nodes[0].user", "not built", "warning")


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
@pytest.mark.asyncio
async def test_a_reload_changes_how_many_nodes_start_at_a_time(before: int, after: int) -> None:
    async with running("a", start_parallel=before) as cluster:
        await cluster.states(a=NodeState.RUNNING)
        old = cluster.supervisor.spec
        new = tuple(node_spec(head) for head in ("a", "b", "c", "d"))
        cluster.next_spec = replace(
            old, nodes=new, start_parallel=after, allowed_nodes=tuple(node.name for node in new)
        )
        cluster.machine.use(cluster.next_spec)
        for head in ("b", "c", "d"):
            cluster.fake(f"{head}@127.0.0.1").says_hello = False
        await cluster.supervisor.reload()
        wanted = [1, int(after > 1), int(after > 2)]
        await until(lambda: [cluster.fake(name).starts for name in (B, C, D)] == wanted)
        await asyncio.sleep(0.1)
        assert [cluster.fake(name).starts for name in (B, C, D)] == wanted


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_what_is_asked_for_while_all_nodes_are_stopped_is_refused() -> None:
    async with up("a", "b") as cluster:
        cluster.fake(B).ignores_stop = True
        ending = asyncio.create_task(cluster.supervisor.stop_all())
        await cluster.states(a=NodeState.STOPPED)
        for asked in (
            cluster.supervisor.start([A]),
            cluster.supervisor.restart([A]),
            cluster.supervisor.allow(NEW, None),
            cluster.supervisor.deny(B, False),
            cluster.supervisor.reload(),
        ):
            with pytest.raises(Unavailable, match="the orchestrator is ending"):
                await asked
        assert await ending == []
        assert [cluster.fake(name).starts for name in (A, B)] == [1, 1]


@pytest.mark.asyncio
async def test_a_reload_under_way_starts_nothing_once_the_end_has_begun() -> None:
    async with up("a", "b") as cluster:
        disk = Disk(cluster.machine)
        change(cluster)
        reload = asyncio.create_task(cluster.supervisor.reload())
        await until(disk.busy.is_set)
        ending = asyncio.create_task(cluster.supervisor.stop_all())
        await cluster.states(a=NodeState.STOPPED, b=NodeState.STOPPED)
        disk.done.set()
        assert await ending == []
        with pytest.raises(CommandFailed, match="ending"):
            await reload
        assert cluster.fake(D).starts == 0


@pytest.mark.asyncio
async def test_a_node_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "END_SLACK_SECONDS", 0.1)
    async with up("a", "b") as cluster:
        fake = cluster.fake(B)
        fake.ignores_stop = True
        assert fake.process is not None
        fake.process.signal_group = lambda number: True  # type: ignore[method-assign]
        assert await cluster.supervisor.stop_all() == [B]
        [line] = logged(cluster, "nodes did not end")
        assert line["nodes"] == B


# ---- disks and views -----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_slow_disk_holds_up_nobody_but_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with up("a", "b") as cluster:
        disk = Disk(cluster.machine)
        denial = asyncio.create_task(cluster.supervisor.deny(B, False))
        await until(disk.busy.is_set)  # whose loop the disk held up would not come by here
        later(monkeypatch, 2 * cluster.supervisor.spec.acknowledge_deadline_seconds)
        await cluster.supervisor.start([A])
        assert not denial.done()
        disk.done.set()
        assert (await denial)["missing"] == [], "the nodes have their time all the same"
        assert cluster.machine.overlay.deny == {B}


def test_a_lock_that_somebody_holds_keeps_no_denial_from_the_disk(tmp_path: Path) -> None:
    config = tmp_path / "distsec.toml"
    config.write_text('[cluster]\nname = "demo"\n[security]\nmode = "production"\n')
    config.chmod(0o600)
    spec = load(config, {})
    store = Store(Path(spec.state_dir))
    provision(spec, store, time.time())
    machine = LocalMachine(spec, store, {})
    with store.locked():
        machine.save_overlay(Overlay().denying(A))  # an error, if it waited for the lock
    assert machine.load_overlay().deny == {A}


@pytest.mark.asyncio
async def test_a_node_with_the_right_generation_of_another_policy_is_not_well() -> None:
    async with up("a") as cluster:
        assert cluster.supervisor.status()["healthy"] is True
        cluster.supervisor.nodes[A].observed.digest = "f" * 64
        assert cluster.supervisor.status()["healthy"] is False


@pytest.mark.asyncio
async def test_the_user_that_is_shown_is_the_one_that_the_node_runs_as() -> None:
    async with up("a") as cluster:
        actual = cluster.status(A)["user"]
        old = cluster.supervisor.spec
        cluster.next_spec = replace(old, nodes=(replace(old.nodes[0], user="somebody"),))
        await cluster.supervisor.reload()
        assert cluster.status(A)["user"] == actual, "until it is started again"
        await until(lambda: cluster.status(A)["user"] == "somebody")
