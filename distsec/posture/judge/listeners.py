"""What listens where, and what a stranger gets there. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from distsec.posture.facts import Facts, ListenerFact, Served
from distsec.posture.finding import Code, Finding, Severity


def judge(facts: Facts) -> Iterator[Finding]:
    for epmd in facts.epmds:
        if not is_loopback(epmd.address):
            yield Finding.of(
                Severity.HIGH,
                Code.EPMD_EXPOSED,
                what=f"{epmd.holder} tells strangers the names and ports of the nodes here",
                where=_where(epmd.address, epmd.port),
                fix="end it (Debian: systemctl disable --now epmd.socket epmd.service), or start it with"
                " ERL_EPMD_ADDRESS=127.0.0.1",
            )
    for listener in facts.listeners:
        yield from _listener(listener, facts.now)


def is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_loopback)


def _listener(fact: ListenerFact, now: float) -> Iterator[Finding]:
    where = _where(fact.address, fact.port)
    if fact.missing:
        yield Finding.of(
            Severity.MEDIUM,
            Code.LISTENER_MISSING,
            what=f"{fact.holder} runs and does not listen where its neighbours dial it",
            where=where,
            fix=f"distsec restart {fact.holder}",
        )
        return
    if fact.stranger is not None:
        yield Finding.of(
            Severity.HIGH,
            Code.PORT_OF_STRANGER,
            what=f"{fact.stranger} listens where {fact.holder} should: its neighbours dial that",
            where=where,
            fix="see what it is, and end it; or give the node another port",
        )
        return
    yield from _exposure(fact, where)
    if fact.served is not None:
        yield from _served(fact, fact.served, where, now)


def _exposure(fact: ListenerFact, where: str) -> Iterator[Finding]:
    """A port that is open to more than loopback, unless the configuration has it at that very address."""
    if is_loopback(fact.address) or (fact.wanted_address == fact.address and not _is_any(fact.address)):
        return
    reach = "every network of this host" if _is_any(fact.address) else "a network"
    fix = "-kernel inet_dist_use_interface '{127,0,0,1}', or the one address that the other nodes dial"
    if fact.wanted_address is not None:
        fix = f"set [[nodes]] address of {fact.holder} to the one address that the other nodes dial"
    yield Finding.of(
        Severity.MEDIUM if _is_any(fact.address) else Severity.LOW,
        Code.DISTRIBUTION_EXPOSED,
        what=f"the distribution of {fact.holder} is open to {reach}",
        where=where,
        fix=fix,
    )


def _served(fact: ListenerFact, served: Served, where: str, now: float) -> Iterator[Finding]:
    yield Finding.of(Severity.INFO, Code.LISTENER, what=_summary(fact, served), where=where)
    worst = Severity.HIGH if is_loopback(fact.address) else Severity.CRITICAL
    if served.plaintext:
        if not fact.cookies_only:
            yield Finding.of(
                worst,
                Code.LISTENER_PLAINTEXT,
                what=f"{fact.holder} speaks plaintext: its cookie is all that keeps anybody out",
                where=where,
                fix="use -proto_dist inet_tls with an option file, or let distsec start the node",
            )
        return
    if not served.tls:
        yield Finding.of(
            Severity.LOW,
            Code.LISTENER_UNCLEAR,
            what=f"what {fact.holder} serves is not known: {served.error or 'neither TLS nor Erlang'}",
            where=where,
            fix="see that it is not overloaded, and try again",
        )
        return
    yield from _tls(fact, served, where, worst)
    yield from _certificate(fact, served, where, now)


def _summary(fact: ListenerFact, served: Served) -> str:
    if served.plaintext:
        return f"{fact.holder} serves the distribution in plaintext"
    if not served.tls:
        return f"{fact.holder} serves no TLS that this program speaks"
    demands = {
        True: "demands a certificate",
        False: "demands no certificate",
        None: "does not say what it demands",
    }
    parts = [
        served.version or "TLS",
        served.cipher or "an unknown cipher",
        demands[served.demands_certificate],
    ]
    if served.certificate is not None:
        parts.append(f"serial {served.certificate.serial}")
    return f"{fact.holder} serves {', '.join(parts)}"


def _tls(fact: ListenerFact, served: Served, where: str, worst: Severity) -> Iterator[Finding]:
    if served.demands_certificate is False:
        yield Finding.of(
            worst,
            Code.LISTENER_NO_CLIENT_CERTIFICATE,
            what=f"{fact.holder} demands no certificate: its cookie is all that keeps anybody out",
            where=where,
            fix="set {verify, verify_peer} and {fail_if_no_peer_cert, true} for the server",
        )
    elif served.demands_certificate is None:
        yield Finding.of(
            Severity.LOW,
            Code.LISTENER_UNCLEAR,
            what=f"{fact.holder} says not whether it demands a certificate ({served.error or 'no answer'})",
            where=where,
            fix="try again",
        )
    if served.tls12:
        yield Finding.of(
            Severity.MEDIUM,
            Code.LISTENER_TLS12,
            what=f"{fact.holder} speaks TLS 1.2, which shows certificates to everybody on the way",
            where=where,
            fix="set {versions, ['tlsv1.3']} for server and client, on all nodes at once",
        )
    if served.old_tls:
        yield Finding.of(
            Severity.HIGH,
            Code.LISTENER_OLD_TLS,
            what=f"{fact.holder} speaks {served.old_tls}, which is broken",
            where=where,
            fix="set {versions, ['tlsv1.3']} for server and client",
        )
    if served.weak_cipher:
        yield Finding.of(
            Severity.HIGH,
            Code.LISTENER_WEAK_CIPHER,
            what=f"{fact.holder} takes the cipher {served.weak_cipher}",
            where=where,
            fix="take the option ciphers out, and set {versions, ['tlsv1.3']}",
        )


def _certificate(fact: ListenerFact, served: Served, where: str, now: float) -> Iterator[Finding]:
    if served.certificate is None:
        return
    if served.certificate.not_after < now:
        yield Finding.of(
            Severity.HIGH,
            Code.LISTENER_CERTIFICATE_EXPIRED,
            what=f"{fact.holder} serves a certificate that has expired (serial {served.certificate.serial})",
            where=where,
            fix=f"distsec certs renew {fact.holder}" if fact.serial else "renew it, and restart the node",
        )
    if fact.serial is not None and served.certificate.serial != fact.serial:
        yield Finding.of(
            Severity.MEDIUM,
            Code.LISTENER_CERTIFICATE_DIFFERS,
            what=f"{fact.holder} serves serial {served.certificate.serial}; its file has {fact.serial}",
            where=where,
            fix=f"distsec certs renew {fact.holder}, or restart it",
        )


def _is_any(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


def _where(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
