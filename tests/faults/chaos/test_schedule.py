"""The schedule of the chaos test: made by its seed alone, and worth carrying out."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.faults.chaos.schedule import (
    GRAVE,
    LAST,
    LAST_SECONDS,
    MINOR,
    MOST_DEATHS,
    STOP_ORCHESTRATOR_SECONDS,
    WINDOW_SECONDS,
    Fault,
    Kind,
    fits,
    plan,
)

NODES = ("n1", "n2", "n3")


def plans(seed: int, rounds: int = 12) -> list[tuple[Fault, ...]]:
    return [plan(seed, number, NODES).faults for number in range(1, rounds + 1)]


def test_the_same_seed_is_the_same_schedule_and_another_one_is_another() -> None:
    assert plans(7) == plans(7)
    assert plans(7) != plans(8)
    assert plan(7, 3, NODES) == plan(7, 3, NODES)  # a round by itself, whatever was asked before


def test_each_grave_fault_has_its_turn_within_a_cycle() -> None:
    for seed in range(20):
        cycle = plans(seed, len(GRAVE))
        assert set(GRAVE) <= {fault.kind for faults in cycle for fault in faults}


def test_every_other_cycle_leaves_the_orchestrator_alive() -> None:
    deaths = {Kind.KILL_ORCHESTRATOR, Kind.RESTART_ORCHESTRATOR}
    for seed in range(20):
        first, second = plans(seed)[: len(GRAVE)], plans(seed)[len(GRAVE) :]
        assert any(fault.kind in deaths for faults in first for fault in faults)
        assert not any(fault.kind in deaths for faults in second for fault in faults)
        assert any(fault.kind is Kind.STOP_ORCHESTRATOR for faults in second for fault in faults)


def test_all_kinds_come_within_ten_minutes() -> None:
    seen = Counter(fault.kind for seed in range(20) for faults in plans(seed) for fault in faults)
    assert set(seen) == set(Kind)
    assert all(seen[kind] >= 20 for kind in MINOR), seen


def test_the_last_fault_of_each_round_breaks_the_mesh() -> None:
    for seed in range(20):
        for faults in plans(seed):
            assert any(each.kind in LAST and each.end >= WINDOW_SECONDS - LAST_SECONDS for each in faults)


def test_faults_begin_and_end_within_the_window_in_order() -> None:
    for seed in range(20):
        for faults in plans(seed):
            assert [each.at for each in faults] == sorted(each.at for each in faults)
            assert all(each.at >= 0 and each.end <= WINDOW_SECONDS for each in faults)


def test_several_faults_are_under_way_at_the_same_time() -> None:
    together = sum(
        one.at < other.at < one.end
        for seed in range(20)
        for faults in plans(seed)
        for one in faults
        for other in faults
    )
    assert together > 100


def test_the_orchestrator_is_stopped_for_thirty_seconds_and_not_killed_meanwhile() -> None:
    stopped = Fault(2.0, Kind.STOP_ORCHESTRATOR, seconds=STOP_ORCHESTRATOR_SECONDS)
    assert STOP_ORCHESTRATOR_SECONDS == 30
    assert not fits(Fault(20.0, Kind.KILL_ORCHESTRATOR), [stopped])
    assert not fits(stopped, [Fault(20.0, Kind.RESTART_ORCHESTRATOR)])
    assert fits(Fault(33.0, Kind.KILL_ORCHESTRATOR), [stopped])
    assert fits(Fault(20.0, Kind.KILL_NODE, "n1"), [stopped])


def test_a_node_dies_so_often_only_that_its_back_off_stays_short() -> None:
    deaths = [Fault(float(at), Kind.KILL_NODE, "n1") for at in range(MOST_DEATHS)]
    assert not fits(Fault(30.0, Kind.KILL_NODE, "n1"), deaths)
    assert fits(Fault(30.0, Kind.KILL_NODE, "n2"), deaths)


def test_what_cannot_be_had_is_left_out_and_the_rest_goes_on() -> None:
    missing = {Kind.FULL_DISK, Kind.CUT_AGENT, Kind.CUT_LINK}
    for number in range(1, 30):
        faults = plan(7, number, NODES, without=missing).faults
        assert faults and not missing & {fault.kind for fault in faults}


def test_a_plan_can_be_printed_and_written_down() -> None:
    made = plan(7, 1, NODES)
    assert json.loads(json.dumps(made.document()))["seed"] == 7
    assert str(Fault(3.0, Kind.STOP_NODE, "n1", 2.5)) == "  3.0 s  stop node n1 for 2.5 s"
    with pytest.raises(ValueError, match="two nodes"):
        plan(7, 1, ("alone",))
