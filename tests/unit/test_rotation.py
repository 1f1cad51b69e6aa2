"""A new CA, in phases: whatever is interrupted, wherever, no two honest nodes ever refuse each other."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distsec.core import rotation, rotation_record
from distsec.core.rotation import (
    AFTER,
    BACK,
    CHECKS,
    FROM,
    GOAL,
    ROLLING_BACK,
    WANTED,
    Asked,
    Attain,
    Bring,
    Brought,
    Ca,
    Check,
    Command,
    Effect,
    Failed,
    Finish,
    NotNow,
    Passed,
    Phase,
    Reached,
    Rotation,
    Save,
    step,
)
from distsec.pki import trust

NODES = frozenset({"a", "b", "c"})
MAX_NODES = 5


# ---- the table ---------------------------------------------------------------------------------------------


def test_every_phase_says_what_nodes_have_what_is_checked_and_what_comes_next() -> None:
    assert set(WANTED) == set(CHECKS) == set(AFTER) == set(Phase)
    assert set(FROM) == set(GOAL) == set(Command)
    for phase in Phase:
        if phase is not Phase.IDLE:
            assert any(phase in phases for phases in FROM.values()), f"no command leads out of {phase}"


def test_a_bundle_is_narrowed_or_a_leaf_changed_only_by_a_step_that_keeps_every_pair_together() -> None:
    """Whatever mixture of two phases in a row the nodes are in, each trusts the CA of the other's leaf."""
    for before, after in [*AFTER.items(), *BACK.items()]:
        if (before, after) == (Phase.RETIRING, Phase.IDLE):
            continue  # the CAs change their names
        for one in (WANTED[before], WANTED[after]):
            for other in (WANTED[before], WANTED[after]):
                assert one.leaf in other.bundle, (before, after)


def test_the_kept_phase_says_who_is_trusted_and_who_issues_as_the_pki_reads_it() -> None:
    assert (str(Ca.OLD), str(Ca.NEW)) == (trust.CURRENT, trust.NEXT)
    assert (str(Phase.IDLE), rotation_record.to_fields(Phase.IDLE, 0)["schema"]) == (trust.IDLE, trust.SCHEMA)
    for phase in Phase:
        fields = json.loads(json.dumps(rotation_record.to_fields(phase, 7)))
        assert rotation_record.from_fields(fields) == Rotation(phase)
        assert fields["issuing"] in fields["trusted"]
        assert set(fields["trusted"]) <= set(fields["known"])
        with pytest.raises(ValueError):
            rotation_record.from_fields({**fields, "trusted": ["ca/old"]})
    with pytest.raises(ValueError):
        rotation_record.from_fields({**rotation_record.to_fields(Phase.IDLE, 0), "phase": "done"})


# ---- one command at a time ---------------------------------------------------------------------------------


def run(state: Rotation, command: Command, *answers: rotation.Event) -> tuple[Rotation, list[Effect]]:
    """Asks, and answers each effect that wants an answer: as told, then as if all went well."""
    told = list(answers)
    state, effects = step(state, Asked(command, NODES))
    done: list[Effect] = []
    queue = list(effects)
    while queue:
        effect = queue.pop(0)
        done.append(effect)
        if isinstance(effect, Bring | Attain):
            assert not queue, "whatever wants an answer comes last"
            state, more = step(state, told.pop(0) if told else _well(state, effect))
            queue = list(more)
    return state, done


def _well(state: Rotation, effect: Bring | Attain) -> rotation.Event:
    if isinstance(effect, Bring):
        return Brought(state.phase, NODES, effect.nodes, {})
    return Passed(effect.check, state.phase, NODES)


def saved(effects: list[Effect]) -> list[Phase]:
    return [effect.phase for effect in effects if isinstance(effect, Save)]


def end(effects: list[Effect]) -> Finish:
    assert isinstance(effects[-1], Finish)
    return effects[-1]


