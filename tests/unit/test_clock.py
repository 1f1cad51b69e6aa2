"""A wall clock that was set: noticed once, by how much, and by nobody who only slept or was set right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.beam.messages import EventKind, Lane, LaneEvent
from distsec.beam.security_events import to_security_event
from distsec.core.clock import Belief, Clocks
from distsec.model.events import ClockShift, EventType, SecurityEvent, Severity
from distsec.observe.bus import Bus
from distsec.observe.metrics import Metrics
from distsec.supervisor.clock import ClockWatch, read_clocks

DAY = 86_400.0
NOON = Clocks(1_795_000_000.0, 5_000.0)


def later(wall: float, steady: float, since: Clocks = NOON) -> Clocks:
    return Clocks(since.wall + wall, since.steady + steady)


@pytest.mark.parametrize(
    ("now", "shift"),
    [
        (later(1, 1), 0),
        (later(3600, 3600), 0),  # it slept for an hour, or was looked at late
        (later(61, 1), 0),  # set right by a minute
        (later(62, 1), 61),
        (later(-60, 1), -61),
        (later(DAY + 1, 1), DAY),
        (later(-DAY + 1, 1), -DAY),
    ],
)
def test_a_step_is_what_the_wall_clock_gained_or_lost_on_the_steady_one(now: Clocks, shift: float) -> None:
    assert Belief.beginning(NOON).look(now)[0] == shift


def test_a_clock_that_is_set_back_is_not_followed() -> None:
    _, belief = Belief.beginning(NOON).look(later(-DAY, 0))
    _, belief = belief.look(later(-DAY + 9000, 9000))
    assert belief.time(NOON.steady + 9001) == NOON.wall + 9001


def test_small_differences_are_followed_but_not_backwards() -> None:
    _, belief = Belief.beginning(NOON).look(later(31, 1))
    assert belief.time(NOON.steady + 1) == NOON.wall + 31
    _, belief = belief.look(later(2, 2))
    assert belief.time(NOON.steady + 2) == NOON.wall + 32


def test_a_clock_that_is_set_ahead_is_believed_when_it_has_said_so_for_a_while() -> None:
    _, belief = Belief.beginning(NOON).look(later(DAY, 0))
    _, belief = belief.look(later(DAY + 599, 599))
    assert belief.time(NOON.steady + 599) == NOON.wall + 599
    _, undone = belief.look(later(600, 600))
    assert undone == Belief(NOON.offset, later(600, 600))
    _, believed = belief.look(later(DAY + 600, 600))
    assert believed.time(NOON.steady + 600) == NOON.wall + DAY + 600


def test_another_step_ahead_begins_the_wait_anew() -> None:
    _, belief = Belief.beginning(NOON).look(later(DAY, 0))
    _, belief = belief.look(later(2 * DAY + 599, 599))
    _, belief = belief.look(later(2 * DAY + 601, 601))
    assert belief.time(NOON.steady + 601) == NOON.wall + 601


# (wall, steady) since the last look, in seconds
STEPS = st.lists(st.tuples(st.integers(-200_000, 200_000), st.integers(0, 2_000)), max_size=30)


@given(STEPS)
def test_what_is_believed_never_goes_back(steps: list[tuple[int, int]]) -> None:
    now, belief = NOON, Belief.beginning(NOON)
    before = belief.time(now.steady)
    for wall, steady in steps:
        now = later(wall + steady, steady, now)
        assert belief.time(now.steady) >= before
        _, belief = belief.look(now)
        assert belief.time(now.steady) >= before + steady
        before = belief.time(now.steady)


class Days:
    """Clocks that a test sets."""

    def __init__(self) -> None:
        self.now = NOON
        self.told: list[SecurityEvent] = []
        bus = Bus()
        bus.subscribe(self.told.append, "test")
        self.watch = ClockWatch(bus, lambda: self.now)

    def tick(self, wall: float, steady: float) -> None:
        self.now = Clocks(self.now.wall + wall, self.now.steady + steady)
        self.watch.tick()


def test_each_step_is_told_of_once_with_its_direction_and_size() -> None:
    days = Days()
    days.tick(1, 1)
    days.tick(DAY + 1, 1)
    days.tick(1, 1)
    days.tick(-2 * DAY, 1)
    days.tick(1, 1)
    assert [(event.type, event.node, event.reason, event.seconds) for event in days.told] == [
        (EventType.CLOCK_STEPPED, "", "ahead", 86_400),
        (EventType.CLOCK_STEPPED, "", "back", 172_801),
    ]
    assert days.told[0].time == NOON.wall + 1 + DAY + 1
    assert "set ahead by 86400 s" in str(days.told[0].detail)
    assert days.told[0].result is None  # nobody was refused


def test_many_small_steps_are_none() -> None:
    days = Days()
    for _ in range(10):
        days.tick(50, 1)
    assert days.told == []


def test_the_time_to_go_by_has_no_step_in_it() -> None:
    days = Days()
    for wall in (DAY, -3 * DAY, DAY):
        days.tick(wall + 1, 1)
        assert days.watch.believed() == NOON.wall + (days.now.steady - NOON.steady)


def test_what_a_node_tells_of_its_clock_becomes_the_event_and_a_count() -> None:
    told = LaneEvent(
        Lane.CRITICAL, 9, EventKind.CLOCK_STEPPED, 0, launch="x", reason=ClockShift.BACK, seconds=86_400
    )
    event = to_security_event(told, "a@127.0.0.1", 7.0)
    assert (event.type, event.severity, event.node) == (
        EventType.CLOCK_STEPPED,
        Severity.WARNING,
        "a@127.0.0.1",
    )
    assert (event.reason, event.seconds, event.launch, event.sequence) == ("back", 86_400, "x", 9)
    metrics = Metrics()
    metrics.event(event)
    text = metrics.render().decode()
    assert 'distsec_clock_steps_total{direction="back",node="a@127.0.0.1"} 1.0' in text
    assert 'distsec_clock_steps_total{direction="ahead",node="a@127.0.0.1"} 0.0' in text


def test_the_clocks_of_this_host_run() -> None:
    before, now = read_clocks(), read_clocks()
    assert now.steady >= before.steady > 0
    assert Belief.beginning(before).look(now)[0] == 0
