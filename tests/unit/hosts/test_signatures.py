"""Every kind of key that a node may have signs a document, and no other key does in its place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from distsec.beam.host_document import _is_signed, sign_with
from distsec.pki.authority import key_pem_of

KINDS: dict[str, Callable[[], PrivateKeyTypes]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


def certificate(key: PrivateKeyTypes) -> x509.Certificate:
    authority = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())  # type: ignore[arg-type]
        .serial_number(1)
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(authority, hashes.SHA256())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_that_kind_signs_and_another_one_does_not(kind: str) -> None:
    key, other = KINDS[kind](), KINDS[kind]()
    signature = sign_with(key_pem_of(key), b"message")
    assert _is_signed(certificate(key), signature, b"message")
    assert not _is_signed(certificate(key), signature, b"messagE")
    assert not _is_signed(certificate(other), signature, b"message")
    assert not _is_signed(certificate(key), b"", b"message")
