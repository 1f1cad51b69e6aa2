"""The generation that an orchestrator begins with: saved first, or the one of before, if it is sure which."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from distsec.core.wanted import Overlay
from distsec.errors import StoreError
from distsec.model.cluster import ClusterSpec
from distsec.model.names import NodeName
from distsec.supervisor.policy import PolicyDesk
from tests.unit.fake_machine import FakeMachine, cluster_spec, node_spec

SPEC = cluster_spec(node_spec("a"), node_spec("b"))
NOW = 1_700_000_000.0


class Target:
    """Implements what is used of supervisor.pushing.Target."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec


def desk(machine: FakeMachine, spec: ClusterSpec = SPEC, now: float = NOW) -> PolicyDesk:
    targets: dict[str, Any] = {str(node.name): Target(node) for node in spec.nodes}
    return PolicyDesk(spec, machine, lambda: targets, lambda work, _name: work.close(), now=lambda: now)


def after_one() -> FakeMachine:
    """An orchestrator has run, and decided something."""
    machine = FakeMachine(SPEC)
    machine.overlay = Overlay(5, deny=frozenset({"x@127.0.0.1"}))
    desk(machine).write_files()
    machine.order.clear()
    return machine


def test_it_is_a_new_one_that_is_saved_before_any_file() -> None:
    machine = after_one()
    made = desk(machine, now=NOW + 60)
    made.write_files()
    assert made.wanted.generation == 7
    assert made.stays is None
    assert machine.order[0] == ("save", "7")


def test_where_it_cannot_be_saved_the_policy_in_all_files_stays() -> None:
    machine = after_one()
    before = dict(machine.written)
    machine.save_error = StoreError("the disk is full")
    made = desk(machine, now=NOW + 60)
    made.write_files()
    assert made.stays == "the disk is full"
    assert made.saved
    assert made.wanted.overlay == machine.overlay
    assert {made.wanted.document} == set(before.values()) == set(machine.written.values())


def other_file(machine: FakeMachine) -> ClusterSpec:
    machine.written["b@127.0.0.1"] = b"another"
    return SPEC


def no_file(machine: FakeMachine) -> ClusterSpec:
    del machine.written["b@127.0.0.1"]
    return SPEC


def other_overlay(machine: FakeMachine) -> ClusterSpec:
    machine.overlay = machine.overlay.denying("y@127.0.0.1")
    return SPEC


def same_content_above(machine: FakeMachine) -> ClusterSpec:
    """As an `allow` leaves it that was interrupted: saved is more than was written."""
    machine.overlay = machine.overlay.advanced()
    return SPEC


def other_configuration(_machine: FakeMachine) -> ClusterSpec:
    return replace(SPEC, allowed_nodes=(*SPEC.allowed_nodes, NodeName.parse("c@127.0.0.1")))


@pytest.mark.parametrize(
    "changed", [other_file, no_file, other_overlay, same_content_above, other_configuration]
)
def test_where_it_is_not_sure_which_stays_nobody_is_told_anything(changed: Any) -> None:
    machine = after_one()
    spec = changed(machine)
    machine.save_error = StoreError("the disk is full")
    made = desk(machine, spec)
    with pytest.raises(StoreError, match="the disk is full"):
        made.write_files()
    assert not made.saved
    assert machine.order == []
    with pytest.raises(StoreError):
        asyncio.run(made.push(Target(spec.nodes[0])))  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_a_node_that_asks_before_that_is_known_is_told_what_stays() -> None:
    """And never the generation that could not be saved: the next orchestrator will have another one of it."""
    machine = after_one()
    machine.save_error = StoreError("the disk is full")
    made = desk(machine, now=NOW + 60)
    told: list[int] = []

    async def send(_target: object, wanted: Any, _seconds: float) -> Any:
        told.append(wanted.generation)

    made._driver.send = send  # type: ignore[method-assign]
    await made.push(Target(SPEC.nodes[0]))  # type: ignore[arg-type]
    assert told == [6]
