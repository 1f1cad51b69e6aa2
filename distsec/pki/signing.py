"""The key that signs policies (Ed25519, RFC 8032). Nodes have its public half and obey nothing unsigned."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distsec.errors import StoreError
from distsec.pki.authority import key_pem_of, load_key
from distsec.pki.store import Store

KEY_FILE = "ca/policy.key"


@dataclass(frozen=True, slots=True)
class PolicySigner:
    """Signs policy documents. Build it with `create` or `load`."""

    _key: Ed25519PrivateKey

    @classmethod
    def create(cls, store: Store) -> PolicySigner:
        """Makes the key unless there is one, and loads it. Raises StoreError."""
        if not store.exists(KEY_FILE):
            store.create(KEY_FILE, key_pem_of(Ed25519PrivateKey.generate()).reveal())
        return cls.load(store)

    @classmethod
    def load(cls, store: Store) -> PolicySigner:
        """Reads the key. Raises StoreError if it is missing or of another kind."""
        key = load_key(store, KEY_FILE)
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(
                "is no Ed25519 key", where=str(store.path(KEY_FILE)), do="restore it from a backup"
            )
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over `message`."""
        return self._key.sign(message)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key made `signature` over `message`."""
        try:
            self._key.public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @property
    def public_raw(self) -> bytes:
        """The 32 bytes of the public key, as `crypto:verify(eddsa, …)` takes them."""
        return self._key.public_key().public_bytes_raw()
