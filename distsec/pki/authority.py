"""The cluster's CA: makes keys, issues certificates, and reads both back.

Keys are written once and never replaced; a half-made CA or node (a key whose certificate is missing, after a
crash) is completed with the key that is there. Time is Unix seconds.

The certificate is all that running nodes need of their CA. Its key may be sealed (`pki.sealed`) or kept on
another host; then it is looked for when something is to be signed, and not before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from distsec.errors import CaKeyUnavailable, CaKeyUnreadable, StoreError, UsageError
from distsec.model.cluster import Certificate
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.model.text import escape
from distsec.pki import lineage, profile
from distsec.pki.keyring import Keyring, KeyState
from distsec.pki.sealed import fingerprint, read_sealed
from distsec.pki.store import Store
from distsec.pki.subject import names_of

DIRECTORY = "ca"
KEY_FILE = "ca/key.pem"
SEALED_FILE = "ca/key.sealed"
CERTIFICATE_FILE = "ca/certificate.pem"
_KEY, _SEALED, _CERTIFICATE = "key.pem", "key.sealed", "certificate.pem"


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of the trust domain `cluster`. Build it with `create` or `load`.

    Whatever signs raises CaKeyUnavailable where the key is not to be had, and may take some tenths of a
    second the first time in this process (Argon2id): call it in a thread.
    """

    cluster: str
    certificate: x509.Certificate
    _key: Callable[[], profile.PrivateKey] = field(repr=False)
    key_state: KeyState = KeyState.PLAIN
    presented: tuple[x509.Certificate, ...] = ()  # what is shown after a leaf; see pki.lineage

    @classmethod
    def create(
        cls,
        store: Store,
        cluster_name: str,
        now: float,
        directory: str = DIRECTORY,
        *,
        seal: bool = False,
        successor: bool = False,
        unlock: Keyring | None = None,
    ) -> Authority:
        """Makes the CA, or what is missing of it, and loads it; a new key is sealed if `seal`. A certificate
        without a key is a CA whose key is elsewhere, never a reason for a new one. `successor`: see
        profile.ca_certificate; so is every one in another directory.

        Raises StoreError if what is there does not fit, CaKeyUnavailable and UsageError about the passphrase.
        """
        key, sealed, certificate = _files(directory)
        state = key_state(store, directory)
        if seal and state is KeyState.PLAIN:
            raise UsageError(
                "is there, and is not sealed",
                where=str(store.path(key)),
                do="seal it with `distsec certs seal`",
            )
        if state is KeyState.ELSEWHERE and not store.exists(certificate):
            new = new_key_pem()
            if seal:
                store.create(sealed, (unlock or store.keyring).seal(new))
            else:
                store.create(key, new.reveal())
        if not store.exists(certificate):
            private, name = _read_signing_key(store, directory, unlock)
            if not isinstance(private, ec.EllipticCurvePrivateKey):  # of none that we have made
                where = str(store.path(f"{directory}/{name}"))
                raise StoreError("is no ECDSA key", where=where, do="restore it from a backup")
            successor = successor or directory != DIRECTORY
            made = profile.ca_certificate(private, cluster_name, new_serial(), now, successor=successor)
            store.create(certificate, pem_of(made))
        authority = cls.load(store, directory, unlock)
        authority.check(store, cluster_name, now)
        return authority

    @classmethod
    def load(cls, store: Store, directory: str = DIRECTORY, unlock: Keyring | None = None) -> Authority:
        """Reads the CA in `directory`. `unlock` opens its key, if that is sealed; None: the store's keyring.

        Raises StoreError if it is not there or its key and certificate do not belong together. Asks for no
        passphrase.
        """
        relative = f"{directory}/{_CERTIFICATE}"
        certificate = load_certificate(store, relative)
        state, key = key_state(store, directory), _key_of(store, directory, unlock, certificate)
        if state is KeyState.PLAIN:
            key()  # a file that is spoiled is found out now
        elif state is KeyState.SEALED:
            sealed = f"{directory}/{_SEALED}"
            # Nodes need the certificate alone: a damaged file is told to whoever wants to sign.
            with contextlib.suppress(CaKeyUnreadable):
                found = read_sealed(store.read(sealed), str(store.path(sealed)))
                if found.public != fingerprint(certificate.public_key()):
                    raise _not_beside(store, relative, _SEALED)
        cluster = lineage.trust_domain(store, directory, certificate)
        above = lineage.presented(store, directory, certificate)
        return cls(cluster, certificate, key, state, above)

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
        """The CA's own certificate. What nodes are to trust is in `pki.trust`."""
        return pem_of(self.certificate)

    @property
    def chain_pem(self) -> bytes:
        """What follows a certificate of this CA in its file; nothing where the CA is a root."""
        return b"".join(map(pem_of, self.presented))

    def issue(self, name: NodeName, address: str, days: float, now: float) -> tuple[Secret, bytes]:
        """A new key and its certificate (both PEM) for the node `name` that listens on `address`; nothing is
        kept.
        """
        key_pem = new_key_pem()
        return key_pem, self.certify(key_pem, name, address, days, now)

    def certify(self, key_pem: Secret, name: NodeName, address: str, days: float, now: float) -> bytes:
        """A certificate (PEM) for a key that is already there. ValueError unless that key is an ECDSA key."""
        key = serialization.load_pem_private_key(key_pem.reveal(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("not an ECDSA key")
        return self.certify_public(key.public_key(), name, address, days, now)

    def certify_public(
        self, public: profile.PublicKey, name: NodeName, address: str, days: float, now: float
    ) -> bytes:
        """A certificate (PEM, with its chain) for whoever has the private half of `public`."""
        key = self.signing_for([str(name)])
        certificate = profile.leaf_certificate(
            key,
            self.certificate,
            public,
            node=name,
            address=address,
            cluster=self.cluster,
            serial=new_serial(),
            days=days,
            now=now,
        )
        return pem_of(certificate) + self.chain_pem

    def issue_shell(self, identity: str, seconds: int, now: float) -> tuple[Secret, x509.Certificate]:
        """A new key (PEM) and the certificate of an operator's shell that is `identity`; nothing is kept."""
        offline = "a shell wants one for itself: bring the key back for as long as you need shells"
        signing = self._signing("no shell", offline)
        key = ec.generate_private_key(profile.CURVE())
        certificate = profile.shell_certificate(
            signing,
            self.certificate,
            key.public_key(),
            identity=identity,
            cluster=self.cluster,
            serial=new_serial(),
            seconds=seconds,
            now=now,
        )
        return key_pem_of(key), certificate

    def signing_for(self, names: Sequence[str]) -> profile.PrivateKey:
        """What signs certificates for the nodes `names`. Raises like `private_key`, and says for whom."""
        offline = (
            f"take a request to where it is: `distsec certs renew --offline {' '.join(names)} --out FILE`"
        )
        return self._signing(f"no certificate for {', '.join(names)}", offline)

    def private_key(self) -> profile.PrivateKey:
        """What signs. Raises CaKeyUnavailable, PassphraseWrong, StoreError."""
        return self._key()

    def _signing(self, undone: str, offline: str) -> profile.PrivateKey:
        """Its key. Where that is not to be had, the error says what is `undone`, and what to do `offline`."""
        try:
            return self.private_key()
        except CaKeyUnavailable as error:
            do = offline if self.key_state is KeyState.ELSEWHERE else error.do
            raise type(error)(f"{undone}: {error.what}", where=error.where, do=do) from None

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
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        names=names_of(certificate),
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


def key_state(store: Store, directory: str = DIRECTORY) -> KeyState:
    """Where the key of the CA in `directory` is. Of two (sealing was interrupted) the plain one counts."""
    key, sealed, _ = _files(directory)
    if store.exists(key):
        return KeyState.PLAIN
    return KeyState.SEALED if store.exists(sealed) else KeyState.ELSEWHERE


def load_ca_key(store: Store, directory: str = DIRECTORY, unlock: Keyring | None = None) -> Secret:
    """The CA's key (PEM), opened if it is sealed. Raises CaKeyUnavailable, PassphraseWrong, StoreError."""
    key, sealed, _ = _files(directory)
    match key_state(store, directory):
        case KeyState.PLAIN:
            load_key(store, key)  # says what is wrong with it
            return Secret(store.read(key))
        case KeyState.SEALED:
            return (unlock or store.keyring).open(store.read(sealed), str(store.path(sealed)))
        case KeyState.ELSEWHERE:
            raise CaKeyUnavailable(
                "the CA's key is not on this host",
                where=str(store.path(directory)),
                do="run it where the key is",
            )


def _key_of(
    store: Store, directory: str, unlock: Keyring | None, certificate: x509.Certificate
) -> Callable[[], profile.PrivateKey]:
    """The way to the key of `certificate`, which is in `directory`."""

    def key() -> profile.PrivateKey:
        found, name = _read_signing_key(store, directory, unlock)
        if not same_public_key(found.public_key(), certificate.public_key()):
            raise _not_beside(store, f"{directory}/{_CERTIFICATE}", name)
        return found

    return key


def _not_beside(store: Store, certificate: str, key: str) -> StoreError:
    return StoreError(
        f"does not belong to {key} beside it",
        where=str(store.path(certificate)),
        do="restore both from the same backup",
    )


def _read_signing_key(store: Store, directory: str, unlock: Keyring | None) -> tuple[profile.PrivateKey, str]:
    """With the name of the file that it is in."""
    pem = load_ca_key(store, directory, unlock)
    name = _KEY if store.exists(f"{directory}/{_KEY}") else _SEALED
    key = serialization.load_pem_private_key(pem.reveal(), password=None)
    if not isinstance(key, profile.PrivateKey):
        where = str(store.path(f"{directory}/{name}"))
        raise StoreError("is no key that can sign certificates", where=where, do="restore it from a backup")
    return key, name


def _files(directory: str) -> tuple[str, str, str]:
    """Key, sealed key and certificate of the CA in `directory`."""
    return f"{directory}/{_KEY}", f"{directory}/{_SEALED}", f"{directory}/{_CERTIFICATE}"
