"""A private key at rest, sealed with a passphrase. Pure: bytes in, bytes out; randomness is an argument.

Argon2id (RFC 9106) makes a key of the passphrase, AES-256-GCM (NIST SP 800-38D) seals with it. The file is
text:

    distsec-sealed-key 1
    kdf argon2id memory_kib=65536 iterations=3 lanes=4 salt=<32 hex digits>
    cipher aes-256-gcm nonce=<24 hex digits>
    public <SHA-256 of the public key's SubjectPublicKeyInfo, hex>
    sealed <base64 of ciphertext and tag>
    check <SHA-256 of every byte before this line, hex>

Every byte before the line `sealed` is authenticated with the ciphertext. `check` keeps nobody from anything:
it tells a file that a disk has damaged from a passphrase that is wrong. What the file asks of Argon2id is
bounded before any of it is spent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from distsec.errors import CaKeyUnreadable, PassphraseWrong, UsageError
from distsec.model.secret import Secret

SHORTEST_PASSPHRASE = 12
"""Characters; what is shorter is found by trying, whatever Argon2id costs."""

SALT_BYTES = 16
NONCE_BYTES = 12
RANDOM_BYTES = SALT_BYTES + NONCE_BYTES
KEY_BYTES = 32

MAX_FILE_BYTES = 64 * 1024
"""A key takes a few hundred bytes."""

LEAST_MEMORY_KIB, MOST_MEMORY_KIB = 19 * 1024, 1024 * 1024
MOST_ITERATIONS = 16
MOST_LANES = 16
MOST_WORK_KIB = 4 * 1024 * 1024
"""Memory times iterations: some seconds of one core."""

_FORM = re.compile(
    rb"(?P<head>distsec-sealed-key 1\n"
    rb"kdf argon2id memory_kib=(?P<memory>[1-9][0-9]{0,9}) iterations=(?P<iterations>[1-9][0-9]{0,5})"
    rb" lanes=(?P<lanes>[1-9][0-9]{0,5}) salt=(?P<salt>[0-9a-f]{32})\n"
    rb"cipher aes-256-gcm nonce=(?P<nonce>[0-9a-f]{24})\n"
    rb"public (?P<public>[0-9a-f]{64})\n)"
    rb"sealed (?P<sealed>[A-Za-z0-9+/]{24,60000}={0,2})\n"
    rb"check (?P<check>[0-9a-f]{64})\n"
)
_OTHER_VERSION = re.compile(rb"distsec-sealed-key ([0-9]{1,6})\n")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one try of a passphrase costs. The default is RFC 9106, section 4, second recommended option."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A file that has been read and not opened. `public`: see `fingerprint`."""

    public: str
    cost: Cost
    salt: bytes
    nonce: bytes
    head: bytes
    ciphertext: bytes


def fingerprint(key: PublicKeyTypes) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in lower-case hex: which key it is, without being it."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def seal(key_pem: Secret, passphrase: Secret, random: bytes, cost: Cost | None = None) -> bytes:
    """The file for `key_pem`, an unencrypted private key in PEM.

    `random`: RANDOM_BYTES that were never used before. Raises UsageError for a passphrase that is too short.
    """
    check_passphrase(passphrase)
    public = fingerprint(serialization.load_pem_private_key(key_pem.reveal(), password=None).public_key())
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"{RANDOM_BYTES} random bytes are needed")
    cost = cost or Cost()
    salt, nonce = random[:SALT_BYTES], random[SALT_BYTES:]
    head = (
        "distsec-sealed-key 1\n"
        f"kdf argon2id memory_kib={cost.memory_kib} iterations={cost.iterations} lanes={cost.lanes}"
        f" salt={salt.hex()}\n"
        f"cipher aes-256-gcm nonce={nonce.hex()}\n"
        f"public {public}\n"
    ).encode()
    ciphertext = AESGCM(_derive(passphrase, salt, cost)).encrypt(nonce, key_pem.reveal(), head)
    body = head + b"sealed " + base64.b64encode(ciphertext) + b"\n"
    return body + b"check " + hashlib.sha256(body).hexdigest().encode() + b"\n"


def read_sealed(content: bytes, where: str) -> SealedKey:
    """Raises CaKeyUnreadable unless `content`, of the file `where`, is whole and asks for no more than it
    may.
    """
    found = _FORM.fullmatch(content) if len(content) <= MAX_FILE_BYTES else None
    if found is None:
        other = _OTHER_VERSION.match(content)
        if other is not None and other[1] != b"1":
            raise CaKeyUnreadable(
                f"was sealed by a later distsec (version {int(other[1])} of the format)",
                where=where,
                do="use that one",
            )
        raise _damaged(where)
    if hashlib.sha256(content[: found.start("check") - len("check ")]).hexdigest().encode() != found["check"]:
        raise _damaged(where)
    cost = Cost(int(found["memory"]), int(found["iterations"]), int(found["lanes"]))
    if not (
        LEAST_MEMORY_KIB <= cost.memory_kib <= MOST_MEMORY_KIB
        and cost.iterations <= MOST_ITERATIONS
        and cost.lanes <= MOST_LANES
        and cost.memory_kib * cost.iterations <= MOST_WORK_KIB
    ):
        raise CaKeyUnreadable(
            f"asks Argon2id for {cost.memory_kib} KiB, {cost.iterations} times over, in {cost.lanes} lanes,"
            " which is outside of what is spent on a key",
            where=where,
            do="restore it from a backup: distsec writes none like it",
        )
    try:
        ciphertext = base64.b64decode(found["sealed"], validate=True)
    except binascii.Error:
        raise _damaged(where) from None
    salt, nonce = bytes.fromhex(found["salt"].decode()), bytes.fromhex(found["nonce"].decode())
    return SealedKey(found["public"].decode(), cost, salt, nonce, found["head"], ciphertext)


def open_sealed(sealed: SealedKey, passphrase: Secret, where: str) -> Secret:
    """The key (PEM). Costs what `sealed.cost` says. Raises PassphraseWrong, which holds nothing of either."""
    try:
        cipher = AESGCM(_derive(passphrase, sealed.salt, sealed.cost))
        return Secret(cipher.decrypt(sealed.nonce, sealed.ciphertext, sealed.head))
    except InvalidTag:
        raise passphrase_wrong(where) from None


def passphrase_wrong(where: str) -> PassphraseWrong:
    """The error about a passphrase that does not open the file `where`."""
    return PassphraseWrong(
        "the passphrase does not open it (or somebody has changed the file)",
        where=where,
        do="give the right one; if it is lost, so is the key: restore a backup, or make a new CA",
    )


def check_passphrase(passphrase: Secret) -> None:
    """Raises UsageError if it is too short to seal with."""
    length = len(passphrase.reveal().decode("utf-8", "replace"))
    if length < SHORTEST_PASSPHRASE:
        raise UsageError(
            f"the passphrase is shorter than {SHORTEST_PASSPHRASE} characters",
            do="choose a longer one: five words that were drawn at random do",
        )


def _derive(passphrase: Secret, salt: bytes, cost: Cost) -> bytes:
    kdf = Argon2id(
        salt=salt,
        length=KEY_BYTES,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    )
    return kdf.derive(passphrase.reveal())


def _damaged(where: str) -> CaKeyUnreadable:
    return CaKeyUnreadable("is no sealed key, or a damaged one", where=where, do="restore it from a backup")
