"""The cluster's CA: makes keys, issues certificates, and reads both back.

Keys are written once and never replaced; a half-made CA or node (a key whose certificate is missing, after a
crash) is completed with the key that is there. Time is Unix seconds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from distsec.errors import StoreError
from distsec.model.cluster import Certificate
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.model.text import escape
from distsec.pki import profile
from distsec.pki.store import Store

KEY_FILE = "ca/key.pem"
CERTIFICATE_FILE = "ca/certificate.pem"


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of the trust domain `cluster`. Build it with `create` or `load`."""

    cluster: str
    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, store: Store, cluster_name: str, now: float) -> Authority:
        """Makes the CA, or what is missing of it, and loads it. Raises StoreError if the one there does not
        fit.
        """
        if not store.exists(KEY_FILE):
            if store.exists(CERTIFICATE_FILE):
                raise StoreError(
                    "is missing, though its certificate is there",
                    where=str(store.path(KEY_FILE)),
                    do="restore it from a backup (a new key would need a new certificate for every node)",
                )
            store.create(KEY_FILE, new_key_pem().reveal())
        if not store.exists(CERTIFICATE_FILE):
            certificate = profile.ca_certificate(_load_ca_key(store), cluster_name, new_serial(), now)
            store.create(CERTIFICATE_FILE, pem_of(certificate))
        authority = cls.load(store)
        authority.check(store, cluster_name, now)
        return authority

    @classmethod
    def load(cls, store: Store) -> Authority:
        """Reads the CA. Raises StoreError if it is not there or its key and certificate do not belong
        together.
        """
        key = _load_ca_key(store)
        certificate = load_certificate(store, CERTIFICATE_FILE)
        if not same_public_key(key.public_key(), certificate.public_key()):
            raise StoreError(
                "does not belong to key.pem beside it",
                where=str(store.path(CERTIFICATE_FILE)),
                do="restore both from the same backup",
            )
        identities = profile.identities_of(certificate)
        if len(identities) != 1:
            raise StoreError(
                "names no trust domain (one spiffe:// URI), so it is no CA of distsec",
                where=str(store.path(CERTIFICATE_FILE)),
                do="restore it from a backup",
            )
        return cls(identities[0].removeprefix("spiffe://"), certificate, key)

    def check(self, store: Store, cluster_name: str, now: float) -> None:
        """Raises StoreError unless this is the CA of `cluster_name` and has not expired."""
        where = str(store.path(CERTIFICATE_FILE))
        if self.cluster != cluster_name:
            raise StoreError(
                f"is the CA of cluster {escape(self.cluster)!r}, not of {cluster_name!r}",
                where=where,
                do="put the old name back into [cluster] name, or choose another state_dir for another",
            )
        if self.certificate.not_valid_after_utc.timestamp() < now:
            raise StoreError(
                f"the CA has expired ({self.certificate.not_valid_after_utc:%Y-%m-%d})",
                where=where,
                do="make a new cluster with `distsec init` in another directory",
            )

    @property
    def bundle_pem(self) -> bytes:
        """What nodes are to trust: the CA's certificate."""
        return pem_of(self.certificate)

    def issue(self, name: NodeName, address: str, days: int, now: float) -> tuple[Secret, bytes]:
        """A new key and its certificate (both PEM) for the node `name` that listens on `address`; nothing is
        kept.
        """
        key_pem = new_key_pem()
        return key_pem, self.certify(key_pem, name, address, days, now)

    def certify(self, key_pem: Secret, name: NodeName, address: str, days: int, now: float) -> bytes:
        """A certificate (PEM) for a key that is already there. ValueError unless that key is an ECDSA key."""
        key = serialization.load_pem_private_key(key_pem.reveal(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not an ECDSA key")
        certificate = profile.leaf_certificate(
            self._key,
            self.certificate,
            key.public_key(),
            node=name,
            address=address,
            cluster=self.cluster,
            serial=new_serial(),
            days=days,
            now=now,
        )
        return pem_of(certificate)

    def issue_shell(self, identity: str, seconds: int, now: float) -> tuple[Secret, x509.Certificate]:
        """A new key (PEM) and the certificate of an operator's shell that is `identity`; nothing is kept."""
        key = ec.generate_private_key(profile.CURVE())
        certificate = profile.shell_certificate(
            self._key,
            self.certificate,
            key.public_key(),
            identity=identity,
            cluster=self.cluster,
            serial=new_serial(),
            seconds=seconds,
            now=now,
        )
        return key_pem_of(key), certificate

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether this CA's key signed `certificate`."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


MAX_SERIAL_DIGITS = 40
"""Of RFC 5280's 20 bytes."""


def certificate_of(pem: bytes) -> Certificate:
    """What is shown of the first certificate in `pem`. Raises ValueError if it holds none, or one whose
    serial no policy could name: whoever owns the file may have made it.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        identities = profile.identities_of(certificate)
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError("malformed extensions") from error
    serial = serial_text(certificate.serial_number)
    if certificate.serial_number < 0 or len(serial) > MAX_SERIAL_DIGITS:
        raise ValueError("a serial out of range")
    return Certificate(
        identity=identities[0] if len(identities) == 1 else None,
        serial=serial,
        issuer=certificate.issuer.rfc4514_string(),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )


def serial_text(serial: int) -> str:
    """Lower-case hex of whole bytes, as the policy, the agents (distsec_identity:serial/1) and `status` write
    it.
    """
    digits = f"{serial:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


def new_key_pem() -> Secret:
    """A new ECDSA P-256 key in PKCS#8 PEM, which every OTP since 25 reads."""
    return key_pem_of(ec.generate_private_key(profile.CURVE()))


def key_pem_of(key: PrivateKeyTypes) -> Secret:
    """PKCS#8 PEM of `key`, unencrypted."""
    return Secret(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def new_serial() -> int:
    """128 random bits (CA/Browser Forum BR 7.1 asks for 64 at least)."""
    while (serial := profile.serial_from(os.urandom(profile.SERIAL_BITS // 8))) is None:
        pass
    return serial


def pem_of(certificate: x509.Certificate) -> bytes:
    """PEM of `certificate`."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def load_key(store: Store, relative: str) -> PrivateKeyTypes:
    """Reads a private key. Raises StoreError, which never holds a byte of it."""
    try:
        return serialization.load_pem_private_key(store.read(relative), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StoreError(
            "is no private key that can be read (unencrypted PEM)",
            where=str(store.path(relative)),
            do="restore it from a backup",
        ) from None


def load_certificate(store: Store, relative: str) -> x509.Certificate:
    """Reads a certificate. Raises StoreError if it is none."""
    try:
        return x509.load_pem_x509_certificate(store.read(relative))
    except ValueError:
        raise StoreError(
            "is no certificate (PEM)", where=str(store.path(relative)), do="restore it from a backup"
        ) from None


def same_public_key(one: PublicKeyTypes, other: PublicKeyTypes) -> bool:
    """Whether both are the same key, of whatever kind."""
    return _public_der(one) == _public_der(other)


def date_of(moment: datetime) -> str:
    """A date for people, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _public_der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _load_ca_key(store: Store) -> ec.EllipticCurvePrivateKey:
    key = load_key(store, KEY_FILE)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StoreError("is no ECDSA key", where=str(store.path(KEY_FILE)), do="restore it from a backup")
    return key
