"""TLS options and flags of the distribution: what OTP would refuse, ignore, or take and be unsafe. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from distsec.beam.erlang_text import Symbol, Term
from distsec.beam.tls_options import Role, refuse_illegal
from distsec.errors import ConfigError
from distsec.posture.facts import Facts, OptionsFact, VmFact
from distsec.posture.finding import Code, Finding, Severity
from distsec.posture.judge.ssl_options import OLD_VERSIONS, refused, versions_of

_UNSAFE: Final = {
    "ktls": "turns the socket into a port: the certificate of the peer is gone once the link is up",
    "session_tickets": "lets a session be resumed, which shows no certificate",
    "early_data": "is data before the peer is known",
    "use_ticket": "lets a session be resumed, which shows no certificate",
    "customize_hostname_check": "replaces the check of the server's name",
    "sni_fun": "replaces the options by what the peer asks for",
    "sni_hosts": "replaces the options by what the peer asks for",
    "partial_chain": "may trust a chain that leads to no CA of the bundle",
    "password": "is the passphrase of the key, in a file beside it",
}
"""What ssl takes and what weakens a link."""

_RSA_ONLY: Final = ("ECDHE-RSA-", "DHE-RSA-", "AES128-", "AES256-", "RSA-", "DES-CBC3-SHA")
_REGENERATE: Final = "restart the node, which has it written anew; then see who changed it"


def judge(facts: Facts) -> Iterator[Finding]:
    for fact in facts.options:
        if fact.plaintext:
            yield Finding.of(
                Severity.HIGH,
                Code.OPTIONS_IGNORED,
                what=f"-{fact.plaintext[0]} is ignored: without -proto_dist {fact.holder} speaks plaintext",
                where=fact.place,
                fix="add -proto_dist inet_tls, once",
            )
        elif fact.missing:
            yield _finding(fact, Severity.HIGH, Code.OPTFILE_MISSING, "the option file does not exist", "")
        elif fact.problem is not None:
            what = f"the option file of {fact.holder} cannot be used: {fact.problem}"
            yield _finding(fact, Severity.HIGH, Code.OPTFILE_MALFORMED, what, "")
        elif fact.managed:
            yield from _managed(fact)
        else:
            yield from _of_others(fact)
    for vm in facts.vms:
        yield from _flags(vm)
    for node, what in facts.forbidden_flags:
        yield Finding.of(
            Severity.HIGH,
            Code.FLAG_FORBIDDEN,
            what=what,
            where=f"the command of {node}",
            fix="take the flag out of its command, environment or files",
        )


def _finding(fact: OptionsFact, severity: Severity, code: Code, what: str, fix: str) -> Finding:
    default = _REGENERATE if fact.managed else "correct the file that -ssl_dist_optfile names"
    return Finding.of(severity, code, what=what, where=fact.place, fix=fix or default)


def _managed(fact: OptionsFact) -> Iterator[Finding]:
    if fact.altered:
        what = "is not what distsec wrote: the node will not start with it"
        yield _finding(fact, Severity.HIGH, Code.OPTFILE_ALTERED, what, "")
    for role, options in ((Role.SERVER, fact.server), (Role.CLIENT, fact.client)):
        try:
            refuse_illegal(role, options)
        except ConfigError as error:
            for problem in error.problems:
                what = f"{problem.key} {problem.what}"
                yield _finding(fact, Severity.HIGH, Code.OPTION_UNSAFE, what, "")


def _of_others(fact: OptionsFact) -> Iterator[Finding]:
    for name in fact.ignored:
        what = f"{name} is ignored, because -ssl_dist_optfile is given"
        fix = f"move what it says into {fact.place}, and take it out"
        yield _finding(fact, Severity.MEDIUM, Code.OPTIONS_IGNORED, what, fix)
    for role, options in ((Role.SERVER, fact.server), (Role.CLIENT, fact.client)):
        yield from _role(fact, role, options)


def _role(fact: OptionsFact, role: Role, options: Mapping[str, Term]) -> Iterator[Finding]:
    for name, why in refused(role, options, fact.release):
        what = f"{role}: {name} {why}, and then no link comes up"
        yield _finding(fact, Severity.HIGH, Code.OPTION_REFUSED, what, f"take {name} out for the {role}")
    for name, why in _UNSAFE.items():
        if name in options and options[name] is not False and options[name] != Symbol("disabled"):
            yield _finding(
                fact, Severity.MEDIUM, Code.OPTION_UNSAFE, f"{role}: {name} {why}", f"take {name} out"
            )
    yield from _verification(fact, role, options)
    yield from _versions(fact, role, options)
    yield from _ciphers(fact, role, options)


def _verification(fact: OptionsFact, role: Role, options: Mapping[str, Term]) -> Iterator[Finding]:
    """Without `verify` a server takes everybody; a client verifies from OTP 26 on (ssl: verify_peer)."""
    verify = options.get("verify")
    by_default = role is Role.CLIENT and (fact.release or 0) >= 26
    if verify == Symbol("verify_none") or (verify is None and not by_default):
        how = "is verify_none" if verify is not None else "is missing, which is verify_none"
        whom = (
            "any peer is let in, by cookie alone"
            if role is Role.SERVER
            else "any server is taken for the peer"
        )
        severity = Severity.CRITICAL if role is Role.SERVER else Severity.HIGH
        fix = f"add {{verify, verify_peer}} and cacertfile for the {role}"
        yield _finding(fact, severity, Code.TLS_VERIFY_NONE, f"{role}: verify {how}: {whom}", fix)
    elif role is Role.SERVER and options.get("fail_if_no_peer_cert") is not True:
        what = "server: without {fail_if_no_peer_cert, true} a peer that shows no certificate is let in"
        fix = "add {fail_if_no_peer_cert, true} for the server alone"
        yield _finding(fact, Severity.CRITICAL, Code.TLS_NO_CLIENT_CERTIFICATE, what, fix)
    if role is Role.CLIENT and options.get("server_name_indication") == Symbol("disable"):
        what = "client: {server_name_indication, disable} drops the check that a certificate is for the host"
        fix = "take it out; give each certificate the host's name"
        yield _finding(fact, Severity.MEDIUM, Code.TLS_HOSTNAME_UNCHECKED, what, fix)


def _versions(fact: OptionsFact, role: Role, options: Mapping[str, Term]) -> Iterator[Finding]:
    fix = f"set {{versions, ['tlsv1.3']}} for the {role}"
    if "versions" not in options:
        what = f"{role}: without versions the distribution speaks TLS 1.2"
        yield _finding(fact, Severity.MEDIUM, Code.TLS_VERSIONS_DEFAULT, what, fix)
    elif old := versions_of(options) & OLD_VERSIONS:
        what = f"{role}: {', '.join(sorted(old))} is broken"
        yield _finding(fact, Severity.HIGH, Code.TLS_OLD_VERSIONS, what, fix)


def _ciphers(fact: OptionsFact, role: Role, options: Mapping[str, Term]) -> Iterator[Finding]:
    """Suites of TLS 1.2 that need an RSA key, where the certificate has an EC one."""
    given = options.get("ciphers")
    ciphers: Term = list(given.split(":")) if isinstance(given, str) else given
    if not isinstance(ciphers, list) or not ciphers:
        return
    names = [each for each in ciphers if isinstance(each, str)]
    modern = any(name.startswith("TLS_") for name in names)
    if versions_of(options) == {"tlsv1.3"} and names and not modern:
        what = f"{role}: ciphers holds no suite of TLS 1.3, which is all that is spoken"
        yield _finding(fact, Severity.HIGH, Code.OPTION_REFUSED, what, "take ciphers out")
    elif fact.key_kind == "EC" and len(names) == len(ciphers) and all(map(_needs_rsa, names)):
        what = f"{role}: every suite in ciphers needs an RSA key, and the certificate has an EC one"
        yield _finding(fact, Severity.HIGH, Code.OPTION_REFUSED, what, "take ciphers out")


def _needs_rsa(suite: str) -> bool:
    return suite.startswith(_RSA_ONLY)


def _flags(vm: VmFact) -> Iterator[Finding]:
    for flag in vm.twice:
        severity, what = (
            Severity.MEDIUM,
            "the first one counts, and which that is depends on the order of files",
        )
        if flag == "proto_dist" and (vm.release is None or vm.release < 26):
            severity, what = Severity.CRITICAL, "OTP 25 then listens in plaintext, without a word"
        elif flag == "ssl_dist_optfile":
            severity, what = Severity.HIGH, "OTP 27 and later do not boot with that, OTP 25 takes the first"
        yield Finding.of(
            severity,
            Code.FLAG_TWICE,
            what=f"{vm.holder} was given -{flag} more than once: {what}",
            where=f"/proc/{vm.pid}/cmdline",
            fix="see the command, vm.args, args_file, ERL_AFLAGS, ERL_FLAGS and ERL_ZFLAGS; keep one",
        )
