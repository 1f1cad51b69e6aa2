"""A node's key and its certificate, which are two files and must never be of two pairs.

`install_pair` writes both under one name first (`next.pem`, replaced in one step), then each where the node
reads it. Whoever is killed in between leaves `next.pem`, and `complete_pair` goes on from there, so it comes
before anything that reads the two. Between the two writes a pair that does not fit is there for an instant:
nodes read them when they are told to, or start, not by themselves.

What is installed here is *accepted*, and kept a second time out of the nodes' reach (`ca/pairs/<node>.pem`),
so that a bad pair that somebody else puts into a node's directory can be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from distsec.errors import StoreError
from distsec.model.secret import Secret
from distsec.pki.acceptance import Finding, Flaw, certificates_in, judge_key, judge_leaf
from distsec.pki.authority import key_pem_of, pem_of, same_public_key
from distsec.pki.ledger import is_noted, note_certificate
from distsec.pki.store import Store

KEY = "key.pem"
CERTIFICATE = "certificate.pem"
NEXT = "next.pem"
ACCEPTED = "ca/pairs"

MAX_PEM_BYTES = 64 * 1024
"""Of a key or a certificate with its chain; an honest one (RSA 4096, a chain of four) has 12 KiB."""

_KEY_BLOCK = re.compile(rb"-----BEGIN ((?:EC |RSA )?PRIVATE KEY)-----\s[^-]+-----END \1-----\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both in PEM: an unencrypted private key (one block, as `authority.key_pem_of` writes it), and its
    certificate followed by the chain, if it has one.
    """

    key: Secret
    certificate: bytes

    def is_whole(self) -> bool:
        """Whether both can be read and belong together. Nothing is said of who issued it to whom."""
        try:
            key = serialization.load_pem_private_key(self.key.reveal(), password=None)
            leaf = x509.load_pem_x509_certificate(self.certificate)
            return same_public_key(key.public_key(), leaf.public_key())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return False


def canonical_pair(key_pem: bytes, certificate_pem: bytes) -> Pair | Finding:
    """Both as they are kept: the key in PKCS#8, the certificates and nothing else, in their order."""
    if max(len(key_pem), len(certificate_pem)) > MAX_PEM_BYTES:
        return Finding(Flaw.UNREADABLE, f"has more than {MAX_PEM_BYTES} bytes")
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return Finding(Flaw.UNREADABLE, f"has no key in {KEY} that can be read (unencrypted PEM)")
    try:
        chain = certificates_in(certificate_pem)
        public = chain[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        return Finding(Flaw.UNREADABLE, f"has no certificate in {CERTIFICATE} that can be read (PEM)")
    if not same_public_key(key.public_key(), public):
        return Finding(Flaw.KEY_MISMATCH, f"does not belong to {KEY} beside it")
    if (wrong := judge_key(public)) is not None:
        return wrong
    return Pair(key_pem_of(key), b"".join(map(pem_of, chain)))


def judge_pair(
    pair: Pair, anchors: Sequence[x509.Certificate], *, identity: str, cluster: str, now: float
) -> Finding | None:
    """What is wrong with `pair`, or None; the arguments are those of `acceptance.judge_leaf`."""
    whole = canonical_pair(pair.key.reveal(), pair.certificate)
    if isinstance(whole, Finding):
        return whole
    chain = certificates_in(whole.certificate)
    return judge_leaf(chain, anchors, identity=identity, cluster=cluster, now=now)


def install_pair(store: Store, directory: str, pair: Pair) -> None:
    """Puts `pair`, which the caller has checked, in the place of the one in `directory` (`nodes/<node>`).

    Raises StoreError, also where the two do not belong together (then nothing is changed). A node that runs
    goes on with the old one until it is told (the agent command `reload`).
    """
    joined = _joined(pair)
    readable = _parted(joined)
    if readable is None or not readable.is_whole():
        raise StoreError("this key and this certificate are no pair", where=str(store.path(directory)))
    note_certificate(store, directory, pair.certificate)
    store.make_way(f"{directory}/{NEXT}")
    store.write(f"{directory}/{NEXT}", joined)
    _put(store, directory, pair)


def complete_pair(store: Store, directory: str) -> bool:
    """Finishes what an interrupted `install_pair` has left in `directory`. True: there was something.

    Raises StoreError. The node can write there too: what is no pair, or has a serial that the node was never
    given (`ledger`, out of its reach), was not written by `install_pair` and is removed.
    """
    if store.make_way(f"{directory}/{NEXT}") or not store.exists(f"{directory}/{NEXT}"):
        return False
    pair = _parted(store.read(f"{directory}/{NEXT}"))
    if pair is None or not pair.is_whole() or not is_noted(store, directory, pair.certificate):
        store.remove(f"{directory}/{NEXT}")
        return False
    _put(store, directory, pair)
    return True


def read_pair(store: Store, directory: str) -> Pair:
    """The pair in `directory`, as it is. Raises StoreError."""
    return Pair(Secret(store.read(f"{directory}/{KEY}")), store.read(f"{directory}/{CERTIFICATE}"))


def accepted_pair(store: Store, directory: str) -> Pair | None:
    """What was installed into `directory` last; None: nothing is known. Raises StoreError."""
    relative = _accepted(directory)
    return _parted(store.read(relative)) if store.exists(relative) else None


def accept_pair(store: Store, directory: str, pair: Pair) -> None:
    """Keeps `pair`, which is in `directory` already and was checked, as the one to go back to."""
    note_certificate(store, directory, pair.certificate)
    _keep(store, directory, pair)


def restore_pair(store: Store, directory: str) -> bool:
    """Puts the accepted pair back into `directory`, whatever is there. False: there is none to go back to.

    Symbolic links and files of others are replaced, never followed; a directory is moved aside. Raises
    StoreError.
    """
    pair = accepted_pair(store, directory)
    if pair is None or not pair.is_whole():
        return False
    for name in (NEXT, KEY, CERTIFICATE):
        store.make_way(f"{directory}/{name}")
        store.remove(f"{directory}/{name}")
    install_pair(store, directory, pair)
    return True


def _put(store: Store, directory: str, pair: Pair) -> None:
    _keep(store, directory, pair)
    for name in (KEY, CERTIFICATE):
        store.make_way(f"{directory}/{name}")  # nodes can write there, and are not to keep us from it
    store.write(f"{directory}/{KEY}", pair.key.reveal())
    store.write(f"{directory}/{CERTIFICATE}", pair.certificate)
    store.remove(f"{directory}/{NEXT}")


def _keep(store: Store, directory: str, pair: Pair) -> None:
    store.write(_accepted(directory), _joined(pair))


def _accepted(directory: str) -> str:
    return f"{ACCEPTED}/{PurePosixPath(directory).name}.pem"


def _joined(pair: Pair) -> bytes:
    return pair.key.reveal().rstrip() + b"\n" + pair.certificate


def _parted(content: bytes) -> Pair | None:
    """The key comes first, as `_joined` writes it."""
    found = _KEY_BLOCK.match(content)
    if found is None or len(content) > MAX_PEM_BYTES:
        return None
    return Pair(Secret(found[0].rstrip() + b"\n"), content[found.end() :])
