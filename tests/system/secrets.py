"""Everything under a state directory that nobody else may learn, to be looked for where it must not be."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_COOKIE = re.compile(rb'<<"([A-Za-z0-9]{32,})">>')
_SECRET_FILES = ("agent.key", "cookie.secret", "cookie.next")


def contents(directory: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below `directory`, without those that go while they are looked for: who runs there replaces
    files, and removes directories.
    """
    for place, _, names in os.walk(directory):  # a directory that has gone is left out
        for name in sorted(names):
            path = Path(place, name)
            with suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()


def secrets_of(state: Path) -> dict[bytes, str]:
    """Each secret text with the file that it is from: cookies, keys of the port, lines of private keys."""
    found: dict[bytes, str] = {}
    for path, content in contents(state):
        secrets: list[bytes] = []
        if path.name == "cookie.term":
            secrets = _COOKIE.findall(content)
            assert secrets, path
        elif path.name in _SECRET_FILES:
            secrets = [content.strip()]
        elif b"PRIVATE KEY-----" in content:
            secrets = [line for line in content.splitlines() if line and not line.startswith(b"-----")]
        found |= {secret: str(path.relative_to(state)) for secret in secrets}
    return found
