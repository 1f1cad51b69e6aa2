"""How the secret of the cookies is replaced without a moment in which two honest nodes refuse each other.

Pure: `step(rotation, event)` answers with the next value and the effects, in the order in which they are to
be performed; `supervisor.cookie_rotation` performs them. Never begun by itself: an operator asks for it.

    IDLE        Begun         → ACCEPTING   make the new secret · save · tell all: also take the new one
    ACCEPTING   Acknowledged  → USING       save · tell all: dial with the new one, also take the old one
    USING       Acknowledged  → USING       verify every link
    USING       Verified      → FORGETTING  save · tell all: take the new one alone
    FORGETTING  Acknowledged  → IDLE        the new secret takes the old one's place · save · drop its copy
    ACCEPTING   GivenUp       → IDLE        save · drop the new secret · tell all
    any but IDLE  Resumed     → the same    tell all

Acknowledged: by every node whose process lives. What is saved is what a node starts with, so one that does
not run needs no answer, and after an interruption anywhere the saved phase is told again.

What holds after every single effect, in whatever order the nodes hear of it
(tests/unit/test_cookie_rotation.py stops at every step, and restarts nodes there):

1. Whatever one node dials with, every other one takes. So nodes are of two neighbouring phases at most.
2. The old secret is in use nowhere when it is forgotten, and the new one is taken everywhere when it is used.
3. Until everybody takes the new one it can be given up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from distsec.model.cookies import CookiePhase, CookieRotation


class IllegalStep(ValueError):
    """That event has no place in that phase; nothing is changed."""


@dataclass(frozen=True, slots=True)
class Begun:
    """An operator asked for it; `now` in Unix seconds."""

    now: int


class Happened(StrEnum):
    RESUMED = "resumed"  # an operator asked again
    ACKNOWLEDGED = "acknowledged"  # all that live have what was told
    VERIFIED = "verified"  # every link was proven with the new cookie at both ends
    GIVEN_UP = "given_up"  # an operator wants the old secret back


Event = Begun | Happened


class Effect(StrEnum):
    MAKE_SECRET = "make_secret"  # noqa: S105 - the new one, in a file of its own
    SAVE = "save"  # the rotation as it is now
    TELL = "tell"  # write the cookies of every node, then send them to all that live
    VERIFY = "verify"
    REPLACE_SECRET = "replace_secret"  # noqa: S105 - the new one takes the place of the old one
    DROP_SECRET = "drop_secret"  # noqa: S105 - the file of the new one


Result = tuple[CookieRotation, tuple[Effect, ...]]

_TABLE: dict[tuple[CookiePhase, Happened], tuple[CookiePhase, tuple[Effect, ...]]] = {
    (CookiePhase.ACCEPTING, Happened.RESUMED): (CookiePhase.ACCEPTING, (Effect.TELL,)),
    (CookiePhase.ACCEPTING, Happened.ACKNOWLEDGED): (CookiePhase.USING, (Effect.SAVE, Effect.TELL)),
    (CookiePhase.ACCEPTING, Happened.GIVEN_UP): (
        CookiePhase.IDLE,
        (Effect.SAVE, Effect.DROP_SECRET, Effect.TELL),
    ),
    (CookiePhase.USING, Happened.RESUMED): (CookiePhase.USING, (Effect.TELL,)),
    (CookiePhase.USING, Happened.ACKNOWLEDGED): (CookiePhase.USING, (Effect.VERIFY,)),
    (CookiePhase.USING, Happened.VERIFIED): (CookiePhase.FORGETTING, (Effect.SAVE, Effect.TELL)),
    (CookiePhase.FORGETTING, Happened.RESUMED): (CookiePhase.FORGETTING, (Effect.TELL,)),
    (CookiePhase.FORGETTING, Happened.ACKNOWLEDGED): (
        CookiePhase.IDLE,
        (Effect.REPLACE_SECRET, Effect.SAVE, Effect.DROP_SECRET),
    ),
}


def step(rotation: CookieRotation, event: Event) -> Result:
    """What `event` leads to. Raises IllegalStep."""
    match event:
        case Begun(now) if rotation.phase is CookiePhase.IDLE:
            begun = replace(
                rotation, phase=CookiePhase.ACCEPTING, step=rotation.step + 1, next_made=max(0, now)
            )
            return begun, (Effect.MAKE_SECRET, Effect.SAVE, Effect.TELL)
        case Begun():
            raise IllegalStep(f"begun while {rotation.phase}")
        case Happened():
            if (rotation.phase, event) not in _TABLE:
                raise IllegalStep(f"{event} while {rotation.phase}")
            phase, effects = _TABLE[rotation.phase, event]
            return _in(rotation, phase), effects


def _in(rotation: CookieRotation, phase: CookiePhase) -> CookieRotation:
    if phase is rotation.phase:
        return rotation
    after = replace(rotation, phase=phase, step=rotation.step + 1)
    if phase is not CookiePhase.IDLE:
        return after
    return replace(after, made=rotation.in_use_since, next_made=0)
