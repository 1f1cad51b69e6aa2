"""The cluster as wanted (the configuration, checked) and as observed (nodes and links)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from distsec.model.hosts import HostSpec
from distsec.model.names import NodeName
from distsec.model.policy import DEFAULT_MAX_LIVE

PROVEN_RELEASES = frozenset({25, 27, 29})
"""Releases of OTP that the tests prove. Another, above the oldest, runs as `unproven`. The one place."""

OLDEST_RELEASE = min(PROVEN_RELEASES)


class Mode(StrEnum):
    PRODUCTION = "production"  # mutual TLS on every link, or no start
    HYBRID = "hybrid"  # every node on loopback: cookies; anything beyond: mutual TLS for all
    DEVELOPMENT = "development"  # cookies, loopback only


class Carrier(StrEnum):
    """How distribution links are carried. The names are `-proto_dist` values of an IPv4 listener."""

    DISTSEC = "distsec"  # the default: the certificate is bound to the claimed name before nodeup
    INET_TLS = "inet_tls"  # stock OTP with documented interfaces only
    INET_TCP = "inet_tcp"  # what development mode runs on: cookies only, loopback only

    @property
    def encrypted(self) -> bool:
        """Whether links are mutual TLS, with everything that takes (certificates, an optfile)."""
        return self is not Carrier.INET_TCP


class Epmd(StrEnum):
    """What becomes of epmd. Names are resolved from the policy either way."""

    NONE = "none"  # no epmd knows of the nodes
    LOOPBACK = "loopback"  # nodes register with one that listens on loopback alone


class RestartPolicy(StrEnum):
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class OnExit(StrEnum):
    LEAVE = "leave"  # nodes outlive the orchestrator
    STOP = "stop"


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A `[[nodes]]` table: what is started, and how it is kept up. Durations are seconds."""

    name: NodeName
    command: tuple[str, ...]  # empty: something else starts it, and it is only watched and guarded
    port: int | None = None
    address: str = "127.0.0.1"  # what its distribution listens on, and where local peers dial it
    restart: RestartPolicy = RestartPolicy.ALWAYS
    restart_intensity: int = 5
    restart_period_seconds: float = 60.0
    # May hold secrets of the application, so it is not shown; and a mapping has no hash.
    environment: Mapping[str, str] = field(default_factory=_nothing, repr=False, hash=False)
    working_directory: str | None = None
    user: str | None = None
    otp_libraries: str | None = None  # lib directory of an OTP, for what a release does not bring itself


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """A `[[peers]]` table: a node of this cluster on another host."""

    name: NodeName
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class CliRuleSpec:
    """A `[[security.distribution.rules]]` table of kind cli; `identity` None: every identity of that kind.

    `max_live`: names that one certificate may have up at a time; `nodes`: whom they link with (none: any).
    """

    names: tuple[str, ...]
    identity: str | None = None
    max_live: int = DEFAULT_MAX_LIVE
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdentitySpec:
    """From a `[[security.distribution.rules]]` table of kind node: by what certificate a node is known."""

    name: NodeName
    identity: str  # as model.identities writes it


@dataclass(frozen=True, slots=True)
class NotEnforced:
    """A key that is accepted and does nothing yet; reported at start and by check."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """The whole configuration. Paths are absolute; `metrics_listen` is (host, port); port 0: any free one."""

    name: str
    config_file: str
    state_dir: str
    mode: Mode
    carrier: Carrier
    allowed_nodes: tuple[NodeName, ...]
    nodes: tuple[NodeSpec, ...]
    peers: tuple[PeerSpec, ...] = ()
    rules: tuple[CliRuleSpec, ...] = ()
    listen_ports: tuple[int, int] | None = None
    connect: str = "mesh"
    epmd: Epmd = Epmd.NONE
    on_exit: OnExit = OnExit.LEAVE
    start_deadline_seconds: float = 30.0
    stop_deadline_seconds: float = 20.0
    acknowledge_deadline_seconds: float = 5.0
    start_parallel: int = 4
    log_max_bytes: int = 10 * 1024 * 1024
    metrics_listen: tuple[str, int] | None = ("127.0.0.1", 9911)
    ca_file: str | None = None
    certificate_days: float = 365.0  # with a fraction where lifetime_seconds is given
    renew_before_seconds: float | None = None  # None: chosen from each certificate's life (core.renewal)
    renew_jitter_seconds: float | None = None
    recycle_links: bool = False  # whether a renewal ends and remakes the links too
    ca_passphrase_file: str | None = None  # of the CA's key, where that is sealed
    not_enforced: tuple[NotEnforced, ...] = ()
    warnings: tuple[str, ...] = ()
    identities: tuple[IdentitySpec, ...] = ()
    foreign_trust_domains: tuple[str, ...] = ()
    hosts: tuple[HostSpec, ...] = ()  # from the state directory: beam.hosts.with_hosts

    def node(self, name: str) -> NodeSpec | None:
        """The `[[nodes]]` table of that name, or None."""
        return next((node for node in self.nodes if str(node.name) == name), None)


class NodeState(StrEnum):
    """Of a managed node; `core.lifecycle` holds the table of what leads where."""

    STARTING = "STARTING"  # the command runs; the guard is not yet proven
    RUNNING = "RUNNING"  # hello, sockets and probe agree
    BACKOFF = "BACKOFF"  # it died and will be started again
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FATAL = "FATAL"  # given up, or the guard is not in force; only the operator starts it again


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is shown of a certificate: `serial` lower-case hex, times in Unix seconds. `names`: what else than
    its URI it is known by (model.identities).
    """

    identity: str | None
    serial: str
    issuer: str
    not_after: int
    not_before: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """One distribution link of a managed node. TLS fields are None where the carrier has or tells none."""

    peer: str
    address: str | None
    identity: str | None
    issuer: str | None
    serial: str | None
    not_after: int | None
    direction: str | None  # "in" | "out"
    hidden: bool
    tls_version: str | None
    cipher: str | None
    since: int  # Unix seconds
    verdict: str
    reason: str | None
