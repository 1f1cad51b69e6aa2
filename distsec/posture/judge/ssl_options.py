"""Which options ssl refuses, by role, version of TLS and release of OTP. Pure.

Of a refused option the node boots, and each of its links ends in a silent `pang`. Measured by asking ssl of
OTP 25, 27 and 29 (ssl:listen/2, ssl:connect/4) with TLS 1.3 alone, 1.2 alone and both; a test asks again.
What changed between 25 and 27 came with the rewrite of the options in OTP 26.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from distsec.beam.erlang_text import ExternalFunction, Symbol, Term
from distsec.beam.tls_options import Role

VERSIONS: Final = frozenset({"tlsv1.3", "tlsv1.2", "tlsv1.1", "tlsv1"})
OLD_VERSIONS: Final = frozenset({"tlsv1.1", "tlsv1", "sslv3"})


class When(Enum):
    """With which versions of TLS."""

    ANY = "with any version of TLS"
    ONLY_1_3 = "beside tlsv1.3 alone"
    WITHOUT_1_3 = "without tlsv1.3"
    WITHOUT_1_0 = "without tlsv1"


BOTH: Final = frozenset(Role)
SERVER: Final = frozenset({Role.SERVER})
CLIENT: Final = frozenset({Role.CLIENT})


@dataclass(frozen=True, slots=True)
class Row:
    """`option` is refused for these roles `when`, from OTP `since` on."""

    option: str
    roles: frozenset[Role]
    when: When = When.ANY
    since: int = 0


ROWS: Final = (
    Row("secure_renegotiate", BOTH, When.ONLY_1_3),
    Row("reuse_sessions", BOTH, When.ONLY_1_3),
    Row("client_renegotiation", SERVER, When.ONLY_1_3),
    Row("psk_identity", BOTH, When.ONLY_1_3),
    Row("next_protocols_advertised", SERVER, When.ONLY_1_3),
    Row("padding_check", BOTH, When.WITHOUT_1_0),
    Row("beast_mitigation", BOTH, When.WITHOUT_1_0),
    Row("client_renegotiation", CLIENT),
    Row("honor_cipher_order", CLIENT),
    Row("honor_ecc_order", CLIENT),
    Row("cookie", CLIENT),
    Row("fallback", SERVER),
    Row("fallback", CLIENT, When.ONLY_1_3, since=26),
    Row("fail_if_no_peer_cert", CLIENT, since=26),
    Row("dh", CLIENT, since=26),
    Row("dhfile", CLIENT, since=26),
    Row("server_name_indication", SERVER, since=26),
    Row("max_fragment_length", SERVER, since=26),
    Row("use_ticket", SERVER, since=26),
    Row("session_tickets", BOTH, When.WITHOUT_1_3),
    Row("early_data", BOTH, When.WITHOUT_1_3),
    Row("supported_groups", BOTH, When.WITHOUT_1_3),
    Row("cookie", SERVER, When.WITHOUT_1_3),
    Row("middlebox_comp_mode", BOTH, When.WITHOUT_1_3, since=26),
)


def refused(role: Role, options: Mapping[str, Term], release: int | None) -> Iterator[tuple[str, str]]:
    """(option, why) of each that ssl refuses. Where `release` is not known, what any proven one refuses."""
    versions = versions_of(options)
    for row in ROWS:
        concerned = row.option in options and role in row.roles and _applies(row.when, versions)
        if concerned and (release is None or release >= row.since):
            yield row.option, _why(row, release)
    verify, demands = options.get("verify"), options.get("fail_if_no_peer_cert")
    if verify is not None and verify not in {Symbol("verify_peer"), Symbol("verify_none")}:
        yield "verify", "must be verify_peer or verify_none"
    elif role is Role.SERVER and demands is True and verify != Symbol("verify_peer"):
        yield "fail_if_no_peer_cert", "needs {verify, verify_peer} beside it"
    function = options.get("verify_fun")
    if function is not None and not _is_verify_fun(function):
        yield (
            "verify_fun",
            "must be {fun Module:Function/3, State}: with another form a node refuses everyone",
        )
    given = options.get("versions")
    if isinstance(given, list) and (unknown := [each for each in given if _name(each) not in VERSIONS]):
        yield "versions", f"{_name(unknown[0])} is no version that ssl knows"
    if options.get("ktls") is True and (release or 26) < 26:
        yield "ktls", "is there from OTP 26 on"


def versions_of(options: Mapping[str, Term]) -> frozenset[str]:
    """What is spoken. Without `versions` that is TLS 1.2 alone (inet_tls_dist:dist_defaults/1)."""
    given = options.get("versions")
    if not isinstance(given, list):
        return frozenset({"tlsv1.2"})
    return frozenset(map(_name, given))


def _applies(when: When, versions: frozenset[str]) -> bool:
    match when:
        case When.ANY:
            return True
        case When.ONLY_1_3:
            return versions == {"tlsv1.3"}
        case When.WITHOUT_1_3:
            return "tlsv1.3" not in versions
        case When.WITHOUT_1_0:
            return "tlsv1" not in versions


def _why(row: Row, release: int | None) -> str:
    roles = "" if row.roles == BOTH else f" on the {next(iter(row.roles))}"
    since = f" by OTP {row.since} and later" if row.since and release is None else ""
    when = "" if row.when is When.ANY else f" {row.when.value}"
    return f"is refused{roles}{when}{since}"


def _is_verify_fun(value: Term) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], ExternalFunction)


def _name(value: object) -> str:
    return value.name if isinstance(value, Symbol) else str(value)[:40]
