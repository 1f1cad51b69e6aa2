"""The dated list of known holes in OTP (known_holes.json), and which of them a version has. Pure but for
reading that file, which is part of this package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from typing import Final

from distsec.posture.finding import Severity

FILE: Final = "known_holes.json"
OUTDATED_DAYS: Final = 365
_LINK: Final = "https://www.cve.org/CVERecord?id="
_VERSION = re.compile(r"\d{1,4}(\.\d{1,6}){0,6}")


@dataclass(frozen=True, slots=True)
class Hole:
    """`fixed`: the first version without it on each branch; `since`: the first with it; `condition`: without
    which it does not matter; `carrier_stops_it`: not over links that distsec carries."""

    id: str
    severity: Severity
    what: str
    fixed: tuple[tuple[int, ...], ...]
    since: tuple[int, ...]
    condition: str
    carrier_stops_it: bool

    @property
    def link(self) -> str:
        return _LINK + self.id

    @property
    def fixes(self) -> str:
        return ", ".join(".".join(map(str, version)) for version in self.fixed)

    def is_in(self, version: tuple[int, ...]) -> bool:
        """Whether OTP `version` has it. A branch that is older than every fixed one was never mended, a newer
        one began without it."""
        if version < self.since:
            return False
        of_branch = next((fixed for fixed in self.fixed if fixed[0] == version[0]), None)
        return version < (of_branch or min(self.fixed))


@dataclass(frozen=True, slots=True)
class KnownHoles:
    as_of: date
    holes: tuple[Hole, ...]

    def outdated(self, now: float) -> bool:
        """Whether the list is too old to be relied on at `now` (Unix seconds)."""
        return (datetime.fromtimestamp(now, UTC).date() - self.as_of).days > OUTDATED_DAYS


@cache
def known_holes() -> KnownHoles:
    """The list of this release of distsec."""
    document = json.loads(resources.files(__package__).joinpath(FILE).read_text("utf-8"))
    return KnownHoles(
        as_of=date.fromisoformat(document["as_of"]),
        holes=tuple(
            Hole(
                id=entry["id"],
                severity=Severity(entry["severity"]),
                what=entry["what"],
                fixed=tuple(sorted(_numbers(text) for text in entry["fixed"])),
                since=_numbers(entry.get("since", "0")),
                condition=entry.get("if", ""),
                carrier_stops_it=entry.get("carrier_stops_it", False),
            )
            for entry in document["holes"]
        ),
    )


def version_of(text: str) -> tuple[int, ...] | None:
    """`27.3.4.1` as numbers; a release candidate counts as what it precedes. None for anything else."""
    head = text.partition("-rc")[0]
    return _numbers(head) if _VERSION.fullmatch(head) else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
