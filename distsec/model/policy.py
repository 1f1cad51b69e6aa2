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
    REVOKED = "revoked"  # the certificate's serial is revoked, or its identity
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    UNKNOWN_CA = "unknown_ca"
    CERTIFICATE_REQUIRED = "certificate_required"  # the peer showed no certificate
    CERTIFICATE_INVALID = "certificate_invalid"  # chain, signature, usage: anything else wrong with it
    NO_IDENTITY = "no_identity"  # the certificate shows no identity that a policy can list, or several
    KEY_USAGE = "key_usage"  # EKU or key usage does not fit the role
    NAME_NOT_IN_CERTIFICATE = "name_not_in_certificate"  # the claimed name is not one this identity may claim
    UNSAFE_NAME = "unsafe_name"  # the claimed name is no name@host of visible ASCII, or above 255 bytes
    TOO_MANY_NAMES = "too_many_names"  # under a CLI rule: the certificate has as many live names as it may
    NOT_HIDDEN = "not_hidden"  # a CLI rule admits hidden nodes only
    NOT_INBOUND = "not_inbound"  # a CLI rule admits inbound links only
    WRONG_PEER = "wrong_peer"  # who answered is not the node that was dialled
    REFUSED_BY_PEER = "refused_by_peer"  # we dialled, and the peer does not let us in
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
    """One exactly named node. `identity` (model.identities) may claim `name`; `address`/`port` are where it
    is dialled (None: never).
    """

    name: str
    identity: str
    phase: Phase = Phase.OPEN
    address: str | None = None
    port: int | None = None


DEFAULT_MAX_LIVE = 8
"""Of a rule that says nothing else: room for a script that starts several tools at a time."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """A CLI rule: hidden, inbound links of names that fit `pattern` (see names.glob_matches), by `identity`:
    a SPIFFE ID, the beginning of one and a `*`, or another name of model.identities. `max_live`: names that
    one certificate may have up at a time. `nodes`: whom they may link with (none given: all).
    """

    pattern: str
    identity: str
    max_live: int = DEFAULT_MAX_LIVE
    nodes: tuple[str, ...] = ()


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
    revoked_identities: frozenset[str] = frozenset()  # refused with whatever certificate they come
    epochs: tuple[tuple[str, int], ...] = ()  # how often nodes were re-keyed; nodes do not read it
    connect: str = "mesh"  # "mesh": every agent dials every open peer with an address; "none": nobody does
    require_identity: bool = True  # False in development mode, where links carry no certificate


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer shows at one gate. None: not known yet at this gate (the name, before the first frame).

    `identities` are the URIs of its certificate, `names` what else that is known by (`dns:…`, `dn:…`),
    `usages` what it may be used for, of `client` and `server`. `live`: other names of the same certificate
    that a rule let in and that are up. `node`: who decides.
    """

    direction: Direction
    identities: tuple[str, ...] = ()
    serial: str | None = None
    not_after: int | None = None
    name: str | None = None
    hidden: bool | None = None
    names: tuple[str, ...] = ()
    usages: tuple[str, ...] | None = None
    live: int | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` is the listed name or the pattern that matched: the only peer label that metrics may carry."""

    verdict: Verdict
    reason: Reason | None = None
    rule: str | None = None
