"""What is kept of a rotation of the CA (`core.rotation`): its phase, as `ca/rotation.json` has it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distsec.core.rotation import WANTED, Ca, Phase, Rotation


def to_fields(phase: Phase, since: int) -> dict[str, Any]:
    """The content of `ca/rotation.json`, which `pki.trust` reads too. `since`: of the phase, Unix seconds."""
    wanted = WANTED[phase]
    both = Ca.NEW in wanted.bundle or phase is Phase.NARROWING
    known = (Ca.NEW,) if phase is Phase.RETIRING else (Ca.OLD, Ca.NEW) if both else (Ca.OLD,)
    return {
        "schema": 1,
        "phase": str(phase),
        "trusted": [str(each) for each in wanted.bundle],
        "known": [str(each) for each in known],
        "issuing": str(wanted.leaf),
        "since": since,
    }


def from_fields(fields: Mapping[str, Any]) -> Rotation:
    """The rotation that `to_fields` wrote. ValueError for anything else."""
    phase = Phase(fields["phase"])
    if to_fields(phase, 0) != {**fields, "since": 0}:
        raise ValueError("its parts contradict each other")
    return Rotation(phase)
