"""Whether a key and a certificate may be a node's, whoever made them: by hand, by another CA, by ourselves.

Every door that a pair can come in by asks here (`certs import`, a file that somebody drops, an answer of an
offline CA, what is found at a start), so that they all take the same and say the same. What passes is what
OTP 25, 27 and 29 make a link with and `distsec_verify` admits (tests/system/test_own_certificates.py). Pure:
time is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from distsec.model.identities import SPIFFE, is_certificate_name, readable
from distsec.model.text import escape
from distsec.pki import profile
from distsec.pki.subject import names_of

MAX_CHAIN = 8
"""Certificates between a leaf and its anchor; ssl's own bound (`depth`) is 10."""

MAX_CERTIFICATES = 32
"""Of one file."""

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
"""Below the first is weak (NIST SP 800-57, part 1); above the second each handshake takes too long."""

CURVES = ("secp256r1", "secp384r1")
_HASHES = frozenset({"sha256", "sha384", "sha512"})
_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)


_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


class Flaw(StrEnum):
    """Why a pair is not taken."""

    UNREADABLE = (
        "unreadable"  # no PEM, no certificate, a key that nothing can read, an extension that is none
    )
    KEY_MISMATCH = "key_mismatch"  # the key is not the one in the certificate
    KEY_UNSUITABLE = "key_unsuitable"  # too short, or of a kind that TLS 1.3 of the proven OTPs does not take
    WEAK_SIGNATURE = "weak_signature"  # SHA-1 or worse, somewhere in the chain
    WRONG_IDENTITY = "wrong_identity"  # it is not, or not only, what the policy knows this node by
    NOT_A_LEAF = "not_a_leaf"  # a CA's own certificate
    KEY_USAGE = "key_usage"  # not for TLS, or for one of its two roles only
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    UNKNOWN_CA = "unknown_ca"  # no chain leads to a CA that the nodes trust
    CHAIN_INVALID = "chain_invalid"  # one does, and somebody in it may not sign this
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Finding:
    """`what`, after the name of the file, is a sentence: "has expired (2026-01-01 00:00 UTC)". Escaped."""

    flaw: Flaw
    what: str


