"""Processes of a node that are not in `run.json`: a start that was interrupted before it was on record, and a
VM that something else started.

`start.json` is written before a process is made, and says from when on and for which directory. So an
orchestrator that is killed between fork(2) and `run.json` leaves a trace: the next one looks for the process
that the start must have made, and takes it over, where it would otherwise run the node twice.
`taken.json` names a VM that something else started and that was taken over (`distsec adopt`).

The node may write into its directory: what is read here decides on nothing but processes that carry the
node's own mark (`beam.session`) or its flags, or that are the very one that is named. And on nobody else's
than the node's user: flags anybody can give, and a process can be in the session of another user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from distsec.beam import proc, session
from distsec.beam.logs import OutputLog
from distsec.beam.node import NodeProcess, RunRecord, boot_id
from distsec.beam.provision import node_directory
from distsec.errors import PermissionRefused, RuntimeMissing, StoreError
from distsec.model.cluster import NodeSpec
from distsec.pki.account import Account, acting_as, find_account
from distsec.pki.store import Store
from distsec.supervisor.external import ExternalProcess, Process

RUN = "run.json"
START = "start.json"
TAKEN = "taken.json"
SCHEMA = 1

_TICKS_SLACK = 2
"""Start times of processes are rounded to ticks of the clock that `since` is read from."""

_FORK_SECONDS = 30.0
"""After `since`, how long fork(2) may take on a slow disk: `start.json` is written in between."""

_HELPERS = frozenset({"epmd", "erl_child_setup"})
"""Lead sessions of their own and may outlive their VM, whose environment they have."""


@dataclass(frozen=True, slots=True)
class StartRecord:
    """`since`: clock ticks since boot. `directory`: of the node's files, resolved."""

    boot_id: str
    since: int
    directory: str

    def made(self, start_time: int) -> bool:
        """Whether a process that began then may be of this start, or of something that it started."""
        return start_time >= self.since - _TICKS_SLACK


class Foundlings(Protocol):
    """What the supervisor needs of them. Those that block are for a thread."""

    async def adopt(
        self, node: NodeSpec, log: OutputLog, recorded: RunRecord | None
    ) -> NodeProcess | ExternalProcess | None: ...
    def begin(self, node: NodeSpec) -> None: ...
    def take(self, node: NodeSpec, pid: int, start_time: int) -> Process: ...
    def occupant(self, node: NodeSpec, port: int) -> int | None: ...
    def below(self, node: NodeSpec, pid: int) -> int | None: ...
    def moved_from(self, node: NodeSpec) -> str | None: ...
    def forget(self, node: NodeSpec) -> None: ...


