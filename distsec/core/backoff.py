"""How long a node waits before it is started again. Pure."""

from __future__ import annotations

FIRST_SECONDS = 0.25
CAP_SECONDS = 30.0


def backoff_seconds(before: int, chance: float) -> float:
    """The pause after `before` others in a row: doubling, capped, half of it by `chance` (no herds)."""
    whole = min(CAP_SECONDS, FIRST_SECONDS * 2.0 ** min(before, 16))
    return whole * (0.5 + 0.5 * chance)
