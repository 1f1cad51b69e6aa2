"""A certificate for a node that is not managed here: whether it may have one, and the directory that it is
taken away in. What it looks like is `pki.profile`'s to say. Blocks; time is Unix seconds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from distsec.beam import render
from distsec.beam.overlay import load_overlay
from distsec.config.addresses import AddressInvalid, parse_address
from distsec.core.wanted import Overlay, known_identities
from distsec.errors import RequestRefused, StoreError, UsageError
from distsec.model.cluster import ClusterSpec
from distsec.model.identities import readable
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import trust
from distsec.pki.authority import Authority, certificate_of, date_of
from distsec.pki.issued import keep_issued
from distsec.pki.requests import NO_ADDRESS, read_requests
from distsec.pki.store import Store


@dataclass(frozen=True, slots=True)
class Made:
    """`key` None: whoever asked has it. `certificate` and `bundle` are PEM, the first with its chain."""

    name: NodeName
    identity: str
    serial: str
    not_after: int
    until: str
    certificate: bytes
    bundle: bytes
    key: Secret | None = None
    warnings: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """What may be shown of it."""
        return {
            "node": str(self.name),
            "identity": self.identity,
            "serial": self.serial,
            "not_after": self.not_after,
        }


def issue_elsewhere(
    store: Store,
    spec: ClusterSpec | None,
    name: NodeName,
    *,
    address: str | None,
    days: float,
    request: tuple[bytes, str] | None,
    now: float,
) -> Made:
    """Issues for `name`, and keeps on record that it did. `spec` None: there is a CA here and no cluster.
    `request`: the file with the request of whoever has the key, and its name.

    Raises UsageError for a node that is none to issue for, RequestRefused, CaKeyUnavailable, StoreError.
    """
    authority = Authority.load(store, trust.issuing_directory(store))
    authority.check(store, spec.name if spec is not None else authority.cluster, now)
    overlay = load_overlay(store)
    warnings = _check_name(spec, overlay, name, authority.cluster)
    listens = _address(spec, name, address)
    if request is None:
        key, pem = authority.issue(name, listens, days, now)
    else:
        key, pem = None, _for_request(authority, name, listens, address, days, request, now)
    keep_issued(store, pem, now)
    shown = certificate_of(pem)
    return Made(
        name=name,
        identity=name.identity(authority.cluster),
        serial=shown.serial,
        not_after=shown.not_after,
        until=date_of(x509.load_pem_x509_certificate(pem).not_valid_after_utc),
        certificate=pem,
        bundle=trust.trust_bundle(store),
        key=key,
        warnings=warnings,
    )


def open_target(directory: Path) -> Store:
    """A directory that is new, or empty and closed to others, to put what is issued into. Raises UsageError,
    StoreError.
    """
    path = directory.absolute()
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UsageError("is there already, and not empty", where=str(path), do="choose another --out")
    return Store(path)


def write_out(target: Store, made: Made) -> list[str]:
    """Writes the files, 0600 each, the key first; their names. Raises StoreError."""
    content = {} if made.key is None else {render.KEY: made.key.reveal()}
    content |= {render.CERTIFICATE: made.certificate, render.TRUST: made.bundle}
    for name, each in content.items():
        if not target.create(name, each):
            raise StoreError("was put there meanwhile", where=str(target.path(name)), do="run it again")
    return list(content)


def _check_name(spec: ClusterSpec | None, overlay: Overlay, name: NodeName, cluster: str) -> tuple[str, ...]:
    """What is to be said of issuing for `name`. Raises UsageError where it would be a mistake."""
    text, own = str(name), name.identity(cluster)
    if text in overlay.deny:
        raise UsageError(f"{text} is denied", do=f"`distsec allow {text}` first, if it is to be let in again")
    if own in overlay.revoked_identities:
        raise UsageError(
            f"the identity {own} is revoked, whatever certificate it comes with",
            do=f"`distsec allow {text}` first, if it is to be let in again",
        )
    if spec is None:
        return ()
    if spec.node(text) is not None:
        raise UsageError(
            f"{text} is managed here, and has its key in {spec.state_dir}",
            do=f"use `distsec certs renew {text}` for a new one",
        )
    known_by = known_identities(spec, overlay).get(text)
    if known_by is None:
        return (f"nobody lets {text} in yet: `distsec allow {text}`",)
    if known_by != own:
        raise UsageError(
            f"{text} is known by {readable(known_by)}, which is nothing that this CA issues",
            do="have it issued by whoever issues that, or take back its rule, or its `allow --identity`",
        )
    return ()


def _address(spec: ClusterSpec | None, name: NodeName, given: str | None) -> str:
    if given is not None:
        try:
            return parse_address(given)
        except AddressInvalid as error:
            raise UsageError(f"--address: {error}", do="write the IP address that it listens on") from None
    peer = next((peer for peer in spec.peers if peer.name == name), None) if spec is not None else None
    return peer.address if peer is not None else name.ip or NO_ADDRESS


def _for_request(
    authority: Authority,
    name: NodeName,
    listens: str,
    given: str | None,
    days: float,
    request: tuple[bytes, str],
    now: float,
) -> bytes:
    content, where = request
    asked = read_requests(content, authority.cluster, where)
    if len(asked) != 1 or asked[0].name != name:
        names = ", ".join(str(each.name) for each in asked[:5])
        raise RequestRefused(
            f"is for {names}, not for {name} alone", where=where, do="name the node that it is for"
        )
    address = listens if given is not None or listens != NO_ADDRESS else asked[0].address
    return authority.certify_public(asked[0].public, name, address, days, now)
