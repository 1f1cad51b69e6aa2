"""What an agent may say once its connection is open (docs/port-protocol.md), as values. `reading` makes them.

Texts in them have passed `model.text.escape` and are bounded; choices are members of closed sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from distsec.model.cluster import Link
from distsec.model.events import ClockShift
from distsec.model.policy import Direction, Reason, Verdict


class AgentRefusal(StrEnum):
    """Why a connection to an agent socket was dropped. The whole set: a metric's label."""

    FRAME_TOO_LARGE = "frame_too_large"
    TERM = "term"  # bytes that are no term, or one beyond the limits
    PROTOCOL = "protocol"  # a term that is no message, or not now
    VERSION = "version"
    PROOF = "proof"  # the MAC does not verify, or the agent did not take ours
    PROCESS = "process"  # SO_PEERCRED: not a process of this node
    BUSY = "busy"  # an agent of this node that lives is connected
    TIMEOUT = "timeout"  # the opening took too long
    TOO_MANY = "too_many"  # connections that have not proven themselves yet


class Lane(StrEnum):
    CRITICAL = "critical"
    REFUSALS = "refusals"


class EventKind(StrEnum):
    """`type` of an event; the lane that each belongs to is in `LANE_OF`."""

    LINK_UP = "link_up"
    LINK_DOWN = "link_down"
    LINK_RENEWED = "link_renewed"  # its ends have proven themselves anew, with another certificate
    VIOLATION = "violation"
    POLICY_APPLIED = "policy_applied"
    POLICY_REJECTED = "policy_rejected"
    GUARD = "guard"
    CLOCK_STEPPED = "clock_stepped"
    REFUSAL = "refusal"


LANE_OF: Final[Mapping[EventKind, Lane]] = {
    kind: Lane.REFUSALS if kind is EventKind.REFUSAL else Lane.CRITICAL for kind in EventKind
}


class Command(StrEnum):
    POLICY = "policy"
    DISCONNECT = "disconnect"
    STATUS = "status"
    DOCUMENT = "document"  # the signed policy that is in force
    STOP = "stop"
    COOKIES = "cookies"  # what is dialled with and taken from now on, and in a rotation what is taken besides
    RELOAD = "reload"  # certificate, key and trust bundle are read anew
    RENEW = "renew"  # {"peers": {name: 1, …}, empty for all}: the links that it dialled are proven anew
    ADMIT_SHELL = "admit_shell"
    END_SHELL = "end_shell"
    ADMIT_TOOL = "admit_tool"
    END_TOOL = "end_tool"


class PolicyFault(StrEnum):
    """Why an agent did not take a policy."""

    SIGNATURE = "signature"
    GENERATION = "generation"  # not higher than the one in force
    MALFORMED = "malformed"
    CLUSTER = "cluster"  # signed for another cluster
    ROLLBACK = "rollback"  # older than one that the node has had in force
    NO_MARK = "no_mark"  # nobody can tell whether it is
    NOT_PERSISTED = "not_persisted"  # in force, but the node's mark cannot be written


class CheckAction(StrEnum):
    HANDSHAKE_IN = "handshake_in"
    HANDSHAKE_OUT = "handshake_out"
    LINK_IN = "link_in"
    LINK_OUT = "link_out"


ERROR_REASONS: Final = frozenset(
    {
        *PolicyFault,
        "links_remain",
        "busy",
        "crashed",
        "unknown",
        "certificate_rejected",
        "cookies_old",
        "cookies_unproven",
    }
)
"""`reason` of an error reply. What else an agent says there is read as `other`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The agent has proven itself; nothing that it says is taken before `AgentConnection.admit()`."""

    launch: str  # chosen once per VM: 32 hex digits


@dataclass(frozen=True, slots=True)
class Listener:
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The node as its agent sees it: on each connect, and the answer to `status`. Digests are hex."""

    node: str
    os_pid: int
    otp: str  # the release: "25"
    launch: str
    started_ms: int
    carrier: str  # the effective -proto_dist
    listeners: tuple[Listener, ...]
    optfile_digest: str | None
    policy_generation: int | None
    policy_digest: str | None  # None: no policy in force
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class LaneEvent:
    """One event. Which fields are set follows from `kind`, as docs/port-protocol.md lists them."""

    lane: Lane
    sequence: int
    kind: EventKind
    at_ms: int  # the node's clock; who stamps an event is the orchestrator
    missed: int = 0  # numbers of this lane that were skipped just before: the agent's ring had evicted them
    launch: str | None = None
    link: Link | None = None
    direction: Direction | None = None
    reason: Reason | PolicyFault | ClockShift | None = None
    address: str | None = None
    identity: str | None = None
    serial: str | None = None
    claimed: str | None = None
    rule: str | None = None
    generation: int | None = None
    digest: str | None = None
    detail: str | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Counts are since the VM started, and exact whatever was dropped. `links` is a count."""

    policy_generation: int | None
    policy_digest: str | None
    links: int
    sequence: Mapping[Lane, int]
    dropped: Mapping[Lane, int]
    refusals: Mapping[tuple[Direction, Reason], int]
    checks: Mapping[tuple[CheckAction, Verdict], int]
    check_seconds: tuple[tuple[int | None, int], ...]  # (upper bound in microseconds, None: infinity; count)
    check_micros_sum: int


@dataclass(frozen=True, slots=True)
class Served:
    """What a node shows now, by its own word: `trusted` has the SHA-256 (hex) of each CA that it trusts."""

    serial: str
    not_after: int
    trusted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinkProof:
    """A link whose ends have proven themselves anew. `serial`, `not_after`: of the peer's certificate.
    `cookie_current`: both ends used the cookie that the other has in use.
    """

    peer: str
    serial: str
    not_after: int
    cookie_current: bool


@dataclass(frozen=True, slots=True)
class LinkUnproven:
    """A link for which that came to nothing; `reason` is a bounded word for people."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to command `id`.

    `fields`, validated: {"generation", "digest"} of a `policy`, {"step", "either"} of `cookies` (either: two
    of each peer are taken now), {"snapshot"} of a `status`, {"served"} of a `reload`, {"renewed": (LinkProof,
    …), "failed": (LinkUnproven, …)} of a `renew`, {"reason", "detail"} of an error, where `reason` is one of
    ERROR_REASONS or "other".
    """

    id: int
    ok: bool
    fields: Mapping[str, Any]


Message: TypeAlias = Opened | Snapshot | LaneEvent | Heartbeat | Reply