def certificates_in(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in their order; whatever else is in it is passed over. Raises
    ValueError, also for none and for more than MAX_CERTIFICATES.
    """
    blocks = _CERTIFICATE.findall(pem)
    if len(blocks) != pem.count(b"-----BEGIN CERTIFICATE-----"):
        raise ValueError("a damaged certificate")
    if not 0 < len(blocks) <= MAX_CERTIFICATES:
        raise ValueError("no certificate" if not blocks else "too many certificates")
    return tuple(map(x509.load_pem_x509_certificate, blocks))


def judge_leaf(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    identity: str,
    cluster: str,
    now: float,
) -> Finding | None:
    """What is wrong with a node's certificate, `chain[0]`, or None.

    `chain[1:]` may help to lead to one of `anchors`, which are trusted; `identity` is what the policy knows
    the node by, in the trust domain `cluster`; `now` is Unix seconds. Never raises.
    """
    try:
        return _judge_leaf(chain, anchors, identity, cluster, datetime.fromtimestamp(now, UTC))
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return Finding(Flaw.UNREADABLE, "holds what is no certificate (an extension that cannot be read)")


def judge_key(public: PublicKeyTypes) -> Finding | None:
    """Whether TLS 1.3 of OTP 25, 27 and 29 takes a key of that kind, and it is no weak one."""
    match public:
        case rsa.RSAPublicKey():
            if MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
                return None
            what = f"is an RSA key of {public.key_size} bits, not of {MIN_RSA_BITS} to {MAX_RSA_BITS}"
        case ec.EllipticCurvePublicKey():
            if public.curve.name in CURVES:
                return None
            what = f"is an ECDSA key on {public.curve.name}, not on one of {', '.join(CURVES)}"
        case ed25519.Ed25519PublicKey():
            return None
        case _:
            what = "is neither an ECDSA nor an RSA nor an Ed25519 key"
    return Finding(Flaw.KEY_UNSUITABLE, what)


def path_to_anchor(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...] | None:
    """`leaf`, what leads on from it and the anchor, by signatures alone; None: it leads to none of them."""
    path: list[x509.Certificate] = [leaf]
    while len(path) <= MAX_CHAIN + 1:
        anchor = next((each for each in anchors if each == path[-1] or signed(each, path[-1])), None)
        if anchor is not None:
            return (*path, anchor) if anchor != path[-1] else tuple(path)
        above = next((each for each in others if each not in path and signed(each, path[-1])), None)
        if above is None:
            return None
        path.append(above)
    return None


def judge_path(path: Sequence[x509.Certificate], moment: datetime, cluster: str) -> Finding | None:
    """What keeps the CAs of a path (see `path_to_anchor`) from issuing what is at its beginning."""
    for certificate in path[:-1]:
        if not _strong(certificate):
            return Finding(Flaw.WEAK_SIGNATURE, f"is signed weakly ({_signature(certificate)})")
    for below, authority in enumerate(path[1:]):
        if (why := judge_authority(authority, moment, cluster, below=below)) is not None:
            return Finding(Flaw.CHAIN_INVALID, f"leads to a CA that {why}")
    return None


def judge_authority(
    authority: x509.Certificate, moment: datetime, cluster: str, *, below: int = 0
) -> str | None:
    """Why `authority` may not issue, with `below` other CAs between it and the leaf, an identity of the trust
    domain `cluster` now; None: it may.
    """
    basic = _extension(authority, x509.BasicConstraints)
    usage = _extension(authority, x509.KeyUsage)
    if basic is None or not basic.ca:
        return "is none: its basicConstraints do not say CA"
    if basic.path_length is not None and basic.path_length < below:
        return f"may have no more than {basic.path_length} CAs below it (pathlen)"
    if usage is not None and not usage.key_cert_sign:
        return "may not sign certificates (keyUsage)"
    if authority.not_valid_after_utc < moment:
        return f"has expired ({_date(authority.not_valid_after_utc)})"
    if authority.not_valid_before_utc > moment:
        return f"is not valid before {_date(authority.not_valid_before_utc)}"
    names = _extension(authority, x509.NameConstraints)
    if names is not None and not _permits(names, cluster):
        return f"may not name anybody of {cluster} (nameConstraints)"
    return None


def signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether `authority` has signed `certificate`, and is named as its issuer."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _judge_leaf(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    identity: str,
    cluster: str,
    moment: datetime,
) -> Finding | None:
    leaf = chain[0]
    if wrong := judge_key(leaf.public_key()):
        return wrong
    if leaf.serial_number < 0 or leaf.serial_number.bit_length() > 160:
        return Finding(Flaw.UNREADABLE, "has a serial number out of range")
    basic = _extension(leaf, x509.BasicConstraints)
    if basic is not None and basic.ca:
        return Finding(Flaw.NOT_A_LEAF, "is the certificate of a CA")
    if wrong := _judge_identity(leaf, identity, cluster) or _judge_usage(leaf):
        return wrong
    if leaf.not_valid_after_utc < moment:
        return Finding(Flaw.EXPIRED, f"has expired ({_date(leaf.not_valid_after_utc)})")
    if leaf.not_valid_before_utc > moment:
        return Finding(Flaw.NOT_YET_VALID, f"is not valid before {_date(leaf.not_valid_before_utc)}")
    path = path_to_anchor(leaf, chain[1:], anchors)
    if path is None:
        issuer = escape(leaf.issuer.rfc4514_string(), 200)
        return Finding(Flaw.UNKNOWN_CA, f"does not lead to a CA that the nodes trust (issuer: {issuer})")
    return judge_path(path, moment, cluster)


def _judge_identity(leaf: x509.Certificate, identity: str, cluster: str) -> Finding | None:
    """As core.admission.shown_by has it."""
    uris = profile.identities_of(leaf)
    if not is_certificate_name(identity):
        right = uris == (identity,)
    else:
        own = any(uri.startswith(f"{SPIFFE}{cluster}/") for uri in uris)
        right = len(uris) <= 1 and not own and identity in names_of(leaf)
    if right:
        return None
    shown = escape(", ".join(uris) or ", ".join(map(readable, names_of(leaf))) or "nobody", 300)
    return Finding(Flaw.WRONG_IDENTITY, f"is for {shown}, not for {escape(readable(identity), 300)}")


def _judge_usage(leaf: x509.Certificate) -> Finding | None:
    usage, extended = _extension(leaf, x509.KeyUsage), _extension(leaf, x509.ExtendedKeyUsage)
    if usage is None or not usage.digital_signature:
        return Finding(Flaw.KEY_USAGE, "is not for digitalSignature (keyUsage)")
    roles = {ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth", ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth"}
    lacking = [name for oid, name in roles.items() if extended is None or oid not in extended]
    if lacking:
        text = f"is not for {' and '.join(lacking)} (extendedKeyUsage), and a node dials and is dialled"
        return Finding(Flaw.KEY_USAGE, text)
    return None


def _permits(names: x509.NameConstraints, cluster: str) -> bool:
    """Whether a SPIFFE ID of `cluster` passes the URI constraints (RFC 5280, section 4.2.1.10)."""

    def uris(subtrees: Sequence[x509.GeneralName] | None) -> Iterator[str]:
        for each in subtrees or ():
            if isinstance(each, x509.UniformResourceIdentifier):
                yield each.value

    def covers(host: str) -> bool:
        return cluster.endswith(host.lower()) if host.startswith(".") else cluster == host.lower()

    permitted = list(uris(names.permitted_subtrees))
    excluded = any(map(covers, uris(names.excluded_subtrees)))
    return not excluded and (not permitted or any(map(covers, permitted)))


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _strong(certificate: x509.Certificate) -> bool:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return False
    return algorithm is None or algorithm.name in _HASHES  # None: Ed25519 hashes by itself


def _signature(certificate: x509.Certificate) -> str:
    return escape(certificate.signature_algorithm_oid._name, 60)


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