def test_prepare_activate_and_prune_lead_through_the_phases() -> None:
    state, effects = run(Rotation(), Command.PREPARE)
    assert saved(effects) == [Phase.CREATING, Phase.PREPARING, Phase.PREPARED]
    assert effects[-2] == Reached(Phase.PREPARED, False)
    state, effects = run(state, Command.ACTIVATE)
    assert effects[0] == Bring(NODES), "what was true when it was prepared is looked at again"
    assert saved(effects) == [Phase.ACTIVATING, Phase.ACTIVATED]
    assert Attain(Check.LINKS) in effects
    state, effects = run(state, Command.PRUNE)
    assert effects[:2] == [Bring(NODES), Attain(Check.LINKS)]
    assert saved(effects) == [Phase.PRUNING, Phase.RETIRING, Phase.IDLE]
    refused = effects.index(Attain(Check.REFUSED))
    assert effects.index(Save(Phase.RETIRING)) > refused, "the old key goes after the proof"
    assert effects[-2] == Reached(Phase.IDLE, False)
    assert end(effects).done
    assert state == Rotation(Phase.IDLE, None, NODES)


@pytest.mark.parametrize(
    ("phase", "way"),
    {
        Phase.CREATING: [Phase.DISCARDING, Phase.IDLE],
        Phase.PREPARING: [Phase.NARROWING, Phase.DISCARDING, Phase.IDLE],
        Phase.PREPARED: [Phase.NARROWING, Phase.DISCARDING, Phase.IDLE],
        Phase.ACTIVATING: [Phase.REISSUING, Phase.NARROWING, Phase.DISCARDING, Phase.IDLE],
        Phase.ACTIVATED: [Phase.REISSUING, Phase.NARROWING, Phase.DISCARDING, Phase.IDLE],
        Phase.PRUNING: [Phase.WIDENING, Phase.REISSUING, Phase.NARROWING, Phase.DISCARDING, Phase.IDLE],
    }.items(),
)
def test_a_rollback_leads_back_from_wherever_it_is(phase: Phase, way: list[Phase]) -> None:
    state, effects = run(Rotation(phase), Command.ROLLBACK)
    assert saved(effects) == way
    assert effects[-2] == Reached(Phase.IDLE, True)
    assert end(effects).done
    for middle in way[:-1]:  # killed there, and asked again
        again, effects = run(Rotation(middle), Command.ROLLBACK)
        assert saved(effects) == way[way.index(middle) + 1 :]
        assert again == state


@pytest.mark.parametrize("phase", [phase for phase in Phase if Check.NODES in CHECKS[phase]])
def test_a_node_that_cannot_be_reached_holds_every_phase_up_but_the_last_of_a_rollback(phase: Phase) -> None:
    command = next(each for each in (*Command,) if phase in FROM[each])
    silent = Brought(phase, NODES, frozenset({"a", "b"}), {"c": "no answer"}, written=frozenset({"c"}))
    if command is Command.ROLLBACK:
        state, effects = run(Rotation(phase), command, silent)
    else:
        state, effects = run(Rotation(phase), Command(command), silent)
    if phase is Phase.NARROWING:
        assert state.phase is Phase.IDLE
        assert end(effects) == Finish(True, {}, {"c": "no answer"})
    else:
        assert (state.phase, saved(effects)) == (phase, [])
        assert end(effects) == Finish(False, {"c": "no answer"}, {})


def test_a_rollback_waits_for_the_files_at_least() -> None:
    silent = Brought(Phase.NARROWING, NODES, frozenset({"a", "b"}), {"c": "the disk is full"})
    state, effects = run(Rotation(Phase.PREPARED), Command.ROLLBACK, silent)
    assert (state.phase, end(effects).missing) == (Phase.NARROWING, {"c": "the disk is full"})


def test_a_leaf_of_the_old_ca_that_is_not_refused_keeps_the_old_key() -> None:
    well = Brought(Phase.PRUNING, NODES, NODES, {})
    state, effects = run(
        Rotation(Phase.PRUNING), Command.PRUNE, well, Failed(Check.REFUSED, Phase.PRUNING, {"b": "let it in"})
    )
    assert state.phase is Phase.PRUNING
    assert not saved(effects)
    assert end(effects) == Finish(False, {"b": "let it in"}, {})


def test_a_node_that_is_added_in_the_middle_is_looked_at_before_it_goes_on() -> None:
    more = NODES | {"d"}
    state, _ = step(Rotation(Phase.ACTIVATED), Asked(Command.PRUNE, NODES))
    state, effects = step(state, Brought(Phase.ACTIVATED, more, NODES, {}))
    assert effects == (Bring(frozenset({"d"})),)
    state, effects = step(state, Brought(Phase.ACTIVATED, more, frozenset({"d"}), {}))
    assert effects == (Attain(Check.LINKS),)
    state, effects = step(state, Passed(Check.LINKS, Phase.ACTIVATED, more | {"e"}))
    assert effects == (Bring(frozenset({"e"})),)
    state, effects = step(state, Brought(Phase.ACTIVATED, more | {"e"}, frozenset({"e"}), {}))
    assert effects == (Attain(Check.LINKS),), "its links were not looked at either"
    state, effects = step(state, Passed(Check.LINKS, Phase.ACTIVATED, NODES))
    assert effects == (Save(Phase.PRUNING), Bring(NODES)), "nobody asks after nodes that were removed"


