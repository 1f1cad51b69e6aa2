"""What `check` reports: severities, every code there is, and the exit code that follows. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from distsec.model.text import escape

WELL, UNEASY, UNSAFE = 0, 1, 2
"""Exit codes: nothing above info; low or medium; high or critical."""

MAX_TEXT = 1000
"""Characters of each part of a finding."""


class Severity(StrEnum):
    """In the order in which they are told."""

    CRITICAL = "critical"  # whoever reaches it runs code
    HIGH = "high"  # a protection is missing or broken
    MEDIUM = "medium"  # weaker than it could be
    LOW = "low"  # worth a change at the next occasion
    INFO = "info"  # to be known

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


class Code(StrEnum):
    """Every code. docs/check.md explains each; a test holds the two together."""

    # certificates
    CERTIFICATE_MISSING = "certificate_missing"
    CERTIFICATE_UNREADABLE = "certificate_unreadable"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NOT_YET_VALID = "certificate_not_yet_valid"
    CERTIFICATE_EXPIRES_SOON = "certificate_expires_soon"
    CERTIFICATE_LONG_LIVED = "certificate_long_lived"
    CERTIFICATE_CHAIN_INVALID = "certificate_chain_invalid"
    CERTIFICATE_KEY_MISMATCH = "certificate_key_mismatch"
    CERTIFICATE_KEY_USAGE = "certificate_key_usage"
    CERTIFICATE_EXTENDED_KEY_USAGE = "certificate_extended_key_usage"
    CERTIFICATE_IS_CA = "certificate_is_ca"
    CERTIFICATE_WEAK_KEY = "certificate_weak_key"
    CERTIFICATE_WEAK_SIGNATURE = "certificate_weak_signature"
    CERTIFICATE_IDENTITY = "certificate_identity"
    CERTIFICATE_LOCALHOST = "certificate_localhost"
    CERTIFICATE_WILDCARD = "certificate_wildcard"
    CERTIFICATE_SHARED = "certificate_shared"
    CERTIFICATE_REVOKED = "certificate_revoked"
    KEY_MISSING = "key_missing"
    KEY_UNREADABLE = "key_unreadable"
    TRUST_UNREADABLE = "trust_unreadable"
    TRUST_FOREIGN = "trust_foreign"
    TRUST_NOT_A_CA = "trust_not_a_ca"
    TRUST_PUBLIC = "trust_public"
    # the authority
    CA_MISSING = "ca_missing"
    CA_EXPIRED = "ca_expired"
    CA_EXPIRES_SOON = "ca_expires_soon"
    CA_KEY_USAGE = "ca_key_usage"
    CA_KEY_MISMATCH = "ca_key_mismatch"
    CA_KEY_OFFLINE = "ca_key_offline"
    CA_KEY_UNSEALED = "ca_key_unsealed"
    CA_KEY_BESIDE_SEALED = "ca_key_beside_sealed"
    CA_KEY_DAMAGED = "ca_key_damaged"
    # files
    SECRET_EXPOSED = "secret_exposed"  # noqa: S105  a code
    FILE_EXPOSED = "file_exposed"
    FILE_WRITABLE = "file_writable"
    FILE_OWNER = "file_owner"
    FILE_SYMLINK = "file_symlink"
    FILE_KIND = "file_kind"
    DIRECTORY_EXPOSED = "directory_exposed"
    DIRECTORY_WRITABLE = "directory_writable"
    PARENT_REPLACEABLE = "parent_replaceable"
    TOO_MANY_FILES = "too_many_files"
    # cookies
    COOKIE_WELL_KNOWN = "cookie_well_known"
    COOKIE_WEAK = "cookie_weak"
    COOKIE_OLD = "cookie_old"
    COOKIE_SHARED = "cookie_shared"
    COOKIE_IN_ARGUMENTS = "cookie_in_arguments"
    COOKIE_IN_ENVIRONMENT = "cookie_in_environment"
    # options
    OPTFILE_MISSING = "optfile_missing"
    OPTFILE_MALFORMED = "optfile_malformed"
    OPTFILE_ALTERED = "optfile_altered"
    OPTIONS_IGNORED = "options_ignored"
    OPTION_REFUSED = "option_refused"
    OPTION_UNSAFE = "option_unsafe"
    TLS_VERIFY_NONE = "tls_verify_none"
    TLS_NO_CLIENT_CERTIFICATE = "tls_no_client_certificate"
    TLS_OLD_VERSIONS = "tls_old_versions"
    TLS_VERSIONS_DEFAULT = "tls_versions_default"
    TLS_HOSTNAME_UNCHECKED = "tls_hostname_unchecked"
    FLAG_TWICE = "flag_twice"
    FLAG_FORBIDDEN = "flag_forbidden"
    # sockets and what they serve
    EPMD_EXPOSED = "epmd_exposed"
    DISTRIBUTION_EXPOSED = "distribution_exposed"
    PORT_OF_STRANGER = "port_of_stranger"
    LISTENER = "listener"
    LISTENER_MISSING = "listener_missing"
    LISTENER_PLAINTEXT = "listener_plaintext"
    LISTENER_NO_CLIENT_CERTIFICATE = "listener_no_client_certificate"
    LISTENER_TLS12 = "listener_tls12"
    LISTENER_OLD_TLS = "listener_old_tls"
    LISTENER_WEAK_CIPHER = "listener_weak_cipher"
    LISTENER_CERTIFICATE_EXPIRED = "listener_certificate_expired"
    LISTENER_CERTIFICATE_DIFFERS = "listener_certificate_differs"
    LISTENER_UNCLEAR = "listener_unclear"
    # releases of OTP
    OTP_KNOWN_HOLE = "otp_known_hole"
    OTP_TOO_OLD = "otp_too_old"
    OTP_UNPROVEN = "otp_unproven"
    OTP_VERSION_UNKNOWN = "otp_version_unknown"
    OTP_LIST_OUTDATED = "otp_list_outdated"
    # configuration, policy, users
    CONFIGURATION_INVALID = "configuration_invalid"
    CONFIGURATION_WARNING = "configuration_warning"
    CONFIGURATION_READABLE = "configuration_readable"
    NOT_ENFORCED = "not_enforced"
    MODE = "mode"
    PEER_NOT_IMPORTED = "peer_not_imported"
    POLICY_MISSING = "policy_missing"
    POLICY_SIGNATURE = "policy_signature"
    POLICY_OUTDATED = "policy_outdated"
    POLICY_MARK = "policy_mark"
    STATE_DAMAGED = "state_damaged"
    SHARED_UID = "shared_uid"
    NODE_USER_SHARED = "node_user_shared"
    NODE_USER_UNFIT = "node_user_unfit"
    HARDLINKS_UNPROTECTED = "hardlinks_unprotected"
    BEAM_RUNS_AS_ROOT = "beam_runs_as_root"
    # the orchestrator
    ORCHESTRATOR_ABSENT = "orchestrator_absent"
    GUARD_NOT_IN_FORCE = "guard_not_in_force"
    LINK_NOT_ALLOWED = "link_not_allowed"
    NODE_TAINTED = "node_tainted"
    NODE_DOWN = "node_down"
    AGENT_LOST = "agent_lost"
    POLICY_NOT_ACTIVE = "policy_not_active"
    POLICY_ROLLED_BACK = "policy_rolled_back"
    METRICS_NOT_SERVED = "metrics_not_served"
    # the look itself
    NOT_SEEN = "not_seen"


NOT_COUNTED: Final = frozenset({Code.OTP_KNOWN_HOLE, Code.OTP_TOO_OLD, Code.SHARED_UID})
"""Told with their severity, and without effect on the exit code: what the host's distribution and the kind of
installation decide, and not the set-up of the cluster."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` is wrong `where`, and the `fix` (a command where one does it). Build it with `of`."""

    severity: Severity
    code: Code
    what: str
    where: str
    fix: str

    @classmethod
    def of(cls, severity: Severity, code: Code, *, what: str, where: str, fix: str = "") -> Finding:
        """With every text escaped and bounded; it may hold what other processes chose."""
        return cls(severity, code, *(escape(text, MAX_TEXT) for text in (what, where, fix)))

    def as_dict(self) -> dict[str, str]:
        return {
            "severity": str(self.severity),
            "code": str(self.code),
            "what": self.what,
            "where": self.where,
            "fix": self.fix,
        }

    @property
    def counted(self) -> bool:
        """Whether the exit code depends on it."""
        return self.severity is not Severity.INFO and self.code not in NOT_COUNTED


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each once; the worst first, then by code and place."""
    return tuple(
        sorted(set(findings), key=lambda each: (each.severity.rank, each.code, each.where, each.what))
    )


def exit_code(findings: Iterable[Finding]) -> int:
    counted = {each.severity for each in findings if each.counted}
    if counted & {Severity.CRITICAL, Severity.HIGH}:
        return UNSAFE
    return UNEASY if counted else WELL
