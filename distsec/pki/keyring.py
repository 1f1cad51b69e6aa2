"""Where the CA's key is, and how it is had: beside its certificate as it is, sealed there, or elsewhere.

A `Keyring` opens sealed keys. What Argon2id has cost is spent once: an opened key stays in this process's
memory until it ends, as a Secret. The passphrase does not: it is asked for anew whenever there is something
to open.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Callable
from enum import StrEnum

from distsec.errors import CaKeyUnavailable, PassphraseWrong
from distsec.model.secret import Secret
from distsec.pki.sealed import RANDOM_BYTES, SealedKey, open_sealed, passphrase_wrong, read_sealed, seal

HOW_TO_GIVE_IT = (
    "give it with --passphrase-file or --passphrase-fd; to the orchestrator with [certificates.ca]"
    " passphrase_file or the systemd credential distsec-ca-passphrase"
)


class KeyState(StrEnum):
    """Of a CA's key, as its files say."""

    PLAIN = "plain"  # key.pem, with a sealed copy or without
    SEALED = "sealed"  # key.sealed alone
    ELSEWHERE = "elsewhere"  # the certificate alone


class Keyring:
    """`passphrase` asks for it, at each call, and may raise DistsecError; None: there is none.
    `new_passphrase` asks for one to seal with; None: the same. For any thread.
    """

    def __init__(
        self,
        passphrase: Callable[[], Secret] | None = None,
        new_passphrase: Callable[[], Secret] | None = None,
    ) -> None:
        self.passphrase = passphrase
        self.new_passphrase = new_passphrase
        self._opened: dict[bytes, Secret] = {}  # by the digest of the sealed file
        self._refused: tuple[bytes, bytes] | None = (
            None  # that digest, and a keyed one of what did not open it
        )
        self._pepper = os.urandom(32)
        self._opening = threading.Lock()

    def open(self, content: bytes, where: str) -> Secret:
        """The key (PEM) that is sealed in `content` of the file `where`. Takes some tenths of a second the
        first time. Raises CaKeyUnavailable, PassphraseWrong, and CaKeyUnreadable for a damaged file.
        """
        digest = hashlib.sha256(content).digest()
        with self._opening:  # so that many who need it at once pay once
            if digest not in self._opened:
                sealed = read_sealed(content, where)
                self._opened[digest] = self._try(sealed, _ask(self.passphrase, where), digest, where)
            return self._opened[digest]

    def _try(self, sealed: SealedKey, passphrase: Secret, digest: bytes, where: str) -> Secret:
        """Argon2id is not spent twice on the same wrong passphrase: renewals ask for every node, for days."""
        tried = digest, hmac.digest(self._pepper, passphrase.reveal(), "sha256")
        if tried == self._refused:
            raise passphrase_wrong(where)
        try:
            return open_sealed(sealed, passphrase, where)
        except PassphraseWrong:
            self._refused = tried
            raise

    def forget(self) -> None:
        """Of keys that were opened: they are asked for again."""
        with self._opening:
            self._opened.clear()

    def seal(self, key_pem: Secret) -> bytes:
        """What is to be in a file to hold `key_pem` sealed. Raises CaKeyUnavailable, UsageError."""
        source = self.new_passphrase or self.passphrase
        if source is None:
            raise CaKeyUnavailable(
                "the CA's key is to be sealed, and no passphrase was given", do=HOW_TO_GIVE_IT
            )
        content = seal(key_pem, source(), os.urandom(RANDOM_BYTES))
        self._opened[hashlib.sha256(content).digest()] = key_pem
        return content


def _ask(source: Callable[[], Secret] | None, where: str) -> Secret:
    if source is None:
        raise CaKeyUnavailable(
            "the CA's key is sealed, and no passphrase was given", where=where, do=HOW_TO_GIVE_IT
        )
    return source()