def test_a_command_that_does_not_fit_changes_nothing_and_says_why() -> None:
    for command in Command:
        for phase in set(Phase) - FROM[command]:
            with pytest.raises(NotNow, match=r"nothing to|no way back"):
                step(Rotation(phase), Asked(command, NODES))
    with pytest.raises(NotNow, match="no way back"):
        step(Rotation(Phase.RETIRING), Asked(Command.ROLLBACK, NODES))


def test_late_answers_change_nothing() -> None:
    state = Rotation(Phase.PREPARED)
    assert step(state, Brought(Phase.PREPARED, NODES, NODES, {})) == (state, ())
    state, _ = step(state, Asked(Command.ACTIVATE, NODES))
    assert step(state, Passed(Check.LINKS, Phase.ACTIVATING, NODES)) == (state, ())
    assert step(state, Brought(Phase.PREPARING, NODES, NODES, {})) == (state, ())


def test_a_cluster_without_nodes_is_rotated_too() -> None:
    none = frozenset[str]()
    state, effects = step(Rotation(Phase.PREPARED), Asked(Command.ACTIVATE, none))
    assert effects == (Bring(none),), "there may be some by now"
    state, effects = step(state, Brought(Phase.PREPARED, none, none, {}))
    assert effects == (Save(Phase.ACTIVATING), Bring(none))
    state, effects = step(state, Brought(Phase.ACTIVATING, none, none, {}))
    assert effects == (Attain(Check.LINKS),)
    state, effects = step(state, Passed(Check.LINKS, Phase.ACTIVATING, none))
    assert state.phase is Phase.ACTIVATED


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PRUNING])
def test_a_first_node_that_is_added_while_a_rollback_is_asked_for_is_brought_back_too(phase: Phase) -> None:
    """Its files are those of the phase that is being left, and the CA in them is about to go."""
    world = World(phase=phase, new=1, state=Rotation(phase))
    world.ask(Command.ROLLBACK)
    world.nodes["n1"] = Node(world.wanted(), None)
    while not world.at_rest:
        world.go_on(0)
        if world.phase is Phase.REISSUING and "n2" not in world.nodes:
            world.nodes["n2"] = Node(world.wanted(), None)
        for one in world.nodes.values():
            assert all(one.disk.leaf in other.disk.bundle for other in world.nodes.values())
    assert world.phase is Phase.IDLE
    assert [node.disk for node in world.nodes.values()] == [Version(frozenset({0}), 0)] * len(world.nodes)


# ---- every interleaving ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Version:
    """Whom a node trusts and who issued its leaf: CAs by number, each made only once."""

    bundle: frozenset[int]
    leaf: int


@dataclass(slots=True)
class Node:
    disk: Version
    running: Version | None
    reachable: bool = True
    disk_full: bool = False

    def versions(self) -> list[Version]:
        return [self.disk] if self.running is None else [self.disk, self.running]

    def read_files(self) -> None:
        self.running = Version(self.disk.bundle, self.disk.leaf)


Step = Generator[None, None, None]


