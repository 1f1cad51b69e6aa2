"""What each arrow of `core.lifecycle.TABLE` does: (status, event, now, chance) → (next status, effects).
Those of a node that is being stopped are in `core.stop_arrows`.

Pure, like the table. An arrow that finds the event stale (another pid, another proof) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distsec.core.backoff import backoff_seconds
from distsec.core.node_status import (
    Adopted,
    AgentConnected,
    AgentOfOtherVersion,
    AskAgentToStop,
    Effect,
    Event,
    ForbiddenFlagFound,
    ForgetProcess,
    FoundUnfit,
    GuardDisproven,
    GuardProven,
    GuardRefused,
    GuardUnclear,
    NodeStatus,
    Probe,
    ProcessExited,
    ProcessStarted,
    Publish,
    Resumed,
    ScheduleTick,
    SendKill,
    SendTerm,
    StartFailed,
    StartProcess,
    StopStage,
    Then,
    Why,
)
from distsec.model.cluster import NodeState, RestartPolicy
from distsec.model.events import EventType, Severity

PROOF_RETRY_SECONDS = 0.25
"""An unclear proof (the socket is not open yet, the probe found no answer) is tried again after this."""
DOOM_SECONDS = 2.0
"""What a node whose guard is not in force gets between TERM and KILL: it may be listening unguarded."""
KILL_RETRY_SECONDS = 5.0


Result = tuple[NodeStatus, tuple[Effect, ...]]
Handler = Callable[[NodeStatus, Event, float, float], Result]


def start(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    if status.rules.external:  # never started from here; this only forgives what made it FATAL
        if status.agent and status.pid is not None:
            return external_seen(replace(status, restarts=()), AgentConnected(status.pid), now, chance)
        return replace(status, state=NodeState.STOPPED, why=Why.EXTERNAL_GONE, detail="", restarts=()), ()
    return launch(replace(status, restarts=(), failures=0))


def found_unfit(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """Only by whoever would have asked for its start, so nothing is under way."""
    assert isinstance(event, FoundUnfit)
    return (status, ()) if status.rules.external else _fatal(status, Why.START_FAILED, event.text)


def launch(status: NodeStatus) -> Result:
    fresh = replace(
        status, state=NodeState.STARTING, pid=None, agent=False, proven=False, due=None, stage=None,
        then=Then.STOPPED, started=None, why=None, detail="", overdue=False, adopted=False,
        other_version=False,
    )  # fmt: skip
    return fresh, (StartProcess(),)


def process_started(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, ProcessStarted)
    if status.pid is not None:
        return status, ()
    due = now + status.rules.start_deadline_seconds
    return (
        replace(status, pid=event.pid, started=now, due=due, failures=0),
        (Publish(EventType.NODE_STARTED, Severity.INFO, detail=f"pid {event.pid}"),),
    )


def adopted(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, Adopted)
    due = now + status.rules.start_deadline_seconds
    after = replace(
        status, state=NodeState.STARTING, pid=event.pid, started=now, due=due, agent=False, proven=False,
        stage=None, then=Then.STOPPED, why=None, detail="", overdue=False, adopted=True,
        other_version=False,
    )  # fmt: skip
    return after, ()


def start_failed(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, StartFailed)
    if status.pid is not None:
        return status, ()
    if event.lasting:
        return _fatal(status, event.why, event.text)
    # Nothing has run, so nothing flaps: whoever holds its port must not make it FATAL by waiting.
    due = now + backoff_seconds(status.failures, chance)
    after = replace(
        at_rest(status, NodeState.BACKOFF), due=due, why=event.why, detail=event.text,
        failures=status.failures + 1,
    )  # fmt: skip
    return after, ()


def agent_connected(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """Proven anew after each hello: the process is the same, what it does may not be."""
    if status.pid is None:
        return status, ()
    attempt = status.attempt + 1
    return (
        replace(status, agent=True, attempt=attempt, proven=False, unclear=False, unanswered=False),
        (Publish(EventType.AGENT_CONNECTED, Severity.INFO), Probe(attempt)),
    )


def agent_lost(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    if not status.agent:
        return status, ()
    lost = Publish(EventType.AGENT_LOST, Severity.NOTICE)
    if status.rules.external and status.state is not NodeState.STOPPING:
        gone = replace(at_rest(status, NodeState.STOPPED), why=Why.EXTERNAL_GONE, detail="its agent is gone")
        return gone, (lost,)
    # The process lives and keeps its policy; the agent comes back by itself. A proof under way is void.
    return replace(status, agent=False, unclear=False, attempt=status.attempt + 1), (lost,)


def agent_gone_while_fatal(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    return replace(status, agent=False, pid=None), ()


def external_seen(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, AgentConnected)
    if not status.rules.external:
        return status, ()
    attempt = status.attempt + 1
    after = replace(
        status, state=NodeState.STARTING, pid=event.pid, agent=True, proven=False, attempt=attempt,
        started=now, due=now + status.rules.start_deadline_seconds, stage=None, then=Then.STOPPED, why=None,
        detail="",
    )  # fmt: skip
    return after, (Publish(EventType.AGENT_CONNECTED, Severity.INFO), Probe(attempt))


def external_seen_while_fatal(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """Remembered, so that the operator's start has something to prove; FATAL is not left by itself."""
    assert isinstance(event, AgentConnected)
    if not status.rules.external:
        return status, ()
    return replace(status, pid=event.pid, agent=True), (AskAgentToStop(),)


