"""Bounded reads of files and their status. What cannot be read is a `Read` with a reason, never an error."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from distsec.posture.facts import FileFact, Kind, Role

MAX_FILE_BYTES: Final = 1 << 20
MAX_PROC_BYTES: Final = 1 << 18
"""Of one file in /proc: arguments and environments are the process's own choice."""

MAX_ENTRIES: Final = 20_000
"""Of one part of a directory tree; more are not looked at, and that is said."""


@dataclass(frozen=True, slots=True)
class Read:
    """`content`, or why there is none. `denied`: this user may not; `modified`: Unix seconds."""

    content: bytes | None = None
    problem: str = ""
    missing: bool = False
    denied: bool = False
    modified: float = 0.0


def read(path: Path) -> Read:
    """At most 1 MiB of a regular file. A FIFO does not hold this up; a symlink is followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        return _failed(error)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return Read(problem="is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return _failed(error)
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        return Read(problem=f"is longer than {MAX_FILE_BYTES} bytes")
    return Read(content, modified=found.st_mtime)


def read_proc(pid: int, name: str) -> bytes | None:
    """The beginning of /proc/PID/`name`; b"" if the process is gone, None if it may not be read."""
    try:
        with Path(f"/proc/{pid}/{name}").open("rb", buffering=0) as file:
            parts, size = [], 0
            while size < MAX_PROC_BYTES and (part := file.read(MAX_PROC_BYTES - size)):
                parts.append(part)
                size += len(part)
            return b"".join(parts)
    except PermissionError:
        return None
    except OSError:
        return b""


def fact(path: Path, role: Role, trusted: frozenset[int]) -> FileFact | None:
    """The status of `path` itself, not of what it may point to; None if it cannot be had."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    mode = stat.S_IMODE(found.st_mode)
    return FileFact(str(path), role, _kind(found.st_mode), mode, found.st_uid, trusted, gid=found.st_gid)


def target(path: Path, role: Role, trusted: frozenset[int]) -> FileFact | None:
    """The status of the file that `path` leads to, through symlinks, under its own path."""
    return fact(_resolved(path), role, trusted)


def parents(path: Path, trusted: frozenset[int]) -> Iterator[FileFact]:
    """Every directory on the way to `path`, from the root, through symlinks."""
    seen = set()
    for way in (path.absolute(), _resolved(path)):
        for directory in reversed(way.parents):
            if directory not in seen:
                seen.add(directory)
                found = fact(directory, Role.PARENT, trusted)
                if found is not None and found.kind is Kind.DIRECTORY:
                    yield found


def sheltered(path: Path) -> bool:
    """Whether a directory on the way to `path` lets nobody but its owner through."""
    for directory in path.parents:
        try:
            if not directory.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
                return True
        except OSError:
            return False
    return False


def walk(root: Path, leave: frozenset[Path] = frozenset()) -> tuple[list[Path], Path | None]:
    """At most MAX_ENTRIES of what is below `root`, and the directory at which there were more (None: none).

    Symlinks are not followed, and directories of `leave` not entered; what cannot be listed is left out.
    """
    paths: list[Path] = []
    pending = [root]
    while pending:
        directory = pending.pop()
        room = MAX_ENTRIES - len(paths)
        try:
            with os.scandir(directory) as listed:
                entries = list(islice(listed, room + 1))
        except OSError:
            continue
        for entry in sorted(entries[:room], key=lambda entry: entry.name):
            path = Path(entry.path)
            paths.append(path)
            if path not in leave and entry.is_dir(follow_symlinks=False):
                pending.append(path)
        if len(entries) > room:
            return paths, directory
    return paths, None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path.absolute()


def _failed(error: OSError | ValueError) -> Read:
    if isinstance(error, ValueError):
        return Read(problem="has a name that no file can have")
    why = os.strerror(error.errno).lower() if error.errno else "cannot be read"
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return Read(problem=why, missing=missing, denied=isinstance(error, PermissionError))


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    if stat.S_ISLNK(mode):
        return Kind.SYMLINK
    return Kind.SOCKET if stat.S_ISSOCK(mode) else Kind.OTHER
