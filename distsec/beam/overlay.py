"""Reads and writes `policy.overlay`, the JSON of what `allow`, `deny` and `revoke` changed
(docs/state-files.md).

An overlay that cannot be understood is an error and never an empty one: forgetting a denial would let a peer
back in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from distsec.core.wanted import FIRST_GENERATION, Allowed, Overlay
from distsec.errors import NameInvalid, StoreError
from distsec.model.names import NodeName
from distsec.pki.store import Store

__all__ = ["Allowed", "Overlay", "load_overlay", "save_overlay"]

_FILE = "policy.overlay"
_SCHEMA = 1
_SERIAL = re.compile(r"[0-9a-f]{1,40}")
"""At most 20 octets (RFC 5280, section 4.1.2.2)."""
_IDENTITY = re.compile(r"spiffe://[a-z0-9._-]+/[A-Za-z0-9._/-]+")


def load_overlay(store: Store) -> Overlay:
    """The overlay, or an empty one of the first generation where there is none. Raises StoreError."""
    if not store.exists(_FILE):
        return Overlay()
    try:
        document = json.loads(store.read(_FILE))
        return _parse(document)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
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
    """Raises ValueError, TypeError or KeyError on whatever `save_overlay` does not write."""
    if set(document) != {"schema", "generation", "allow", "deny", "revoked"} or document["schema"] != _SCHEMA:
        raise ValueError("unknown schema")
    generation = document["generation"]
    if type(generation) is not int or generation < FIRST_GENERATION:
        raise ValueError("generation")
    return Overlay(
        generation=generation,
        allow=tuple(_allowed(entry) for entry in _array(document["allow"])),
        deny=frozenset(map(_node_name, _array(document["deny"]))),
        revoked=frozenset(map(_matching(_SERIAL), _array(document["revoked"]))),
    )


def _allowed(entry: Any) -> Allowed:
    if set(entry) != {"name", "identity"}:
        raise ValueError("allow")
    identity = entry["identity"]
    return Allowed(_node_name(entry["name"]), None if identity is None else _matching(_IDENTITY)(identity))


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("array")
    return value


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
