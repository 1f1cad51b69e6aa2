"""An overlay that is older than what it has led to: a backup that was restored over it, say.

Pure. What is found in the nodes and their directories is compared with the overlay; where it is newer, the
overlay is lifted above it with everything that it refused. So a denial is never forgotten because the file
that recorded it was put back; what was allowed since is, and is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from distsec.core.wanted import Overlay, Recovered
from distsec.model.identities import readable

MAX_LEAP = 1_000_000
"""How far above the overlay a mark is followed, which is no proof: whoever is in a node can write any number
there, and must not be able to use up all that there are.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one node: the policy that our key has signed, and the mark that the node keeps, where there are."""

    node: str
    signed: Recovered | None = None
    mark: int | None = None


def lifted(overlay: Overlay, found: Iterable[Found]) -> tuple[Overlay, tuple[str, ...]]:
    """The overlay to go on with, and what is to be told of it: nothing, and the same overlay, where it is
    the newest.
    """
    found = tuple(found)
    notes: list[str] = []
    after = overlay
    newer = [
        (each.node, each.signed)
        for each in found
        if each.signed is not None and each.signed.generation > overlay.generation
    ]
    for _, signed in newer:
        after = after.recovering(signed)
    if newer:
        notes.append(_told(overlay, after, ", ".join(sorted({node for node, _ in newer}))))
    for each in found:
        if each.mark is None or each.mark <= after.generation:
            continue
        if each.mark > after.generation + MAX_LEAP:
            notes.append(
                f"{each.node}: its policy.mark ({each.mark}) is beyond all that was ever issued; it is not"
                " followed, and the node takes no policy before that file is removed"
            )
            continue
        notes.append(
            f"{each.node} has had generation {each.mark} in force, and the overlay is at"
            f" {after.generation}: what was changed in between is not known; repeat your denials"
        )
        after = replace(after, generation=each.mark + 1)
    return after, tuple(notes)


def _told(before: Overlay, after: Overlay, whose: str) -> str:
    back = sorted(after.deny - before.deny)
    serials = len(after.revoked - before.revoked)
    identities = sorted(map(readable, after.revoked_identities - before.revoked_identities))
    found = [f"denied again: {', '.join(back)}"] if back else []
    found += [f"revoked again: {serials} certificates"] if serials else []
    found += [f"revoked again: {', '.join(identities)}"] if identities else []
    return (
        f"the overlay (generation {before.generation}) is older than the policy of {whose}; it goes on above"
        f" that, at {after.generation}; {'; '.join(found) or 'nothing was denied since'};"
        " what was allowed since is forgotten"
    )
