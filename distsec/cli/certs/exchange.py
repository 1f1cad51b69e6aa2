"""Files that are carried between hosts: requests, and the certificates that answer them. Nothing in them is
secret.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from distsec.errors import StoreError, UsageError
from distsec.pki import files
from distsec.pki.requests import MAX_FILE_BYTES

STDIO = Path("-")
_MODE = 0o644
_OURS = (b"-----BEGIN CERTIFICATE REQUEST-----", b"-----BEGIN CERTIFICATE-----")
_SECRET = b"PRIVATE KEY-----"


def read_file(path: Path) -> bytes:
    """All of it, or of stdin where `path` is `-`. Raises UsageError, also if it is too long."""
    try:
        if path == STDIO:
            content: bytes = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with path.open("rb") as stream:
                content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot be read: {_reason(error)}", where=str(path), do="name another file"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(
            f"is larger than {MAX_FILE_BYTES} bytes", where=str(path), do="is it the right file?"
        )
    return content


def write_file(path: Path, content: bytes) -> None:
    """Writes `content` in one step; to stdout where `path` is `-`. What is replaced must be a file of the
    kind that is exchanged, so that a slip of the pen costs nobody a key. Raises StoreError, UsageError.
    """
    if path == STDIO:
        sys.stdout.buffer.write(content)
        return
    check_replaceable(path)
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.replace(directory, path.name, content, _MODE)
        finally:
            os.close(directory)
    except OSError as error:
        raise StoreError(
            f"cannot be written: {_reason(error)}", where=str(path), do="see to it and run it again"
        ) from None


def check_replaceable(path: Path) -> None:
    """Raises UsageError unless nothing is lost if `write_file` puts another file at `path`."""
    if path == STDIO:
        return
    with contextlib.suppress(FileNotFoundError):
        if not path.is_symlink() and path.is_file():
            head = read_file(path)
            if not head or (any(mark in head for mark in _OURS) and _SECRET not in head):
                return
        elif not os.path.lexists(path):
            return
        raise UsageError(
            "is there, and is neither a request nor an answer to one",
            where=str(path),
            do="choose another name for --out",
        )


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else "unusable").lower()
