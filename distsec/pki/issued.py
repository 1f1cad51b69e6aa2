"""Certificates that were issued for others: nodes that are not managed here (`distsec certs issue`).

`ca/issued/<serial>.pem` holds each, with the chain, until it has ended: nobody else here knows them, and they
must be known to be shown and revoked. Never a key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509

from distsec.errors import NameInvalid, StoreError
from distsec.model.cluster import Certificate
from distsec.model.names import NodeName
from distsec.pki.authority import certificate_of, serial_text
from distsec.pki.requests import node_of
from distsec.pki.store import Store

DIRECTORY = "ca/issued"
_SUFFIX = ".pem"


@dataclass(frozen=True, slots=True)
class Issued:
    """`pem`: the certificate and its chain."""

    name: NodeName
    certificate: Certificate
    pem: bytes


def keep_issued(store: Store, pem: bytes, now: float) -> None:
    """Keeps what was issued, before it is given to anybody; forgets what has ended. Raises StoreError."""
    leaf = x509.load_pem_x509_certificate(pem)
    store.create(f"{DIRECTORY}/{serial_text(leaf.serial_number)}{_SUFFIX}", pem)
    for relative, each in _files(store):
        if each.not_after < now:
            store.remove(relative)


def issued(store: Store, cluster: str) -> tuple[Issued, ...]:
    """All that are kept, by name. What cannot be read is passed over. Raises StoreError."""
    found = []
    for relative, certificate in _files(store):
        with contextlib.suppress(NameInvalid):
            name = node_of(certificate.identity or "", cluster)
            found.append(Issued(name, certificate, store.read(relative)))
    return tuple(sorted(found, key=lambda each: (str(each.name), each.certificate.not_after)))


def _files(store: Store) -> Iterator[tuple[str, Certificate]]:
    if not store.exists(DIRECTORY):
        return
    for entry in sorted(path.name for path in store.ensure_directory(DIRECTORY).iterdir()):
        if entry.endswith(_SUFFIX) and not entry.startswith("."):
            with contextlib.suppress(StoreError, ValueError):
                yield f"{DIRECTORY}/{entry}", certificate_of(store.read(f"{DIRECTORY}/{entry}"))
