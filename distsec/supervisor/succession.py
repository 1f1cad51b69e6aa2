"""The files of a rotation of the CA on this host's disk, as an interface, and the real one.

A part of `supervisor.machine`, by itself for its size. Everything here blocks: for threads. Everything may be
done again from its beginning, wherever it was interrupted. What comes when is `core.rotation`'s to say.

    ca/rotation.json  the phase, and with it who is trusted and who issues (pki.trust)
    ca/next/          the CA that is to take the place of the one in ca/
    ca/old/           certificates of CAs that have gone, by their fingerprint; never a key
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography import x509

from distsec.beam import provision, render
from distsec.core import rotation_record
from distsec.core.rotation import Ca, Phase, Rotation
from distsec.errors import CaKeyUnavailable, StoreError
from distsec.model.cluster import NodeSpec
from distsec.pki import acceptance, crl, lineage, pairs, trust
from distsec.pki.authority import Authority, key_state, load_certificate, pem_of, serial_text
from distsec.pki.keyring import KeyState
from distsec.pki.pairs import Pair
from distsec.pki.store import Store

FILES = ("key.pem", "key.sealed", lineage.CHAIN, lineage.IMPORTED, crl.FILE, "certificate.pem")
"""All that a CA is, with its list of what is revoked. Its certificate comes last: by that one it is there."""

_WITNESS = f"{trust.OLD}/witness.pem"
WITNESS_DAYS = 1 / 24
"""For how long the leaf lasts that is to be refused; an hour is enough for any cluster."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is in a node's directory: the serial of its leaf, and which of the CAs a rotation knows have
    issued it (None: neither), and are in its bundle.
    """

    serial: str
    leaf: str | None
    bundle: tuple[str, ...]


class Succession(Protocol):
    """All raise DistsecError."""

    def rotation(self) -> Rotation: ...
    def since(self) -> int | None: ...
    def save(self, phase: Phase, now: float) -> None: ...
    def create(self, cluster: str, now: float) -> None: ...
    def retire(self) -> None: ...
    def discard(self) -> None: ...
    def authorities(self) -> list[dict[str, Any]]: ...
    def trusted(self) -> tuple[str, ...]: ...
    def write_bundle(self, node: NodeSpec) -> None: ...
    def held(self, node: NodeSpec) -> Held: ...
    def keep_witness(self, node: NodeSpec) -> None: ...
    def witness(self, node: NodeSpec, now: float) -> Pair: ...
    def tidy(self) -> None: ...
    def issuer(self) -> str: ...


class StateSuccession:
    """In the state directory."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def rotation(self) -> Rotation:
        """As it was saved."""
        fields = trust.standing(self._store).fields
        try:
            return Rotation() if fields is None else rotation_record.from_fields(fields)
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                "does not say how far the rotation of the CA has come",
                where=str(self._store.path(trust.ROTATION_FILE)),
                do="restore it from the same backup as the rest of ca/",
            ) from None

    def since(self) -> int | None:
        """When the phase was entered; None: there never was a rotation."""
        fields = trust.standing(self._store).fields or {}
        since = fields.get("since")
        return since if isinstance(since, int) else None

    def save(self, phase: Phase, now: float) -> None:
        """From now on `pki.trust` answers as that phase wants it."""
        with self._store.locked():  # not while somebody provisions by what is saved now
            fields = rotation_record.to_fields(phase, int(now))
            self._store.write(trust.ROTATION_FILE, json.dumps(fields).encode() + b"\n")

    def create(self, cluster: str, now: float) -> None:
        """Makes the CA in `ca/next/`, or what is missing of it; its key is sealed if the present one's is.

        One that somebody has put there is taken. Where the present key is not on this host, the next one is
        not made here either: CaKeyUnavailable.
        """
        store = self._store
        with store.locked():
            store.ensure_directory(trust.NEXT)
            if not store.exists(f"{trust.NEXT}/certificate.pem"):
                present, coming = (key_state(store, each) for each in (trust.CURRENT, trust.NEXT))
                if present is KeyState.ELSEWHERE and coming is KeyState.ELSEWHERE:
                    raise CaKeyUnavailable(
                        "the CA's key is not on this host, so the next CA is not made here either",
                        where=str(store.path(trust.NEXT)),
                        do="make it where the keys are kept, and put its certificate.pem there (mode 0600)",
                    )
            sealed = KeyState.SEALED in (key_state(store, trust.CURRENT), key_state(store, trust.NEXT))
            seal = sealed and key_state(store, trust.NEXT) is not KeyState.PLAIN
            made = Authority.create(store, cluster, now, trust.NEXT, seal=seal).certificate
            if made.subject == trust.authority_certificate(store, trust.CURRENT).subject:
                raise StoreError(
                    "is called like the CA of now, so that verifiers would take one for the other",
                    where=str(store.path(f"{trust.NEXT}/certificate.pem")),
                    do="`distsec tls init --successor` makes one with a name of its own",
                )

    def tidy(self) -> None:
        """Removes from `ca/next/` what an interruption has left of a CA that is in `ca/` by now."""
        store, standing = self._store, trust.standing(self._store)
        if standing.rotating or not store.exists(f"{trust.NEXT}/certificate.pem"):
            return
        current, left = (trust.authority_certificate(store, each) for each in (trust.CURRENT, trust.NEXT))
        if current == left:
            self.discard()

    def retire(self) -> None:
        """The CA in `ca/next/` takes the place of the one in `ca/`, whose key is destroyed: overwritten, for
        what that is worth on the file system there is, and unlinked.
        """
        store = self._store
        with store.locked():
            old, new = (trust.authority_certificate(store, each) for each in (trust.CURRENT, trust.NEXT))
            if old != new:
                store.ensure_directory(trust.OLD)
                store.write(f"{trust.OLD}/{trust.fingerprint(old)[:16]}.pem", pem_of(old))
                self._destroy_keys(trust.CURRENT)
            store.wipe(_WITNESS)
            for name in FILES:
                source, target = f"{trust.NEXT}/{name}", f"{trust.CURRENT}/{name}"
                if store.exists(source):
                    store.write(target, store.read(source))
                elif store.exists(target):
                    store.remove(target)

    def discard(self) -> None:
        """Removes what is in `ca/next/`; what it holds is nobody's, or in `ca/` too."""
        with self._store.locked():
            self._destroy_keys(trust.NEXT)
            self._store.wipe(_WITNESS)
            for name in FILES:
                self._store.remove(f"{trust.NEXT}/{name}")

    def _destroy_keys(self, directory: str) -> None:
        for name in ("key.pem", "key.sealed"):
            self._store.wipe(f"{directory}/{name}")
        self._store.keyring.forget()

    def authorities(self) -> list[dict[str, Any]]:
        """For people: the CA of now, and its successor if there is one."""
        standing = trust.standing(self._store)
        found = []
        for directory in (trust.CURRENT, trust.NEXT):
            if not self._store.exists(f"{directory}/certificate.pem"):
                continue
            authority = trust.authority_certificate(self._store, directory)
            found.append(
                {
                    "role": "current" if directory == trust.CURRENT else "next",
                    "serial": serial_text(authority.serial_number),
                    "subject": authority.subject.rfc4514_string(),
                    "fingerprint": trust.fingerprint(authority),
                    "not_after": int(authority.not_valid_after_utc.timestamp()),
                    "trusted": directory in standing.trusted,
                    "issuing": directory == standing.issuing,
                }
            )
        return found

    def trusted(self) -> tuple[str, ...]:
        """Fingerprints of those whom every node is to trust, in the order of the bundle."""
        return tuple(map(trust.fingerprint, trust.trusted_authorities(self._store)))

    def write_bundle(self, node: NodeSpec) -> None:
        """Puts the bundle of the saved phase into the node's directory. Raises StoreError, having changed
        nothing, where it holds anything that is not ours.
        """
        relative = f"{provision.node_directory(node.name)}/{render.TRUST}"
        wanted = trust.trust_bundle(self._store)
        self._store.make_way(relative)  # the node can write there, and is not to keep us from it
        if self._store.exists(relative):
            found = self._store.read(relative)
            if found == wanted:
                return
            if not trust.acceptable(self._store, found):
                raise StoreError(
                    "does not hold the cluster's CAs and nothing else",
                    where=str(self._store.path(relative)),
                    do="see who changed it, then remove it",
                )
        self._store.write(relative, wanted)

    def held(self, node: NodeSpec) -> Held:
        """What a start of this moment would read; an interrupted installation is finished first."""
        store, directory = self._store, provision.node_directory(node.name)
        pairs.complete_pair(store, directory)
        bundle = acceptance.certificates_in(store.read(f"{directory}/{render.TRUST}"))
        leaf = load_certificate(store, f"{directory}/{render.CERTIFICATE}")
        chain = acceptance.certificates_in(store.read(f"{directory}/{render.CERTIFICATE}"))
        anchors = {each: trust.anchor_of(store, each) for each in trust.standing(store).known}
        issuer = next((each for each, ca in anchors.items() if _leads_to(leaf, chain, ca)), None)
        holding = tuple(each for each, ca in anchors.items() if ca in bundle)
        return Held(serial_text(leaf.serial_number), issuer, holding)

    def keep_witness(self, node: NodeSpec) -> None:
        """Keeps the node's pair, which is of the old CA and about to be replaced, where that CA's key is not
        here to make another one for `witness`.
        """
        store = self._store
        if key_state(store, Ca.OLD) is not KeyState.ELSEWHERE or store.exists(_WITNESS):
            return
        pair = pairs.read_pair(store, provision.node_directory(node.name))
        store.write(_WITNESS, pair.key.reveal() + pair.certificate)

    def witness(self, node: NodeSpec, now: float) -> Pair:
        """A leaf of the old CA: what nobody may admit any more. A new one with the identity of `node`, or, if
        the key is elsewhere, the one that was kept.
        """
        store = self._store
        if key_state(store, Ca.OLD) is KeyState.ELSEWHERE and store.exists(_WITNESS):
            both = store.read(_WITNESS)
            kept = pairs.canonical_pair(both, both)
            if isinstance(kept, Pair):
                return kept
        authority = Authority.load(store, Ca.OLD)
        return Pair(*authority.issue(node.name, node.address, WITNESS_DAYS, now))

    def issuer(self) -> str:
        """The name of the CA that issues in the saved phase, as links show it."""
        directory = trust.issuing_directory(self._store)
        return trust.authority_certificate(self._store, directory).subject.rfc4514_string()


def _leads_to(leaf: x509.Certificate, chain: tuple[x509.Certificate, ...], anchor: x509.Certificate) -> bool:
    return acceptance.path_to_anchor(leaf, chain[1:], [anchor]) is not None
