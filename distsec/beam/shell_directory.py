"""The private directories of operators' shells: made, found again, removed.

One directory a shell below `state/shells`, 0700, with its key and its record; the process that asked for it
becomes the shell's VM, so that its pid and start time tell whether it still lives, whoever looks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from distsec.beam import proc
from distsec.beam.node import boot_id
from distsec.beam.shell import DIRECTORY, RECORD
from distsec.errors import StoreError
from distsec.model.shells import Operator
from distsec.pki import forms
from distsec.pki.store import Store

_SCHEMA = 1
_TOKEN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class ShellRecord:
    """`shell.json`: `name` is at `node`, by the process of `operator`, which began at `start_time` (clock
    ticks since boot `boot`). `opened_at` is Unix seconds.

    With a `program` it is no shell but that tool of an application: `name` is a pattern of the names that it
    may make up, and it may link with `others` too.
    """

    token: str
    node: str
    name: str
    identity: str
    operator: Operator
    start_time: int
    boot: str
    opened_at: int
    program: str | None = None
    others: tuple[str, ...] = ()

    @classmethod
    def begin(
        cls,
        *,
        token: str,
        node: str,
        name: str,
        identity: str,
        operator: Operator,
        start_time: int,
        opened_at: int,
        program: str | None = None,
        others: tuple[str, ...] = (),
    ) -> ShellRecord:
        """Of a shell to be, in this boot of the kernel."""
        return cls(token, node, name, identity, operator, start_time, boot_id(), opened_at, program, others)

    @property
    def lives(self) -> bool:
        """Whether its process is still there; a pid that was used again is not."""
        return self.boot == boot_id() and proc.same_process(self.operator.pid, self.start_time)


def write(store: Store, record: ShellRecord, files: Mapping[str, bytes]) -> None:
    """Makes the directory of a shell, whole or not at all. Raises StoreError."""
    document = {"schema": _SCHEMA, **asdict(record)}
    content = {RECORD: json.dumps(document).encode() + b"\n", **files}
    try:
        for name, octets in content.items():
            store.create(f"{DIRECTORY}/{record.token}/{name}", octets)
    except BaseException:
        remove(store, record.token)
        raise


def entrust(store: Store, token: str, group: int) -> None:
    """Lets that group read what is in the directory, but for the record: a tool runs as the user of its node.
    Raises StoreError.
    """
    directory = store.path(f"{DIRECTORY}/{token}")
    try:
        for file in directory.iterdir():
            if file.name != RECORD:
                os.chown(file, -1, group, follow_symlinks=False)
                file.chmod(0o640)
        for way in (directory, directory.parent):
            way.chmod(forms.WAY_MODE)
    except OSError as error:
        raise forms.refused(directory, error) from error


def remove(store: Store, token: str) -> None:
    """Removes the directory of a shell, if it is there. One that cannot be removed now is swept later."""
    if _TOKEN.fullmatch(token):
        shutil.rmtree(store.path(f"{DIRECTORY}/{token}"), ignore_errors=True)


def records(store: Store) -> list[ShellRecord]:
    """The shells that an earlier orchestrator has left, whether they live or not. A directory that holds no
    record is removed: its shell never was. Raises StoreError where the directories cannot be read.
    """
    if not store.exists(DIRECTORY):
        return []
    found = []
    for entry in sorted(store.ensure_directory(DIRECTORY).iterdir()):
        try:
            found.append(_read(store, entry.name))
        except (StoreError, ValueError, TypeError, KeyError, RecursionError):
            remove(store, entry.name)
    return found


def _read(store: Store, token: str) -> ShellRecord:
    if not _TOKEN.fullmatch(token):
        raise ValueError("not a directory of a shell")
    document = json.loads(store.read(f"{DIRECTORY}/{token}/{RECORD}"))
    if document.pop("schema") != _SCHEMA or document["token"] != token:
        raise ValueError("schema")
    document["operator"] = Operator(**document["operator"])
    document["others"] = tuple(document.get("others", ()))
    document.setdefault("program", None)  # neither was there before tools
    if set(document) != {field.name for field in fields(ShellRecord)}:
        raise ValueError("other keys")
    return ShellRecord(**document)
