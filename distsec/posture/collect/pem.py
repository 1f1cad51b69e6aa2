"""Certificates and the public halves of keys, from PEM. No private key leaves this module."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from distsec.posture.collect.reading import read
from distsec.posture.facts import CertificateFact

MAX_CERTIFICATES: Final = 1000
"""Of one file: a system's bundle holds about 150."""

_BLOCK = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----.+?-----END[^\n]*", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_ENCRYPTED = re.compile(rb"BEGIN ENCRYPTED PRIVATE KEY|Proc-Type: 4,ENCRYPTED")


def certificates(content: bytes) -> tuple[x509.Certificate, ...]:
    """Every certificate of a PEM text. Raises ValueError if there is none, or one that cannot be read."""
    blocks = [block for block, _ in zip(_BLOCK.finditer(content), range(MAX_CERTIFICATES), strict=False)]
    if not blocks:
        raise ValueError("holds no certificate (PEM)")
    try:
        found = tuple(x509.load_pem_x509_certificate(block[0] + b"\n") for block in blocks)
        for each in found:
            each.public_key()
            list(each.extensions)
            _ = each.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise ValueError("holds a certificate that cannot be read") from None
    return found


def public_half(content: bytes) -> bytes:
    """DER of the public key of a private key in PEM. Raises ValueError, which holds no byte of it."""
    if not _KEY.search(content):
        raise ValueError("holds no private key (PEM)")
    if _ENCRYPTED.search(content):
        raise ValueError("is encrypted, so it is not known whether it fits")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("is no private key that can be read") from None
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load(path: Path) -> tuple[tuple[x509.Certificate, ...], str | None, bool]:
    """(certificates, problem, whether the file is missing)."""
    found = read(path)
    if found.content is None:
        return (), found.problem, found.missing
    try:
        return certificates(found.content), None, False
    except ValueError as error:
        return (), str(error), False


def load_public_half(path: Path) -> tuple[bytes | None, str | None, bool]:
    """(DER of the public key, problem, whether the file is missing)."""
    found = read(path)
    if found.content is None:
        return None, found.problem, found.missing
    try:
        return public_half(found.content), None, False
    except ValueError as error:
        return None, str(error), False


def pair(holder: str, certificate: Path, key: Path | None, trust: Path | None) -> CertificateFact:
    """A certificate with the key and the trust bundle that are named beside it (None: none is)."""
    chain, problem, missing = load(certificate)
    public, key_problem, key_missing = load_public_half(key) if key else (None, None, False)
    trusted, trust_problem, trust_missing = load(trust) if trust else ((), None, False)
    return CertificateFact(
        holder=holder,
        place=str(certificate),
        chain=chain,
        problem=problem,
        missing=missing,
        key_place=str(key) if key else None,
        key=public,
        key_problem=key_problem,
        key_missing=key_missing,
        trust_place=str(trust) if trust else None,
        trust=trusted,
        trust_problem="does not exist" if trust_missing else trust_problem,
    )