def proven(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, GuardProven)
    if event.attempt != status.attempt or not status.agent:
        return status, ()
    return replace(
        status, state=NodeState.RUNNING, proven=True, unclear=False, unanswered=False, overdue=False,
        other_version=False, due=None, why=None, detail="",
    ), ()  # fmt: skip


def unclear(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """Kept in mind and tried again on a Tick; in STARTING the start deadline stays the end of it."""
    assert isinstance(event, GuardUnclear)
    if event.attempt != status.attempt or not status.agent:
        return status, ()
    retry = now + PROOF_RETRY_SECONDS * (1 if status.state is NodeState.STARTING else 8)
    after = replace(status, unclear=True, unanswered=event.unanswered, detail=event.what)
    return after, (ScheduleTick(retry),)


def disproven(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, GuardDisproven)
    if event.attempt != status.attempt:
        return status, ()
    return _doom(status, Why.CARRIER_NOT_IN_FORCE, event.what, now)


def refused(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, GuardRefused)
    text = f"{event.code}: {event.text}" if event.text else event.code
    if status.pid is None:
        return status, ()
    return _doom(status, Why.CARRIER_NOT_IN_FORCE, text, now)


def refused_at_rest(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """An external VM halted itself before its agent said hello: it is told, and the next may be better."""
    assert isinstance(event, GuardRefused)
    if not status.rules.external:
        return status, ()
    text = f"{event.code}: {event.text}" if event.text else event.code
    told = Publish(
        EventType.NODE_STATE_CHANGED,
        Severity.CRITICAL,
        str(Why.CARRIER_NOT_IN_FORCE),
        f"{status.state}: {text}",
    )
    return replace(status, why=Why.CARRIER_NOT_IN_FORCE, detail=text), (told,)


def forbidden(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """KILL and no TERM: a VM that boots has nothing to put in order, and must not come to listen."""
    assert isinstance(event, ForbiddenFlagFound)
    if event.pid != status.pid:
        return status, ()
    after, _ = _doom(status, Why.CARRIER_NOT_IN_FORCE, event.text, now)
    return replace(after, stage=StopStage.KILLED, due=now + KILL_RETRY_SECONDS), (SendKill(),)


def _doom(status: NodeStatus, why: Why, text: str, now: float) -> Result:
    after = replace(
        status, state=NodeState.STOPPING, stage=StopStage.TERMINATED, then=Then.FATAL, due=now + DOOM_SECONDS,
        proven=False, why=why, detail=text,
    )  # fmt: skip
    return after, (SendTerm(),)


def of_other_version(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """Kept in mind for the start deadline. At rest it is a VM that something else starts: told, no more."""
    assert isinstance(event, AgentOfOtherVersion)
    if status.state is NodeState.STOPPED and not status.rules.external:
        return status, ()
    return replace(status, other_version=True, detail=event.text), ()


def tick_starting(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    if status.due is not None and now >= status.due:
        # It stays STARTING, and is asked again. An upgrade of us must not end all that was proven before it.
        if (status.agent and status.unanswered) or (status.adopted and status.other_version):
            due = now + status.rules.start_deadline_seconds
            return _probe_again(replace(status, due=due, overdue=True))
        what = status.detail or ("the guard is not proven" if status.agent else "no hello from its agent")
        text = f"{what} within {status.rules.start_deadline_seconds:g} s"
        return _doom(status, Why.CARRIER_NOT_IN_FORCE, text, now)
    return _probe_again(status)


def resumed(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """It may have said hello all the while: what it had left of its deadline it has still."""
    assert isinstance(event, Resumed)
    return (status, ()) if status.due is None else (replace(status, due=status.due + event.after_seconds), ())


def tick_running(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    return _probe_again(status)


def _probe_again(status: NodeStatus) -> Result:
    """After an unclear proof only; `detail` goes on saying what was unclear."""
    if status.agent and status.unclear:
        attempt = status.attempt + 1
        return replace(status, attempt=attempt, unclear=False), (Probe(attempt),)
    return status, ()


def exited(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """Nobody asked for this exit: the restart policy decides."""
    assert isinstance(event, ProcessExited)
    if event.pid != status.pid:
        return status, ()
    effects: tuple[Effect, ...] = (told_gone(event), ForgetProcess(event.pid))
    if status.rules.external:
        gone = replace(at_rest(status, NodeState.STOPPED), why=Why.EXTERNAL_GONE, detail=str(event))
        return gone, effects
    policy = status.rules.restart
    if policy is RestartPolicy.NEVER or (policy is RestartPolicy.ON_FAILURE and event.code == 0):
        done = replace(at_rest(status, NodeState.STOPPED), why=Why.EXITED, detail=str(event))
        return done, effects
    after, more = _again(status, str(event), now, chance)
    return after, effects + more


def _again(status: NodeStatus, text: str, now: float, chance: float) -> Result:
    """BACKOFF, or FATAL where the restarts of the period are used up."""
    recent = tuple(at for at in status.restarts if at > now - status.rules.restart_period_seconds)
    if len(recent) >= status.rules.restart_intensity:
        period = f"{status.rules.restart_period_seconds:g} s"
        return _fatal(status, Why.FLAPPING, f"{text}; restarted {len(recent)} times within {period}")
    after = replace(
        at_rest(status, NodeState.BACKOFF),
        restarts=(*recent, now),
        due=now + backoff_seconds(len(recent), chance),
        why=Why.EXITED,
        detail=text,
    )
    return after, ()


def tick_backoff(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    return launch(status) if status.due is not None and now >= status.due else (status, ())


def _fatal(status: NodeStatus, why: Why, text: str) -> Result:
    return replace(at_rest(status, NodeState.FATAL), why=why, detail=text), ()


def at_rest(status: NodeStatus, state: NodeState) -> NodeStatus:
    return replace(
        status, state=state, pid=None, agent=False, proven=False, due=None, stage=None, then=Then.STOPPED,
        started=None, unclear=False, attempt=status.attempt + 1,
    )  # fmt: skip


def told_gone(event: ProcessExited) -> Publish:
    return Publish(EventType.NODE_STOPPED, Severity.INFO, detail=str(event))
