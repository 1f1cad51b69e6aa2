"""Certificates of nodes: chain, time, key, usage, and names that are too wide. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from distsec.model.cluster import ClusterSpec
from distsec.model.names import NodeName
from distsec.pki.authority import serial_text
from distsec.pki.profile import identities_of
from distsec.posture.facts import CertificateFact, Facts
from distsec.posture.finding import Code, Finding, Severity
from distsec.posture.judge.parts import extension, issued, listed, renew

DAY: Final = 86_400
SOON_DAYS: Final = 14
SOON_SHARE: Final = 5
"""A certificate is old in its last 14 days or its last fifth, whichever is shorter: with a life of minutes,
days say nothing."""

LONG_DAYS: Final = 398
"""What public CAs may give at most (CA/Browser Forum BR 6.3.2): a stolen key is good for as long."""

MIN_RSA_BITS: Final = 2048
MIN_EC_BITS: Final = 256
_WEAK_HASHES: Final = (hashes.MD5, hashes.SHA1)


def judge(facts: Facts) -> Iterator[Finding]:
    for fact in facts.certificates:
        yield from _certificate(fact, facts)


def _certificate(fact: CertificateFact, facts: Facts) -> Iterator[Finding]:
    if not fact.chain:
        yield _unusable(fact)
        return
    leaf = fact.chain[0]
    yield from _times(leaf, fact.place, facts.now, renew(fact))
    yield from _usage(fact, leaf)
    yield from strength(leaf, fact.place)
    yield from _names(fact, leaf, facts)
    yield from _chain(fact, leaf)
    if serial_text(leaf.serial_number) in facts.revoked:
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_REVOKED,
            what=f"the certificate of {fact.holder} is revoked, so nobody links with it",
            where=fact.place,
            fix=renew(fact),
        )


def _unusable(fact: CertificateFact) -> Finding:
    if fact.missing:
        return Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_MISSING,
            what=f"{fact.holder} has no certificate",
            where=fact.place,
            fix="distsec init" if fact.managed else "issue one, or correct certfile in the option file",
        )
    return Finding.of(
        Severity.HIGH,
        Code.CERTIFICATE_UNREADABLE,
        what=f"the certificate of {fact.holder} cannot be used: {fact.problem}",
        where=fact.place,
        fix=renew(fact) if fact.managed else "replace it by a certificate in PEM",
    )


# ---- one certificate ---------------------------------------------------------------------------------------


def _times(certificate: x509.Certificate, place: str, now: float, fix: str) -> Iterator[Finding]:
    """Whether a leaf is valid at `now` (Unix seconds), for how long yet, and for how long at all."""
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if ends < now:
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_EXPIRED,
            what=f"expired {_date(ends)}: every new link with it is refused",
            where=place,
            fix=fix,
        )
    elif begins > now:
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_NOT_YET_VALID,
            what=f"is not valid before {_date(begins)}",
            where=place,
            fix="check this host's clock (timedatectl), else issue it anew",
        )
    elif ends - now < soon_seconds(begins, ends, SOON_DAYS):
        yield Finding.of(
            Severity.MEDIUM,
            Code.CERTIFICATE_EXPIRES_SOON,
            what=f"expires {_date(ends)}",
            where=place,
            fix=fix,
        )
    if ends - begins > LONG_DAYS * DAY + DAY:
        yield Finding.of(
            Severity.LOW,
            Code.CERTIFICATE_LONG_LIVED,
            what=f"is valid for {round((ends - begins) / DAY)} days; a stolen key is good for as long",
            where=place,
            fix="set [certificates] days to 365 or less, and renew",
        )


def soon_seconds(begins: float, ends: float, days: int) -> float:
    """How long before its end a certificate is old."""
    return min(days * DAY, (ends - begins) / SOON_SHARE)


def strength(certificate: x509.Certificate, place: str) -> Iterator[Finding]:
    """Of its key and of the signature on it."""
    key = certificate.public_key()
    weak = None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        weak = f"an RSA key of {key.key_size} bits"
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < MIN_EC_BITS:
        weak = f"an EC key of {key.key_size} bits"
    elif isinstance(key, dsa.DSAPublicKey):
        weak = "a DSA key, which TLS 1.3 does not have"
    if weak:
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_WEAK_KEY,
            what=f"has {weak}",
            where=place,
            fix="issue it anew with an ECDSA P-256 key",
        )
    if isinstance(certificate.signature_hash_algorithm, _WEAK_HASHES):
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_WEAK_SIGNATURE,
            what=f"is signed with {certificate.signature_hash_algorithm.name.upper()}, which can be forged",
            where=place,
            fix="issue it anew, signed with SHA-256",
        )


def _usage(fact: CertificateFact, leaf: x509.Certificate) -> Iterator[Finding]:
    basic = extension(leaf, x509.BasicConstraints)
    usage = extension(leaf, x509.KeyUsage)
    if (basic is not None and basic.ca) or (usage is not None and usage.key_cert_sign):
        yield Finding.of(
            Severity.CRITICAL,
            Code.CERTIFICATE_IS_CA,
            what=f"is a CA's: whoever breaks into {fact.holder} can issue certificates for every node",
            where=fact.place,
            fix=renew(fact),
        )
    elif usage is not None and not usage.digital_signature:
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_KEY_USAGE,
            what="has a key usage without digitalSignature, which TLS 1.3 needs",
            where=fact.place,
            fix=renew(fact),
        )
    extended = extension(leaf, x509.ExtendedKeyUsage)
    wanted = {
        "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
        "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    missing = [name for name, oid in wanted.items() if extended is None or oid not in extended]
    if missing and (extended is not None or fact.managed):
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_EXTENDED_KEY_USAGE,
            what=f"has no extended key usage {' and '.join(missing)}: a node dials and is dialled",
            where=fact.place,
            fix=renew(fact),
        )


def _names(fact: CertificateFact, leaf: x509.Certificate, facts: Facts) -> Iterator[Finding]:
    names = extension(leaf, x509.SubjectAlternativeName)
    hosts = [] if names is None else names.get_values_for_type(x509.DNSName)
    wild = [host for host in hosts if "*" in host]
    if wild:
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_WILDCARD,
            what=f"is for {listed(wild)}: its key can serve as any of these hosts",
            where=fact.place,
            fix=renew(fact),
        )
    if local := _local(fact, names, hosts):
        yield Finding.of(
            Severity.MEDIUM,
            Code.CERTIFICATE_LOCALHOST,
            what=f"is for {listed(local)}, which is every host",
            where=fact.place,
            fix=renew(fact),
        )
    if fact.node is not None and facts.spec is not None and not _bound(fact.node, facts.spec):
        identities, wanted = identities_of(leaf), fact.node.identity(facts.spec.name)
        if identities != (wanted,):
            yield Finding.of(
                Severity.HIGH,
                Code.CERTIFICATE_IDENTITY,
                what=f"is for {listed(list(identities)) or 'nobody'}, not for {wanted}",
                where=fact.place,
                fix=renew(fact),
            )


def _bound(node: NodeName, spec: ClusterSpec) -> bool:
    """Whether a rule says by what else in its certificate the node is known (docs/identities.md)."""
    return any(each.name == node for each in spec.identities)


def _local(fact: CertificateFact, names: x509.SubjectAlternativeName | None, hosts: list[str]) -> list[str]:
    """Names of loopback in the certificate of what is, as far as is known, elsewhere."""
    own = {fact.node.host, fact.node.ip, fact.address} if fact.node is not None else set()
    found = [host for host in hosts if host.lower().split(".")[0] == "localhost" and host not in own]
    if names is not None and fact.node is not None:
        found += [
            str(address)
            for address in names.get_values_for_type(x509.IPAddress)
            if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
            and address.is_loopback
            and str(address) not in own
        ]
    return found


def _chain(fact: CertificateFact, leaf: x509.Certificate) -> Iterator[Finding]:
    """Whether the leaf leads to the bundle that the node itself trusts, as its peers' do."""
    if not fact.trust or isinstance(leaf.signature_hash_algorithm, _WEAK_HASHES):
        return  # such a signature is told of already, and cryptography verifies none
    current, depth = leaf, 0
    candidates = [*fact.chain[1:], *fact.trust]
    while depth <= len(fact.chain):
        if any(issued(current, trusted) for trusted in fact.trust):
            return
        above = next((each for each in fact.chain[1:] if issued(current, each)), None)
        if above is None or above == current:
            break
        current, depth = above, depth + 1
    named = any(each.subject == leaf.issuer for each in candidates)
    yield Finding.of(
        Severity.HIGH,
        Code.CERTIFICATE_CHAIN_INVALID,
        what="is not issued by what the trust bundle holds"
        + (" (a CA of the same name has another key)" if named else ""),
        where=fact.place,
        fix=renew(fact),
    )


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
