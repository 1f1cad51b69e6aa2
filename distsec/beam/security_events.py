"""An agent's message as the event that journals, metrics and alerts know. Pure; time is an argument."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from distsec.beam.messages import AgentRefusal, EventKind, LaneEvent, PolicyFault
from distsec.core.clock import clock_stepped
from distsec.model.cluster import Link
from distsec.model.events import ClockShift, EventType, SecurityEvent, Severity
from distsec.model.policy import Reason, Verdict
from distsec.model.text import escape

_CERTIFICATE: Final = (EventType.CERTIFICATE_VALIDATION_FAILED, Severity.WARNING)
_UNAUTHORIZED: Final = (EventType.UNAUTHORIZED_ACCESS, Severity.WARNING)
_ATTEMPT: Final = (EventType.NODE_CONNECTION_ATTEMPT, Severity.NOTICE)

REFUSAL_EVENTS: Final = {
    Reason.NO_POLICY: _ATTEMPT,
    Reason.DENIED: _UNAUTHORIZED,
    Reason.NOT_ALLOWED: _UNAUTHORIZED,
    Reason.NOT_OPEN: _ATTEMPT,
    Reason.REVOKED: _CERTIFICATE,
    Reason.EXPIRED: _CERTIFICATE,
    Reason.NOT_YET_VALID: _CERTIFICATE,
    Reason.UNKNOWN_CA: _CERTIFICATE,
    Reason.CERTIFICATE_REQUIRED: _CERTIFICATE,
    Reason.CERTIFICATE_INVALID: _CERTIFICATE,
    Reason.NO_IDENTITY: _CERTIFICATE,
    Reason.KEY_USAGE: _CERTIFICATE,
    Reason.NAME_NOT_IN_CERTIFICATE: _UNAUTHORIZED,
    Reason.UNSAFE_NAME: _UNAUTHORIZED,
    Reason.TOO_MANY_NAMES: _UNAUTHORIZED,
    Reason.NOT_HIDDEN: _UNAUTHORIZED,
    Reason.NOT_INBOUND: _UNAUTHORIZED,
    Reason.WRONG_PEER: _UNAUTHORIZED,
    Reason.REFUSED_BY_PEER: _ATTEMPT,
    Reason.BAD_COOKIE: _UNAUTHORIZED,
    Reason.PROTOCOL_VERSION: _ATTEMPT,
    Reason.MALFORMED: _ATTEMPT,
    Reason.HANDSHAKE_FAILED: _ATTEMPT,
    Reason.HANDSHAKE_TIMEOUT: _ATTEMPT,
    Reason.CLOSED: _ATTEMPT,
    Reason.FLOOD_DROPPED: (EventType.RATE_LIMIT_EXCEEDED, Severity.WARNING),
    Reason.UNLISTED_LINK: (EventType.UNAUTHORIZED_ACCESS, Severity.CRITICAL),
}
"""Which of the field's six events a refusal is, and how bad. Every Reason is here."""


def to_security_event(message: LaneEvent, node: str, now: float) -> SecurityEvent:
    """`message`, reported by `node`, as an event of `now` (Unix seconds, the orchestrator's clock)."""
    match message.kind:
        case EventKind.REFUSAL:
            assert isinstance(message.reason, Reason)
            kind, severity = REFUSAL_EVENTS[message.reason]
            return SecurityEvent(
                kind,
                severity,
                node,
                now,
                message.claimed,
                "deny",
                message.reason,
                message.direction,
                message.address,
                message.identity,
                message.serial,
                message.rule,
                message.detail,
                launch=message.launch,
                sequence=message.sequence,
            )
        case EventKind.LINK_UP:
            return _of_link(message, node, now, EventType.LINK_UP, Severity.INFO)
        case EventKind.LINK_DOWN:
            return _of_link(message, node, now, EventType.LINK_DOWN, Severity.INFO)
        case EventKind.LINK_RENEWED:
            return _of_link(message, node, now, EventType.LINK_RENEWED, Severity.INFO)
        case EventKind.VIOLATION:
            return _of_link(message, node, now, EventType.UNAUTHORIZED_ACCESS, Severity.CRITICAL)
        case EventKind.POLICY_APPLIED:
            detail: str | None = f"generation {message.generation} digest {message.digest}"
            return _plain(
                message, node, now, EventType.POLICY_APPLIED, Severity.NOTICE, "allow", None, detail
            )
        case EventKind.POLICY_REJECTED:
            went_back = message.reason in (PolicyFault.ROLLBACK, PolicyFault.NO_MARK)
            kind = EventType.POLICY_ROLLED_BACK if went_back else EventType.MESSAGE_SIGNATURE_INVALID
            detail = message.detail or "the node did not take a policy"
            return _plain(message, node, now, kind, Severity.CRITICAL, "deny", message.reason, detail)
        case EventKind.CLOCK_STEPPED:
            assert isinstance(message.reason, ClockShift)
            stepped = clock_stepped(node, message.reason, message.seconds or 0, now)
            return replace(stepped, launch=message.launch, sequence=message.sequence)
        case EventKind.GUARD:
            kind, detail = EventType.UNAUTHORIZED_ACCESS, message.detail
            return _plain(message, node, now, kind, Severity.CRITICAL, None, "guard_changed", detail)


def _plain(
    message: LaneEvent,
    node: str,
    now: float,
    kind: EventType,
    severity: Severity,
    result: str | None,
    reason: str | None,
    detail: str | None,
) -> SecurityEvent:
    return SecurityEvent(
        kind,
        severity,
        node,
        now,
        result=result,
        reason=reason,
        detail=detail,
        launch=message.launch,
        sequence=message.sequence,
    )


def _of_link(message: LaneEvent, node: str, now: float, kind: EventType, severity: Severity) -> SecurityEvent:
    link = message.link
    assert isinstance(link, Link)
    violation = message.kind is EventKind.VIOLATION
    if not violation and message.kind is EventKind.LINK_UP and link.verdict != Verdict.ALLOW:
        severity = Severity.WARNING  # the violation that follows is the alarm
    return SecurityEvent(
        kind,
        severity,
        node,
        now,
        peer=link.peer,
        result="deny" if violation else str(link.verdict),
        reason=(link.reason or Reason.UNLISTED_LINK) if violation else link.reason,
        direction=link.direction,
        address=link.address,
        identity=link.identity,
        serial=link.serial,
        detail=message.detail,
        launch=message.launch,
        sequence=message.sequence,
    )


def agent_connected(node: str, launch: str, now: float) -> SecurityEvent:
    """The agent of `node` has proven itself."""
    return SecurityEvent(EventType.AGENT_CONNECTED, Severity.INFO, node, now, launch=launch)


def agent_lost(node: str, why: str, now: float) -> SecurityEvent:
    """The agent of `node` is no longer connected; `why` as `AgentServer` says it."""
    return SecurityEvent(EventType.AGENT_LOST, Severity.WARNING, node, now, detail=escape(why))


def agent_refused(node: str, reason: str, detail: str, now: float) -> SecurityEvent:
    """A connection to the agent socket of `node` was dropped; `reason` is an AgentRefusal."""
    kind = EventType.MESSAGE_SIGNATURE_INVALID if reason == AgentRefusal.PROOF else EventType.AGENT_REFUSED
    return SecurityEvent(
        kind, Severity.WARNING, node, now, result="deny", reason=str(reason), detail=escape(detail)
    )
