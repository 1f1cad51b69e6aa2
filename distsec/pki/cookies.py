"""Distribution cookies, derived from one secret that nodes never see (docs/state-files.md gives the
formulas).

Each node has a default cookie, which its command-line tools use, and one with each peer. So a node that is
broken into knows no cookie of a link between two others, and nothing has to be handed around when a node
joins.

While the secret is rotated there are two, and `ca/cookie.rotation` says which of them is for what
(`core.cookie_rotation` decides; docs/cookies.md).
"""

from __future__ import annotations

import binascii
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from distsec.errors import StoreError
from distsec.model.cookies import CookiePhase, CookieRotation, Cookies, CookieSet
from distsec.model.hosts import HostSpec
from distsec.model.secret import Secret
from distsec.pki.hosts import load_host_key
from distsec.pki.store import Store

SECRET_FILE = "ca/cookie.secret"  # noqa: S105 - a name, not a password
NEXT_FILE = "ca/cookie.next"
ROTATION_FILE = "ca/cookie.rotation"
SECRET_BYTES = 32
COOKIE_BYTES = 32

_HEX_SECRET = re.compile(rb"[0-9a-f]{%d}\s*" % (2 * SECRET_BYTES))


def create_secret(store: Store) -> Secret:
    """Makes the secret unless there is one, and loads it. Raises StoreError."""
    if not store.exists(SECRET_FILE):
        store.create(SECRET_FILE, _new_secret())
    return load_secret(store)


def load_secret(store: Store) -> Secret:
    """Reads the secret that nodes dial with now. Raises StoreError if it is missing or damaged."""
    return _read_secret(store, NEXT_FILE if load_rotation(store).dials_with_next else SECRET_FILE)


def cookie_set(
    store: Store,
    node: str,
    peers: Iterable[str],
    epochs: Mapping[str, int],
    hosts: tuple[HostSpec, ...] = (),
) -> CookieSet:
    """What `node` has with `peers` (itself left out) in the phase of now. Raises StoreError.

    With a peer at one of `hosts` the cookie follows from the keys of both hosts (pki.hosts), and a rotation
    of the secret here changes nothing about it.
    """
    rotation = load_rotation(store)
    named = [peer for peer in peers if peer != node]
    elsewhere = _with_hosts(store, node, named, epochs, hosts)

    def of(relative: str) -> Cookies:
        secret = _read_secret(store, relative)
        own = {peer: pair_cookie(secret, node, peer, epochs) for peer in named if peer not in elsewhere}
        return Cookies(default_cookie(secret, node, epochs), own | elsewhere)

    current, other = _FILES[rotation.phase]
    return CookieSet(rotation.step, of(current), None if other is None else of(other))


def _with_hosts(
    store: Store, node: str, peers: Iterable[str], epochs: Mapping[str, int], hosts: tuple[HostSpec, ...]
) -> dict[str, Secret]:
    at = {str(each.name): host for host in hosts for each in host.nodes}
    found = [peer for peer in peers if peer in at]
    if not found:
        return {}
    key = load_host_key(store)
    return {peer: key.pair_cookie(at[peer], node, peer, epochs) for peer in found}


_FILES: dict[CookiePhase, tuple[str, str | None]] = {
    CookiePhase.IDLE: (SECRET_FILE, None),
    CookiePhase.ACCEPTING: (SECRET_FILE, NEXT_FILE),
    CookiePhase.USING: (NEXT_FILE, SECRET_FILE),
    CookiePhase.FORGETTING: (NEXT_FILE, None),
}
"""Whose cookies are dialled with, and whose are taken besides."""


def _read_secret(store: Store, relative: str) -> Secret:
    text = store.read(relative)
    if not _HEX_SECRET.fullmatch(text):
        raise StoreError(
            f"does not hold {SECRET_BYTES} bytes in hex",
            where=str(store.path(relative)),
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


# ---- a rotation --------------------------------------------------------------------------------------------

WRITING = threading.Lock()
"""Held while cookies are derived and written into a node's directory, and while the phase is changed: what
belongs to an earlier step is never written after what belongs to a later one. Held by threads only."""


def load_rotation(store: Store) -> CookieRotation:
    """How far a rotation has got. Raises StoreError where nobody can tell."""
    if not store.exists(ROTATION_FILE):
        return CookieRotation(made=_made(store))
    try:
        found = json.loads(store.read(ROTATION_FILE))
        if set(found) != {"schema", "phase", "step", "made", "next_made"} or found["schema"] != 1:
            raise ValueError("unknown schema")
        numbers = [found[key] for key in ("step", "made", "next_made")]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("number")
        return CookieRotation(CookiePhase(found["phase"]), *numbers)
    except (ValueError, TypeError, RecursionError):
        raise StoreError(
            "does not say how far the rotation of the cookies has got",
            where=str(store.path(ROTATION_FILE)),
            do="restore it from a backup, with the files beside it",
        ) from None


class CookieSecrets:
    """The effects of a rotation, on the disk. Every method blocks, for a thread, and raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def rotation(self) -> CookieRotation:
        return load_rotation(self._store)

    def make_next(self) -> None:
        """A new secret in a file of its own, which nobody is told of yet."""
        self._store.write(NEXT_FILE, _new_secret())

    def save(self, rotation: CookieRotation) -> None:
        document = {
            "schema": 1,
            "phase": str(rotation.phase),
            "step": rotation.step,
            "made": rotation.made,
            "next_made": rotation.next_made,
        }
        with WRITING:
            self._store.write(ROTATION_FILE, json.dumps(document).encode() + b"\n")

    def replace(self) -> None:
        """The new secret takes the place of the old one, of which nothing is left."""
        self._store.write(SECRET_FILE, _read_secret(self._store, NEXT_FILE).reveal().hex().encode() + b"\n")

    def drop_next(self) -> None:
        self._store.remove(NEXT_FILE)


def _new_secret() -> bytes:
    return os.urandom(SECRET_BYTES).hex().encode() + b"\n"


def _made(store: Store) -> int:
    """Of a secret that was never rotated: when its file was written."""
    try:
        return int(store.path(SECRET_FILE).lstat().st_mtime)
    except OSError:
        return 0
