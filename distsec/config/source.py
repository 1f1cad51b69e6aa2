"""Reads the configuration file, if it is one that may be trusted to decide which commands run.

The file names commands that are started and nodes that are let in, so whoever can write it owns the cluster:
it must belong to root or to the caller, and it and its directory must not be everybody's to write.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from distsec.errors import ConfigError, Problem

MAX_BYTES = 1 << 20
"""1 MiB: a thousand nodes with long commands fit ten times."""


def read_source(path: Path) -> str:
    """The text of the file. Raises ConfigError if it is missing, not trustworthy, too large or not UTF-8."""
    try:
        # Non-blocking, so that a named pipe put in its place is refused below instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _refused(
            path, "there is no such file", "create one with `distsec init DIR`, or name it with -c"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its path holds a NUL"
        raise _refused(path, f"cannot be opened: {reason}", "check the path and its permissions") from None
    try:
        _check_status(path, os.fstat(descriptor))
        _check_directories(path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}", "check the disk") from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise _refused(path, f"is larger than {MAX_BYTES} bytes", "is it the right file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refused(path, "is not UTF-8", "save it as UTF-8", line) from None


def _check_status(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _refused(path, "is a directory", f"name the file in it, such as {path / 'distsec.toml'}")
    if not stat.S_ISREG(status.st_mode):
        raise _refused(path, "is not a regular file", "name a regular file")
    if status.st_uid not in {0, os.geteuid()}:
        raise _refused(
            path,
            f"belongs to another user (uid {status.st_uid}), who could have any command started",
            f"chown it to root or to uid {os.geteuid()}",
        )
    if status.st_mode & stat.S_IWOTH:
        raise _refused(path, "everybody may write to it, and so have any command started", "chmod o-w it")


def _check_directories(path: Path) -> None:
    for directory in {path.absolute().parent, path.resolve().parent}:
        mode = directory.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise _refused(path, f"everybody may replace it in {directory}", f"chmod o-w {directory}")


def _refused(path: Path, what: str, do: str, line: int = 0) -> ConfigError:
    return ConfigError(str(path), [Problem("", line, what, do)])
