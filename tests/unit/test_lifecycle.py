"""The life of one node as transcripts, and as any sequence of events at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.core import node_status as life
from distsec.core.backoff import CAP_SECONDS, backoff_seconds
from distsec.core.lifecycle import TABLE, step
from distsec.core.node_arrows import DOOM_SECONDS
from distsec.core.node_status import NodeStatus, Rules, StopStage, Why
from distsec.model.cluster import NodeState, RestartPolicy
from distsec.model.events import EventType, Severity

PID = 4711


class Story:
    """A node and what it was told; `effects` are those of the last event, announcements left out."""

    def __init__(self, **rules: object) -> None:
        self.status = NodeStatus(Rules(**rules))  # type: ignore[arg-type]
        self.now = 100.0
        self.effects: list[life.Effect] = []
        self.published: list[life.Publish] = []

    def then(self, event: life.Event, seconds: float = 0.0, chance: float = 0.5) -> NodeState:
        self.now += seconds
        self.status, effects = step(self.status, event, self.now, chance)
        self.published = [effect for effect in effects if isinstance(effect, life.Publish)]
        self.effects = [
            effect for effect in effects if not isinstance(effect, life.Publish | life.ScheduleTick)
        ]
        return self.status.state

    def run(self) -> Story:
        """To RUNNING."""
        self.then(life.StartRequested())
        self.then(life.ProcessStarted(PID))
        self.then(life.AgentConnected(PID))
        assert self.then(life.GuardProven(self.status.attempt)) is NodeState.RUNNING
        return self

    def die(self, code: int | None = 1) -> NodeState:
        assert self.status.pid is not None
        return self.then(life.ProcessExited(self.status.pid, code))

    def reborn(self) -> None:
        """Through its back-off to RUNNING again."""
        assert self.status.due is not None
        self.then(life.Tick(), self.status.due - self.now)
        self.then(life.ProcessStarted(PID))
        self.then(life.AgentConnected(PID))
        self.then(life.GuardProven(self.status.attempt))


def test_runs_only_after_hello_and_proof() -> None:
    story = Story()
    assert story.then(life.StartRequested()) is NodeState.STARTING
    assert story.effects == [life.StartProcess()]
    assert story.then(life.ProcessStarted(PID)) is NodeState.STARTING
    assert story.effects == []
    assert story.then(life.AgentConnected(PID)) is NodeState.STARTING
    assert story.effects == [life.Probe(story.status.attempt)]
    assert story.then(life.GuardProven(story.status.attempt)) is NodeState.RUNNING
    assert story.status.due is None


def test_a_proof_that_was_asked_for_before_the_agent_was_lost_counts_for_nothing() -> None:
    story = Story()
    story.then(life.StartRequested())
    story.then(life.ProcessStarted(PID))
    story.then(life.AgentConnected(PID))
    stale = story.status.attempt
    story.then(life.AgentLost())
    assert story.then(life.GuardProven(stale)) is NodeState.STARTING
    story.then(life.AgentConnected(PID))
    assert story.then(life.GuardProven(stale)) is NodeState.STARTING
    assert story.then(life.GuardProven(story.status.attempt)) is NodeState.RUNNING


def test_no_hello_within_the_start_deadline_stops_it_and_is_fatal() -> None:
    story = Story(start_deadline_seconds=30.0)
    story.then(life.StartRequested())
    story.then(life.ProcessStarted(PID))
    assert story.then(life.Tick(), 29.9) is NodeState.STARTING
    assert story.then(life.Tick(), 0.1) is NodeState.STOPPING
    assert story.effects == [life.SendTerm()]
    assert story.die(0) is NodeState.FATAL
    assert story.status.why is Why.CARRIER_NOT_IN_FORCE
    assert "no hello" in story.status.detail


def test_the_start_deadline_begins_with_the_process_not_while_it_waits_for_its_turn() -> None:
    story = Story(start_deadline_seconds=30.0)
    story.then(life.StartRequested())
    assert story.then(life.Tick(), 1000) is NodeState.STARTING
    story.then(life.ProcessStarted(PID))
    assert story.status.due == story.now + 30.0


def test_a_proof_that_stays_unclear_is_tried_again_and_fatal_at_the_deadline() -> None:
    story = Story(start_deadline_seconds=30.0)
    story.then(life.StartRequested())
    story.then(life.ProcessStarted(PID))
    story.then(life.AgentConnected(PID))
    story.then(life.GuardUnclear(story.status.attempt, "nothing listens"))
    assert story.then(life.Tick(), 1) is NodeState.STARTING
    assert story.effects == [life.Probe(story.status.attempt)]
    assert story.then(life.Tick(), 1) is NodeState.STARTING
    assert story.effects == []  # one proof at a time
    story.then(life.Tick(), 30)
    story.die(0)
    assert (story.status.state, story.status.why) == (NodeState.FATAL, Why.CARRIER_NOT_IN_FORCE)
    assert "nothing listens" in story.status.detail


def test_a_port_that_somebody_keeps_from_answering_ends_no_node() -> None:
    """All else agrees; a stranger with idle connections could otherwise have any node stopped."""
    story = Story(start_deadline_seconds=30.0)
    story.then(life.Adopted(PID))
    story.then(life.AgentConnected(PID))
    for _ in range(5):
        story.then(life.GuardUnclear(story.status.attempt, "no answer in time", unanswered=True))
        assert story.then(life.Tick(), 40) is NodeState.STARTING
        assert story.effects == [life.Probe(story.status.attempt)]
        assert story.status.overdue  # who waits for it to run is told
    assert story.then(life.GuardProven(story.status.attempt)) is NodeState.RUNNING
    assert not story.status.overdue


def test_a_hello_that_does_not_come_again_is_waited_for_until_the_deadline_only() -> None:
    story = Story(start_deadline_seconds=30.0)
    story.then(life.Adopted(PID))
    story.then(life.AgentConnected(PID))
    story.then(life.GuardUnclear(story.status.attempt, "no answer in time", unanswered=True))
    story.then(life.AgentLost())
    story.then(life.Tick(), 31)
    story.die(0)
    assert (story.status.state, story.status.why) == (NodeState.FATAL, Why.CARRIER_NOT_IN_FORCE)


@pytest.mark.parametrize("running", [False, True])
def test_a_guard_that_is_not_in_force_is_killed_soon_and_never_restarted(running: bool) -> None:
    story = Story(restart=RestartPolicy.ALWAYS)
    if running:
        story.run()
    else:
        story.then(life.StartRequested())
        story.then(life.ProcessStarted(PID))
    story.then(life.AgentConnected(PID))
    assert story.then(life.GuardDisproven(story.status.attempt, "inet_tcp")) is NodeState.STOPPING
    assert story.effects == [life.SendTerm()]
    story.then(life.Tick(), DOOM_SECONDS)
    assert story.effects == [life.SendKill()]
    assert story.die(-9) is NodeState.FATAL
    assert story.published[-1].severity is Severity.CRITICAL
    assert story.then(life.Tick(), 10_000) is NodeState.FATAL
    assert story.effects == []


def test_a_node_that_halted_itself_is_fatal_at_once_with_its_own_words() -> None:
    story = Story()
    story.then(life.StartRequested())
    story.then(life.ProcessStarted(PID))
    story.then(life.GuardRefused("proto_dist", "-proto_dist must be given once"))
    assert story.die(78) is NodeState.FATAL
    assert story.status.why is Why.CARRIER_NOT_IN_FORCE
    assert story.status.detail == "proto_dist: -proto_dist must be given once"


def test_a_forbidden_flag_is_killed_at_once_and_that_of_another_process_changes_nothing() -> None:
    story = Story()
    story.then(life.StartRequested())
    story.then(life.ProcessStarted(PID))
    assert story.then(life.ForbiddenFlagFound(PID + 1, "-setcookie")) is NodeState.STARTING
    assert story.then(life.ForbiddenFlagFound(PID, "-setcookie")) is NodeState.STOPPING
    assert story.effects == [life.SendKill()]
    assert story.die(-9) is NodeState.FATAL
    assert (story.status.why, story.status.detail) == (Why.CARRIER_NOT_IN_FORCE, "-setcookie")


def test_a_node_that_may_not_be_started_is_fatal_with_the_reason_of_that() -> None:
    story = Story()
    story.then(life.StartRequested())
    story.then(life.StartFailed("-setcookie", why=Why.CARRIER_NOT_IN_FORCE))
    assert story.status.state is NodeState.FATAL
    assert story.status.why is Why.CARRIER_NOT_IN_FORCE


def test_more_restarts_than_the_intensity_are_flapping() -> None:
    story = Story(restart_intensity=2, restart_period_seconds=60.0).run()
    for _ in range(2):
        assert story.die() is NodeState.BACKOFF
        story.reborn()
    assert story.die() is NodeState.FATAL
    assert story.status.why is Why.FLAPPING


def test_restarts_of_an_earlier_period_are_forgotten() -> None:
    story = Story(restart_intensity=1, restart_period_seconds=60.0).run()
    for _ in range(4):
        assert story.die() is NodeState.BACKOFF
        story.reborn()
        story.now += 61


def test_the_pause_grows_and_half_of_it_is_chance() -> None:
    assert [backoff_seconds(n, 0.999999) for n in range(4)] == pytest.approx([0.25, 0.5, 1.0, 2.0], rel=1e-3)
    assert backoff_seconds(3, 0.0) == pytest.approx(1.0)
    assert backoff_seconds(400, 0.999999) <= CAP_SECONDS


@pytest.mark.parametrize(
    ("policy", "code", "state"),
    [
        (RestartPolicy.ALWAYS, 0, NodeState.BACKOFF),
        (RestartPolicy.ON_FAILURE, 0, NodeState.STOPPED),
        (RestartPolicy.ON_FAILURE, 1, NodeState.BACKOFF),
        (RestartPolicy.ON_FAILURE, -9, NodeState.BACKOFF),
        (RestartPolicy.ON_FAILURE, None, NodeState.BACKOFF),
        (RestartPolicy.NEVER, 1, NodeState.STOPPED),
    ],
)
def test_the_restart_policy_decides_after_an_exit(
    policy: RestartPolicy, code: int | None, state: NodeState
) -> None:
    story = Story(restart=policy).run()
    assert story.die(code) is state
    assert story.status.why is Why.EXITED


def test_stops_in_order_agent_then_term_then_kill() -> None:
    story = Story(stop_deadline_seconds=20.0).run()
    assert story.then(life.StopRequested()) is NodeState.STOPPING
    assert story.effects == [life.AskAgentToStop()]
    story.then(life.Tick(), 10)
    assert (story.effects, story.status.stage) == ([life.SendTerm()], StopStage.TERMINATED)
    story.then(life.Tick(), 10)
    assert (story.effects, story.status.stage) == ([life.SendKill()], StopStage.KILLED)
    assert story.die(-9) is NodeState.STOPPED
    assert story.effects == [life.ForgetProcess(PID)]
    assert story.then(life.Tick(), 10_000) is NodeState.STOPPED


def test_without_an_agent_a_stop_begins_with_term() -> None:
    story = Story().run()
    story.then(life.AgentLost())
    story.then(life.StopRequested())
    assert story.effects == [life.SendTerm()]


def test_a_stop_while_the_process_is_being_started_reaches_it_when_it_is_there() -> None:
    story = Story()
    story.then(life.StartRequested())
    assert story.then(life.StopRequested()) is NodeState.STOPPING
    assert story.then(life.ProcessStarted(PID)) is NodeState.STOPPING
    assert story.effects == [life.SendTerm()]
    assert story.die(0) is NodeState.STOPPED


def test_a_restart_starts_only_when_the_old_process_has_gone() -> None:
    story = Story().run()
    story.then(life.StopRequested())
    story.then(life.StartRequested())
    assert story.effects == []
    assert story.die(0) is NodeState.STARTING
    assert story.effects == [life.ForgetProcess(PID), life.StartProcess()]


def test_the_operators_start_resets_the_intensity() -> None:
    story = Story(restart_intensity=1).run()
    story.die()
    story.reborn()
    assert story.die() is NodeState.FATAL
    story.run()
    assert story.die() is NodeState.BACKOFF


def test_a_lost_agent_leaves_the_node_running_and_is_proven_again_when_it_is_back() -> None:
    story = Story().run()
    assert story.then(life.AgentLost()) is NodeState.RUNNING
    assert not story.status.agent
    assert story.then(life.AgentConnected(PID)) is NodeState.RUNNING
    assert not story.status.proven
    assert story.effects == [life.Probe(story.status.attempt)]
    story.then(life.GuardProven(story.status.attempt))
    assert story.status.proven


def test_an_adopted_process_is_proven_again_before_it_is_running() -> None:
    story = Story()
    assert story.then(life.Adopted(PID)) is NodeState.STARTING
    assert story.effects == []
    story.then(life.AgentConnected(PID))
    assert story.then(life.GuardProven(story.status.attempt)) is NodeState.RUNNING


def test_a_command_that_cannot_be_run_is_fatal_and_one_that_may_work_later_is_tried_again() -> None:
    story = Story()
    story.then(life.StartRequested())
    assert story.then(life.StartFailed("no such program")) is NodeState.FATAL
    assert story.status.why is Why.START_FAILED
    story.then(life.StartRequested())
    assert story.then(life.StartFailed("port in use", lasting=False)) is NodeState.BACKOFF
    assert (story.status.why, story.status.detail) == (Why.START_FAILED, "port in use")


def test_a_start_that_something_keeps_from_succeeding_is_tried_until_it_does_and_is_no_flapping() -> None:
    story = Story(restart_intensity=1, restart_period_seconds=60.0)
    story.then(life.StartRequested())
    pauses = []
    for _ in range(20):
        assert story.then(life.StartFailed("port in use", lasting=False)) is NodeState.BACKOFF
        assert story.status.due is not None
        pauses.append(story.status.due - story.now)
        assert story.then(life.Tick(), story.status.due - story.now) is NodeState.STARTING
    assert pauses == pytest.approx([backoff_seconds(n, 0.5) for n in range(20)])
    assert max(pauses) <= CAP_SECONDS
    story.then(life.ProcessStarted(PID))
    assert story.status.failures == 0
    assert story.die() is NodeState.BACKOFF, "the first time that it died"


def test_a_start_that_is_asked_for_by_the_operator_begins_with_short_pauses_again() -> None:
    story = Story()
    story.then(life.StartRequested())
    for _ in range(6):
        story.then(life.StartFailed("port in use", lasting=False))
        story.then(life.StartRequested())
    story.then(life.StartFailed("port in use", lasting=False))
    assert story.status.due == pytest.approx(story.now + backoff_seconds(0, 0.5))


def test_a_node_that_nothing_could_start_is_fatal_without_a_try_and_the_operator_may_try_it() -> None:
    story = Story()
    assert story.then(life.FoundUnfit("no such program")) is NodeState.FATAL
    assert (story.status.why, story.status.detail) == (Why.START_FAILED, "no such program")
    assert not [effect for effect in story.effects if isinstance(effect, life.StartProcess)]
    assert story.then(life.StartRequested()) is NodeState.STARTING
    external = Story(external=True)
    assert external.then(life.FoundUnfit("no such program")) is NodeState.STOPPED


def test_an_external_node_is_never_started_and_runs_after_the_same_proof() -> None:
    story = Story(external=True)
    assert story.then(life.StartRequested()) is NodeState.STOPPED
    assert story.effects == []
    assert story.then(life.AgentConnected(PID)) is NodeState.STARTING
    assert story.effects == [life.Probe(story.status.attempt)]
    assert story.then(life.GuardProven(story.status.attempt)) is NodeState.RUNNING
    assert story.then(life.AgentLost()) is NodeState.STOPPED
    assert story.status.why is Why.EXTERNAL_GONE


def test_an_external_node_that_is_fatal_stays_so_until_the_operator_forgives_it() -> None:
    story = Story(external=True)
    story.then(life.AgentConnected(PID))
    story.then(life.GuardDisproven(story.status.attempt, "inet_tcp"))
    assert story.die(0) is NodeState.FATAL
    assert story.then(life.AgentConnected(PID + 1)) is NodeState.FATAL
    assert story.effects == [life.AskAgentToStop()]
    assert story.then(life.StartRequested()) is NodeState.STARTING
    assert story.effects == [life.Probe(story.status.attempt)]


def test_a_condemned_node_is_killed_at_once_and_never_told_before() -> None:
    story = Story().run()
    assert story.then(life.Condemned()) is NodeState.STOPPING
    assert story.effects == [life.SendKill()]
    assert story.then(life.Tick(), 1000.0) is NodeState.STOPPING
    assert story.effects == [life.SendKill()]
    assert story.die(-9) is NodeState.STOPPED
    assert story.status.why is Why.COMPROMISED


def test_a_stop_or_restart_that_is_under_way_is_no_shelter() -> None:
    story = Story(stop_deadline_seconds=20.0).run()
    story.then(life.StopRequested())
    assert story.effects == [life.AskAgentToStop()]
    story.then(life.StartRequested())
    story.then(life.Condemned())
    assert story.effects == [life.SendKill()]
    assert story.die(-9) is NodeState.STOPPED  # and it is not started again


def test_a_start_that_is_under_way_is_ended_as_soon_as_there_is_a_process() -> None:
    story = Story(stop_deadline_seconds=20.0)
    story.then(life.StartRequested())
    story.then(life.Condemned())
    assert story.effects == []
    story.then(life.ProcessStarted(PID), 5.0)
    assert story.effects == [life.SendKill()]


def test_a_condemned_node_at_rest_is_stopped_and_waits_for_no_restart() -> None:
    story = Story().run()
    story.die()
    assert story.then(life.Condemned()) is NodeState.STOPPED
    assert story.then(life.Tick(), 100.0) is NodeState.STOPPED
    story = Story(restart_intensity=0).run()
    assert story.die() is NodeState.FATAL
    assert story.then(life.Condemned()) is NodeState.STOPPED


def test_an_exit_of_another_process_changes_nothing() -> None:
    story = Story().run()
    before = story.status
    assert story.then(life.ProcessExited(PID + 1, 0)) is NodeState.RUNNING
    assert story.status == before


def test_every_change_of_state_is_published_with_its_reason() -> None:
    story = Story(restart_intensity=0).run()
    story.die()
    changes = [event for event in story.published if event.type is EventType.NODE_STATE_CHANGED]
    assert [(change.reason, change.severity) for change in changes] == [("flapping", Severity.CRITICAL)]


# ---- any sequence of events ----------------------------------------------------------------------

ARROWS = {
    (NodeState.STOPPED, NodeState.STARTING),
    (NodeState.STOPPED, NodeState.FATAL),  # nothing could start it
    (NodeState.STARTING, NodeState.RUNNING),
    (NodeState.STARTING, NodeState.BACKOFF),
    (NodeState.STARTING, NodeState.STOPPING),
    (NodeState.STARTING, NodeState.STOPPED),
    (NodeState.STARTING, NodeState.FATAL),
    (NodeState.RUNNING, NodeState.BACKOFF),
    (NodeState.RUNNING, NodeState.STOPPING),
    (NodeState.RUNNING, NodeState.STOPPED),
    (NodeState.RUNNING, NodeState.FATAL),
    (NodeState.BACKOFF, NodeState.STARTING),
    (NodeState.BACKOFF, NodeState.STOPPED),
    (NodeState.STOPPING, NodeState.STOPPED),
    (NodeState.STOPPING, NodeState.STARTING),
    (NodeState.STOPPING, NodeState.FATAL),
    (NodeState.FATAL, NodeState.STARTING),
    (NodeState.FATAL, NodeState.STOPPED),
    (NodeState.FATAL, NodeState.STOPPING),  # something else has started it again, and it is condemned
}

_attempts = st.integers(0, 12)
_pids = st.integers(1, 3)
EVENTS = st.one_of(
    st.builds(life.StartRequested),
    st.builds(life.StopRequested),
    st.builds(life.Condemned),
    st.builds(life.Adopted, _pids),
    st.builds(life.StartFailed, st.just("x"), st.booleans()),
    st.builds(life.FoundUnfit, st.just("x")),
    st.builds(life.ProcessStarted, _pids),
    st.builds(life.ProcessExited, _pids, st.sampled_from([None, 0, 1, -9])),
    st.builds(life.AgentConnected, _pids),
    st.builds(life.AgentLost),
    st.builds(life.GuardProven, _attempts),
    st.builds(life.GuardUnclear, _attempts, st.just("x"), st.booleans()),
    st.builds(life.GuardDisproven, _attempts, st.just("x")),
    st.builds(life.GuardRefused, st.just("x"), st.just("y")),
    st.builds(life.ForbiddenFlagFound, _pids, st.just("x")),
    st.builds(life.AgentOfOtherVersion, st.just("x")),
    st.builds(life.Tick),
)
STEPS = st.lists(st.tuples(EVENTS, st.floats(0, 40)), max_size=60)
RULES = st.builds(
    Rules,
    external=st.booleans(),
    restart=st.sampled_from(RestartPolicy),
    restart_intensity=st.integers(0, 3),
    restart_period_seconds=st.sampled_from([5.0, 60.0]),
)


@given(RULES, STEPS)
def test_no_sequence_of_events_leaves_the_table(rules: Rules, steps: list[tuple[life.Event, float]]) -> None:
    status, now = NodeStatus(rules), 0.0
    for event, seconds in steps:
        now += seconds
        after, effects = step(status, event, now)
        if after.state is not status.state:
            assert (status.state, after.state) in ARROWS
        if type(event) not in TABLE[status.state]:
            assert (after, effects) == (status, ())
        if status.state is NodeState.FATAL and not isinstance(
            event, life.StartRequested | life.StopRequested | life.Condemned
        ):
            assert after.state is NodeState.FATAL
        if after.state is NodeState.RUNNING and status.state is not NodeState.RUNNING:
            assert event == life.GuardProven(status.attempt)
            assert status.agent
        if rules.external:
            assert life.StartProcess() not in effects
        status = after


@given(RULES, STEPS)
def test_no_sequence_of_events_makes_two_processes(
    rules: Rules, steps: list[tuple[life.Event, float]]
) -> None:
    """The machine answers each StartProcess once, as the supervisor does; exits are of what really lives."""
    status, now = NodeStatus(replace(rules, external=False)), 0.0
    alive: set[int] = set()
    pending, next_pid = 0, 100
    for event, seconds in steps:
        now += seconds
        match event:
            case life.Adopted():
                continue  # only at the very beginning, before anything is started
            case life.ProcessStarted():
                if not pending:
                    continue
                pending -= 1
                next_pid += 1
                alive.add(next_pid)
                event = life.ProcessStarted(next_pid)
            case life.StartFailed():
                if not pending:
                    continue
                pending -= 1
            case life.ProcessExited(_, code):
                if not alive:
                    continue
                event = life.ProcessExited(alive.pop(), code)
        status, effects = step(status, event, now)
        pending += sum(isinstance(effect, life.StartProcess) for effect in effects)
        assert len(alive) + pending <= 1
        if alive:
            assert status.pid in alive
