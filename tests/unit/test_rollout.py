"""How a change of the policy reaches every node, and what holds wherever it is interrupted."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.core import rollout
from distsec.core.rollout import (
    Acknowledged,
    Asked,
    Content,
    Finish,
    NodeGone,
    Push,
    Refused,
    Save,
    Stage,
    Tick,
    WriteFiles,
)

G = 7
NODES = ("a", "b", "c")
SECONDS = 5.0


class Story:
    """A rollout and what it was told; `effects` are those of the last event."""

    def __init__(self, begin: object = rollout.begin_allow, nodes: tuple[str, ...] = NODES) -> None:
        self.now = 100.0
        self.state, effects = begin(G, nodes, self.now, SECONDS)  # type: ignore[operator]
        self.effects = list(effects)

    def then(self, event: rollout.Event, seconds: float = 0.0) -> Stage:
        self.now += seconds
        self.state, effects = rollout.step(self.state, event, self.now)
        self.effects = list(effects)
        return self.state.stage

    def all(self, *nodes: str) -> Stage:
        generation = self.state.generation
        for node in nodes:
            self.then(Acknowledged(node, generation))
        return self.state.stage


def test_an_allow_opens_when_all_have_acknowledged() -> None:
    story = Story()
    assert story.effects == [
        Save(G + 3, Content.WITHOUT),
        WriteFiles(G + 1, Content.PREPARED),
        Push(G + 1, Content.PREPARED, NODES),
    ]
    assert story.all("a", "b") is Stage.PREPARING
    assert story.effects == []
    assert story.all("c") is Stage.OPENING
    assert story.effects == [
        Save(G + 2, Content.OPEN),
        WriteFiles(G + 2, Content.OPEN),
        Push(G + 2, Content.OPEN, NODES),
    ]
    assert story.all(*NODES) is Stage.DONE
    assert story.effects == [Finish(True, NODES, {})]


def test_a_node_that_is_silent_rolls_the_allow_back_and_is_named() -> None:
    story = Story()
    story.all("a", "b")
    assert story.then(Tick(), SECONDS - 0.1) is Stage.PREPARING
    assert story.then(Tick(), 0.1) is Stage.ROLLING_BACK
    assert story.effects == [
        Save(G + 3, Content.WITHOUT),
        WriteFiles(G + 3, Content.WITHOUT),
        Push(G + 3, Content.WITHOUT, NODES),
    ]
    assert story.all("a", "b") is Stage.DONE
    assert story.effects == [Finish(False, ("a", "b"), {"c": "no_answer"})]


@pytest.mark.parametrize("begin", [rollout.begin_allow, rollout.begin_deny])
def test_the_time_to_answer_begins_when_the_nodes_are_asked_and_not_when_the_disk_is(begin: object) -> None:
    story = Story(begin)
    before = story.state.stage
    assert story.then(Asked(), 10 * SECONDS) is before
    assert story.effects == []
    assert story.then(Tick(), SECONDS - 0.1) is before
    assert story.then(Tick(), 0.1) is not before


def test_a_node_that_refuses_rolls_the_allow_back_at_once() -> None:
    story = Story()
    assert story.then(Refused("b", G + 1, "signature")) is Stage.DONE  # nobody had it: nobody is waited for
    assert story.effects[0] == Save(G + 3, Content.WITHOUT)
    assert story.effects[-1] == Finish(False, (), {"b": "signature"})
    story = Story()
    story.all("a")
    story.then(Refused("b", G + 1, "signature"))
    assert story.all("a") is Stage.DONE
    assert story.effects[-1] == Finish(False, ("a",), {"b": "signature"})


def test_a_node_that_does_not_open_closes_it_for_all_again() -> None:
    story = Story()
    story.all(*NODES)
    story.all("a", "b")
    assert story.then(Tick(), SECONDS) is Stage.ROLLING_BACK
    assert Save(G + 3, Content.WITHOUT) in story.effects
    story.all("a", "b")
    assert story.then(Tick(), SECONDS) is Stage.DONE
    assert story.effects == [Finish(False, ("a", "b"), {"c": "no_answer"})]


def test_a_node_whose_process_ends_is_not_waited_for() -> None:
    story = Story()
    story.all("a", "b")
    assert story.then(NodeGone("c")) is Stage.OPENING
    assert story.effects[-1] == Push(G + 2, Content.OPEN, ("a", "b"))


def test_an_allow_without_nodes_is_saved_and_done() -> None:
    story = Story(nodes=())
    assert story.state.stage is Stage.DONE
    assert Save(G + 2, Content.OPEN) in story.effects
    assert story.effects[-1] == Finish(True, (), {})


def test_a_denial_is_saved_and_written_before_anybody_is_told_and_never_taken_back() -> None:
    story = Story(rollout.begin_deny)
    assert story.effects == [
        Save(G + 1, Content.DENIED),
        WriteFiles(G + 1, Content.DENIED),
        Push(G + 1, Content.DENIED, NODES),
    ]
    story.all("a")
    story.then(Refused("b", G + 1, "links_remain"))
    assert story.then(Tick(), SECONDS) is Stage.DONE
    assert story.effects == [Finish(False, ("a",), {"b": "links_remain", "c": "no_answer"})]


def test_a_denial_returns_as_soon_as_all_have_answered() -> None:
    story = Story(rollout.begin_deny)
    story.then(Refused("b", G + 1, "links_remain"))
    assert story.all("a", "c") is Stage.DONE
    assert story.effects == [Finish(False, ("a", "c"), {"b": "links_remain"})]
    story = Story(rollout.begin_deny)
    assert story.all(*NODES) is Stage.DONE
    assert story.effects == [Finish(True, NODES, {})]


@pytest.mark.parametrize(
    "event",
    [
        Acknowledged("a", G),
        Acknowledged("a", G + 2),
        Acknowledged("x", G + 1),
        Refused("x", G + 1, "y"),
        Tick(),
    ],
)
def test_late_and_foreign_answers_change_nothing(event: rollout.Event) -> None:
    story = Story()
    before = story.state
    story.then(event)
    assert (story.state, story.effects) == (before, [])


# ---- interrupted anywhere ------------------------------------------------------------------------


@dataclass
class World:
    """What is on the disk and in the nodes; `crash` may come between any two effects."""

    saved: tuple[int, Content] = (G, Content.WITHOUT)
    pushed: list[tuple[int, Content]] = field(default_factory=list)
    active: dict[str, tuple[int, Content]] = field(
        default_factory=lambda: dict.fromkeys(NODES, (G, Content.WITHOUT))
    )
    acknowledged: set[tuple[str, int]] = field(default_factory=set)
    finished: Finish | None = None

    def perform(self, effect: rollout.Effect, living: set[str]) -> None:
        match effect:
            case Save(generation, content):
                self.saved = (generation, content)
            case Push(generation, content, nodes):
                self.pushed.append((generation, content))
                if content is Content.OPEN:
                    prepared = {node for node in living if self.active[node][1] is Content.PREPARED}
                    assert prepared >= living & set(nodes), "opened before all were prepared"
            case Finish():
                self.finished = effect

    def check(self) -> None:
        generation, content = self.saved
        for pushed, what in self.pushed:
            assert generation + 1 > pushed, "a restart would push what agents refuse"
            if what is Content.DENIED:
                assert content is Content.DENIED, "a denial that was told is not saved"
        if content is Content.OPEN:
            assert any(what is Content.PREPARED for _, what in self.pushed) or not NODES


_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from(NODES)),
        st.tuples(st.just("answer"), st.sampled_from(NODES)),
        st.tuples(st.just("refuse"), st.sampled_from(NODES)),
        st.tuples(st.just("end"), st.sampled_from(NODES)),
        st.tuples(st.just("wait"), st.floats(0, SECONDS)),
    ),
    max_size=40,
)


@given(st.sampled_from([rollout.begin_allow, rollout.begin_deny]), _ACTIONS, st.integers(0, 60))
def test_an_interruption_at_any_step_leaves_what_a_restart_can_mend(
    begin: object, actions: list[tuple[str, object]], crash: int
) -> None:
    world, now, performed = World(), 0.0, 0
    living = set(NODES)
    state, effects = begin(G, NODES, now, SECONDS)  # type: ignore[operator]
    queue: list[tuple[str, object]] = list(actions)
    while True:
        for effect in effects:
            if performed == crash:
                world.check()
                return
            world.perform(effect, living)
            world.check()
            performed += 1
        if world.finished is not None or not queue:
            break
        action, what = queue.pop(0)
        event: rollout.Event = Tick()
        match action, what:
            case "take" | "answer", str(node) if node in living and world.pushed:
                generation, content = world.pushed[-1]
                if generation > world.active[node][0]:
                    world.active[node] = (generation, content)
                if action == "answer":
                    event = Acknowledged(node, generation)
            case "refuse", str(node) if world.pushed and world.active[node][0] < world.pushed[-1][0]:
                event = Refused(node, world.pushed[-1][0], "signature")
            case "end", str(node):
                living.discard(node)
                event = NodeGone(node)
            case "wait", float(seconds):
                now += seconds
        state, effects = rollout.step(state, event, now)
    if world.finished is not None and begin is rollout.begin_allow:
        wanted = Content.OPEN if world.finished.done else Content.WITHOUT
        assert world.saved[1] is wanted
        assert bool(world.finished.missing) is not world.finished.done
    if world.finished is not None and world.finished.done:
        for node in living:
            assert world.active[node][1] in (Content.OPEN, Content.DENIED)
