"""JSON documents that are carried between hosts; nothing in them is secret."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from distsec.cli.certs.exchange import STDIO, read_file
from distsec.errors import StoreError, UsageError
from distsec.pki import files

_MODE = 0o644


def write_carried(path: Path, content: bytes, kind: str) -> None:
    """Writes `content` in one step; to stdout where `path` is `-`. Raises StoreError, UsageError."""
    import sys

    if path == STDIO:
        sys.stdout.buffer.write(content)
        return
    check_replaceable(path, kind)
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.replace(directory, path.name, content, _MODE)
        finally:
            os.close(directory)
    except OSError as error:
        reason = (os.strerror(error.errno) if error.errno else "unusable").lower()
        raise StoreError(
            f"cannot be written: {reason}", where=str(path), do="see to it and run it again"
        ) from None


def check_replaceable(path: Path, kind: str) -> None:
    """Raises UsageError unless nothing but an older document of that kind is lost if `path` is replaced."""
    if path == STDIO or not os.path.lexists(path):
        return
    if not path.is_symlink() and path.is_file():
        head = read_file(path)
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(head) if head else {"kind": kind}
            if isinstance(found, dict) and found.get("kind") == kind:
                return
    raise UsageError(
        "is there, and is nothing that distsec exported", where=str(path), do="choose another name for --out"
    )
