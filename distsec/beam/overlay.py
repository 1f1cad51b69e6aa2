"""Reads and writes `policy.overlay`, the JSON of what `allow`, `deny` and `certs revoke` changed
(docs/state-files.md).

An overlay that cannot be understood is an error and never an empty one: forgetting a denial would let a peer
back in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from distsec.core.wanted import FIRST_GENERATION, Allowed, Overlay, Taint, TaintStage
from distsec.errors import NameInvalid, StoreError
from distsec.model.identities import canonical_identity
from distsec.model.names import NodeName
from distsec.pki.store import Store

__all__ = ["Allowed", "Overlay", "load_overlay", "save_overlay"]

_FILE = "policy.overlay"
_SCHEMA = 3
_KEYS_OF_SCHEMA_1 = frozenset({"schema", "generation", "allow", "deny", "revoked"})
_KEYS_OF_SCHEMA_2 = _KEYS_OF_SCHEMA_1 | {"issued_at", "epochs", "tainted"}
_KEYS = _KEYS_OF_SCHEMA_2 | {"revoked_identities"}
_SERIAL = re.compile(r"[0-9a-f]{1,40}")
"""At most 20 octets (RFC 5280, section 4.1.2.2)."""
_BOOT = re.compile(r"[0-9a-f-]{0,64}")


def load_overlay(store: Store) -> Overlay:
    """The overlay, or an empty one of the first generation where there is none. Raises StoreError."""
    if not store.exists(_FILE):
        return Overlay()
    try:
        document = json.loads(store.read(_FILE))
        return _parse(document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            "is damaged, so nobody can tell whom it denied",
            where=str(store.root / _FILE),
            do="restore it from a backup, or remove it and repeat your `distsec allow` and `distsec deny`",
        ) from error


def save_overlay(store: Store, overlay: Overlay) -> None:
    """Persists `overlay` atomically; when this returns, it survives a power cut.

    Raises NameInvalid for what `load_overlay` would refuse (nothing is written then), and StoreError.
    """
    document = {
        "schema": _SCHEMA,
        "generation": overlay.generation,
        "allow": [{"name": entry.name, "identity": entry.identity} for entry in overlay.allow],
        "deny": sorted(overlay.deny),
        "revoked": sorted(overlay.revoked),
        "revoked_identities": sorted(overlay.revoked_identities),
        "issued_at": overlay.issued_at,
        "epochs": dict(overlay.epochs),
        "tainted": [{**asdict(taint), "stage": str(taint.stage)} for taint in overlay.tainted],
    }
    try:
        _parse(document)
    except (ValueError, TypeError) as error:
        raise NameInvalid(
            "a name, identity or serial of this change cannot be kept in the policy",
            do="write names as name@host, identities as spiffe://cluster/path, serials in lower-case hex",
        ) from error
    store.write(_FILE, json.dumps(document, indent=1).encode() + b"\n")


def _parse(document: Any) -> Overlay:
    """Raises ValueError, TypeError or KeyError on whatever `save_overlay` does not (or did not) write."""
    keys = {1: _KEYS_OF_SCHEMA_1, 2: _KEYS_OF_SCHEMA_2, _SCHEMA: _KEYS}[document["schema"]]
    if set(document) != keys:
        raise ValueError("unknown schema")
    epochs = document.get("epochs", {})
    return Overlay(
        generation=_number(document["generation"], FIRST_GENERATION),
        allow=tuple(_allowed(entry) for entry in _array(document["allow"])),
        deny=frozenset(map(_node_name, _array(document["deny"]))),
        revoked=frozenset(map(_matching(_SERIAL), _array(document["revoked"]))),
        revoked_identities=frozenset(map(_identity_text, _array(document.get("revoked_identities", [])))),
        issued_at=_number(document.get("issued_at", 0)),
        epochs=tuple(sorted((_node_name(name), _number(epochs[name])) for name in epochs)),
        tainted=tuple(_taint(entry) for entry in _array(document.get("tainted", []))),
    )


def _taint(entry: Any) -> Taint:
    if set(entry) != {"name", "stage", "since", "start", "cause", "boot", "rekeyed_at"}:
        raise ValueError("tainted")
    if type(entry["start"]) is not bool:
        raise TypeError("start")
    return Taint(
        name=_node_name(entry["name"]),
        stage=TaintStage(entry["stage"]),
        since=_number(entry["since"]),
        start=entry["start"],
        cause=_node_name(entry["cause"]),
        boot=_matching(_BOOT)(entry["boot"]),
        rekeyed_at=_number(entry["rekeyed_at"]),
    )


def _number(value: Any, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ValueError("number")
    return value


def _allowed(entry: Any) -> Allowed:
    if set(entry) != {"name", "identity"}:
        raise ValueError("allow")
    identity = entry["identity"]
    return Allowed(_node_name(entry["name"]), None if identity is None else _identity_text(identity))


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("array")
    return value


def _identity_text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError("identity")
    return canonical_identity(text)  # NameInvalid is a ValueError


def _node_name(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError("name")
    try:
        return str(NodeName.parse(text))
    except NameInvalid as error:
        raise ValueError("name") from error


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], str]:
    def check(text: Any) -> str:
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise ValueError("text")
        return text

    return check
