"""Which OTP an emulator is of, from the files of its installation; nothing is run."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Final

from distsec.posture.collect.reading import read

MAX_NAMES: Final = 1000
"""Of one directory: where an installation is, is the process's own word."""

_VERSION: Final = re.compile(r"\d{2,3}(\.\d{1,6}){0,6}(-rc\d+)?")
_ERTS_AHEAD: Final = 12
"""OTP 23 has erts 11, 29 has 17; before that they differ by another number."""


def of_root(root: Path) -> tuple[int | None, str | None]:
    """(release, whole version) of the OTP, or release of an application, at `root`; None: not known."""
    erts, named = _start_data(root)
    for release in dict.fromkeys((named, *_numbered(root))):
        if release is not None:
            version = _text(root / "releases" / release / "OTP_VERSION")
            if _VERSION.fullmatch(version):
                return int(re.match(r"\d+", version)[0]), version  # type: ignore[index]
    if named is not None and named.isdecimal() and len(named) <= 3:
        return int(named), None
    return _release_of_erts(erts or _erts_beside(root)), None


def _start_data(root: Path) -> tuple[str | None, str | None]:
    """ "<erts> <release>" of what is booted (OTP System Principles, "Creating a Target System")."""
    words = _text(root / "releases" / "start_erl.data").split()
    if len(words) == 2 and "/" not in words[1] and words[1] not in {".", ".."}:
        return words[0], words[1]
    return None, None


def _numbered(root: Path) -> list[str]:
    try:
        names = sorted((path.name for path in islice((root / "releases").iterdir(), MAX_NAMES)), reverse=True)
    except OSError:
        return []
    return [name for name in names[:100] if name.isdecimal()]


def _erts_beside(root: Path) -> str | None:
    try:
        names = sorted(path.name for path in islice(root.glob("erts-*"), MAX_NAMES))
    except OSError:
        return None
    return names[-1].removeprefix("erts-") if names else None


def _release_of_erts(version: str | None) -> int | None:
    head = (version or "").partition(".")[0]
    if not head.isdecimal() or not 11 <= int(head) <= 99:
        return None
    return int(head) + _ERTS_AHEAD


def _text(path: Path) -> str:
    content = read(path).content
    return "" if content is None else content[:256].decode("ascii", "replace").strip()
