"""What `collect/` found out, as values without a secret in them; `judge/` reads nothing else. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from cryptography import x509

from distsec.beam.erlang_text import Term
from distsec.model.cluster import Certificate, ClusterSpec
from distsec.model.names import NodeName


class Role(StrEnum):
    """What a path is for, which decides who may do what with it."""

    SECRET = "secret"  # noqa: S105  keys and cookies
    CA_SECRET = "ca_secret"  # noqa: S105  with which anybody can become any node
    PRIVATE = "private"  # below the state directory, which is nobody else's to read
    SHARED = "shared"  # certificates, trust bundles and option files of others: readable, not writable
    CONFIGURATION = "configuration"
    PARENT = "parent"  # a directory on the way to one of these


class Kind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    SOCKET = "socket"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class FileFact:
    """`trusted`: the uids that may own it; `sheltered`: a directory above it is closed to everybody else;
    `part`: the directory with whose files it is told, where there are many; `allowed`: the bits of its mode
    that the user of a node is given (pki.forms)."""

    path: str
    role: Role
    kind: Kind
    mode: int
    uid: int
    trusted: frozenset[int]
    sheltered: bool = False
    part: str | None = None
    gid: int = -1
    allowed: int = 0

    @property
    def opened(self) -> int:
        """Its mode, without what is as it should be."""
        return self.mode & ~self.allowed


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Not everything below `part` was looked at: in `directory` it was too much."""

    part: str
    directory: str


class Source(StrEnum):
    """Where a cookie was seen."""

    STATE = "state"  # a cookie.term of ours
    FILE = "file"  # ~/.erlang.cookie
    ARGUMENTS = "arguments"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class CookieFact:
    """A cookie, measured. `digest` tells equal ones within one run and nothing else; `age_seconds`: of its
    file; `holder`: the node or process; `place`: file, flag or variable; `encrypted`: its links are TLS."""

    source: Source
    holder: str
    place: str
    length: int
    distinct: int
    well_known: bool
    digest: str
    age_seconds: float | None = None
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class CertificateFact:
    """A leaf with what belongs to it. `problem`s say why something could not be read; `key` is the DER of the
    public half of the key beside it. `node` and `address` are known of nodes only; `offline`: of a node whose
    CA has its key on another host."""

    holder: str
    place: str
    chain: tuple[x509.Certificate, ...] = ()
    problem: str | None = None
    missing: bool = False
    key_place: str | None = None
    key: bytes | None = None
    key_problem: str | None = None
    key_missing: bool = False
    trust_place: str | None = None
    trust: tuple[x509.Certificate, ...] = ()
    trust_problem: str | None = None
    node: NodeName | None = None
    address: str | None = None
    managed: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class AuthorityFact:
    """The cluster's CA. `known`: every CA certificate that is kept, during a rotation several;
    `damaged`: (file, what is wrong with it) of sealed keys; `sealed_for`: the fingerprint in
    ca/key.sealed."""

    place: str
    certificate: x509.Certificate | None
    problem: str | None
    key: bytes | None
    key_problem: str | None
    sealed: bool
    plain: bool
    known: tuple[x509.Certificate, ...] = ()
    damaged: tuple[tuple[str, str], ...] = ()
    sealed_for: str | None = None


@dataclass(frozen=True, slots=True)
class OptionsFact:
    """The TLS options of a node's distribution, by role.

    `release`: of OTP, if known; `key_kind`: "EC", "RSA", … of its certificate; `ignored`: what OTP does not
    look at because of this; `plaintext`: flags about TLS of a node that speaks none.
    """

    holder: str
    place: str
    server: Mapping[str, Term] = field(default_factory=lambda: MappingProxyType({}))
    client: Mapping[str, Term] = field(default_factory=lambda: MappingProxyType({}))
    release: int | None = None
    key_kind: str | None = None
    missing: bool = False
    problem: str | None = None
    managed: bool = False
    altered: bool = False
    ignored: tuple[str, ...] = ()
    plaintext: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VmFact:
    """A running emulator. `twice`: flags that it was given more than once; `release`: of OTP, if known."""

    pid: int
    uid: int | None
    holder: str
    node: str | None
    managed: bool
    carrier: str | None
    release: int | None
    twice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EpmdFact:
    """A listening socket where an epmd is, or is looked for."""

    address: str
    port: int
    holder: str


@dataclass(frozen=True, slots=True)
class Served:
    """What a stranger without a certificate gets at a listener. None: not known."""

    reached: bool = False
    tls: bool = False
    version: str | None = None
    cipher: str | None = None
    demands_certificate: bool | None = None
    tls12: bool | None = None
    old_tls: str | None = None
    weak_cipher: str | None = None
    plaintext: bool | None = None
    certificate: Certificate | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ListenerFact:
    """A distribution port. `wanted_address`: where the configuration has it (None: not ours); `cookies_only`:
    plaintext is what the configuration asks for; `serial`: of the certificate that it should serve;
    `stranger`: a process that is not its node's holds the port."""

    holder: str
    address: str
    port: int
    served: Served | None
    wanted_address: str | None = None
    cookies_only: bool = False
    serial: str | None = None
    stranger: str | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseFact:
    """An OTP that runs, or that a node's command would run: `version` "27.3.4.1", or None with `release`;
    `on_carrier`: everything that uses it is carried by distsec."""

    users: tuple[str, ...]
    root: str
    release: int | None
    version: str | None
    on_carrier: bool = False


@dataclass(frozen=True, slots=True)
class PolicyFact:
    """A node's policy.term. `signed`: by the cluster's key (None: that key is not here)."""

    node: str
    place: str
    missing: bool
    signed: bool | None = None
    generation: int | None = None
    wanted: int | None = None
    mark_problem: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All of one look. `now` is Unix seconds. `damage`: (place, what, what to do) of state that cannot be
    understood; `unseen`: what could not be looked at; `unlisted`: what was too much to look at; `elsewhere`:
    (emulator, pid) that listen in another network namespace; `unfit_users`: (node, what, what to do) of users
    that no node can run as; `shared_users`: (node, what) of those with whom a node shares its key;
    `links_unprotected`: nodes have users, who may link files of others into their directories."""

    now: float
    spec: ClusterSpec | None = None
    configuration_problems: tuple[str, ...] = ()
    files: tuple[FileFact, ...] = ()
    authority: AuthorityFact | None = None
    certificates: tuple[CertificateFact, ...] = ()
    revoked: frozenset[str] = frozenset()
    cookies: tuple[CookieFact, ...] = ()
    options: tuple[OptionsFact, ...] = ()
    vms: tuple[VmFact, ...] = ()
    epmds: tuple[EpmdFact, ...] = ()
    listeners: tuple[ListenerFact, ...] = ()
    releases: tuple[ReleaseFact, ...] = ()
    policies: tuple[PolicyFact, ...] = ()
    forbidden_flags: tuple[tuple[str, str], ...] = ()
    shared_uid: int | None = None
    unfit_users: tuple[tuple[str, str, str], ...] = ()
    shared_users: tuple[tuple[str, str], ...] = ()
    links_unprotected: bool = False
    status: Mapping[str, Any] | None = None
    status_problem: str | None = None
    damage: tuple[tuple[str, str, str], ...] = ()
    unseen: tuple[str, ...] = ()
    unlisted: tuple[Unlisted, ...] = ()
    elsewhere: tuple[tuple[str, int], ...] = ()
