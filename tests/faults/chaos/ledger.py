"""Whether the event log and the metrics agree with each other and with what the nodes counted. Pure.

An event of a node is known by (launch, lane, sequence): the launch is one VM, the sequence counts from 1. Of
the lines of all orchestrators of a run this is held:

* **Not doubled.** One orchestrator writes each event once. The next one may write those again that were under
  way when it took over (written, and not acknowledged yet): counted as `repeated`, MOST_REPEATED a launch at
  most.
* **Not lost.** Of a launch that lives, every sequence that the node gave out is in a line, but for as many as
  `dropped` says (distsec_events_dropped_total), as are summed up in lines with `suppressed`, and, of
  refusals, as are the echoes of the orchestrator's own probes (probes.json), which are no refusals of
  strangers.
* **The same number.** For each direction and reason: what the node counted, without the echoes, is what the
  lines of that launch say; and /metrics of the orchestrator that runs is the sum over the launches that it
  has seen. Of a launch that has ended, /metrics may lack what came after the last heartbeat, where this
  orchestrator did not see it whole; and may lead by what that heartbeat had counted, and the node died before
  it sent.

A full disk costs the echoes' exact number (docs/state-files.md): a launch that saw one is `blurred`, and
compared without the reasons that a probe is refused for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from distsec.model.events import REFUSAL_TYPES
from distsec.supervisor.echoes import OF_A_PROBE

MOST_REPEATED = 512
"""Events of one launch that an orchestrator may write again after it took over: two batches of an agent."""

HEARTBEAT_SECONDS = 2.5
"""What the metrics may lack of a launch that has ended: a heartbeat comes each second, and the machine is
busy."""

MOST_UNSENT = 2
"""Refusals that a heartbeat counts, and whose events do not leave a node that is killed in that moment."""

PROBE_REASONS = frozenset(str(reason) for reason in OF_A_PROBE) | {"unknown_ca"}
"""`unknown_ca`: what a pair of a CA that has gone is refused for (the proof of rotate-ca prune)."""

_TYPES = frozenset(str(kind) for kind in REFUSAL_TYPES)

Key = tuple[str, str]
"""Direction and reason."""

EITHER = "in or out"
"""A line that sums up says the reason, and no direction."""


@dataclass(slots=True)
class Launch:
    """One VM of `node`, as the lines tell of it."""

    node: str
    lanes: dict[str, set[int]] = field(default_factory=lambda: {"critical": set(), "refusals": set()})
    refusals: Counter[Key] = field(default_factory=Counter)
    late: list[tuple[float, Key]] = field(default_factory=list)
    """Time and key of its latest refusals."""
    runs: set[int] = field(default_factory=set)
    """Of the orchestrators that told of it."""
    opened: set[int] = field(default_factory=set)
    """Of those to which its agent has connected, which tells them its exact counts."""
    repeated: int = 0
    held_back: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By lane and reason: of a flood, what was only counted."""
    blurred: bool = False

    def suppressed(self, lane: str) -> int:
        """How many of that lane are in no line of their own."""
        return sum(number for (of, _), number in self.held_back.items() if of == lane)

    @property
    def summed_up(self) -> frozenset[str]:
        """Reasons of refusals of which some are."""
        return frozenset(reason for lane, reason in self.held_back if lane == "refusals")

    def told(self) -> Counter[Key]:
        """Its refusals, those that were summed up among them: of such a reason as EITHER direction."""
        told = folded(self.refusals, self.summed_up)
        for (lane, reason), number in self.held_back.items():
            if lane == "refusals":
                told[EITHER, reason] += number
        return told


@dataclass(frozen=True, slots=True)
class Within:
    """What a node says of itself, asked by other means than its agent."""

    launch: str
    sequences: Mapping[str, int]
    dropped: Mapping[str, int]
    counts: Mapping[Key, int]
    echoes: Mapping[str, int]
    """By reason: refusals of the orchestrator's own probes (probes.json)."""


