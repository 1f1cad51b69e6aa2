"""The bus: order, failing subscribers, the recent rings, followers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.observe.bus import Bus, Published


def event(
    number: int = 0,
    *,
    severity: Severity = Severity.WARNING,
    result: str | None = "deny",
    node: str = "a@h",
    kind: EventType = EventType.UNAUTHORIZED_ACCESS,
) -> SecurityEvent:
    return SecurityEvent(kind, severity, node, float(number), result=result)


def times(published: Sequence[Published]) -> list[float]:
    return [one.event.time for one in published]


def test_subscribers_are_called_in_the_order_in_which_they_came() -> None:
    bus, heard = Bus(), []
    bus.subscribe(lambda _: heard.append("first"))
    bus.subscribe(lambda _: heard.append("second"))
    bus.publish(event())
    assert heard == ["first", "second"]


def test_a_subscriber_that_raises_is_reported_and_stops_nobody() -> None:
    reports: list[tuple[str, int, str]] = []
    bus = Bus(on_failure=lambda name, failures, error: reports.append((name, failures, str(error))))
    heard: list[SecurityEvent] = []

    def fails(_: SecurityEvent) -> None:
        raise RuntimeError("broken")

    bus.subscribe(fails, "metrics")
    bus.subscribe(heard.append)
    bus.publish(event())
    assert len(heard) == 1
    assert reports == [("metrics", 1, "broken")]


def test_a_subscriber_that_always_raises_is_reported_once_in_a_thousand() -> None:
    reports: list[int] = []
    bus = Bus(on_failure=lambda name, failures, error: reports.append(failures))
    bus.subscribe(lambda _: 1 / 0)
    for _ in range(2001):
        bus.publish(event())
    assert reports == [1, 1001, 2001]


def test_a_report_that_fails_as_well_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus(on_failure=lambda *_: 1 / 0)
    bus.subscribe(lambda _: 1 / 0, "log")
    assert bus.publish(event()) == 1
    assert "subscriber log failed" in caplog.text


def test_who_unsubscribed_hears_nothing_more() -> None:
    bus, heard = Bus(), []
    unsubscribe = bus.subscribe(heard.append)
    unsubscribe()
    unsubscribe()
    bus.publish(event())
    assert heard == []


def test_ids_grow_by_one_and_recent_events_are_bounded() -> None:
    bus = Bus(recent=3)
    ids = [bus.publish(event(number)) for number in range(5)]
    assert ids == [1, 2, 3, 4, 5]
    assert [published.id for published in bus.recent()] == [3, 4, 5]
    assert bus.last_id == 5


def test_a_flood_of_refusals_evicts_no_violation() -> None:
    bus = Bus(recent=10)
    violation = bus.publish(event(severity=Severity.CRITICAL))
    for number in range(1000):
        bus.publish(event(number))
    kept = bus.recent()
    assert kept[0].id == violation
    assert [published.id for published in kept] == sorted(published.id for published in kept)


KINDS = {
    "refusals": {"severity": Severity.WARNING, "result": "deny"},
    "violations": {"severity": Severity.CRITICAL, "result": "deny"},
    "links": {"severity": Severity.NOTICE, "result": "allow", "kind": EventType.LINK_UP},
}


@pytest.mark.parametrize("flood", KINDS)
@pytest.mark.parametrize("kept", KINDS)
def test_what_one_node_says_evicts_nothing_of_another_one(flood: str, kept: str) -> None:
    bus = Bus(recent=12)
    ids = [bus.publish(event(node=node, **KINDS[kept])) for node in ("b@h", "c@h", "b@h", "")]
    for number in range(1000):
        bus.publish(event(number, node="a@h", **KINDS[flood]))
    recent = [published.id for published in bus.recent()]
    assert set(ids) <= set(recent)
    assert recent == sorted(recent)
    assert len(recent) <= 12 + len(ids)
    assert recent[-1] == bus.last_id, "the newest of who floods"


def test_a_flood_of_links_evicts_no_violation_of_the_same_node() -> None:
    bus = Bus(recent=10)
    violation = bus.publish(event(severity=Severity.CRITICAL))
    for number in range(1000):
        bus.publish(event(number, **KINDS["links"]))
    assert bus.recent()[0].id == violation


def test_a_node_that_comes_late_gets_its_share_of_a_ring_that_is_full() -> None:
    bus = Bus(recent=10)
    for number in range(100):
        bus.publish(event(number, node="a@h"))
    for number in range(100):
        bus.publish(event(number, node="b@h"))
    nodes = [published.event.node for published in bus.recent()]
    assert (nodes.count("a@h"), nodes.count("b@h")) == (5, 5)


def test_more_nodes_than_room_keep_the_newest() -> None:
    bus = Bus(recent=10)
    for number in range(100):
        bus.publish(event(number, node=f"n{number}@h"))
    assert times(bus.recent()) == [float(number) for number in range(90, 100)]


def test_recent_events_are_chosen_by_time_id_and_number() -> None:
    bus = Bus()
    for number in range(10):
        bus.publish(event(number))
    assert times(bus.recent(since=7.0)) == [7, 8, 9]
    assert times(bus.recent(after=8)) == [8, 9]
    assert times(bus.recent(limit=2)) == [8, 9]
    assert times(bus.recent(limit=0)) == []


@pytest.mark.asyncio
async def test_a_follower_gets_what_happens_after_it_came() -> None:
    bus = Bus()
    bus.publish(event(1))
    async with bus.follow() as follower:
        bus.publish(event(2))
        bus.publish(event(3))
        assert times([await anext(follower), await anext(follower)]) == [2, 3]
        assert follower.take_dropped() == 0


@pytest.mark.asyncio
async def test_a_follower_that_waits_is_woken() -> None:
    bus = Bus()
    async with bus.follow() as follower, asyncio.timeout(5):
        waiting = asyncio.create_task(anext(follower))
        await asyncio.sleep(0)
        bus.publish(event(4))
        assert (await waiting).event.time == 4


@pytest.mark.asyncio
async def test_a_slow_follower_loses_the_oldest_and_is_told_how_many() -> None:
    bus = Bus()
    async with bus.follow(limit=3) as follower:
        for number in range(10):
            bus.publish(event(number))
        assert follower.take_dropped() == 7
        assert follower.take_dropped() == 0
        assert times(list(follower.waiting())) == [7, 8, 9]


@pytest.mark.asyncio
async def test_closing_the_bus_ends_followers_after_what_waits_for_them() -> None:
    bus = Bus()
    follower = bus.follow()
    bus.publish(event(1))
    bus.close()
    bus.publish(event(2))
    async with asyncio.timeout(5):
        assert times([published async for published in follower]) == [1]
