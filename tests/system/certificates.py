"""Certificates for those who are not managed: valid ones, and every kind of wrong one.

Written with `cryptography` alone, so that what the product issues is measured against something else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

BOTH_ROLES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A key and its certificate on disk, and the CA that signed it."""

    certificate: Path
    key: Path
    ca: Path
    serial: str  # lower-case hex of whole bytes, as the product writes serials


@dataclass(frozen=True, slots=True)
class TestAuthority:
    """A CA: the cluster's own (an insider's certificate), or a foreign one."""

    __test__ = False  # no test, whatever its name begins with

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def foreign(cls, common_name: str = "foreign CA") -> TestAuthority:
        """A CA that nobody trusts. Give it the cluster CA's name to make a look-alike."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 10 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def of_cluster(cls, state_dir: Path) -> TestAuthority:
        """The cluster's own CA, whose key a test may use to make what an insider or a mistake would."""
        key = serialization.load_pem_private_key((state_dir / "ca/key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key, x509.load_pem_x509_certificate((state_dir / "ca/certificate.pem").read_bytes()))

    def issue(
        self,
        directory: Path,
        uris: Sequence[str] = (),
        *,
        host: str = "127.0.0.1",
        usage: Sequence[ObjectIdentifier] = BOTH_ROLES,
        valid_from: timedelta = -DAY,
        valid_for: timedelta = 2 * DAY,
        subject: str = "CN=test leaf",
        dns: Sequence[str] = (),
    ) -> Leaf:
        """Writes a leaf into `directory`; `valid_from` is counted from now, `valid_for` from there.
        `subject`: as RFC 4514 writes it; `dns`: names beside the host's.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        begins = datetime.now(UTC) + valid_from
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        # OTP 25 looks for an IP literal among the DNS names, 27 and newer among the addresses
        names += [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address(host)), *map(x509.DNSName, dns)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name.from_rfc4514_string(subject))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + valid_for)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_digital_signature(), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )
        directory.mkdir(parents=True, exist_ok=True)
        leaf = Leaf(
            directory / "certificate.pem",
            directory / "key.pem",
            directory / "ca.pem",
            _hexadecimal(certificate.serial_number),
        )
        leaf.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        leaf.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        leaf.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return leaf


def _digital_signature() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hexadecimal(serial: int) -> str:
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big").hex()
