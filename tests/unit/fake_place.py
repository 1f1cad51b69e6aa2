"""What shells need of a machine, in memory (`supervisor.shells.Place`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distsec.beam import proc
from distsec.beam.shell_directory import ShellRecord
from distsec.core.wanted import Overlay
from distsec.errors import DistsecError
from distsec.model.cluster import NodeSpec


class FakePlace:
    """`made` holds what is on disk; `left`: what an earlier orchestrator left; `error` is raised by the next
    shell. Processes are real."""

    def __init__(self, left: list[ShellRecord] | None = None) -> None:
        self.made: dict[str, ShellRecord] = {record.token: record for record in left or ()}
        self.error: DistsecError | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        """Called in the thread that makes a shell, before it has made anything."""

    def begin_shell(self, record: ShellRecord, node: NodeSpec, overlay: Overlay) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.meanwhile()
        self.made[record.token] = record
        return {"words": ["erl"], "directory": f"/x/{record.token}", "uid": 0, "gid": 0}

    def start_time(self, pid: int) -> int | None:
        return proc.start_time(pid)

    def shell_records(self) -> list[ShellRecord]:
        return list(self.made.values())

    def remove_shell(self, record: ShellRecord) -> None:
        self.made.pop(record.token, None)
