"""Processes of a test: found by the test's own directory, ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.waiting import wait_until


def belonging_to(directory: Path) -> list[int]:
    """The pids whose command line or environment at start names `directory`, which only one test has."""
    needle = os.fsencode(directory)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                if any(_names(entry / file, needle) for file in ("cmdline", "environ")):
                    found.append(int(entry.name))
    return sorted(found)


def _names(file: Path, needle: bytes) -> bool:
    content = file.read_bytes()
    return any(needle + end in content for end in (b"/", b"\0", b'"', b"'", b" ")) or content.endswith(needle)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether it has a handler of its own for that signal by now."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        mask = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(mask >> (number - 1) & 1)
    return False


def gone(pid: int) -> bool:
    """Whether a process that was killed holds nothing any more: the first of its threads may be a zombie when
    others, who have the same sockets, still end.
    """
    place = Path(f"/proc/{pid}")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(list((place / "task").iterdir())) <= 1
    return True


def describe(pid: int) -> str:
    """A pid with its command line, for the text of an assertion."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return f"{pid}: {command.decode(errors='replace')[:200]}"
    return str(pid)


def end_all(directory: Path, seconds: float = 60.0) -> list[str]:
    """Kills whatever belongs to `directory`, until nothing does. Returns what there was."""
    ended: dict[int, str] = {}

    def none_left() -> bool:
        pids = belonging_to(directory)
        for pid in pids:
            ended.setdefault(pid, describe(pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(none_left, f"the end of every process of {directory}", seconds)
    return list(ended.values())
