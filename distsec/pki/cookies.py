"""Distribution cookies, derived from one secret that nodes never see (docs/state-files.md gives the
formulas).

Each node has a default cookie, which its command-line tools use, and one with each peer. So a node that is
broken into knows no cookie of a link between two others, and nothing has to be handed around when a node
joins.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from distsec.errors import StoreError
from distsec.model.secret import Secret
from distsec.pki.store import Store

SECRET_FILE = "ca/cookie.secret"  # noqa: S105 - a name, not a password
SECRET_BYTES = 32
COOKIE_BYTES = 32

_HEX_SECRET = re.compile(rb"[0-9a-f]{%d}\s*" % (2 * SECRET_BYTES))


def create_secret(store: Store) -> Secret:
    """Makes the secret unless there is one, and loads it. Raises StoreError."""
    if not store.exists(SECRET_FILE):
        store.create(SECRET_FILE, os.urandom(SECRET_BYTES).hex().encode() + b"\n")
    return load_secret(store)


def load_secret(store: Store) -> Secret:
    """Reads the secret. Raises StoreError if it is missing or damaged."""
    text = store.read(SECRET_FILE)
    if not _HEX_SECRET.fullmatch(text):
        raise StoreError(
            f"does not hold {SECRET_BYTES} bytes in hex",
            where=str(store.path(SECRET_FILE)),
            do="restore it from a backup",
        )
    return Secret(binascii.unhexlify(text.strip()))


def default_cookie(secret: Secret, node: str, epochs: Mapping[str, int]) -> Secret:
    """The cookie of `node` towards names that are not listed exactly: its command-line tools.

    `epochs`: how often nodes were re-keyed, by name (none: never); each time they get other cookies.
    """
    if not epochs.get(node):
        return _derived(b"d", secret, b"distsec cookie default 1\0" + node.encode())
    return _derived(b"d", secret, b"distsec cookie default 2\0" + _at_epoch(node, epochs))


def pair_cookie(secret: Secret, one: str, other: str, epochs: Mapping[str, int]) -> Secret:
    """The cookie between two nodes, the same from either side; `epochs` as in `default_cookie`."""
    first, second = sorted((one, other), key=str.encode)
    if not epochs.get(first) and not epochs.get(second):
        return _derived(b"p", secret, b"distsec cookie pair 1\0" + first.encode() + b"\0" + second.encode())
    info = b"distsec cookie pair 2\0" + _at_epoch(first, epochs) + b"\0" + _at_epoch(second, epochs)
    return _derived(b"p", secret, info)


def _at_epoch(node: str, epochs: Mapping[str, int]) -> bytes:
    return node.encode() + b"\0%d" % epochs.get(node, 0)


def _derived(prefix: bytes, secret: Secret, info: bytes) -> Secret:
    """The prefix is a letter because `-setcookie` and friends take a leading `-` for a flag."""
    derived = HKDF(algorithm=hashes.SHA256(), length=COOKIE_BYTES, salt=None, info=info).derive(
        secret.reveal()
    )
    return Secret(prefix + derived.hex().encode())
