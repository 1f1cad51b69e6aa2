"""Who runs this state directory: one orchestrator at a time, and the record of it for others to find."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator

from distsec.beam import proc
from distsec.control.wire import SOCKET_NAME
from distsec.errors import DistsecError, StoreError
from distsec.pki.store import Store

RECORD = "orchestrator.json"
RECORD_SCHEMA = 1


@contextlib.contextmanager
def only_one(store: Store) -> Iterator[None]:
    """Keeps a second orchestrator off this state directory (flock(2), which ends with the process).

    Raises StoreError where there is one.
    """
    descriptor = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another orchestrator runs here{_holder(store)}",
                where=str(store.root),
                do="stop it first, or give this cluster a state_dir of its own",
            ) from None
        yield
    finally:
        os.close(descriptor)


class Presence:
    """`orchestrator.json`: who runs here and where its metrics are.

    With pid and start time, a reader can tell a record that a killed orchestrator has left. It only informs,
    so a disk that has no room for it keeps nobody from running: `warn` hears the first failure, and `keep`
    tries again.
    """

    def __init__(self, store: Store, metrics: str | None, warn: Callable[[StoreError], object]) -> None:
        self._document = {
            "schema": RECORD_SCHEMA,
            "pid": os.getpid(),
            "start_time": proc.start_time(os.getpid()),
            "nonce": secrets.token_hex(16),
            "metrics": metrics,
            "control": str(store.path(SOCKET_NAME)),
        }
        self._store = store
        self._warn = warn
        self._told = False
        self._kept = False

    def keep(self, metrics: str | None) -> None:
        """Writes it, unless that has been done."""
        if self._kept and self._document["metrics"] == metrics:
            return
        self._document["metrics"], self._kept = metrics, False
        try:
            self._store.write(RECORD, json.dumps(self._document).encode() + b"\n")
            self._kept = True
        except StoreError as error:
            if not self._told:
                self._told = True
                with contextlib.suppress(StoreError):
                    self._store.remove(RECORD)  # of the one before: it names somebody else
                self._warn(error)


@contextlib.contextmanager
def recorded(store: Store, metrics: str | None, warn: Callable[[StoreError], object]) -> Iterator[Presence]:
    """Removes the record at the end. See Presence."""
    presence = Presence(store, metrics, warn)
    presence.keep(metrics)
    try:
        yield presence
    finally:
        store.path(RECORD).unlink(missing_ok=True)


def _holder(store: Store) -> str:
    try:
        return f" (pid {int(json.loads(store.read(RECORD))['pid'])})"
    except (DistsecError, ValueError, KeyError, TypeError):
        return ""
