"""Lines of the table, and how they come of samples that were taken in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARM_UP_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `ratio` is value / baseline where there is one, `low` and `high` the quartiles of the ratio
    over the rounds, and `goal` what it should be."""

    what: str
    value: str
    baseline: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    goal: str = ""


def in_turn(
    measures: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = WARM_UP_ROUNDS
) -> dict[str, list[float]]:
    """`rounds` samples of each, after `warm_up` that do not count. Each round begins with another one, so
    that a machine that slows down, or one that pays for what the one before it left behind, evens out.
    """
    names = list(measures)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            value = measures[name]()
            if turn >= warm_up:
                samples[name].append(value)
    return samples


def compare(
    what: str,
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    show: Callable[[float], str],
    against: str,
    goal: str = "",
) -> Row:
    """The row of samples that were taken in the same rounds."""
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
    value = f"{row.value:>12}  {row.baseline:<28}"
    return f"{row.what:<{width}}  {value} {ratio:<10} {spread:<18} {goal}".rstrip()
