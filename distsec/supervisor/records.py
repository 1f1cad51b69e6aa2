"""What is kept about revocation and compromise: found policies and marks, new keys, the record of links.

A part of `supervisor.machine`, by itself for its size. Everything here blocks: for threads.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Collection, Iterable
from typing import Protocol

from distsec.beam import provision
from distsec.beam.contacts import load_contacts, save_contacts
from distsec.beam.document import read_document
from distsec.core.contacts import ContactBook
from distsec.core.rollback import Found
from distsec.core.wanted import Overlay, Recovered
from distsec.errors import StoreError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.cookies import CookieRotation
from distsec.pki import crl
from distsec.pki.authority import serial_text
from distsec.pki.cookies import CookieSecrets
from distsec.pki.crl import ListState, RevocationReason
from distsec.pki.issued import Issued, issued
from distsec.pki.ledger import serials_of
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store
from distsec.pki.trust import trusted_authorities
from distsec.supervisor.stops import read_stops, write_stops
from distsec.supervisor.undecided import read_rolled_back, write_rolled_back


class Secrets(Protocol):
    """Of the cookies, and how far their rotation has got; see pki.cookies.CookieSecrets."""

    def rotation(self) -> CookieRotation: ...
    def make_next(self) -> None: ...
    def save(self, rotation: CookieRotation) -> None: ...
    def replace(self) -> None: ...
    def drop_next(self) -> None: ...


class Records(Protocol):
    """All raise DistsecError."""

    @property
    def cookies(self) -> Secrets: ...
    def write_cookies(self, spec: ClusterSpec, node: NodeSpec, overlay: Overlay) -> None: ...
    def found(self, spec: ClusterSpec) -> tuple[Found, ...]: ...
    def holds(self, node: NodeSpec, document: bytes) -> bool: ...
    def read_document(self, spec: ClusterSpec, document: bytes) -> Recovered: ...
    def rekey(self, spec: ClusterSpec, node: NodeSpec, overlay: Overlay, document: bytes) -> None: ...
    def listened_on(self, address: str, port: int) -> bool: ...
    def authority_serials(self) -> frozenset[str]: ...
    def note_revoked(self, serials: Collection[str], reason: RevocationReason, now: float) -> None: ...
    def refresh_lists(self, serials: Collection[str], now: float) -> tuple[ListState, ...]: ...
    def issued(self, spec: ClusterSpec) -> tuple[Issued, ...]: ...
    def given(self, node: NodeSpec) -> frozenset[str]: ...
    def load_contacts(self) -> ContactBook: ...
    def save_contacts(self, content: bytes) -> None: ...
    def stops(self) -> frozenset[str]: ...
    def save_stops(self, names: Collection[str]) -> None: ...
    def rolled_back(self) -> tuple[str, ...]: ...
    def save_rolled_back(self, notes: Iterable[str]) -> None: ...


class StateRecords:
    """In the state directory."""

    def __init__(self, store: Store, signer: PolicySigner) -> None:
        self._store = store
        self._signer = signer
        self.cookies: Secrets = CookieSecrets(store)

    def write_cookies(self, spec: ClusterSpec, node: NodeSpec, overlay: Overlay) -> None:
        """See provision.write_cookie_file."""
        provision.write_cookie_file(spec, self._store, node, overlay)

    def found(self, spec: ClusterSpec) -> tuple[Found, ...]:
        """What each node's directory says of generations. What cannot be read there is no proof of any."""
        return tuple(Found(str(node.name), self._signed(spec, node), self._mark(node)) for node in spec.nodes)

    def holds(self, node: NodeSpec, document: bytes) -> bool:
        """Whether the policy in the directory of `node` is that one. Raises StoreError."""
        return self._store.read(f"{provision.node_directory(node.name)}/policy.term") == document

    def read_document(self, spec: ClusterSpec, document: bytes) -> Recovered:
        """What a policy of this cluster refuses. Raises StoreError unless our key has signed it."""
        return read_document(document, self._signer.verifies, spec.name)

    def rekey(self, spec: ClusterSpec, node: NodeSpec, overlay: Overlay, document: bytes) -> None:
        """See provision.rekey."""
        provision.rekey(spec, self._store, node, overlay, document, time.time())

    def listened_on(self, address: str, port: int) -> bool:
        """Whether somebody listens there, as far as can be told by asking for the port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                return error.errno == errno.EADDRINUSE
        return False

    def authority_serials(self) -> frozenset[str]:
        """Of the certificates of the CA, and of the one that is to take its place: no policy revokes them."""
        return frozenset(serial_text(each.serial_number) for each in trusted_authorities(self._store))

    def note_revoked(self, serials: Collection[str], reason: RevocationReason, now: float) -> None:
        """See pki.crl."""
        crl.note_revoked(self._store, serials, now, reason)

    def refresh_lists(self, serials: Collection[str], now: float) -> tuple[ListState, ...]:
        """See pki.crl.refresh."""
        return crl.refresh(self._store, serials, now)

    def given(self, node: NodeSpec) -> frozenset[str]:
        """The serials of every certificate that `node` was given, those that were renewed included."""
        return serials_of(self._store, provision.node_directory(node.name))

    def issued(self, spec: ClusterSpec) -> tuple[Issued, ...]:
        """Certificates of nodes that are not managed here, as far as they were issued here."""
        return issued(self._store, spec.name)

    def load_contacts(self) -> ContactBook:
        return load_contacts(self._store)

    def save_contacts(self, content: bytes) -> None:
        save_contacts(self._store, content)

    def stops(self) -> frozenset[str]:
        """See stops.read_stops."""
        return read_stops(self._store)

    def save_stops(self, names: Collection[str]) -> None:
        """See stops.write_stops."""
        write_stops(self._store, names)

    def rolled_back(self) -> tuple[str, ...]:
        """See undecided.read_rolled_back."""
        return read_rolled_back(self._store)

    def save_rolled_back(self, notes: Iterable[str]) -> None:
        """See undecided.write_rolled_back."""
        write_rolled_back(self._store, notes)

    def _signed(self, spec: ClusterSpec, node: NodeSpec) -> Recovered | None:
        relative = f"{provision.node_directory(node.name)}/policy.term"
        with contextlib.suppress(StoreError):
            return self.read_document(spec, self._store.read(relative))
        return None

    def _mark(self, node: NodeSpec) -> int | None:
        with contextlib.suppress(StoreError):
            return provision.read_mark(self._store, node.name)
        return None
