"""Operators' commands, given while anything happens: begun, asked after, and repeated until they are done.

A command may fail while the orchestrator is away, the disk is full or a node does not answer, with an exit
code that says so. It must neither hang nor end in any other way, and what was interrupted must come to its
end once the cluster is quiet.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.chaos.cluster import ChaosCluster, command

DONE = 0
EXPECTED_FAILURES = frozenset({64, 66, 69, 70, 71, 73, 75})
"""64: another step of the rotation has been reached meanwhile; the others: docs/commands.md. Not among them:
1, a traceback; 65, 68, 76, 77, 78, which nothing here is a reason for."""

NO_ANSWER = 3
STATUS_FAILURES = frozenset({1, NO_ANSWER})
"""Degraded, or nobody answers. Never 2: a violation."""

AT_REST = frozenset({"idle", "prepared", "activated"})
"""Phases of a CA's rotation that wait for the operator."""

HANGS_SECONDS = 150.0
"""A command that takes longer does not end: its own deadlines, each phase of a rotation counted, are
shorter."""

AGAIN_SECONDS = 1.0


@dataclass(slots=True)
class Task:
    """One command, given until it is done if `insists`. `wanted`: the exit code that is meant by that;
    `done_at`: Unix seconds of it; `failures`: how else it may end; `again`: give it again in the quiet.
    `away`: what was given while that was so has, where it still is so at its end, no answer to tell of."""

    arguments: tuple[str, ...]
    insists: bool = False
    failures: frozenset[int] = EXPECTED_FAILURES
    again: bool = False
    wanted: int = DONE
    on_done: Callable[[float], None] | None = None
    away: Callable[[], bool] | None = None
    process: subprocess.Popen[str] | None = None
    begun: float = 0.0
    not_before: float = 0.0
    tries: int = 0
    last: str = ""
    done_at: float | None = None
    over: bool = False

    def __str__(self) -> str:
        return f"distsec {' '.join(self.arguments)}"


@dataclass(slots=True)
class Operator:
    """Gives commands in processes of their own; `tick` looks after them. `codes` counts how they ended."""

    cluster: ChaosCluster
    tasks: list[Task] = field(default_factory=list)
    unfinished: dict[tuple[str, ...], Task] = field(default_factory=dict)
    """What did not end with 0, and is to be given again in the quiet; by what it would be given as."""
    codes: dict[tuple[str, int], int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def give(
        self,
        *arguments: str,
        insists: bool = False,
        failures: frozenset[int] = EXPECTED_FAILURES,
        again: bool = False,
        wanted: int = DONE,
        on_done: Callable[[float], None] | None = None,
    ) -> Task:
        task = Task(arguments, insists, failures, again, wanted, on_done)
        self.tasks.append(task)
        self._begin(task)
        return task

    @property
    def busy(self) -> list[Task]:
        return [task for task in self.tasks if not task.over]

    def pids(self) -> set[int]:
        return {task.process.pid for task in self.tasks if task.process is not None}

    def tick(self) -> None:
        now = time.monotonic()
        for task in self.busy:
            if task.process is None:
                if now >= task.not_before:
                    self._begin(task)
            elif (code := task.process.poll()) is not None:
                self._ended(task, code)
            elif now - task.begun > HANGS_SECONDS:
                self.violations.append(f"{task} has not ended in {HANGS_SECONDS:g} s")
                self._kill(task)
        self.tasks = self.busy

    def _begin(self, task: Task) -> None:
        task.process = command(self.cluster, *task.arguments)
        task.begun = time.monotonic()
        task.tries += 1

    def _ended(self, task: Task, code: int) -> None:
        assert task.process is not None
        task.last = (task.process.communicate()[0] or "").strip()
        task.process = None
        what = " ".join(word for word in task.arguments if "@" not in word)
        self.codes[what, code] = self.codes.get((what, code), 0) + 1
        if task.away is not None and task.away():
            task.wanted, task.failures = NO_ANSWER, frozenset()
        if code == task.wanted:
            task.done_at, task.over = time.time(), True
            if task.on_done is not None:
                task.on_done(task.done_at)
            return
        if code not in task.failures or "Traceback" in task.last:
            self.violations.append(f"{task} ended with {code}: {task.last}")
        if task.insists:
            task.not_before = time.monotonic() + AGAIN_SECONDS
            return
        task.over = True
        if task.again:
            self.unfinished[task.arguments] = task

    def look(self, away: Callable[[], bool]) -> None:
        """`distsec status`: whatever happens, never a violation. `away`: whether the orchestrator cannot
        answer now; one that cannot all the while is what it has to tell of."""
        task = self.give("status", failures=STATUS_FAILURES)
        task.away = away if away() else None

    def go_on(self) -> None:
        """Gives again what is not done, in the quiet, until it is."""
        unfinished, self.unfinished = self.unfinished, {}
        for arguments in unfinished:
            if arguments[:2] == ("certs", "rotate-ca"):
                if self.rotation_phase() not in AT_REST:
                    step = self.next_step(back=arguments[2] == "rollback")
                    self.give("certs", "rotate-ca", step, insists=True)
            else:
                self.give(*arguments, insists=True)

    def _kill(self, task: Task) -> None:
        if task.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(task.process.pid, signal.SIGKILL)
            task.process.communicate()
            task.process = None
        task.over = True

    def close(self) -> None:
        for task in self.busy:
            self._kill(task)

    # ---- rotations

    def rotation_phase(self) -> str:
        """Of the CA's rotation, as it stands on disk."""
        return _phase(self.cluster.state / "ca" / "rotation.json")

    def next_step(self, back: bool) -> str:
        """The command of `certs rotate-ca` that leads on from there, or back."""
        phase = self.rotation_phase()
        if phase in _WAY_BACK or (back and phase not in {"idle", "pruning", "retiring"}):
            return "rollback"
        return _WAY_ON.get(phase, "prepare")


_WAY_BACK = frozenset({"rolling_back", "widening", "reissuing", "narrowing", "discarding"})
_WAY_ON = {
    "prepared": "activate",
    "activating": "activate",
    "activated": "prune",
    "pruning": "prune",
    "retiring": "prune",
}


def _phase(path: Path) -> str:
    try:
        return str(json.loads(path.read_text()).get("phase", "idle"))
    except FileNotFoundError:
        return "idle"
