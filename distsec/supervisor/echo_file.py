"""`probes.json`: what the next orchestrator must know of the refusals that this one's probes caused."""

from __future__ import annotations

import contextlib
import json

from distsec.errors import StoreError
from distsec.model.policy import Reason
from distsec.pki.store import Store
from distsec.supervisor.echoes import EchoRecord

PROBES = "probes.json"


def load(store: Store, directory: str, launch: str) -> EchoRecord:
    """Of that launch, from the node's `directory`; unreadable: none is taken off."""
    try:
        found = json.loads(store.read(f"{directory}/{PROBES}"))
        if found["launch"] != launch:
            return EchoRecord()
        absorbed = {str(Reason(reason)): int(count) for reason, count in found["absorbed"].items()}
        return EchoRecord(
            absorbed,
            tuple(str(address) for address in found.get("expected", ())),
            tuple(int(sequence) for sequence in found.get("sequences", ())),
        )
    except (StoreError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return EchoRecord()


def save(store: Store, directory: str, launch: str, record: EchoRecord) -> None:
    """A disk that is full costs the next one an exact count, and nothing else."""
    found = {
        "launch": launch,
        "absorbed": dict(record.absorbed),
        "expected": record.expected,
        "sequences": record.sequences,
    }
    with contextlib.suppress(StoreError):
        store.write(f"{directory}/{PROBES}", json.dumps(found).encode() + b"\n")
