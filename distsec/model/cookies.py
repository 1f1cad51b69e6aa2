"""Values of the distribution cookies: what one node has, and how far a rotation of their secret has got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from distsec.model.secret import Secret

PLACEHOLDER: Final = "set_by_distsec"
"""What a start script that gives a cookie whatever one says is given in its place (distsec_guard.erl). It
admits nobody to a guarded node, whose cookies are set before it listens; anywhere else it is a cookie that
everybody knows."""


class CookiePhase(StrEnum):
    """Of a rotation. `core.cookie_rotation` says what leads where."""

    IDLE = "idle"  # one secret: what nodes dial with, and take
    ACCEPTING = "accepting"  # nodes dial with the old one, and take the new one too
    USING = "using"  # nodes dial with the new one, and take the old one still
    FORGETTING = "forgetting"  # the new one alone; not everybody is known to have forgotten the old one


@dataclass(frozen=True, slots=True)
class CookieRotation:
    """`step` rises with each change of phase: nodes take nothing that was meant for an earlier one.

    `made`, `next_made`: when the secret of before a rotation, and the new one, were made (Unix seconds).
    """

    phase: CookiePhase = CookiePhase.IDLE
    step: int = 0
    made: int = 0
    next_made: int = 0

    @property
    def dials_with_next(self) -> bool:
        return self.phase in (CookiePhase.USING, CookiePhase.FORGETTING)

    @property
    def in_use_since(self) -> int:
        """When the secret that nodes dial with was made."""
        return self.next_made if self.dials_with_next else self.made


@dataclass(frozen=True, slots=True)
class Cookies:
    """Of one node: towards names that are not listed exactly, and with each listed peer."""

    default: Secret
    peers: Mapping[str, Secret]


@dataclass(frozen=True, slots=True)
class CookieSet:
    """What a node dials with and takes, and what it takes from who dials besides."""

    step: int
    current: Cookies
    other: Cookies | None = None
