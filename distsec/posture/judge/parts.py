"""Parts of certificates as the judges look at them, and what to do about one. Pure."""

from __future__ import annotations

from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from distsec.model.text import escape
from distsec.posture.facts import CertificateFact

_RENEW: Final = "distsec certs renew {}"
_RENEW_OFFLINE: Final = "distsec certs renew --offline {} --out FILE, and have it signed (docs/hosts.md)"

Extension = TypeVar("Extension", bound=x509.ExtensionType)


def renew(fact: CertificateFact) -> str:
    if not fact.managed:
        return "have its CA issue another, and restart the node"
    return (_RENEW_OFFLINE if fact.offline else _RENEW).format(fact.holder)


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the key of `issuer` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    """The value of an extension, None if it has none (what cannot be read, `collect.pem` has refused)."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def public_der(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def is_ca(certificate: x509.Certificate) -> bool:
    basic = extension(certificate, x509.BasicConstraints)
    return basic is not None and basic.ca


def subject(certificate: x509.Certificate) -> str:
    return escape(certificate.subject.rfc4514_string() or "no subject", 120)


def listed(texts: list[str]) -> str:
    shown = ", ".join(escape(text, 120) for text in texts[:4])
    return f"{shown} and {len(texts) - 4} more" if len(texts) > 4 else shown
