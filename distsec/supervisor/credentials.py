"""The nodes' keys and certificates on this host's disk, as an interface, and the real one.

A part of `supervisor.machine`, by itself for its size. Everything here blocks: for threads. What is good and
what is not is said by `beam.node_pairs`; when something is to be done, by `supervisor.renewal`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from distsec.beam import node_pairs
from distsec.beam.drops import INCOMING, Drop, DropFault, read_drop
from distsec.core.renewal import Life
from distsec.core.wanted import Overlay
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.pki import pairs, trust
from distsec.pki.acceptance import Finding, Flaw
from distsec.pki.authority import serial_text
from distsec.pki.pairs import Pair
from distsec.pki.store import Store

UNSETTLED = frozenset({Flaw.UNREADABLE, Flaw.KEY_MISMATCH})
"""What files may look like while somebody is still writing them."""


INTERRUPTED = "interrupted"
"""Somebody is installing a pair, or was killed while doing that; never a reason to refuse one."""


class Place(StrEnum):
    """Where somebody else may put a pair."""

    DIRECTORY = "directory"  # the node's own key.pem and certificate.pem, replaced
    INCOMING = "incoming"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found at a place. `stamp` is equal as long as nobody touches it.

    `serial`: there is a pair that was not there before; `reason` None: it would do. `unsettled`: it may be
    half written. Neither: nothing new.
    """

    stamp: tuple[object, ...] = ()
    serial: str | None = None
    reason: str | None = None
    what: str = ""
    unsettled: bool = False
    pair: Pair | None = None


class Credentials(Protocol):
    """All raise DistsecError."""

    def life(self, node: NodeSpec) -> Life: ...
    def authority(self) -> Life: ...
    def renew(self, spec: ClusterSpec, node: NodeSpec, now: float, more_seconds: float) -> Pair | None: ...
    def install(self, node: NodeSpec, pair: Pair) -> Pair | None: ...
    def ready(self, spec: ClusterSpec, overlay: Overlay, node: NodeSpec) -> None: ...
    def found_spoiled(self, node: NodeSpec) -> list[tuple[str, str]]: ...
    def look(self, spec: ClusterSpec, overlay: Overlay, node: NodeSpec, place: Place, now: float) -> Seen: ...
    def consume(self, node: NodeSpec, place: Place) -> None: ...
    def restore(self, node: NodeSpec) -> bool: ...
    def places(self, node: NodeSpec) -> Mapping[Place, Path]: ...


class StateCredentials:
    """In the state directory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._spoiled: dict[str, list[tuple[str, str]]] = {}

    def life(self, node: NodeSpec) -> Life:
        """Of the pair that the node is to have: the accepted one, or, as long as none is, what is there."""
        directory = node_pairs.directory_of(node)
        pair = pairs.accepted_pair(self._store, directory) or pairs.read_pair(self._store, directory)
        return node_pairs.life_of(self._store, pair)

    def authority(self) -> Life:
        """Of the CA that issues now."""
        ca = trust.authority_certificate(self._store, trust.issuing_directory(self._store))
        begin, end = ca.not_valid_before_utc.timestamp(), ca.not_valid_after_utc.timestamp()
        return Life(serial_text(ca.serial_number), begin, end)

    def renew(self, spec: ClusterSpec, node: NodeSpec, now: float, more_seconds: float) -> Pair | None:
        """Issues and installs a new pair; returns the one before it. Raises CaKeyUnavailable, having changed
        nothing. `more_seconds`: see node_pairs.issue.
        """
        return self.install(node, node_pairs.issue(spec, self._store, node, now, more_seconds))

    def install(self, node: NodeSpec, pair: Pair) -> Pair | None:
        """Puts it in the place of the one that it returns (None: none was accepted)."""
        directory = node_pairs.directory_of(node)
        before = pairs.accepted_pair(self._store, directory)
        pairs.install_pair(self._store, directory, pair)
        return before

    def ready(self, spec: ClusterSpec, overlay: Overlay, node: NodeSpec) -> None:
        """See node_pairs.ready; what it has found spoiled is kept for `found_spoiled`."""
        if not spec.carrier.encrypted:
            return
        found = node_pairs.ready(spec, self._store, overlay, node, time.time())
        if found is not None:
            self._spoiled.setdefault(str(node.name), []).append((found.reason, found.what))

    def found_spoiled(self, node: NodeSpec) -> list[tuple[str, str]]:
        """What starts of `node` have found in the place of its accepted pair: (reason, what), told once."""
        return self._spoiled.pop(str(node.name), [])

    def look(self, spec: ClusterSpec, overlay: Overlay, node: NodeSpec, place: Place, now: float) -> Seen:
        """What somebody else has put there, and whether it would do. Changes nothing, but that the first pair
        of a node is accepted as it is: it was there before anybody looked.
        """
        directory = node_pairs.directory_of(node)
        if self._store.exists(f"{directory}/{pairs.NEXT}"):
            return Seen((pairs.NEXT,), unsettled=True, reason=INTERRUPTED)
        drop = read_drop(self.places(node)[place], entrusted=place is Place.DIRECTORY)
        if place is Place.INCOMING and drop.empty:
            return Seen()
        if drop.key is None or drop.certificate is None:
            return _unusable(drop)
        accepted = pairs.accepted_pair(self._store, directory)
        if accepted is not None and Pair(drop.key, drop.certificate) == accepted:
            return Seen(drop.stamp)
        pair = pairs.canonical_pair(drop.key.reveal(), drop.certificate)
        if isinstance(pair, Finding):
            unsettled = pair.flaw in UNSETTLED
            return Seen(drop.stamp, reason=str(pair.flaw), what=pair.what, unsettled=unsettled)
        serial = node_pairs.serial_of(pair)
        found = node_pairs.judge(spec, self._store, overlay, node, pair, now)
        if found is not None:
            return Seen(drop.stamp, serial, str(found.flaw), found.what)
        if accepted is None and place is Place.DIRECTORY:
            pairs.accept_pair(self._store, directory, pair)
            return Seen(drop.stamp)
        return Seen(drop.stamp, serial, pair=pair)

    def consume(self, node: NodeSpec, place: Place) -> None:
        """What was dropped there has been installed: it is gone from where it was dropped."""
        if place is Place.INCOMING:
            for name in (pairs.KEY, pairs.CERTIFICATE):
                self._store.remove(f"{node_pairs.directory_of(node)}/{INCOMING}/{name}")

    def restore(self, node: NodeSpec) -> bool:
        """Finishes an installation that was interrupted, or puts the accepted pair back. False: there is
        none.
        """
        directory = node_pairs.directory_of(node)
        return pairs.complete_pair(self._store, directory) or pairs.restore_pair(self._store, directory)

    def places(self, node: NodeSpec) -> Mapping[Place, Path]:
        """`incoming/` is made if it is not there."""
        directory = node_pairs.directory_of(node)
        return {
            Place.DIRECTORY: self._store.path(directory),
            Place.INCOMING: self._store.ensure_directory(f"{directory}/{INCOMING}"),
        }


def _unusable(drop: Drop) -> Seen:
    return Seen(
        drop.stamp,
        reason=str(drop.fault),
        what=drop.what,
        unsettled=drop.fault is DropFault.INCOMPLETE,
    )
