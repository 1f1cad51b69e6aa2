"""`stopped.json`: which nodes an operator has stopped, so that the next orchestrator starts none of them.

It counts until the host boots anew, as a stopped unit of systemd does, until `distsec start`, or until an
orchestrator ends that takes its nodes along (`on_exit = "stop"`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from distsec.beam.node import boot_id
from distsec.errors import NameInvalid, StoreError
from distsec.model.names import NodeName
from distsec.pki.store import Store

FILE = "stopped.json"
SCHEMA = 1


def read_stops(store: Store) -> frozenset[str]:
    """What cannot be understood stops nobody."""
    try:
        found = json.loads(store.read(FILE)) if store.exists(FILE) else {}
        if found.get("schema") != SCHEMA or found.get("boot_id") != boot_id():
            return frozenset()
        return frozenset(str(NodeName.parse(name)) for name in found["nodes"])
    except (StoreError, NameInvalid, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return frozenset()


def write_stops(store: Store, names: Iterable[str]) -> None:
    """Raises StoreError."""
    document = {"schema": SCHEMA, "boot_id": boot_id(), "nodes": sorted(names)}
    store.write(FILE, json.dumps(document).encode() + b"\n")
