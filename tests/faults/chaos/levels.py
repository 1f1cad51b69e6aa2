"""Whether memory and file descriptors keep their level. Pure.

Samples are taken at the end of each round, in the quiet, when the same cluster is in the same state as
before: among other things with every ring of events full (`run.flood`), since what fills rises. What a
process *holds* (descriptors, Erlang's processes, ports and tables) must be what it was; what it *weighs* may
settle, so that it is judged by its slope over the rounds after the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from statistics import median

WARM_UP_ROUNDS = 2
"""Of a process: what it has loaded and cached only by then. The last of them is what the next are held
against."""

FEWEST_SLOPES: Mapping[str, int] = {"orchestrator": 4, "node": 20}
"""By role: between two samples of one process, that a rise is judged by. Four lives of three rounds, or one
of five; of nodes there are several, whose memory comes and goes."""

KEPT_SAMPLES = 40
"""The latest, of each process."""

KEPT_PROCESSES = 60
"""The latest, of each role, that slopes are told of."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`above`: how much more than in the first rounds, of any process of that name; `a_round`: how much more
    from one round to the next (see `Levels.rise`); `most`: in any case."""

    above: float | None = None
    a_round: float | None = None
    most: float | None = None


KIB = 1024
MIB = 1024 * KIB

LIMITS: Mapping[str, Mapping[str, Limit]] = {
    "orchestrator": {
        "descriptors": Limit(above=2),
        "threads": Limit(most=40),
        "anonymous": Limit(a_round=512 * KIB),
        "resident": Limit(most=200 * MIB),
    },
    "node": {
        "descriptors": Limit(above=4),
        "processes": Limit(above=12),
        "ports": Limit(above=6),
        "tables": Limit(above=12),
        "atoms": Limit(a_round=40),
        "memory": Limit(a_round=1.0 * MIB),
        "resident": Limit(a_round=4.0 * MIB, most=400 * MIB),
    },
}
"""`resident`: bytes of RSS; `anonymous`: of it what no file is behind, and so what was allocated; `memory`:
erlang:memory(total), after a collection. A process that is a BEAM's is not the kernel's."""

Series = list[tuple[int, float]]
"""Round and value, of one process."""


@dataclass(slots=True)
class Levels:
    """Feed it a sample of each process at the end of each round."""

    limits: Mapping[str, Mapping[str, Limit]] = field(default_factory=lambda: LIMITS)
    series: dict[tuple[str, str, int, str], Series] = field(default_factory=dict)
    """By role, name, pid and what: every sample."""
    base: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """By role, name and what: in the first round, and in the second where it was more."""
    rounds: dict[tuple[str, str], int] = field(default_factory=dict)

    def feed(self, role: str, name: str, pid: int, sample: Mapping[str, float]) -> Iterator[str]:
        """Yields what has left its level, as texts."""
        number = self.rounds[role, name] = self.rounds.get((role, name), 0) + 1
        for what, value in sample.items():
            if (limit := self.limits[role].get(what)) is None:
                continue
            series = self.series.setdefault((role, name, pid, what), [])
            series.append((number, value))
            at = (role, name, what)
            if number <= WARM_UP_ROUNDS:
                self.base[at] = max(value, self.base.get(at, 0.0))
            base = self.base[at]
            if limit.above is not None and value > base + limit.above:
                yield f"{name} (pid {pid}) has {value:g} {what}, and had {base:g} in the same state before"
            if limit.most is not None and value > limit.most:
                yield f"{name} (pid {pid}): {what} is {value:,.0f}, above {limit.most:,.0f}"
            if limit.a_round is not None and (rise := self.rise(role, what)) > limit.a_round:
                latest = ", ".join(f"{each:,.0f}" for _, each in series[-12:])
                yield f"{role}: {what} rises by {rise:,.0f} a round; of {name} (pid {pid}): {latest}"

    def held_above(self, role: str, name: str, sample: Mapping[str, float]) -> bool:
        """Whether it holds more than it did in the first rounds; what is being let go of is less in a
        moment."""
        return any(
            limit.above is not None and sample.get(what, 0.0) > self.base[role, name, what] + limit.above
            for what, limit in self.limits[role].items()
            if (role, name, what) in self.base
        )

    def rise(self, role: str, what: str) -> float:
        """By how much a round, of most processes in that role: the median of the slopes between any two
        samples of one process (Theil and Sen), without those of its warm-up and without its largest step. So
        one jump is no rise, and a rise that comes in jumps does not hide. 0 where there are too few."""
        slopes = [
            (later - earlier) / (then - first)
            for series in self._judged(role, what)
            for (first, earlier), (then, later) in combinations(_without_largest_step(series), 2)
        ]
        return median(slopes) if len(slopes) >= FEWEST_SLOPES[role] else 0.0

    def _judged(self, role: str, what: str) -> list[Series]:
        found = [
            series[WARM_UP_ROUNDS - 1 :][-KEPT_SAMPLES:]
            for (of, _, _, named), series in self.series.items()
            if of == role and named == what and len(series) > WARM_UP_ROUNDS
        ]
        return found[-KEPT_PROCESSES:]

    def by_round(self, role: str, what: str, unit: float) -> dict[str, list[float]]:
        """By name and pid, every sample."""
        return {
            f"{name} {pid}": [round(value / unit, 2) for _, value in series]
            for (found, name, pid, named), series in self.series.items()
            if found == role and named == what
        }

    def highest(self, role: str, what: str) -> float:
        return max(
            (
                max(value for _, value in series)
                for (found, _, _, named), series in self.series.items()
                if found == role and named == what
            ),
            default=0.0,
        )


def _without_largest_step(series: Series) -> Series:
    """The same, its largest step from one sample to the next being no larger than most of the others."""
    steps = [later - earlier for (_, earlier), (_, later) in pairwise(series)]
    if len(steps) < 2:
        return series
    largest = max(range(len(steps)), key=steps.__getitem__)
    less = steps[largest] - median(steps[:largest] + steps[largest + 1 :])
    return [(number, value - (less if at > largest else 0.0)) for at, (number, value) in enumerate(series)]
