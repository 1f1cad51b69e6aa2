"""When certificates are renewed, and when not: core.renewal, over every life and every clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.core import renewal
from distsec.core.clock import Belief, Clocks
from distsec.core.renewal import Clock, Life, Rules, State, Watch
from distsec.model.events import Severity

DAY = 86400.0
T = 1_763_764_000.0

lives = st.floats(20.0, 3650 * DAY)
chances = st.floats(0.0, 1.0, exclude_max=True)


def life(seconds: float, *, serial: str = "01", begins: float = T, **more: float | bool) -> Life:
    return Life(serial, begins, begins + seconds, **more)  # type: ignore[arg-type]


@dataclass
class Orchestrator:
    """One node's renewal over time: a world whose clocks a test turns."""

    life: Life
    rules: Rules = field(default_factory=Rules)
    works: bool = True
    watch: Watch = field(default_factory=Watch)
    belief: Belief = field(default_factory=lambda: Belief.beginning(Clocks(T, 0.0)))
    chance: float = 0.5

    def __post_init__(self) -> None:
        self.issued_seconds = self.life.seconds
        self.renewals: list[float] = []
        self.tries = 0
        self.warnings: list[Severity] = []
        self.state = State.CURRENT

    def look(self, wall: float, monotonic: float) -> None:
        clocks = Clocks(wall, monotonic)
        _, self.belief = self.belief.look(clocks)
        self.clock = Clock.of(clocks, self.belief.time(monotonic))
        found = renewal.look(self.watch, self.life, self.rules, self.clock, self.chance)
        self.watch, self.state = found.watch, found.state
        if found.warning is not None:
            self.warnings.append(found.warning.severity)
        if not found.renew:
            return
        self.tries += 1
        if self.works:
            self.renewals.append(monotonic)
            serial = f"{len(self.renewals) + 1:02x}"
            length = self.issued_seconds + self.clock.behind
            self.life = replace(self.life, serial=serial, not_before=wall, not_after=wall + length)
            self.watch = renewal.renewed(serial, self.clock)
        else:
            self.watch = renewal.failed(self.watch, self.life, "no", self.clock, self.chance)


@pytest.mark.parametrize(
    ("seconds", "due_before"),
    [(365 * DAY, 30 * DAY), (90 * DAY, 30 * DAY), (60.0, 20.0), (20.0, 20 / 3), (3600.0, 1200.0)],
)
def test_it_is_due_when_a_third_is_left_but_not_earlier_than_thirty_days(
    seconds: float, due_before: float
) -> None:
    assert renewal.due_at(life(seconds), Rules(), 0.0) == pytest.approx(T + seconds - due_before)


@given(seconds=lives, chance=chances, before=st.none() | st.floats(1.0, 3650 * DAY), jitter=st.none() | lives)
def test_it_is_never_due_in_the_first_third_of_its_life(
    seconds: float, chance: float, before: float | None, jitter: float | None
) -> None:
    due = renewal.due_at(life(seconds), Rules(before, jitter), chance)
    assert T + seconds / 3 <= due <= T + seconds


def test_forty_nodes_that_were_issued_together_are_not_renewed_together() -> None:
    due = sorted(renewal.due_at(life(365 * DAY), Rules(), at / 40) for at in range(40))
    assert all(later - earlier > 3600 for earlier, later in pairwise(due))


@given(seconds=st.floats(20.0, 600.0), chance=chances)
def test_no_moment_of_a_life_is_without_a_valid_certificate_and_none_is_renewed_too_often(
    seconds: float, chance: float
) -> None:
    node = Orchestrator(life(seconds), chance=chance)
    for tick in range(600):
        node.look(T + tick, float(tick))
        assert node.life.not_before <= T + tick < node.life.not_after
    assert node.warnings == []
    assert len(node.renewals) <= 600 / (seconds / 3) + 1


@given(seconds=lives)
def test_what_cannot_be_renewed_is_warned_of_once_each_and_ever_more_gravely(seconds: float) -> None:
    node = Orchestrator(life(seconds), works=False)
    for tick in range(1001):
        at = seconds * tick / 1000
        node.look(T + at, at)
    node.look(T + seconds + 1.0, seconds + 1.0)  # however the last sum was rounded
    assert node.warnings == [Severity.NOTICE, Severity.WARNING, Severity.CRITICAL, Severity.CRITICAL]
    assert node.state is State.EXPIRED
    assert node.tries > 1


def test_after_a_long_absence_only_the_gravest_warning_is_told() -> None:
    node = Orchestrator(life(60.0), works=False)
    node.look(T + 3600, 1.0)
    assert node.warnings == [Severity.CRITICAL]
    assert node.state is State.EXPIRED


