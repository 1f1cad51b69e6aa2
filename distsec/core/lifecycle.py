"""One managed node's life as a table: what has happened leads to a state and to effects to be performed.

Pure: no I/O, no clock, no randomness. `step(status, event, now, chance)` answers with the next status and the
effects in the order in which they are to be performed; `distsec.supervisor` is the one interpreter of them.
The words (status, events, effects) are in `core.node_status`, what each arrow does in
`core.node_arrows` and `core.stop_arrows`.

    STOPPED ──StartRequested──▶ STARTING ──GuardProven──▶ RUNNING
    STARTING, RUNNING ──ProcessExited──▶ BACKOFF ──Tick──▶ STARTING      (by the restart policy; else STOPPED)
    STARTING ──StartFailed──▶ BACKOFF ──Tick──▶ STARTING              (however often; if lasting FATAL)
    STOPPED ──FoundUnfit──▶ FATAL
    STARTING, RUNNING ──StopRequested──▶ STOPPING ──ProcessExited──▶ STOPPED
    STARTING, RUNNING ──GuardDisproven, GuardRefused, no proof in time──▶ STOPPING ──ProcessExited──▶ FATAL
    STARTING, RUNNING, STOPPING ──Condemned──▶ STOPPING ──ProcessExited──▶ STOPPED       (KILL, not asked)
    STARTING ──ForbiddenFlagFound──▶ STOPPING ──ProcessExited──▶ FATAL
    STOPPED ──GuardRefused──▶ STOPPED                              (an external VM that halted: told, no more)
    BACKOFF ◀── exit ── … more than `restart_intensity` restarts in `restart_period_seconds` ──▶ FATAL

Three rules hold whatever comes in whatever order (tests/unit/test_lifecycle.py tries many orders):

1. Never two processes: StartProcess is an effect only where no process lives and no start is under way.
2. FATAL is left only by the operator.
3. RUNNING is entered only by a proof asked for after the agent last connected (`attempt` matches).

An event that the table has no arrow for changes nothing and has no effects: late reports of a process, a
proof or an agent that is already gone are ordinary here, and no reason to fall over.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from distsec.core import node_arrows as arrows
from distsec.core import stop_arrows as stopping
from distsec.core.node_status import (
    Adopted,
    AgentConnected,
    AgentLost,
    AgentOfOtherVersion,
    Condemned,
    Event,
    ForbiddenFlagFound,
    FoundUnfit,
    GuardDisproven,
    GuardProven,
    GuardRefused,
    GuardUnclear,
    NodeStatus,
    ProcessExited,
    ProcessStarted,
    Publish,
    Resumed,
    ScheduleTick,
    StartFailed,
    StartRequested,
    StopRequested,
    Tick,
)
from distsec.model.cluster import NodeState
from distsec.model.events import EventType, Severity


def step(status: NodeStatus, event: Event, now: float, chance: float = 0.5) -> arrows.Result:
    """What `event` leads to; without an arrow, nothing. `chance` in [0, 1) is the jitter of back-offs."""
    handler = TABLE[status.state].get(type(event))
    if handler is None:
        return status, ()
    after, effects = handler(status, event, now, chance)
    if after.due is not None and after.due != status.due:
        effects += (ScheduleTick(after.due),)
    if after.state is not status.state:
        effects += (_announce(after),)
    return after, effects


def _announce(status: NodeStatus) -> Publish:
    severity = {NodeState.FATAL: Severity.CRITICAL, NodeState.BACKOFF: Severity.WARNING}.get(
        status.state, Severity.INFO
    )
    reason = str(status.why) if status.why is not None else None
    text = f"{status.state}: {status.detail}" if status.detail else str(status.state)
    return Publish(EventType.NODE_STATE_CHANGED, severity, reason, text)


TABLE: Mapping[NodeState, Mapping[type, arrows.Handler]] = MappingProxyType(
    {
        NodeState.STOPPED: {
            StartRequested: arrows.start,
            FoundUnfit: arrows.found_unfit,
            StopRequested: stopping.stop_at_rest,
            Condemned: stopping.condemned_at_rest,
            Adopted: arrows.adopted,
            AgentConnected: arrows.external_seen,
            GuardRefused: arrows.refused_at_rest,
            AgentOfOtherVersion: arrows.of_other_version,
        },
        NodeState.STARTING: {
            ProcessStarted: arrows.process_started,
            StartFailed: arrows.start_failed,
            AgentConnected: arrows.agent_connected,
            AgentLost: arrows.agent_lost,
            GuardProven: arrows.proven,
            GuardUnclear: arrows.unclear,
            GuardDisproven: arrows.disproven,
            GuardRefused: arrows.refused,
            AgentOfOtherVersion: arrows.of_other_version,
            ForbiddenFlagFound: arrows.forbidden,
            ProcessExited: arrows.exited,
            StopRequested: stopping.stop,
            Condemned: stopping.condemned,
            Tick: arrows.tick_starting,
            Resumed: arrows.resumed,
        },
        NodeState.RUNNING: {
            AgentConnected: arrows.agent_connected,
            AgentLost: arrows.agent_lost,
            GuardProven: arrows.proven,
            GuardUnclear: arrows.unclear,
            GuardDisproven: arrows.disproven,
            GuardRefused: arrows.refused,
            ProcessExited: arrows.exited,
            StopRequested: stopping.stop,
            Condemned: stopping.condemned,
            Tick: arrows.tick_running,
        },
        NodeState.BACKOFF: {
            StartRequested: arrows.start,
            StopRequested: stopping.stop_at_rest,
            Condemned: stopping.condemned_at_rest,
            Tick: arrows.tick_backoff,
        },
        NodeState.STOPPING: {
            ProcessStarted: stopping.started_while_stopping,
            StartFailed: stopping.failed_while_stopping,
            StartRequested: stopping.start_while_stopping,
            StopRequested: stopping.stop_while_stopping,
            Condemned: stopping.condemned,
            AgentConnected: stopping.agent_while_stopping,
            AgentLost: stopping.agent_while_stopping,
            ProcessExited: stopping.exited_while_stopping,
            Tick: stopping.tick_stopping,
        },
        NodeState.FATAL: {
            StartRequested: arrows.start,
            StopRequested: stopping.stop_at_rest,
            Condemned: stopping.condemned_at_rest,
            AgentConnected: arrows.external_seen_while_fatal,
            AgentLost: arrows.agent_gone_while_fatal,
        },
    }
)  # fmt: skip
"""State → event → what it leads to. The whole of what can happen; `step` knows no other arrow."""
