"""CAs and certificates that somebody brings: made with `cryptography` alone, wrong in one thing at a time."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
DAY = timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
HOST = "127.0.0.1"

_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def usage(*granted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in granted for name in _USAGES})


def p256() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def key_of(kind: str) -> Key:
    """p256, p384, p521, ed25519, or rsa and its bits."""
    match kind:
        case "p256" | "p384" | "p521":
            curves = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
            return ec.generate_private_key(curves[kind])
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


def key_pem(key: Key, passphrase: bytes | None = None) -> bytes:
    """PKCS#8; the traditional form and AES-256-CBC are what `openssl` makes too, and are read as well."""
    sealing = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealing)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def _signed(builder: x509.CertificateBuilder, key: Key, weak: bool = False) -> x509.Certificate:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)
    return builder.sign(key, hashes.SHA224() if weak else hashes.SHA256())


def _builder(
    subject: str, issuer: x509.Name | None, key: Key, now: datetime, begin: timedelta, end: timedelta
) -> x509.CertificateBuilder:
    name = x509.Name.from_rfc4514_string(subject)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
    )


@dataclass(frozen=True, slots=True)
class Ca:
    """`above`: the CAs above it, the nearest first. `made`: from when its validity is counted. It is that of
    the CAs above it: what is made a second later does not outlive them by a second.
    """

    key: Key
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...] = ()
    made: datetime = field(default_factory=partial(datetime.now, UTC))

    @classmethod
    def root(
        cls,
        subject: str = "CN=Brought Root,O=Example",
        *,
        key: Key | None = None,
        pathlen: int | None = None,
        uris: Sequence[str] = (),
        constraints: x509.NameConstraints | None = None,
        is_ca: bool = True,
        granted: Sequence[str] = ("key_cert_sign", "crl_sign"),
        begin: timedelta = -DAY,
        end: timedelta = 100 * DAY,
        above: Ca | None = None,
    ) -> Ca:
        """A root, or with `above` a CA below that one."""
        key = key or p256()
        made = above.made if above else datetime.now(UTC)
        builder = _builder(subject, above.certificate.subject if above else None, key, made, begin, end)
        builder = builder.add_extension(x509.BasicConstraints(is_ca, pathlen if is_ca else None), True)
        builder = builder.add_extension(usage(*granted), True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        signer = above.key if above else key
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        if constraints is not None:
            builder = builder.add_extension(constraints, True)
        chain = (above.certificate, *above.above) if above else ()
        return cls(key, _signed(builder, signer), chain, made)

    def leaf(
        self,
        *uris: str,
        key: Key | None = None,
        dns: Sequence[str] = (HOST,),
        subject: str = "CN=brought leaf",
        granted: Sequence[str] | None = ("digital_signature",),
        extended: Sequence[ObjectIdentifier] | None = BOTH,
        is_ca: bool = False,
        begin: timedelta = -DAY,
        end: timedelta = 30 * DAY,
        weak: bool = False,
    ) -> tuple[Key, x509.Certificate]:
        """A key and its certificate; None: without that extension. `weak`: signed with SHA-224."""
        key = key or p256()
        builder = _builder(subject, self.certificate.subject, key, datetime.now(UTC), begin, end)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        if HOST in dns:
            names.append(x509.IPAddress(ipaddress.ip_address(HOST)))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), True)
        if granted is not None:
            builder = builder.add_extension(usage(*granted), True)
        if extended is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(extended), False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
        )
        return key, _signed(builder, self.key, weak)

    @property
    def pem(self) -> bytes:
        """Itself, and what is above it."""
        return pem(self.certificate, *self.above)
