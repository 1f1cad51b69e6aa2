"""The cluster's CA: its certificate, and where its key is. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from distsec.model.cluster import Mode
from distsec.pki.sealed import fingerprint
from distsec.posture.facts import AuthorityFact, Facts
from distsec.posture.finding import Code, Finding, Severity
from distsec.posture.judge.certificates import soon_seconds, strength
from distsec.posture.judge.parts import extension, public_der

CA_SOON_DAYS: Final = 90
"""A rotation has phases that wait for people, and leaves never outlive their CA."""

_ROTATE: Final = "distsec certs rotate-ca prepare"


def judge(facts: Facts) -> Iterator[Finding]:
    fact = facts.authority
    if fact is None:
        return
    if fact.certificate is None:
        yield Finding.of(
            Severity.HIGH,
            Code.CA_MISSING,
            what=f"the CA's certificate {fact.problem}",
            where=fact.place,
            fix="restore it from a backup, or run `distsec init` for a new cluster",
        )
        return
    yield from _certificate(fact.certificate, fact.place, facts.now)
    yield from _key(fact, facts)


def _certificate(certificate: x509.Certificate, place: str, now: float) -> Iterator[Finding]:
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    date = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d")
    if ends < now:
        yield Finding.of(
            Severity.HIGH,
            Code.CA_EXPIRED,
            what=f"the CA expired {date}: no certificate of it is accepted",
            where=place,
            fix=_ROTATE,
        )
    elif ends - now < soon_seconds(begins, ends, CA_SOON_DAYS):
        yield Finding.of(
            Severity.MEDIUM, Code.CA_EXPIRES_SOON, what=f"the CA expires {date}", where=place, fix=_ROTATE
        )
    basic, usage = extension(certificate, x509.BasicConstraints), extension(certificate, x509.KeyUsage)
    if basic is None or not basic.ca or (usage is not None and not usage.key_cert_sign):
        yield Finding.of(
            Severity.HIGH,
            Code.CA_KEY_USAGE,
            what="is not marked as a CA's (CA:TRUE, keyCertSign): OTP refuses what it signed",
            where=place,
            fix=_ROTATE,
        )
    yield from strength(certificate, place)


def _key(fact: AuthorityFact, facts: Facts) -> Iterator[Finding]:
    directory = fact.place.rpartition("/")[0]
    if fact.plain and fact.sealed:
        yield Finding.of(
            Severity.HIGH,
            Code.CA_KEY_BESIDE_SEALED,
            what="the CA's key lies unencrypted beside its sealed form",
            where=f"{directory}/key.pem",
            fix="distsec certs seal; it seals the key anew, and removes the plain one",
        )
    elif fact.plain and facts.spec is not None and facts.spec.mode is Mode.PRODUCTION:
        yield Finding.of(
            Severity.INFO,
            Code.CA_KEY_UNSEALED,
            what="the CA's key is not encrypted: a backup of this directory can issue certificates",
            where=f"{directory}/key.pem",
            fix="distsec certs seal; or keep it on another host (docs/certificates.md)",
        )
    elif not fact.plain and not fact.sealed:
        yield Finding.of(
            Severity.INFO,
            Code.CA_KEY_OFFLINE,
            what="the CA's key is not here: certificates are renewed with `distsec certs renew --offline`",
            where=directory,
        )
    if not fact.plain:
        yield from _sealed(fact)
    elif fact.key is None:
        yield Finding.of(
            Severity.HIGH,
            Code.KEY_UNREADABLE,
            what=f"the CA's key {fact.key_problem}",
            where=f"{directory}/key.pem",
            fix="restore it from a backup",
        )
    elif fact.certificate is not None and fact.key != public_der(fact.certificate):
        yield Finding.of(
            Severity.HIGH,
            Code.CA_KEY_MISMATCH,
            what="does not belong to key.pem beside it: what is issued now nobody accepts",
            where=fact.place,
            fix="restore both from the same backup",
        )


def _sealed(fact: AuthorityFact) -> Iterator[Finding]:
    """A plain key counts before a sealed one; where it is alone, it must do."""
    for place, problem in fact.damaged:
        yield Finding.of(
            Severity.HIGH,
            Code.CA_KEY_DAMAGED,
            what=f"the CA's sealed key {problem}: nothing can be issued or renewed with it",
            where=place,
            fix="restore it from a backup",
        )
    certificate = fact.certificate
    if fact.sealed_for and certificate and fact.sealed_for != fingerprint(certificate.public_key()):
        yield Finding.of(
            Severity.HIGH,
            Code.CA_KEY_MISMATCH,
            what="does not belong to key.sealed beside it: `distsec run` refuses to start",
            where=fact.place,
            fix="restore both from the same backup",
        )