def test_a_try_that_failed_is_repeated_ever_less_often_and_in_time() -> None:
    node = Orchestrator(life(365 * DAY), works=False)
    begin = 340 * DAY
    for tick in range(3 * 3600):
        node.look(T + begin + tick, float(tick))
    assert 8 <= node.tries <= 20
    assert node.state is State.FAILING
    assert node.watch.why == "no"
    short = Orchestrator(life(60.0), works=False)
    for tick in range(60):
        short.look(T + tick, float(tick))
    assert short.tries >= 10


def test_a_certificate_of_somebody_else_is_warned_of_and_left_alone() -> None:
    node = Orchestrator(life(60.0, ours=False))
    for tick in range(59):
        node.look(T + tick, float(tick))
    assert node.tries == 0
    assert node.state is State.ELSEWHERE
    assert node.warnings == [Severity.NOTICE, Severity.WARNING, Severity.CRITICAL]


def test_where_the_ca_ends_first_a_new_certificate_would_end_no_later() -> None:
    node = Orchestrator(life(60.0, latest=T + 60))
    node.look(T + 50, 50.0)
    assert (node.tries, node.state) == (0, State.CA_ENDS)
    assert node.warnings == [Severity.WARNING]


@given(
    seconds=st.floats(20.0, 900.0),
    steps=st.lists(st.tuples(st.integers(1, 90), st.floats(-2 * DAY, 2 * DAY)), max_size=8),
    chance=chances,
)
def test_clock_steps_bring_neither_a_storm_nor_a_certificate_that_nobody_takes(
    seconds: float, steps: list[tuple[int, float]], chance: float
) -> None:
    node = Orchestrator(life(seconds), chance=chance)
    offset, monotonic = 0.0, 0.0
    for wait, step in [*steps, (900, 0.0)]:
        for _ in range(wait):
            monotonic += 1.0
            node.look(T + offset + monotonic, monotonic)
        offset += step
    gaps = [later - earlier for earlier, later in pairwise(node.renewals)]
    usual = min(600.0, max(1.0, seconds / 8))
    assert all(gap >= min(usual, renewal.URGENT_GAP_SECONDS) for gap in gaps)
    # What a step has made invalid, too early or too late, is replaced at once, and once.
    assert sum(gap < usual for gap in gaps) <= len(steps)
    # Whoever runs judges by a clock that never goes back, as `clock` does: it is valid there.
    # Whoever starts now judges by the wall clock: it is valid there too, and begins no later.
    wall = T + offset + monotonic
    assert node.life.not_before <= wall < node.life.not_after
    assert node.life.not_after > node.clock.now
    assert node.clock.now - wall <= renewal.MAX_SET_BACK_SECONDS + 1


def test_a_clock_that_is_set_back_stops_no_renewal() -> None:
    node = Orchestrator(life(60.0))
    for tick in range(30):
        node.look(T + tick, float(tick))
    assert node.renewals == []
    for tick in range(30, 60):
        node.look(T + tick - DAY, float(tick))
    assert len(node.renewals) == 1
    assert node.life.not_before == T + node.renewals[0] - DAY  # for those that start: they know no better
    assert node.life.not_after == pytest.approx(T + node.renewals[0] + 60.0)  # for those that run


def test_a_certificate_of_a_clock_that_was_ahead_for_a_while_is_replaced() -> None:
    node = Orchestrator(life(60.0))
    for tick in range(90):
        node.look(T + tick + (DAY if 10 < tick <= 20 else 0.0), float(tick))
    assert node.renewals[:2] == [11.0, 21.0]
    assert node.life.not_before <= T + 89 < node.life.not_after <= T + 89 + 60


def test_a_clock_that_jumps_ahead_renews_each_node_once() -> None:
    node = Orchestrator(life(365 * DAY))
    for tick in range(120):
        node.look(T + tick + (400 * DAY if tick > 10 else 0.0), float(tick))
    assert node.renewals == [11.0]
    assert node.warnings == [Severity.CRITICAL]


def test_the_ca_is_warned_of_a_year_before_its_end() -> None:
    watch, told = Watch(), []
    whole = life(3650 * DAY, serial="ca")
    for day in range(3652):
        found = renewal.look_at_ca(watch, whole, T + day * DAY)
        watch = found.watch
        if found.warning is not None:
            told.append((day, found.warning.severity))
        assert not found.renew
    assert [day for day, _ in told] == [3377, 3468, 3559, 3650]
    assert told[-1][1] is Severity.CRITICAL
    assert found.state is State.EXPIRED
