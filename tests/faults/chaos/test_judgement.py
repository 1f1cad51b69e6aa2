"""Every invariant of the chaos test notices what it is there for: doctored observations, one wrong thing
each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.chaos.ledger import MOST_REPEATED, Ledger, Within, lane_of
from tests.faults.chaos.levels import MIB, Levels
from tests.faults.chaos.links import GRACE_SECONDS, Denial, Links, Sighting, parse
from tests.faults.chaos.pressure import MOST_ALLOWED_SECONDS, allowance

A, B, C = "a@h", "b@h", "c@h"
T = 1_000_000.0


# ---- links
# --------------------------------------------------------------------------------------------------


def mesh() -> Links:
    links = Links({A, B, C})
    for node in (A, B, C):
        assert list(links.feed([Sighting(node, T, "boot", "1")])) == []
        assert list(links.feed([Sighting(node, T, "up", p) for p in (A, B, C) if p != node])) == []
    return links


def test_a_line_of_a_witness_is_read_and_half_a_line_is_not() -> None:
    assert parse(A, "1000000123 down b@h net_tick_timeout") == Sighting(
        A, 1000000.123, "down", B, "net_tick_timeout"
    )
    assert parse(A, "10000") is parse(A, "1000000123 do") is parse(A, "1000000123 up ") is None


def test_a_mesh_is_whole_only_with_every_link_and_no_other() -> None:
    links = mesh()
    assert links.whole({A, B, C})
    assert links.lacking({A, B, C}) == {}
    assert list(links.feed([Sighting(A, T, "down", B)])) == []
    assert not links.whole({A, B, C})
    assert links.lacking({A, B, C}) == {A: [B]}
    links = mesh()
    links.ended(C, 1)
    assert not links.whole({A, B, C})


def test_last_lines_of_a_process_that_is_gone_are_no_links_and_those_of_the_next_are() -> None:
    links = mesh()
    links.denials.append(Denial(B, T + 10))
    for node in (A, C):
        assert list(links.feed([Sighting(node, T, "down", B)])) == []
    links.ended(B, 1)
    last = [Sighting(B, T, "boot", "1"), Sighting(B, T, "up", C)]
    assert list(links.feed(last)) == [] and list(links.denied(T + 20)) == []
    (found,) = links.feed([Sighting(B, T + 12, "up", C)])  # what must not be is noticed in any case
    assert "though b@h was denied" in found
    assert len(list(links.feed([Sighting(B, T + 13, "boot", "2"), Sighting(B, T + 13, "up", C)]))) == 1
    assert len(list(links.denied(T + 20))) == 1


def test_a_node_that_is_stopped_has_the_time_to_write_down_what_ended_when_it_goes_on() -> None:
    links = mesh()
    links.denials.append(Denial(B, T))
    for node, peer in ((C, B), (B, A), (B, C)):
        assert list(links.feed([Sighting(node, T, "down", peer)])) == []
    links.stopped(A)
    assert list(links.denied(T + 20)) == []
    links.stopped(A, until=T + 20)
    assert list(links.denied(T + 20 + GRACE_SECONDS / 2)) == []
    assert len(list(links.denied(T + 21 + GRACE_SECONDS))) == 1


def test_an_unlisted_link_is_noticed_however_short() -> None:
    links = mesh()
    found = list(links.feed([Sighting(A, T + 1, "up", "evil@h"), Sighting(A, T + 1.001, "down", "evil@h")]))
    assert len(found) == 1 and "evil@h, which is not listed" in found[0]


@pytest.mark.parametrize(("node", "peer"), [(A, B), (B, A)])
def test_a_denied_node_that_is_linked_again_is_noticed_at_either_end(node: str, peer: str) -> None:
    links = mesh()
    links.denials.append(Denial(B, T))
    assert list(links.feed([Sighting(node, T + GRACE_SECONDS / 2, "up", peer)])) == []  # written down late
    found = list(links.feed([Sighting(node, T + GRACE_SECONDS + 0.1, "up", peer)]))
    assert len(found) == 1 and "though b@h was denied" in found[0]
    links.denials[0].until = T + 5
    assert list(links.feed([Sighting(node, T + 6, "up", peer)])) == []


def test_a_link_with_a_denied_node_that_stays_is_noticed() -> None:
    links = mesh()
    links.denials.append(Denial(B, T))
    assert list(links.denied(T + GRACE_SECONDS / 2)) == []
    assert len(list(links.denied(T + GRACE_SECONDS + 1))) == 3  # at every node, and at its own
    for node, peer in ((A, B), (C, B), (B, A), (B, C)):
        assert list(links.feed([Sighting(node, T, "down", peer)])) == []
    assert list(links.denied(T + GRACE_SECONDS + 1)) == []


@pytest.mark.parametrize("kind", ["missing", "again"])
def test_a_message_that_is_missing_or_late_within_a_link_is_noticed(kind: str) -> None:
    (found,) = mesh().feed([Sighting(A, T, kind, B, "3 before 17")])
    assert A in found and B in found and "3 before 17" in found


# ---- the log, the metrics, the nodes
# -------------------------------------------------------------------------


def refusal(sequence: int, launch: str = "L", reason: str = "not_allowed", at: int = 0) -> dict[str, Any]:
    return {
        "time": f"2026-01-01T00:00:{at:02d}.000Z",
        "level": "warning",
        "event": "UnauthorizedAccess",
        "node": A,
        "result": "deny",
        "reason": reason,
        "direction": "in",
        "launch": launch,
        "sequence": sequence,
    }


def link_up(sequence: int, launch: str = "L") -> dict[str, Any]:
    return {**refusal(sequence, launch), "event": "NodeUp", "level": "info", "result": "allow"}


def within(critical: int, refusals: int, **echoes: int) -> Within:
    own = sum(echoes.values())
    counts = {("in", "not_allowed"): refusals - own, **{("in", why): n for why, n in echoes.items()}}
    return Within(
        "L", {"critical": critical, "refusals": refusals}, {"critical": 0, "refusals": 0}, counts, echoes
    )


def fed(*lines: dict[str, Any], run: int = 1) -> Ledger:
    ledger = Ledger()
    for line in lines:
        assert list(ledger.feed(run, line)) == []
    return ledger


def shown(count: float) -> dict[tuple[str, str, str], float]:
    return {(A, "in", "not_allowed"): count}


def wrong(ledger: Ledger, told: Within) -> Iterator[str]:
    yield from ledger.against(told)
    yield from ledger.ended({told.launch})


def test_lines_that_agree_with_the_node_and_the_metrics_are_in_order() -> None:
    ledger = fed(link_up(1), refusal(1), refusal(2), link_up(2))
    assert list(wrong(ledger, within(2, 2))) == []
    assert list(ledger.metrics(1, shown(2), {"L"})) == []
    assert lane_of(refusal(1)) == "refusals"
    assert lane_of(link_up(1)) == lane_of({**refusal(1), "level": "critical"}) == "critical"


def test_an_event_that_one_orchestrator_writes_twice_is_noticed() -> None:
    (found,) = fed(refusal(1)).feed(1, refusal(1))
    assert "in one log twice" in found


def test_events_that_the_next_orchestrator_writes_again_are_counted_and_bounded() -> None:
    ledger = fed(*(refusal(number) for number in range(1, MOST_REPEATED + 2)))
    found = [text for number in range(1, MOST_REPEATED + 2) for text in ledger.feed(2, refusal(number))]
    assert ledger.repeated == MOST_REPEATED + 1
    assert len(found) == 1 and "told again" in found[0]
    assert ledger.refusals["in", "not_allowed"] == MOST_REPEATED + 1  # each once


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_an_event_that_is_in_no_line_is_noticed_wherever_it_was(lost: int) -> None:
    for make, told in ((refusal, within(0, 3)), (link_up, within(3, 0))):
        ledger = fed(*(make(number) for number in (1, 2, 3) if number != lost))
        told = replace(told, counts={})  # by its sequence alone
        assert any(f"missing [{lost}]" in text for text in ledger.against(told))


def test_events_that_were_dropped_and_counted_are_not_lost() -> None:
    ledger = fed(refusal(1), refusal(3))
    told = within(0, 3)
    assert list(ledger.against(told)) != []
    dropped = replace(told, dropped={"critical": 0, "refusals": 1}, counts={("in", "not_allowed"): 2})
    assert list(ledger.against(dropped)) == []


def test_echoes_of_our_own_probes_are_in_no_line_and_one_too_few_is_noticed() -> None:
    ledger = fed(refusal(1), refusal(3))
    assert list(ledger.against(within(0, 3, certificate_required=1))) == []
    assert any("may be" in text for text in ledger.against(within(0, 3)))


def test_a_flood_that_was_summed_up_is_not_lost() -> None:
    ledger = fed(refusal(1), {**refusal(0), "suppressed": 2, "launch": None})
    assert list(ledger.against(within(0, 3))) == []
    assert list(ledger.against(within(0, 4))) != []
    assert list(ledger.metrics(1, shown(3), {"L"})) == []
    assert list(ledger.metrics(1, shown(2), {"L"})) != []


def test_a_flood_hides_no_other_reason() -> None:
    flood = {**refusal(0, reason="bad_cookie"), "suppressed": 2, "launch": None, "direction": None}
    ledger = fed(refusal(1), refusal(2, reason="bad_cookie"), flood)
    told = replace(within(0, 4), counts={("in", "not_allowed"): 1, ("in", "bad_cookie"): 3})
    assert list(ledger.against(told)) == []
    counts = {(A, "in", "not_allowed"): 1, (A, "in", "bad_cookie"): 3}
    assert list(ledger.metrics(1, counts, {"L"})) == []
    less = replace(told, counts={("in", "not_allowed"): 2, ("in", "bad_cookie"): 2})
    assert len(list(ledger.against(less))) == 2
    (found,) = ledger.metrics(1, {**counts, (A, "in", "not_allowed"): 2}, {"L"})
    assert "not_allowed): /metrics has 2, the log 1" in found
    (found,) = ledger.metrics(1, {**counts, (A, "out", "bad_cookie"): 1}, {"L"})
    assert "bad_cookie): /metrics has 4, the log 3" in found


def test_a_launch_that_has_ended_has_no_gap_among_its_links() -> None:
    ledger = fed(link_up(1), link_up(3))
    assert list(ledger.ended({"L"})) == []  # it lives: see `against`
    (found,) = ledger.ended(set())
    assert "1 are missing; missing [2]" in found


@pytest.mark.parametrize("count", [0, 1, 3])
def test_metrics_that_have_more_or_less_than_the_log_are_noticed(count: int) -> None:
    (found,) = fed(refusal(1), refusal(2)).metrics(1, shown(count), {"L"})
    assert f"/metrics has {count}, the log 2" in found


def test_a_node_that_counted_another_reason_than_the_log_has_is_noticed() -> None:
    found = list(fed(refusal(1, reason="denied")).against(within(0, 1)))
    assert len(found) == 2


def test_metrics_are_of_the_launches_that_their_orchestrator_has_seen() -> None:
    ledger = fed(refusal(1, "old"), refusal(2, "old"))
    assert list(ledger.feed(2, refusal(1, "L"))) == []
    assert list(ledger.metrics(2, shown(1), {"L"})) == []  # the old launch had ended before it began
    assert list(ledger.metrics(1, shown(2), {"L"})) == []


def test_of_a_launch_that_has_ended_only_the_last_heartbeat_may_be_missing() -> None:
    ledger = fed(refusal(1, "old", at=0), refusal(2, "old", at=10), refusal(3, "old", at=11), refusal(1, "L"))
    for count, right in ((1, False), (2, True), (4, True), (6, True), (7, False)):
        assert (list(ledger.metrics(1, shown(count), {"L"})) == []) is right, count


def test_a_full_disk_blurs_what_probes_are_refused_for_and_nothing_else() -> None:
    ledger = fed(refusal(1), refusal(3))
    ledger.fill(True)
    assert list(ledger.feed(1, refusal(1, "next"))) == []
    ledger.fill(False)
    assert list(ledger.feed(1, refusal(1, "later"))) == []
    assert {name: launch.blurred for name, launch in ledger.launches.items()} == {
        "L": True,
        "next": True,
        "later": False,
    }
    ledger = fed(refusal(1), refusal(3))
    ledger.fill(True)
    told = within(0, 3)
    own = {("in", "not_allowed"): 2, ("in", "certificate_required"): 1}
    assert list(ledger.against(replace(told, counts=own))) == []
    assert list(ledger.against(replace(told, counts={**own, ("in", "not_allowed"): 3}))) != []
    assert list(ledger.metrics(1, shown(3), {"L"})) != []


# ---- levels, pressure
# ----------------------------------------------------------------------------------------


def levels(role: str, what: str, values: list[float], pids: list[int] | None = None) -> list[str]:
    kept = Levels()
    pids = pids or [1] * len(values)
    return [
        text
        for value, pid in zip(values, pids, strict=True)
        for text in kept.feed(role, "x", pid, {what: value})
    ]


def test_descriptors_that_keep_their_number_are_in_order_also_of_the_next_process() -> None:
    assert levels("orchestrator", "descriptors", [40, 42, 41, 40, 43, 41], [1, 1, 1, 2, 2, 3]) == []


def test_one_descriptor_lost_in_each_round_is_noticed() -> None:
    found = levels("orchestrator", "descriptors", [40.0 + number for number in range(10)])
    assert "has 44 descriptors, and had 41 in the same state before" in found[0]
    assert levels("node", "tables", [50.0 + 5 * number for number in range(8)])


def test_what_is_held_is_looked_at_again_where_it_is_more_than_before() -> None:
    kept = Levels()
    assert not kept.held_above("node", "x", {"descriptors": 99.0, "memory": 1.0})  # nothing to compare with
    assert list(kept.feed("node", "x", 1, {"descriptors": 20.0, "memory": 1.0})) == []
    for descriptors, above in ((20.0, False), (24.0, False), (25.0, True)):
        assert kept.held_above("node", "x", {"descriptors": descriptors, "memory": 9.0 * MIB}) is above


def test_memory_that_rises_round_by_round_is_noticed_and_one_jump_is_not() -> None:
    warm = [60.0 * MIB, 80.0 * MIB]
    jump = [82.0 * MIB] * 3 + [95.0 * MIB] * 3
    assert levels("orchestrator", "anonymous", warm + jump) == []
    assert (
        levels("orchestrator", "anonymous", (warm + jump) * 4, [pid for pid in range(4) for _ in range(8)])
        == []
    )
    leak = [(82.0 + 2 * number) * MIB for number in range(4)]
    assert "rises by 2,097,152 a round" in levels("orchestrator", "anonymous", warm + leak)[0]
    assert "above" in levels("orchestrator", "resident", [300.0 * MIB])[0]


def test_a_leak_does_not_hide_behind_pages_that_it_takes_several_of_at_a_time() -> None:
    steps = [60.0, 80.0, 80.0, 82.0, 82.0, 84.0, 84.0, 86.0, 86.0]
    assert levels("orchestrator", "anonymous", [each * MIB for each in steps])
    noise = [60.0, 80.0, 80.3, 79.9, 80.2, 80.1, 80.4, 80.0, 80.2]
    assert levels("orchestrator", "anonymous", [each * MIB for each in noise]) == []


def test_a_leak_shows_though_no_process_lives_for_long() -> None:
    lives = [60.0 * MIB, 80.0 * MIB, 83.0 * MIB]
    assert levels("orchestrator", "anonymous", lives * 3, [1, 1, 1, 2, 2, 2, 3, 3, 3]) == []
    assert levels("orchestrator", "anonymous", lives * 4, [pid for pid in range(4) for _ in range(3)])


def test_a_deadline_is_stretched_by_what_our_own_threads_waited_and_no_further() -> None:
    assert allowance({1: 2.0, 2: 1.0}, {1: 2.5, 2: 1.0}) == 0.5
    assert allowance({1: 2.0}, {3: 1.5}) == 1.5  # a thread that is new
    assert allowance({1: 2.0}, {}) == 0.0
    assert allowance({}, {1: 1000.0}) == MOST_ALLOWED_SECONDS
