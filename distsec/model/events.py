"""Security events: the six of the field, and what happens to nodes, agents and policies.

One event, one object, from the handshake to the log. `reason` is always enumerated; free text lives in
`detail`, which is bounded and escaped before anybody prints it. Who reported and when is stamped by the
orchestrator.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any

from distsec.model.text import escape


class Severity(IntEnum):
    """Ordered, so that `>=` filters."""

    INFO = 20
    NOTICE = 25
    WARNING = 30
    CRITICAL = 50


class EventType(StrEnum):
    NODE_CONNECTION_ATTEMPT = "NodeConnectionAttempt"  # of a listed or unlisted peer; result allow|deny
    CERTIFICATE_VALIDATION_FAILED = "CertificateValidationFailed"
    UNAUTHORIZED_ACCESS = "UnauthorizedAccess"  # a valid certificate that is refused, or an unlisted link
    RATE_LIMIT_EXCEEDED = "RateLimitExceeded"
    MESSAGE_SIGNATURE_INVALID = "MessageSignatureInvalid"  # a policy or an agent's proof that does not verify
    CERTIFICATE_ROTATED = "CertificateRotated"
    CERTIFICATE_RENEWED = "CertificateRenewed"  # the node serves another one, with the same identity
    CERTIFICATE_REVOKED = "CertificateRevoked"  # by an operator: `serial`, or `identity` whatever it shows
    CERTIFICATE_ISSUED = "CertificateIssued"  # for a node (`peer`) that is not managed here
    CERTIFICATE_REFUSED = "CertificateRefused"  # somebody else's files for a node: not taken (reason)
    CERTIFICATE_EXPIRING = "CertificateExpiring"  # of a node, or the CA's own (no node): soon, or it has
    NODE_STARTED = "NodeStarted"
    NODE_STOPPED = "NodeStopped"
    NODE_STATE_CHANGED = "NodeStateChanged"
    LINK_UP = "NodeUp"  # nodeup/nodedown of a peer, in Erlang's own words
    LINK_DOWN = "NodeDown"
    LINK_RENEWED = "LinkRenewed"  # both ends have proven themselves anew, with other certificates
    AGENT_CONNECTED = "AgentConnected"
    AGENT_LOST = "AgentLost"
    AGENT_REFUSED = "AgentRefused"  # a connection to the agent socket that was dropped, and why
    CA_ROTATION_PREPARED = "CaRotationPrepared"  # every node trusts the new CA besides the old one
    CA_ROTATION_ACTIVATED = "CaRotationActivated"  # every node serves a certificate of the new one
    CA_ROTATION_PRUNED = "CaRotationPruned"  # every node refuses the old one, whose key is destroyed
    CA_ROTATION_ROLLED_BACK = "CaRotationRolledBack"  # the new one is gone, and the old one as before
    COOKIE_ROTATED = "CookieRotated"  # or, with the reason given_up, not
    POLICY_CHANGED = "PolicyChanged"  # an operator allowed or denied `peer`
    POLICY_APPLIED = "PolicyApplied"
    POLICY_ROLLED_BACK = "PolicyRolledBack"  # a node, or the overlay, is behind what was in force already
    SHELL_ATTACHED = "ShellAttached"  # an operator's shell (`peer`) has linked with the node
    SHELL_DETACHED = "ShellDetached"  # it has ended
    EVENTS_DROPPED = "EventsDropped"
    CONFIGURATION_RELOADED = "ConfigurationReloaded"
    CLOCK_STEPPED = "ClockStepped"  # the wall clock was set, ahead or back (reason), by `seconds`


class ClockShift(StrEnum):
    """Where a wall clock was set to: the `reason` of ClockStepped."""

    AHEAD = "ahead"
    BACK = "back"


REFUSAL_TYPES = frozenset(
    {
        EventType.NODE_CONNECTION_ATTEMPT,
        EventType.CERTIFICATE_VALIDATION_FAILED,
        EventType.UNAUTHORIZED_ACCESS,
        EventType.RATE_LIMIT_EXCEEDED,
    }
)
"""What the refusal of a peer is reported as; which of them depends on its reason."""


TEXT_LIMIT = 1024
"""Characters kept of one text of an event: an identity may be longer than a node name."""


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """`node` reports it (a managed node's name; "" for the orchestrator itself). `time` is Unix seconds."""

    type: EventType
    severity: Severity
    node: str
    time: float
    peer: str | None = None  # claimed or proven node name, bounded, escaped when printed
    result: str | None = None  # "allow" | "deny"
    reason: str | None = None  # a Reason, or another enumerated value for events that are no refusals
    direction: str | None = None
    address: str | None = None  # "ip:port" of the peer where it is known
    identity: str | None = None
    serial: str | None = None
    rule: str | None = None  # the listed name or pattern that matched; None: unlisted
    detail: str | None = None
    operator: str | None = None  # whose shell it is, as the kernel says: "root (uid 0)"
    seconds: int | None = None  # how long it lasted, or by how much
    launch: str | None = None
    sequence: int | None = None

    @property
    def is_refusal(self) -> bool:
        """Whether a peer was kept out. A link that is up and should not be is no refusal but a violation."""
        return self.result == "deny" and self.severity < Severity.CRITICAL and self.type in REFUSAL_TYPES

    @property
    def is_violation(self) -> bool:
        """Whether a link was up that should not have been."""
        return (
            self.result == "deny"
            and self.severity >= Severity.CRITICAL
            and self.type is EventType.UNAUTHORIZED_ACCESS
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in the order of the fields; None is left out, `severity` by name, every text escaped."""
        out: dict[str, Any] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if value is not None:
                out[name] = escape(value, TEXT_LIMIT) if isinstance(value, str) else value
        out["severity"] = self.severity.name.lower()
        return out


_FIELDS = tuple(field.name for field in fields(SecurityEvent))
