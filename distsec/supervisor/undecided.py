"""What was found put back, until an operator has decided something since: `rolled_back.json`.

Whoever has put an old overlay back restarts the orchestrator, and after its next start nothing would show any
more that decisions may be lost: the overlay goes on above the old one by then. So the notes are kept, and are
on the disk before the overlay is that goes on; one that is damaged counts as a note.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import Final, Protocol

from distsec.errors import StoreError
from distsec.model.text import escape
from distsec.pki.store import Store

FILE: Final = "rolled_back.json"
SCHEMA: Final = 1
MAX_NOTES: Final = 16
"""Of them the first are kept: a node can write a mark of its own, another one for each start."""

MAX_NOTE: Final = 1024
"""Characters, before they are escaped."""

MAX_KEPT: Final = 10 * MAX_NOTE + 1
"""As one is read again: model.text makes at most ten of one, and adds `…`."""

DAMAGED: Final = f"{FILE} is damaged: it is not known what was put back; repeat your denials"


def read_rolled_back(store: Store) -> tuple[str, ...]:
    """What cannot be understood is a note itself."""
    try:
        if not store.exists(FILE):
            return ()
        found = json.loads(store.read(FILE))
        notes = found["notes"]
        if found["schema"] != SCHEMA or not isinstance(notes, list) or not notes:
            return (DAMAGED,)
        if not all(isinstance(note, str) for note in notes):
            return (DAMAGED,)
        return tuple(escape(note, MAX_KEPT) for note in notes[:MAX_NOTES])
    except (StoreError, ValueError, KeyError, TypeError, RecursionError):
        return (DAMAGED,)


def write_rolled_back(store: Store, notes: Iterable[str]) -> None:
    """Removes the file where there are none. Raises StoreError."""
    kept = list(notes)
    if kept:
        store.write(FILE, json.dumps({"schema": SCHEMA, "notes": kept}).encode() + b"\n")
    else:
        store.remove(FILE)


class Records(Protocol):
    """Of `supervisor.records`."""

    def rolled_back(self) -> tuple[str, ...]: ...
    def save_rolled_back(self, notes: Iterable[str]) -> None: ...


class Undecided:
    """`notes` is changed by the event loop alone; `save` is for threads, and the last has the last word."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._disk = threading.Lock()
        self.notes = self._kept = records.rolled_back()

    @property
    def text(self) -> str | None:
        """For people; None: there is nothing that nobody has decided on."""
        return "; ".join(self.notes) or None

    def add(self, notes: Iterable[str]) -> None:
        more = (escape(note, MAX_NOTE) for note in notes if note not in self.notes)
        self.notes = tuple(dict.fromkeys((*self.notes, *more)))[:MAX_NOTES]

    def settle(self, seen: Iterable[str]) -> None:
        """The operator has decided, when `seen` was all that there was to see."""
        known = frozenset(seen)
        self.notes = tuple(note for note in self.notes if note not in known)

    def save(self) -> None:
        """Blocks. Raises StoreError."""
        with self._disk:
            notes = self.notes
            if notes != self._kept:
                self._records.save_rolled_back(notes)
                self._kept = notes