@dataclass(slots=True)
class World:
    """Nodes with what they have on disk and in memory, the saved phase, and an orchestrator that may be
    killed between any two steps of any effect.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    phase: Phase = Phase.IDLE
    old: int = 0
    new: int | None = None  # of the CA in ca/next, if there is one
    made: int = 0
    retired: set[int] = field(default_factory=set)
    state: Rotation = field(default_factory=Rotation)
    queue: list[Effect] = field(default_factory=list)
    running: dict[str, Step] = field(default_factory=dict)  # one generator a node that is being brought
    answer: dict[str, tuple[str | None, bool]] = field(default_factory=dict)

    def number(self, ca: Ca) -> int:
        if ca is Ca.OLD:
            return self.old
        assert self.new is not None, "no phase speaks of a CA that is not there"
        return self.new

    def wanted(self) -> Version:
        wanted = WANTED[self.phase]
        return Version(frozenset(map(self.number, wanted.bundle)), self.number(wanted.leaf))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.nodes)

    @property
    def at_rest(self) -> bool:
        return not self.queue and not self.running

    def ask(self, command: Command) -> None:
        assert self.at_rest
        self.state, effects = step(self.state, Asked(command, self.names))
        self.queue = list(effects)

    def kill(self) -> None:
        """The orchestrator, and the one that starts next: it has the saved phase and nothing else."""
        self.queue, self.running, self.answer = [], {}, {}
        self.state = rotation_record.from_fields(rotation_record.to_fields(self.phase, 0))
        for node in self.nodes.values():  # beam.provision
            if not node.disk_full:
                node.disk.bundle = self.wanted().bundle

    def go_on(self, choice: int) -> None:
        """One smallest step of what is under way."""
        if self.running:
            name = sorted(self.running)[choice % len(self.running)]
            if next(self.running[name], "ended") == "ended":
                del self.running[name]
            if not self.running:
                missing = {name: why for name, (why, _) in self.answer.items() if why is not None}
                written = frozenset(name for name in missing if self.answer[name][1])
                confirmed = frozenset(self.answer) - set(missing)
                self._feed(Brought(self.state.phase, self.names, confirmed, missing, written))
        elif self.queue:
            self._perform(self.queue.pop(0))

    def _feed(self, event: rotation.Event) -> None:
        self.state, effects = step(self.state, event)
        self.queue += effects

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Save(phase):
                if (self.phase, phase) == (Phase.RETIRING, Phase.IDLE):
                    assert self.new is not None
                    self.retired.add(self.old)
                    self.old, self.new = self.new, None
                self.phase = phase
            case Bring(nodes):
                self.answer = {}
                self.running = {name: self._bring(name) for name in nodes}
                if not nodes:
                    self._feed(Brought(self.state.phase, self.names, frozenset(), {}))
            case Attain(check):
                self._attain(check)

    def _bring(self, name: str) -> Step:
        """As supervisor.ca_rotation does it: files first, then the node itself."""
        node, written = self.nodes.get(name), False
        self.answer[name] = "gone", False
        if node is None:
            return
        if not node.disk_full:
            node.disk.bundle = self.wanted().bundle
            yield
            if node.disk.leaf != self.wanted().leaf:
                node.disk.leaf = self.wanted().leaf
            yield
            written = (node.disk.bundle, node.disk.leaf) == (self.wanted().bundle, self.wanted().leaf)
        if node.running is None:
            self.answer[name] = None if written else "disk", written
        elif not node.reachable:
            self.answer[name] = "no answer", written
        else:
            node.read_files()
            yield
            fits = node.running == self.wanted()
            self.answer[name] = None if fits and written else "disk", written

    def _attain(self, check: Check) -> None:
        phase, ups = self.state.phase, [node for node in self.nodes.values() if node.running]
        fails = False
        match check:
            case Check.CREATED:
                if self.new is None:
                    self.made += 1
                    self.new = self.made
            case Check.LINKS:
                fails = any(not node.reachable or node.running != self.wanted() for node in ups)
            case Check.REFUSED:
                fails = any(self.old in node.running.bundle for node in ups if node.running)
            case Check.DISCARDED:
                self.new = None
        if fails:
            self._feed(Failed(check, phase, {"somebody": "not yet"}))
        else:
            self._feed(Passed(check, phase, self.names))


class Interleavings(RuleBasedStateMachine):
    """Commands, kills, restarts, silences, renewals, nodes that come and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.count = 0

    @initialize(
        commands=st.sampled_from([(), (Command.PREPARE,), (Command.PREPARE, Command.ACTIVATE)]),
        then=st.sampled_from([None, *Command]),
    )
    def three_nodes(self, commands: tuple[Command, ...], then: Command | None) -> None:
        """Somewhere on the way, most likely with a command that has just been given."""
        for name in sorted(NODES):
            self._add(name, up=True)
        for command in commands:
            self.world.ask(command)
            self._drain()
        if then is not None and self.world.phase in FROM[then]:
            self.world.ask(then)

    def _add(self, name: str, up: bool) -> None:
        wanted = self.world.wanted()
        node = Node(wanted, None)
        if up:
            node.read_files()
        self.world.nodes[name] = node

    def _node(self, choice: int) -> Node:
        names = sorted(self.world.nodes)
        return self.world.nodes[names[choice % len(names)]]

    @precondition(lambda self: self.world.at_rest)
    @rule(command=st.sampled_from(sorted(Command)))
    def ask(self, command: Command) -> None:
        if self.world.phase in FROM[command]:
            self.world.ask(command)

    @precondition(lambda self: self.world.queue)
    @rule()
    def go_on_until_nodes_are_brought(self) -> None:
        while self.world.queue and not self.world.running:
            self.world.go_on(0)
            self.no_honest_pair_is_locked_out()

    @precondition(lambda self: not self.world.at_rest)
    @rule(choices=st.lists(st.integers(0, 7), min_size=1, max_size=12))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            self.world.go_on(choice)
            self.no_honest_pair_is_locked_out()

    @rule()
    def kill_the_orchestrator(self) -> None:
        self.world.kill()

    @precondition(lambda self: self.world.nodes)
    @rule(choice=st.integers(0, 7))
    def kill_a_node(self, choice: int) -> None:
        self._node(choice).running = None

    @precondition(lambda self: self.world.nodes)
    @rule(choice=st.integers(0, 7))
    def start_a_node(self, choice: int) -> None:
        node = self._node(choice)
        if node.running is None:
            node.read_files()

    @precondition(lambda self: self.world.nodes)
    @rule(choice=st.integers(0, 7), reachable=st.booleans(), disk_full=st.booleans())
    def disturb_a_node(self, choice: int, reachable: bool, disk_full: bool) -> None:
        node = self._node(choice)
        node.reachable, node.disk_full = reachable, disk_full

    @precondition(lambda self: self.world.nodes)
    @rule(choice=st.integers(0, 7))
    def renew_a_certificate(self, choice: int) -> None:
        """The CA that issues in the saved phase; never while that is being changed."""
        node = self._node(choice)
        if not node.disk_full:
            node.disk.leaf = self.world.wanted().leaf
            if node.running is not None and node.reachable:
                node.read_files()

    @rule(up=st.booleans())
    def add_a_node(self, up: bool) -> None:
        if len(self.world.nodes) < MAX_NODES:
            self.count += 1
            self._add(f"n{self.count}", up)

    @precondition(lambda self: self.world.nodes)
    @rule(choice=st.integers(0, 7))
    def remove_a_node(self, choice: int) -> None:
        names = sorted(self.world.nodes)
        del self.world.nodes[names[choice % len(names)]]

    @invariant()
    def no_honest_pair_is_locked_out(self) -> None:
        versions = [version for node in self.world.nodes.values() for version in node.versions()]
        for one in versions:
            for other in versions:
                assert one.leaf in other.bundle, (self.world.phase, one, other)

    @invariant()
    def what_was_pruned_is_trusted_by_nobody(self) -> None:
        if self.world.phase is not Phase.RETIRING:
            gone = self.world.retired
        else:
            gone = self.world.retired | {self.world.old}
        for node in self.world.nodes.values():
            for version in node.versions():
                assert not version.bundle & gone

    def teardown(self) -> None:
        """Once everybody can be reached again, it is brought to its end, forwards or back."""
        for forwards in (True, False):
            world = self.world
            if forwards:
                self._calm()
                self._to_the_end([Command.PREPARE, Command.ACTIVATE, Command.PRUNE])
                assert world.new is None
            else:
                world.ask(Command.PREPARE)
                self._drain()
                self._to_the_end([Command.ROLLBACK])
            for node in world.nodes.values():
                for version in node.versions():
                    assert version == Version(frozenset({world.old}), world.old)

    def _calm(self) -> None:
        for node in self.world.nodes.values():
            node.reachable, node.disk_full = True, False
        self._drain()

    def _drain(self) -> None:
        while not self.world.at_rest:
            self.world.go_on(0)
            self.no_honest_pair_is_locked_out()

    def _to_the_end(self, commands: list[Command]) -> None:
        for _ in range(8):
            if self.world.phase is Phase.IDLE:
                return
            fitting = [command for command in commands if self.world.phase in FROM[command]]
            if self.world.phase in ROLLING_BACK:
                fitting = [Command.ROLLBACK]
            self.world.ask(fitting[-1])
            self._drain()
        raise AssertionError(f"it stays {self.world.phase}")


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
