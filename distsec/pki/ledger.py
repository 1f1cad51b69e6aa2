"""Which certificates each managed node has been given: by serial, until they end.

`ca/pairs/<node>.serials` has one line each, `serial not_after` (hex, Unix seconds). A renewal leaves the
certificate before it good until its own end, and a node may put whatever it likes into its directory: what is
to be revoked of a node is what stands here. Never a key.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from cryptography import x509

from distsec.pki.authority import serial_text
from distsec.pki.store import Store

DIRECTORY = "ca/pairs"
MAX_SERIALS = 4096
"""Of one node: more than it can need, since only certificates that have not ended are kept."""

_LINE = re.compile(r"([0-9a-f]{1,40}) (\d{1,18})")


def note_certificate(store: Store, directory: str, pem: bytes) -> None:
    """Keeps the serial of the first certificate in `pem`, which `directory` (`nodes/<node>`) is given.

    Forgets those that had ended when it began. Raises StoreError; ValueError for what is no certificate.
    """
    leaf = x509.load_pem_x509_certificate(pem)
    serial, begins = serial_text(leaf.serial_number), leaf.not_valid_before_utc.timestamp()
    known = _read(store, directory)
    if serial in known:
        return
    kept = [(each, ends) for each, ends in known.items() if ends >= begins]
    kept.append((serial, int(leaf.not_valid_after_utc.timestamp())))
    lines = "".join(f"{each} {ends}\n" for each, ends in kept[-MAX_SERIALS:])
    store.write(_path(directory), lines.encode())


def serials_of(store: Store, directory: str) -> frozenset[str]:
    """Of every certificate that the node of `directory` was given and that may still be good. Raises
    StoreError.
    """
    return frozenset(_read(store, directory))


def is_noted(store: Store, directory: str, pem: bytes) -> bool:
    """Whether the first certificate in `pem` has the serial of one that was noted. Raises as the above."""
    leaf = x509.load_pem_x509_certificate(pem)
    return serial_text(leaf.serial_number) in _read(store, directory)


def _read(store: Store, directory: str) -> dict[str, int]:
    if not store.exists(_path(directory)):
        return {}
    lines = store.read(_path(directory)).decode("ascii", errors="replace").splitlines()
    return {found[1]: int(found[2]) for line in lines if (found := _LINE.fullmatch(line))}


def _path(directory: str) -> str:
    return f"{DIRECTORY}/{PurePosixPath(directory).name}.serials"
