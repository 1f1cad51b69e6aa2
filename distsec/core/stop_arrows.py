"""The arrows of a node that is being stopped, by whoever wants that (`core.node_arrows` has all others).

Asked by its agent, then TERM, then KILL, each when the one before had its time; one that is condemned gets
KILL at once. Pure, like the table.
"""

from __future__ import annotations

from dataclasses import replace

from distsec.core.node_arrows import KILL_RETRY_SECONDS, Result, at_rest, launch, told_gone
from distsec.core.node_status import (
    AgentConnected,
    AskAgentToStop,
    Effect,
    Event,
    ForgetProcess,
    NodeStatus,
    ProcessExited,
    ProcessStarted,
    SendKill,
    SendTerm,
    StopStage,
    Then,
    Why,
)
from distsec.model.cluster import NodeState


def stop(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    half = status.rules.stop_deadline_seconds / 2  # ask, then TERM: by stop_deadline_seconds it is KILLed
    after = replace(
        status, state=NodeState.STOPPING, then=Then.STOPPED, due=now + half, why=Why.OPERATOR, detail=""
    )
    if status.pid is None:  # a start is under way; its ProcessStarted is answered with TERM
        return replace(after, stage=StopStage.TERMINATED), ()
    if status.agent:
        return replace(after, stage=StopStage.ASKED), (AskAgentToStop(),)
    return replace(after, stage=StopStage.TERMINATED), (SendTerm(),)


def stop_at_rest(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    return replace(at_rest(status, NodeState.STOPPED), why=Why.OPERATOR, detail=""), ()


def stop_while_stopping(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """The operator's word counts over a start to follow; what made a node FATAL stays on record."""
    return (status, ()) if status.then is Then.FATAL else (replace(status, then=Then.STOPPED), ())


def condemned(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    """KILL, whatever was under way: a TERM would tell what runs there that it has a moment left to spread."""
    after = replace(
        status, state=NodeState.STOPPING, stage=StopStage.KILLED, then=Then.STOPPED, proven=False,
        due=now + KILL_RETRY_SECONDS, why=Why.COMPROMISED, detail="",
    )  # fmt: skip
    return after, () if status.pid is None else (SendKill(),)  # a start under way is answered with KILL


def condemned_at_rest(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    if status.pid is not None:  # FATAL, and something else has started it again
        return condemned(status, event, now, chance)
    return replace(at_rest(status, NodeState.STOPPED), why=Why.COMPROMISED, detail=""), ()


def start_while_stopping(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    return replace(status, then=Then.START), ()


def started_while_stopping(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, ProcessStarted)
    if status.pid is not None:
        return status, ()
    if status.why is Why.COMPROMISED:
        due = now + KILL_RETRY_SECONDS
        return replace(status, pid=event.pid, started=now, stage=StopStage.KILLED, due=due), (SendKill(),)
    patience = status.rules.stop_deadline_seconds / 2
    return replace(status, pid=event.pid, started=now, stage=StopStage.TERMINATED, due=now + patience), (
        SendTerm(),
    )


def failed_while_stopping(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    return (status, ()) if status.pid is not None else _after_stop(status, ())


def tick_stopping(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    if status.due is None or now < status.due:
        return status, ()
    if status.pid is None:  # still waiting for the start that is under way
        return replace(status, due=now + KILL_RETRY_SECONDS), ()
    if status.stage is StopStage.ASKED:
        half = status.rules.stop_deadline_seconds / 2
        return replace(status, stage=StopStage.TERMINATED, due=now + half), (SendTerm(),)
    return replace(status, stage=StopStage.KILLED, due=now + KILL_RETRY_SECONDS), (SendKill(),)


def agent_while_stopping(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    return replace(status, agent=isinstance(event, AgentConnected)), ()


def exited_while_stopping(status: NodeStatus, event: Event, now: float, chance: float) -> Result:
    assert isinstance(event, ProcessExited)
    if event.pid != status.pid:
        return status, ()
    return _after_stop(status, (told_gone(event), ForgetProcess(event.pid)))


def _after_stop(status: NodeStatus, effects: tuple[Effect, ...]) -> Result:
    match status.then:
        case Then.START if not status.rules.external:
            after, more = launch(replace(status, restarts=()))
            return after, effects + more
        case Then.FATAL:
            after = at_rest(status, NodeState.FATAL)
        case _:
            after = at_rest(status, NodeState.STOPPED)
    return after, effects