@dataclass(slots=True)
class Ledger:
    """Feed it every line of every orchestrator; `run` counts them, from 1."""

    launches: dict[str, Launch] = field(default_factory=dict)
    lines: int = 0
    events: int = 0
    _written: dict[int, set[tuple[str, str, int]]] = field(default_factory=dict)
    _current: dict[str, str] = field(default_factory=dict)
    """Of each node, the launch that was heard of last."""
    _full: bool = False

    def feed(self, run: int, line: Mapping[str, Any]) -> Iterator[str]:
        """Yields what is violated, as texts."""
        self.lines += 1
        node, kind = line.get("node"), line.get("event")
        if not node or not isinstance(node, str):
            return
        if "suppressed" in line:
            self._held_back(node, line)
            return
        launch, sequence = line.get("launch"), line.get("sequence")
        if not isinstance(launch, str):
            return
        known = self.launches.setdefault(launch, Launch(node, blurred=self._full))
        known.runs.add(run)
        self._current[node] = launch
        if kind == "AgentConnected":
            known.opened.add(run)
        if not isinstance(sequence, int):
            return
        self.events += 1
        lane = lane_of(line)
        written = self._written.setdefault(run, set())
        if (launch, lane, sequence) in written:
            yield f"the event {lane} {sequence} of {node} (launch {launch}) is in one log twice"
            return
        written.add((launch, lane, sequence))
        if sequence in known.lanes[lane]:
            known.repeated += 1
            if known.repeated > MOST_REPEATED:
                yield f"{known.repeated} events of {node} (launch {launch}) were told again"
            return
        known.lanes[lane].add(sequence)
        if lane == "refusals":
            key = (str(line.get("direction") or "unknown"), str(line.get("reason")))
            known.refusals[key] += 1
            at = datetime.fromisoformat(str(line["time"])).timestamp()
            known.late = [each for each in known.late if each[0] > at - HEARTBEAT_SECONDS] + [(at, key)]

    def _held_back(self, node: str, line: Mapping[str, Any]) -> None:
        """A flood was summed up: of which launch, the line does not say."""
        if (launch := self._current.get(node)) is not None:
            lane, reason = lane_of({**line, "result": "deny"}), str(line.get("reason"))
            self.launches[launch].held_back[lane, reason] += int(line["suppressed"])

    def forget_run(self, run: int) -> None:
        """It has ended, and its lines were all read."""
        self._written.pop(run, None)

    def fill(self, full: bool) -> None:
        """The disk is full, or no more: of every launch that lives and of every one that begins meanwhile the
        echoes are not exact any more."""
        self._full = full
        for launch in self._current.values():
            self.launches[launch].blurred |= full

    @property
    def repeated(self) -> int:
        return sum(launch.repeated for launch in self.launches.values())

    @property
    def refusals(self) -> Counter[Key]:
        total: Counter[Key] = Counter()
        for launch in self.launches.values():
            total.update(launch.refusals)
        return total

    # ---- against the nodes

    def against(self, within: Within) -> Iterator[str]:
        """Yields how the lines of a launch that lives differ from what its node counted."""
        known = self.launches.get(within.launch)
        if known is None:
            if any(within.sequences.values()):
                yield f"no line tells of the launch {within.launch}"
            return
        echoes = sum(within.echoes.values())
        for lane, last in within.sequences.items():
            absent = last - sum(1 for number in known.lanes[lane] if number <= last)
            explained = within.dropped.get(lane, 0) + known.suppressed(lane)
            explained += echoes if lane == "refusals" else 0
            if absent != explained and not (known.blurred and lane == "refusals"):
                may = f"{within.dropped.get(lane, 0)} dropped, {known.suppressed(lane)} summed up"
                may += f", {echoes} own probes" if lane == "refusals" else ""
                yield (
                    f"{known.node}, lane {lane}: {absent} of {last} events are in no line, and "
                    f"{explained} may be ({may}); {_some_gaps(known, lane, last)}"
                )
        told, counts = known.told(), folded(within.counts, known.summed_up)
        for key in counts.keys() | told.keys():
            direction, reason = key
            own = within.echoes.get(reason, 0) if direction in {"in", EITHER} else 0
            counted = counts[key] - own
            if counted != told[key] and not (known.blurred and reason in PROBE_REASONS):
                yield (
                    f"{known.node} has refused {counted} ({direction}, {reason}; {own} of our own left out), "
                    f"and the log has {told[key]}"
                )

    def ended(self, living: set[str]) -> Iterator[str]:
        """Yields what is missing of launches that have ended: no event between two others of lane
        `critical`."""
        for launch, known in self.launches.items():
            numbers = known.lanes["critical"]
            if launch in living or not numbers:
                continue
            gaps = max(numbers) - len(numbers)
            if gaps > known.suppressed("critical"):
                what = _some_gaps(known, "critical", max(numbers))
                yield f"{known.node} (launch {launch}, ended), lane critical: {gaps} are missing; {what}"

    # ---- against the metrics

    def metrics(
        self, run: int, shown: Mapping[tuple[str, str, str], float], living: set[str]
    ) -> Iterator[str]:
        """Yields how /metrics of orchestrator `run` differs. `shown`: by node, direction and reason."""
        seen = [
            (launch, known) for launch, known in self.launches.items() if run in known.opened | known.runs
        ]
        for node in sorted({node for node, _, _ in shown} | {known.node for _, known in seen}):
            mine = [(launch, known) for launch, known in seen if known.node == node]
            reasons = frozenset(reason for _, known in mine for reason in known.summed_up)
            mentioned = {(direction, reason): n for (of, direction, reason), n in shown.items() if of == node}
            counts = folded(mentioned, reasons)
            told: Counter[Key] = Counter()
            for _, known in mine:
                told.update(folded(known.told(), reasons))
            for key in sorted({key for key, count in counts.items() if count} | told.keys()):
                direction, reason = key
                if reason in PROBE_REASONS and any(known.blurred for _, known in mine):
                    continue
                late = sum(_late(known, key) for launch, known in mine if launch not in living)
                least = told[key] - late
                most = told[key] + MOST_UNSENT * sum(launch not in living for launch, _ in mine)
                found = counts[key]
                if not least <= found <= most:
                    between = f"{least}" if least == most else f"{least} to {most}"
                    yield f"{node} ({direction}, {reason}): /metrics has {found:g}, the log {between}"


def folded(counts: Mapping[Key, float], reasons: frozenset[str]) -> Counter[Key]:
    """The same, and of `reasons` both directions as one."""
    found: Counter[Key] = Counter()
    for (direction, reason), count in counts.items():
        found[EITHER if reason in reasons else direction, reason] += count
    return found


def lane_of(line: Mapping[str, Any]) -> str:
    """Of a line of the log: which ring of the node its event came from."""
    refusal = line.get("event") in _TYPES and line.get("result") == "deny" and line.get("level") != "critical"
    return "refusals" if refusal else "critical"


def _late(known: Launch, key: Key) -> int:
    """How many of its refusals may have come after its last heartbeat."""
    direction, reason = key
    return sum(each == key or (direction == EITHER and each[1] == reason) for _, each in known.late)


def _some_gaps(known: Launch, lane: str, last: int) -> str:
    numbers = known.lanes[lane]
    missing = [number for number in range(1, last + 1) if number not in numbers]
    return f"missing {missing[:12]}{' …' if len(missing) > 12 else ''}"
