"""Lines of the table, and how they come of samples that were taken in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARM_UP_ROUNDS = 2
TRIES = 4
"""How often as many rounds as are wanted are taken at most, for as many that were calm."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `ratio` is value / baseline where there is one, `low` and `high` the quartiles of the ratio
    over the rounds, and `goal` what it should be. In `disturbed` of the rounds others had the machine."""

    what: str
    value: str
    baseline: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    goal: str = ""
    disturbed: int = 0


class Samples(dict[str, list[float]]):
    """By the name of what was measured; the n-th of each are of one round."""

    disturbed = 0
    """In how many of the rounds others had the machine."""


def in_turn(
    measures: Mapping[str, Callable[[], float]],
    rounds: int,
    warm_up: int = WARM_UP_ROUNDS,
    calm: Callable[[], bool] = lambda: True,
) -> Samples:
    """`rounds` samples of each, after `warm_up` that do not count. Each round begins with another one, so
    that a machine that slows down, or one that pays for what the one before it left behind, evens out.

    A round after which `calm` says no is taken again, while TRIES last.
    """
    names = list(measures)
    taken: list[tuple[bool, dict[str, float]]] = []
    for turn in range(warm_up + rounds * TRIES):
        first = turn % len(names)
        values = {name: measures[name]() for name in names[first:] + names[:first]}
        was_calm = calm()
        if turn >= warm_up:
            taken.append((was_calm, values))
        if sum(was_calm for was_calm, _ in taken) == rounds:
            break
    taken.sort(key=lambda each: not each[0])  # stable: the calm ones first, each in its order
    kept = taken[:rounds]
    samples = Samples({name: [values[name] for _, values in kept] for name in names})
    samples.disturbed = sum(not was_calm for was_calm, _ in kept)
    return samples


def compare(
    what: str,
    samples: Samples,
    ours: str,
    against: str,
    *,
    show: Callable[[float], str],
    goal: str = "",
) -> Row:
    """The row of one that was measured against another one."""
    values, baseline = samples[ours], samples[against]
    ratios = [value / base for value, base in zip(values, baseline, strict=True)]
    low, middle, high = quartiles(ratios)
    return Row(
        what,
        show(statistics.median(values)),
        f"{against} {show(statistics.median(baseline))}",
        middle,
        low,
        high,
        goal,
        samples.disturbed,
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a line each."""
    width = max((len(row.what) for row in rows), default=0)
    return "\n".join(_line(row, width) for row in rows)


def _line(row: Row, width: int) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:8.3f} x"
    spread = "" if row.low is None or row.high is None else f"({row.low:.3f} to {row.high:.3f})"
    goal = f"goal {row.goal}" if row.goal else ""
    busy = f"({row.disturbed} rounds disturbed)" if row.disturbed else ""
    value = f"{row.value:>12}  {row.baseline:<28}"
    return f"{row.what:<{width}}  {value} {ratio:<10} {spread:<18} {goal:<13} {busy}".rstrip()
