"""The rotation of the cookies' secret, step by step: interrupted anywhere, no node refuses another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.core.cookie_rotation import Begun, Effect, Event, Happened, IllegalStep, step
from distsec.model.cookies import CookiePhase, CookieRotation

NOW = 1_800_000_000
START = CookieRotation(made=NOW - 1000)


# ---- a cluster in memory -----------------------------------------------------------------------------------


@dataclass
class Node:
    """What it dials with, and what it takes. `told`: of which step."""

    told: int = 0
    dials: str = "s0"
    takes: frozenset[str] = frozenset({"s0"})
    runs: bool = True


@dataclass
class Disk:
    """What a crash leaves: the two secrets and the saved rotation."""

    secret: str = "s0"
    next: str | None = None
    rotation: CookieRotation = START
    made: int = 0

    def cookies(self) -> tuple[str, frozenset[str]]:
        """What a node starts with, and is told: as pki.cookies.cookie_set has it."""
        secret, other = self.secret, self.next
        match self.rotation.phase:
            case CookiePhase.IDLE:
                return secret, frozenset({secret})
            case CookiePhase.ACCEPTING:
                assert other is not None
                return secret, frozenset({secret, other})
            case CookiePhase.USING:
                assert other is not None
                return other, frozenset({secret, other})
            case CookiePhase.FORGETTING:
                assert other is not None
                return other, frozenset({other})


class Killed(Exception):
    """The orchestrator, before the next effect."""


@dataclass
class World:
    """`budget`: after how many effects, a message to one node among them, the orchestrator is killed."""

    nodes: list[Node]
    order: tuple[int, ...]
    disk: Disk = field(default_factory=Disk)
    budget: int = 10_000
    silent: frozenset[int] = frozenset()

    def spend(self) -> None:
        self.check()
        if self.budget == 0:
            raise Killed
        self.budget -= 1

    def check(self) -> None:
        running = [node for node in self.nodes if node.runs]
        for one in running:
            for other in running:
                assert one.dials in other.takes, (self.disk, self.nodes)

    def start(self, number: int) -> None:
        node = self.nodes[number]
        node.dials, node.takes = self.disk.cookies()
        node.told, node.runs = self.disk.rotation.step, True
        self.check()

    def tell(self) -> bool:
        """Whether all that run have acknowledged."""
        acknowledged = True
        for number in self.order:
            node = self.nodes[number]
            if not node.runs:
                continue
            if number in self.silent:
                acknowledged = False
                continue
            self.spend()
            assert node.told <= self.disk.rotation.step
            node.dials, node.takes = self.disk.cookies()
            node.told = self.disk.rotation.step
        self.check()
        return acknowledged

    def command(self, event: Event) -> bool:
        """One run of `distsec cookie rotate` (or of --give-up). Whether it came to its end."""
        while True:
            rotation, effects = step(self.disk.rotation, event)
            event = Happened.ACKNOWLEDGED
            for effect in effects:
                self.spend()
                match effect:
                    case Effect.MAKE_SECRET:
                        self.disk.made += 1
                        self.disk.next = f"s{self.disk.made}"
                    case Effect.SAVE:
                        self.disk.rotation = rotation
                    case Effect.TELL:
                        if not self.tell():
                            return False
                    case Effect.VERIFY:
                        assert all(node.dials == self.disk.next for node in self.nodes if node.runs)
                        event = Happened.VERIFIED
                    case Effect.REPLACE_SECRET:
                        assert self.disk.next is not None
                        self.disk.secret = self.disk.next
                    case Effect.DROP_SECRET:
                        self.disk.next = None
            self.check()
            if rotation.phase is CookiePhase.IDLE:
                return True

    def rotate(self) -> bool:
        idle = self.disk.rotation.phase is CookiePhase.IDLE
        return self.command(Begun(NOW) if idle else Happened.RESUMED)


# ---- tests -------------------------------------------------------------------------------------------------


def test_a_rotation_ends_with_the_new_secret_alone() -> None:
    world = World([Node(), Node()], (0, 1))
    assert world.rotate()
    assert (world.disk.secret, world.disk.next) == ("s1", None)
    assert world.disk.rotation == CookieRotation(CookiePhase.IDLE, 4, made=NOW)
    assert [(node.dials, node.takes) for node in world.nodes] == [("s1", frozenset({"s1"}))] * 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_killed_at_any_effect_it_goes_on_and_nobody_is_locked_out(order: tuple[int, ...]) -> None:
    budget = 0
    while True:
        world = World([Node(), Node(), Node()], order, budget=budget)
        try:
            assert world.rotate()
            break
        except Killed:
            pass
        for number in order:  # each starts anew from its file, one after the other
            world.start(number)
        world.budget = 10_000
        while world.disk.rotation.phase is not CookiePhase.IDLE or world.disk.secret == "s0":
            assert world.rotate()
        assert world.disk.next in {None, world.disk.secret}, "a copy may be left, until it is made anew"
        budget += 1
    assert budget == 20, "every effect, and every message to a node, was stopped at"


@given(st.data())
def test_whatever_happens_in_whatever_order_any_two_nodes_take_each_other(data: st.DataObject) -> None:
    world = World([Node() for _ in range(3)], (0, 1, 2))
    for _ in range(data.draw(st.integers(1, 12))):
        world.order = tuple(data.draw(st.permutations(range(3))))
        match data.draw(st.sampled_from(["rotate", "give up", "stop", "start"])):
            case "rotate":
                world.budget = data.draw(st.integers(0, 12) | st.just(10_000))
                world.silent = frozenset(data.draw(st.sets(st.integers(0, 2), max_size=1)))
                try:
                    world.rotate()
                except Killed:
                    world.check()
            case "give up":
                if world.disk.rotation.phase is CookiePhase.ACCEPTING:
                    world.budget = data.draw(st.integers(0, 6) | st.just(10_000))
                    try:
                        world.command(Happened.GIVEN_UP)
                    except Killed:
                        world.check()
            case "stop":
                world.nodes[data.draw(st.integers(0, 2))].runs = False
            case "start":
                world.start(data.draw(st.integers(0, 2)))
    world.budget, world.silent = 10_000, frozenset()
    for number in range(3):
        if not world.nodes[number].runs:
            world.start(number)
    assert world.rotate() or world.rotate()
    assert world.disk.rotation.phase is CookiePhase.IDLE
    assert {(node.dials, node.takes) for node in world.nodes} == {
        (world.disk.secret, frozenset({world.disk.secret}))
    }


def test_a_node_that_is_silent_holds_it_up_in_its_phase() -> None:
    world = World([Node(), Node()], (0, 1), silent=frozenset({1}))
    assert not world.rotate()
    assert world.disk.rotation.phase is CookiePhase.ACCEPTING
    assert (world.nodes[0].dials, world.nodes[1]) == ("s0", Node())


def test_given_up_it_leaves_the_old_secret_and_its_age() -> None:
    world = World([Node(), Node()], (0, 1), silent=frozenset({1}))
    world.rotate()
    world.silent = frozenset()
    assert world.command(Happened.GIVEN_UP)
    assert (world.disk.secret, world.disk.next) == ("s0", None)
    assert world.disk.rotation == CookieRotation(CookiePhase.IDLE, 2, made=START.made)


@pytest.mark.parametrize("phase", CookiePhase)
def test_what_has_no_place_in_a_phase_is_illegal(phase: CookiePhase) -> None:
    rotation = replace(START, phase=phase, step=9)
    legal = {
        CookiePhase.IDLE: {Begun(NOW)},
        CookiePhase.ACCEPTING: {Happened.RESUMED, Happened.ACKNOWLEDGED, Happened.GIVEN_UP},
        CookiePhase.USING: {Happened.RESUMED, Happened.ACKNOWLEDGED, Happened.VERIFIED},
        CookiePhase.FORGETTING: {Happened.RESUMED, Happened.ACKNOWLEDGED},
    }[phase]
    events: set[Event] = {Begun(NOW), *Happened}
    for event in events - legal:
        with pytest.raises(IllegalStep):
            step(rotation, event)
    for event in legal:
        after, effects = step(rotation, event)
        assert effects
        assert (after.step > rotation.step) == (after.phase is not rotation.phase) == (Effect.SAVE in effects)


def test_the_age_is_that_of_the_secret_that_nodes_dial_with() -> None:
    begun, _ = step(START, Begun(NOW))
    using, _ = step(begun, Happened.ACKNOWLEDGED)
    assert (begun.in_use_since, using.in_use_since) == (START.made, NOW)
