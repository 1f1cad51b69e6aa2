"""The policy: who may join whom, as signed and handed to every node; and what a decision about a peer is.

The same document goes to every node of the cluster (docs/state-files.md describes its bytes).
`core.admission` and `distsec_policy:decide/2` read it the same way; `tests/vectors/` holds both to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class Direction(StrEnum):
    """Who dialled, seen from the managed node."""

    IN = "in"
    OUT = "out"


class Reason(StrEnum):
    """Why a peer was refused. The whole set: labels, journals and vectors know no other value."""

    NO_POLICY = "no_policy"  # missing, unreadable, unsigned or empty policy: nobody is admitted
    DENIED = "denied"  # named in the overlay's deny list
    NOT_ALLOWED = "not_allowed"  # the identity or name is on no list
    NOT_OPEN = "not_open"  # first phase of an allow: not yet acknowledged by all
    REVOKED = "revoked"  # the certificate's serial is revoked
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    UNKNOWN_CA = "unknown_ca"
    CERTIFICATE_REQUIRED = "certificate_required"  # the peer showed no certificate
    CERTIFICATE_INVALID = "certificate_invalid"  # chain, signature, usage: anything else wrong with it
    NO_IDENTITY = "no_identity"  # no identity URI in the certificate, or more than one
    KEY_USAGE = "key_usage"  # EKU or key usage does not fit the role
    NAME_NOT_IN_CERTIFICATE = "name_not_in_certificate"  # the claimed name is not one this identity may claim
    NOT_HIDDEN = "not_hidden"  # a CLI rule admits hidden nodes only
    NOT_INBOUND = "not_inbound"  # a CLI rule admits inbound links only
    BAD_COOKIE = "bad_cookie"
    PROTOCOL_VERSION = "protocol_version"  # a TLS version that is not spoken here
    MALFORMED = "malformed"  # bytes that are no TLS, or no distribution handshake
    HANDSHAKE_FAILED = "handshake_failed"  # any other TLS alert
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    CLOSED = "closed"  # the peer went away in the middle
    FLOOD_DROPPED = "flood_dropped"
    UNLISTED_LINK = "unlisted_link"  # the watcher found a link up that should not be: a violation


class Phase(StrEnum):
    """Of an entry in the allowlist: PREPARED is known to all and admits nobody, OPEN admits and dials."""

    PREPARED = "prepared"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class PolicyPeer:
    """One exactly named node. `identity` may claim `name`; `address`/`port` are where it is dialled (None:
    never).
    """

    name: str
    identity: str
    phase: Phase = Phase.OPEN
    address: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A CLI rule: hidden, inbound links of names that fit `pattern` (see names.glob_matches), by
    `identity`.
    """

    pattern: str
    identity: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What is in force. An empty one admits nobody. `issued_at` is Unix seconds; serials are lower-case
    hex.
    """

    cluster: str
    generation: int
    issued_at: int
    peers: tuple[PolicyPeer, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    denied: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()
    connect: str = "mesh"  # "mesh": every agent dials every open peer with an address; "none": nobody does
    require_identity: bool = True  # False in development mode, where links carry no certificate


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer shows at one gate. None: not known yet at this gate (the name, before the first frame)."""

    direction: Direction
    identities: tuple[str, ...] = ()
    serial: str | None = None
    not_after: int | None = None
    name: str | None = None
    hidden: bool | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` is the listed name or the pattern that matched: the only peer label that metrics may carry."""

    verdict: Verdict
    reason: Reason | None = None
    rule: str | None = None
