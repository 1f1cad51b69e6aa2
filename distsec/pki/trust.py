"""Which CAs the nodes are to trust now, and which of them issues.

Outside of a rotation both answers are the CA in `ca/`. While its successor is being brought in (`certs
rotate-ca`, core.rotation), `ca/rotation.json` says which of `ca` and `ca/next` are trusted and which one
signs; it is replaced in one step, so that every reader sees one phase or the next. Whoever writes a trust
bundle, checks a chain or issues asks here, at that moment, and keeps the answer no longer than it takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from distsec.errors import StoreError
from distsec.pki import lineage
from distsec.pki.store import Store

CURRENT, NEXT, OLD = "ca", "ca/next", "ca/old"
"""Directories: the CA, the one that is to take its place, and certificates of those that have gone."""

ROTATION_FILE = "ca/rotation.json"
SCHEMA = 1
IDLE = "idle"
"""The `phase` of a file that a rotation has left which is over."""

_CERTIFICATE = "certificate.pem"


@dataclass(frozen=True, slots=True)
class Standing:
    """What `ca/rotation.json` says. `trusted`, `known` (those that a bundle may hold for the time being) and
    `issuing` are directories; `fields`: all of it, for core.rotation.
    """

    trusted: tuple[str, ...] = (CURRENT,)
    known: tuple[str, ...] = (CURRENT,)
    issuing: str = CURRENT
    fields: dict[str, Any] | None = None

    @property
    def rotating(self) -> bool:
        """Whether a rotation is under way."""
        return self.fields is not None and self.fields.get("phase") != IDLE


def standing(store: Store) -> Standing:
    """What holds now. Raises StoreError for a file that cannot be understood: it says who is trusted."""
    if not store.exists(ROTATION_FILE):
        return Standing()
    try:
        fields = json.loads(store.read(ROTATION_FILE))
        if fields["schema"] != SCHEMA or not isinstance(fields, dict):
            raise ValueError("schema")
        trusted, known = _directories(fields["trusted"]), _directories(fields["known"])
        (issuing,) = _directories([fields["issuing"]])
        if issuing not in trusted or not set(trusted) <= set(known):
            raise ValueError("issuing")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StoreError(
            "does not say how far the rotation of the CA has come",
            where=str(store.path(ROTATION_FILE)),
            do="restore it from the same backup as the rest of ca/",
        ) from None
    return Standing(trusted, known, issuing, fields)


def _directories(value: object) -> tuple[str, ...]:
    found = tuple(value) if isinstance(value, list) else ()
    if not found or len(set(found)) != len(found) or not set(found) <= {CURRENT, NEXT}:
        raise ValueError("not a set of CAs")
    return found


def issuing_directory(store: Store) -> str:
    """Where the CA is that signs new certificates: `ca`, or `ca/next` once that is active. Raises
    StoreError.
    """
    return standing(store).issuing


def trusted_authorities(store: Store) -> tuple[x509.Certificate, ...]:
    """The CAs that the nodes are to trust, in the order of the bundle. Raises StoreError."""
    return tuple(anchor_of(store, directory) for directory in standing(store).trusted)


def trust_bundle(store: Store) -> bytes:
    """The `trust.pem` that every node is to have now. Raises StoreError."""
    return bundle_of(trusted_authorities(store))


def bundle_of(authorities: Iterable[x509.Certificate]) -> bytes:
    """PEM, one after the other."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in authorities)


def acceptable(store: Store, bundle: bytes) -> bool:
    """Whether a node's `trust.pem` is one that may be found there now: exactly the wanted one, or in a
    rotation any that its phases write. Nothing foreign, whatever it is. Raises StoreError for our own files.
    """
    now = standing(store)
    if not now.rotating:
        return bundle == trust_bundle(store)
    known = [anchor_of(store, directory) for directory in now.known]
    return any(bundle == bundle_of(each) for each in ([one] for one in known)) or bundle == bundle_of(known)


def signer_of(store: Store, leaf: x509.Certificate) -> str | None:
    """The directory of the trusted CA whose key signed `leaf`; None: none did. Raises StoreError."""
    for directory in standing(store).trusted:
        if issued(authority_certificate(store, directory), leaf):
            return directory
    return None


def issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether the key of `authority` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def fingerprint(authority: x509.Certificate) -> str:
    """SHA-256 of its DER in lower-case hex, as agents tell what they trust."""
    return authority.fingerprint(hashes.SHA256()).hex()


def anchor_of(store: Store, directory: str) -> x509.Certificate:
    """Whom the nodes trust for the CA in `directory`: itself, or the root above it. Raises StoreError."""
    return lineage.anchor(store, directory, authority_certificate(store, directory))


def authority_certificate(store: Store, directory: str) -> x509.Certificate:
    """The certificate of the CA in `directory`. Raises StoreError if it is none."""
    relative = f"{directory}/{_CERTIFICATE}"
    try:
        return x509.load_pem_x509_certificate(store.read(relative))
    except ValueError:
        raise StoreError(
            "is no certificate (PEM)", where=str(store.path(relative)), do="restore it from a backup"
        ) from None