class StateFoundlings:
    """In the state directory."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def adopt(
        self, node: NodeSpec, log: OutputLog, recorded: RunRecord | None
    ) -> NodeProcess | ExternalProcess | None:
        """What `run.json` does not tell of; on record from now on. `recorded`: what it does tell of, which is
        gone. Raises StoreError.
        """
        if (taken := self._taken(node)) is not None:
            return taken
        run = await asyncio.to_thread(self._interrupted, node, log.path, recorded)
        process = NodeProcess.adopt(run, log, _account(node)) if run is not None else None
        if run is None or process is None:
            return None
        try:
            self._store.write(f"{node_directory(node.name)}/{RUN}", run.to_bytes())
        except BaseException:
            await process.abandon()
            raise
        return process

    def begin(self, node: NodeSpec) -> None:
        """A process is about to be made for `node`. Raises StoreError: then none may be."""
        record = {"boot_id": boot_id(), "since": session.ticks_now(), "directory": self._resolved(node)}
        self._write(node, START, record)

    def take(self, node: NodeSpec, pid: int, start_time: int) -> ExternalProcess:
        """A VM that has proven itself, on record from now on. Raises RuntimeMissing where it is gone, and
        StoreError.
        """
        process = ExternalProcess(pid, start_time)
        try:
            self._write(node, TAKEN, {"boot_id": boot_id(), "pid": pid, "start_time": start_time})
        except BaseException:
            process.close()
            raise
        return process

    def occupant(self, node: NodeSpec, port: int) -> int | None:
        """The VM that listens on `port` with the flags of this node, as `distsec env` gives them: one that
        something else has started. Blocks for a pass over /proc.
        """
        candidates = [each.pid for each in self._flagged(node)]
        if not candidates:
            return None
        with contextlib.suppress(PermissionRefused), acting_as(_account(node)):
            found = proc.listening(candidates)
            return next((listener.pid for listener in found if listener.port == port), None)
        return candidates[0]  # its sockets are not to be seen: its flags have to do

    def below(self, node: NodeSpec, pid: int) -> int | None:
        """The VM with the flags of this node that is `pid`, or below it. Blocks for a pass over /proc."""
        return next((each.pid for each in self._flagged(node) if proc.descends_from(each.pid, pid)), None)

    def moved_from(self, node: NodeSpec) -> str | None:
        """Where the state directory was when `node` was started, if that leads elsewhere now: its agent looks
        for its orchestrator there.
        """
        start = self._start(node)
        if start is None or str(Path(start.directory).resolve()) == self._resolved(node):
            return None
        return start.directory

    def forget(self, node: NodeSpec) -> None:
        """Its process is gone."""
        for name in (START, TAKEN):
            self._store.discard(f"{node_directory(node.name)}/{name}")

    def _taken(self, node: NodeSpec) -> ExternalProcess | None:
        found = self._read(node, TAKEN, {"boot_id": str, "pid": int, "start_time": int})
        if found is None or found["boot_id"] != boot_id() or found["pid"] < 2:
            return None
        if proc.owner(found["pid"]) != _uid(node):
            return None  # the configuration has given the node another user
        with contextlib.suppress(RuntimeMissing):
            return ExternalProcess(found["pid"], found["start_time"])
        return None

    def _interrupted(self, node: NodeSpec, log: Path, recorded: RunRecord | None) -> RunRecord | None:
        """The process of a start that never came to be on record: of those that lead a session, the first of
        them that is below no other (erl_child_setup leads one too).
        """
        start = self._start(node)
        if start is None or start.boot_id != boot_id():
            return None
        if recorded is not None and recorded.boot_id == start.boot_id and start.made(recorded.start_time):
            return None  # it was on record, and has ended since
        leaders = self._leaders(node, start, log)
        for each in leaders:
            others = (other for other in leaders if other.pid != each.pid)
            if not any(proc.descends_from(each.pid, other.pid) for other in others):
                account = _account(node)
                uid = None if account is None else account.uid
                return RunRecord(each.pid, each.start_time, start.boot_id, 0.0, uid)
        return None

    def _leaders(self, node: NodeSpec, start: StartRecord, log: Path) -> list[proc.Stat]:
        sessions = {each.session for each in self._flagged(node)}
        latest = start.since + _FORK_SECONDS * proc.CLOCK_TICKS_PER_SECOND
        found = []
        with acting_as(_account(node)):
            mark = session.Mark(log)
            for each in proc.everything():
                leads = each.alive and each.session == each.pid and each.terminal == 0
                if not leads or not start.made(each.start_time) or proc.owner(each.pid) != _uid(node):
                    continue
                first = each.start_time <= latest and each.name not in _HELPERS
                if each.pid in sessions or (first and mark.is_on(each.pid)):
                    found.append(each)
        return sorted(found, key=lambda each: each.start_time)

    def _flagged(self, node: NodeSpec) -> Iterator[proc.Stat]:
        words, uid = ("-distsec_dir", self._resolved(node)), _uid(node)
        for each in proc.everything():
            beam = each.alive and each.name.startswith("beam")
            if beam and words in pairwise(proc.arguments(each.pid)) and proc.owner(each.pid) == uid:
                with acting_as(_account(node)):
                    same = proc.finds_same(each.pid, Path(words[1]))
                if same is not False:  # a container may have a node in a directory of the same name
                    yield each

    def _start(self, node: NodeSpec) -> StartRecord | None:
        found = self._read(node, START, {"boot_id": str, "since": int, "directory": str})
        return None if found is None else StartRecord(found["boot_id"], found["since"], found["directory"])

    def _resolved(self, node: NodeSpec) -> str:
        return str(self._store.path(node_directory(node.name)).resolve())

    def _write(self, node: NodeSpec, name: str, fields: dict[str, Any]) -> None:
        content = json.dumps({"schema": SCHEMA, **fields}).encode() + b"\n"
        self._store.write(f"{node_directory(node.name)}/{name}", content)

    def _read(self, node: NodeSpec, name: str, expected: dict[str, type]) -> dict[str, Any] | None:
        """None where it is not there, or is not what `_write` makes."""
        relative = f"{node_directory(node.name)}/{name}"
        with contextlib.suppress(StoreError, ValueError, RecursionError):
            found = json.loads(self._store.read(relative)) if self._store.exists(relative) else None
            if (
                isinstance(found, dict)
                and found.get("schema") == SCHEMA
                and all(type(found.get(key)) is kind for key, kind in expected.items())
            ):
                return found
        return None


def _account(node: NodeSpec) -> Account | None:
    return find_account(node.user) if node.user is not None else None


def _uid(node: NodeSpec) -> int | None:
    """Of its processes; None, which nobody has: its user is not there any more."""
    account = _account(node)
    return account.uid if account is not None else os.geteuid() if node.user is None else None
