"""That a policy went back is shown until an operator has decided, by whichever orchestrator runs then."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from distsec.beam.node import Exit
from distsec.core.rollback import Found
from distsec.core.wanted import Overlay, Recovered
from distsec.errors import NotAcknowledged, StoreError
from distsec.model.cluster import NodeState
from distsec.model.events import EventType
from distsec.pki.store import Store
from distsec.supervisor.undecided import (
    DAMAGED,
    FILE,
    MAX_NOTE,
    MAX_NOTES,
    Undecided,
    read_rolled_back,
    write_rolled_back,
)
from tests.unit.fake_machine import FakeMachine, cluster_spec, node_spec
from tests.unit.test_supervisor import A, B, Cluster, until


def put_back() -> FakeMachine:
    """An overlay of generation 3, and a policy of generation 9 that we have signed."""
    machine = FakeMachine(cluster_spec(node_spec("a"), node_spec("b")))
    machine.overlay = Overlay(generation=3)
    machine.records.evidence = (Found(A, Recovered(9, denied=frozenset({B})), 9),)
    return machine


@contextlib.asynccontextmanager
async def orchestrator(machine: FakeMachine) -> AsyncIterator[Cluster]:
    cluster = Cluster(machine.spec, machine)
    async with cluster.supervisor.running():
        await until(lambda: all(cluster.state(name) is NodeState.RUNNING for name in (A, B)))
        yield cluster


def shown(cluster: Cluster) -> Any:
    return cluster.supervisor.status()["policy_rolled_back"]


@pytest.mark.asyncio
async def test_it_is_shown_after_a_restart_until_the_operator_decides_and_not_after_that() -> None:
    machine = put_back()
    async with orchestrator(machine) as cluster:
        told = shown(cluster)
        assert f"denied again: {B}" in told
    machine.records.evidence = ()  # the overlay has gone on above what was found
    async with orchestrator(machine) as cluster:
        assert shown(cluster) == told
        assert not cluster.supervisor.status()["healthy"]
        assert not cluster.of_type(EventType.POLICY_ROLLED_BACK), "told once"
        cluster.fake(A).answers = False
        with pytest.raises(NotAcknowledged):
            await cluster.supervisor.allow("new@10.0.0.1", None)
        assert shown(cluster) == told, "that was rolled back"
        with pytest.raises(NotAcknowledged):
            await cluster.supervisor.deny(B)
        assert shown(cluster) is None, "that is kept"
        cluster.fake(A).answers = True
    async with orchestrator(machine) as cluster:
        assert shown(cluster) is None


@pytest.mark.asyncio
async def test_it_is_on_the_disk_before_the_overlay_goes_on_and_a_full_disk_takes_neither() -> None:
    machine = put_back()
    machine.save_error = StoreError("the disk is full")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with orchestrator(machine):
            raise AssertionError("it has begun")
    assert caught.group_contains(StoreError)
    assert (machine.overlay.generation, machine.records.went_back) == (3, ())
    machine.save_error = None
    async with orchestrator(machine):
        saves = [entry for entry in machine.order if entry[0] in {"went back", "save"}]
        assert saves[:2] == [("went back", "1"), ("save", "11")]


@pytest.mark.asyncio
async def test_what_a_living_node_has_proven_is_kept_too() -> None:
    machine = FakeMachine(cluster_spec(node_spec("a"), node_spec("b")))
    async with orchestrator(machine) as cluster:
        fake = cluster.fake(A)
        fake.document = b"signed"
        machine.records.documents[b"signed"] = Recovered(50, denied=frozenset({B}))
        fake.generation, fake.digest = 50, "0" * 64
        fake.says(fake.heartbeat())
        await until(lambda: machine.overlay.generation > 50)
        (told,) = machine.records.went_back
        assert f"denied again: {B}" in told
        assert machine.order.index(("went back", "1")) < machine.order.index(("save", "51"))


@pytest.mark.asyncio
async def test_what_is_found_while_the_operator_decides_is_not_decided_on() -> None:
    machine = put_back()
    async with orchestrator(machine) as cluster:
        cluster.fake(A).answers = False
        decision = asyncio.create_task(cluster.supervisor.deny(B))
        await until(lambda: machine.overlay.generation == 12)  # it waits for a
        cluster.supervisor.desk.undecided.add(["the policy of c is newer"])
        cluster.fake(A).die(Exit(code=0))
        await decision
        assert shown(cluster) == "the policy of c is newer"
        assert machine.records.went_back == ("the policy of c is newer",)


# ---- the file ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "state").mkdir(mode=0o700)
    return Store(tmp_path / "state")


def test_what_was_written_is_read_again_and_nothing_is_no_file(store: Store) -> None:
    assert read_rolled_back(store) == ()
    write_rolled_back(store, ["one", "two"])
    assert read_rolled_back(store) == ("one", "two")
    write_rolled_back(store, [])
    assert not store.exists(FILE)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b'{"schema":2,"notes":["x"]}', b'{"schema":1}', b'{"schema":1,"notes":[]}',
     b'{"schema":1,"notes":"x"}', b'{"schema":1,"notes":[1]}', b"[" * 100_000, b"\xff"],
)  # fmt: skip
def test_a_damaged_one_is_a_note_itself(store: Store, content: bytes) -> None:
    store.write(FILE, content)
    assert read_rolled_back(store) == (DAMAGED,)
    notes = Undecided(StoreRecords(store))
    notes.settle(notes.notes)
    notes.save()
    assert not store.exists(FILE)


def test_one_that_somebody_else_may_write_is_not_believed(store: Store) -> None:
    write_rolled_back(store, ["one"])
    store.path(FILE).chmod(0o666)
    assert read_rolled_back(store) == (DAMAGED,)


def test_nobody_fills_the_status_with_notes_or_writes_on_a_terminal(store: Store) -> None:
    notes = Undecided(StoreRecords(store))
    notes.add(f"{number} \x1b[2J {'x' * 5000}" for number in range(100))
    notes.add(notes.notes)
    notes.save()
    again = Undecided(StoreRecords(store))
    assert again.notes == notes.notes
    assert len(again.notes) == MAX_NOTES
    assert all(len(note) <= MAX_NOTE + 16 for note in again.notes)
    assert "\x1b" not in (again.text or "")
    again.add(["0 new"])
    assert "0 new" not in again.notes, "the first ones count"
    assert json.loads(store.read(FILE))["schema"] == 1


class StoreRecords:
    def __init__(self, store: Store) -> None:
        self._store = store

    def rolled_back(self) -> tuple[str, ...]:
        return read_rolled_back(self._store)

    def save_rolled_back(self, notes: Any) -> None:
        write_rolled_back(self._store, notes)
