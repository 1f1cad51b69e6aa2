"""The options of the distribution's TLS, per role, and the combinations that must never be emitted (pure).

Almost every illegal combination fails in the same way: the node boots, and each link is a silent `pang`. So
they are refused here, by name and with the reason, before anything starts. Measured on OTP 25, 27 and 29;
what ssl takes is in ssl.erl (25 and 27) and ssl_config.erl (29). Of an option that is given twice the last
counts on 27 and 29 and the first on 25, so that nothing is ever emitted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

from distsec.beam.erlang_text import ExternalFunction, Symbol, Term
from distsec.errors import ConfigError, Problem


class Role(StrEnum):
    """Of the TLS connection: the server accepted it, the client dialled."""

    SERVER = "server"
    CLIENT = "client"


CIPHER_SUITES: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""Suites of TLS 1.3 (RFC 8446, B.4) without CCM; AES-128 first, with which the throughput was measured."""

IDLE_MILLISECONDS: Final = 5000
"""After which the two processes of an idle link collect their garbage (ssl's `hibernate_after`), which
without messages they never do: a burst over twelve links left 45 MB of binaries on OTP 25, and leaves 1."""

_FILES = ("certfile", "keyfile", "cacertfile")
_VERSIONS: Final[Term] = [Symbol("tlsv1.3")]

_TUNABLE = frozenset(
    {
        *("ciphers", "crl_cache", "crl_check", "depth", "hibernate_after", "key_update_at", "log_level"),
        *("max_handshake_size", "signature_algs", "supported_groups"),
    }
)
"""What an operator may add or change: ssl takes it beside TLS 1.3 for both roles, and it weakens nothing."""

_ONLY_BELOW_1_3 = (
    "belongs to TLS 1.2 and below; beside tlsv1.3 alone ssl refuses all options and every link fails"
)
_REPLACES = "takes precedence over the node's own files"
_RESUMES = "lets a session be resumed, which shows no certificate, so nothing of the peer would be checked"
_SERVER_ONLY = "is an option of servers; on the client ssl refuses all options and every link fails"

_REFUSED: Final[Mapping[str, str]] = {
    "ktls": "turns the socket into a port: the peer's certificate is gone, and every check with it",
    "secure_renegotiate": _ONLY_BELOW_1_3,
    "reuse_session": _RESUMES,
    "reuse_sessions": _ONLY_BELOW_1_3,
    "client_renegotiation": _ONLY_BELOW_1_3,
    "session_tickets": _RESUMES,
    "early_data": _RESUMES,
    "use_ticket": _RESUMES,
    "cert": _REPLACES,
    "certs_keys": _REPLACES,
    "key": _REPLACES,
    "cacerts": _REPLACES,
    "password": "would be a secret in a file that is not kept as one; the node's key has no passphrase",
    "sni_fun": "replaces the options by what the peer asks for",
    "sni_hosts": "replaces the options by what the peer asks for",
    "customize_hostname_check": "replaces the check of the server's name",
}
"""Refused for both roles, whatever the value."""


def tls_options(role: Role, *, certfile: bytes, keyfile: bytes, cacertfile: bytes) -> dict[str, Term]:
    """The options of one role, in the order in which they are written. Paths are absolute raw bytes.

    Binaries, because ssl hands them to the file system as they are, whatever the locale of the node is.
    """
    options: dict[str, Term] = {
        "certfile": certfile,
        "keyfile": keyfile,
        "cacertfile": cacertfile,
        "verify": Symbol("verify_peer"),
        "versions": _VERSIONS,
        "ciphers": list(CIPHER_SUITES),
        "hibernate_after": IDLE_MILLISECONDS,
        "verify_fun": _verify_fun(role),
    }
    if role is Role.SERVER:
        options["fail_if_no_peer_cert"] = True
    return options


def refuse_illegal(role: Role, options: Mapping[str, Term]) -> None:
    """Raises ConfigError, naming every option of `options` that is illegal or unsafe for `role`, and why."""
    problems = tuple(
        Problem(f"{role}.{name}", 0, what, "take it out, or leave it to distsec")
        for name, what in _problems(role, options)
    )
    if problems:
        raise ConfigError("distribution TLS options", problems)


def _problems(role: Role, options: Mapping[str, Term]) -> Iterator[tuple[str, str]]:
    required = tls_options(role, certfile=b"", keyfile=b"", cacertfile=b"")
    for name in required.keys() - _TUNABLE:
        if name not in options:
            yield name, _missing(name)
    for name, value in options.items():
        if name in _FILES:
            if not (isinstance(value, bytes) and value.startswith(b"/") and b"\0" not in value):
                yield name, "must be an absolute path"
        elif name in required.keys() - _TUNABLE:
            if value != required[name]:
                yield name, _altered(name)
        elif (reason := _refusal(role, name, value)) is not None:
            yield name, reason


def _missing(name: str) -> str:
    if name == "versions":
        return "is missing; without it the distribution speaks TLS 1.2 (inet_tls_dist:dist_defaults/1)"
    return "is missing"


def _altered(name: str) -> str:
    return {
        "verify": "must be verify_peer: without it any certificate, or none, is accepted",
        "versions": "must be ['tlsv1.3'] and nothing else",
        "verify_fun": "must be {fun distsec_verify:verify/3, …}: {Module, Function, State} boots and refuses"
        " everyone, and any other function does not ask the policy",
        "fail_if_no_peer_cert": "must be true: without it a peer that shows no certificate is accepted",
    }[name]


def _refusal(role: Role, name: str, value: Term) -> str | None:
    if name in _REFUSED:
        return _REFUSED[name]
    if name in ("honor_cipher_order", "fail_if_no_peer_cert"):
        return _SERVER_ONLY if role is Role.CLIENT else None
    if name == "server_name_indication":
        if value == Symbol("disable"):
            return "disable drops the check that the server's certificate is for the host that was dialled"
        return "is set for each link by inet_tls_dist"
    if name == "ciphers":
        return None if _are_suites(value) else "must be a list of TLS 1.3 suites; others never meet an EC key"
    if name not in _TUNABLE:
        return "is no option known to be safe here, and one that ssl does not take makes every link fail"
    return None


def _are_suites(value: Term) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(suite in CIPHER_SUITES for suite in value)


def _verify_fun(role: Role) -> Term:
    return (ExternalFunction("distsec_verify", "verify", 3), {Symbol("role"): Symbol(role.value)})
