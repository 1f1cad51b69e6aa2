"""What the witnesses in the nodes wrote about links, and what of it must never be. Pure.

Each node's witness (beam/distsec_test_chaos.erl) writes a line for each link as it comes and goes:
`<Unix ms> up|down|boot|missing|again <what>`. Times are of one machine, so they compare with the harness's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

GRACE_SECONDS = 1.0
"""After a denial was acknowledged: what a witness writes down later than it happened. The node's own gate
ends the link before it acknowledges."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A line of a witness. `at` is Unix seconds, `detail` what follows the peer's name."""

    node: str
    at: float
    kind: str
    peer: str
    detail: str = ""


def parse(node: str, line: str) -> Sighting | None:
    """None: it is no line of a witness (cut off when its node was killed)."""
    time, _, rest = line.partition(" ")
    kind, _, what = rest.partition(" ")
    peer, _, detail = what.partition(" ")
    if not time.isdigit() or kind not in {"boot", "up", "down", "missing", "again"} or not peer:
        return None
    return Sighting(node, int(time) / 1000, kind, peer, detail)


@dataclass(slots=True)
class Denial:
    """`peer` was denied, with every acknowledgement at `since`; until `until`, when it is allowed again."""

    peer: str
    since: float
    until: float | None = None

    def covers(self, at: float) -> bool:
        return self.since + GRACE_SECONDS < at and (self.until is None or at < self.until)


@dataclass(slots=True)
class Links:
    """Feed it every sighting, in the order of each node's file. `listed`: the names of the honest nodes."""

    listed: Collection[str]
    up: dict[str, set[str]] = field(default_factory=dict)
    denials: list[Denial] = field(default_factory=list)
    ups: int = 0
    downs: int = 0
    _gone: dict[str, str] = field(default_factory=dict)
    """By node, the pid of a process that is gone, and whose last lines may not have been read yet."""
    _silent: dict[str, float] = field(default_factory=dict)
    """By node, until when it was stopped and could write nothing, Unix seconds."""

    def feed(self, sightings: Iterable[Sighting]) -> Iterator[str]:
        """Yields what is violated, as texts."""
        for each in sightings:
            yield from self._one(each)

    def _one(self, each: Sighting) -> Iterator[str]:
        links = self.up.setdefault(each.node, set())
        gone = self._gone.get(each.node)
        match each.kind:
            case "boot":
                if each.peer != gone:
                    links.clear()
                    self._gone.pop(each.node, None)
                    self._silent.pop(each.node, None)
            case "up":
                if gone is None:
                    links.add(each.peer)
                self.ups += 1
                if each.peer not in self.listed:
                    yield f"{each.node} was linked with {each.peer}, which is not listed, at {each.at:.3f}"
                yield from self._while_denied(each)
            case "down":
                links.discard(each.peer)
                self.downs += 1
            case "missing":
                yield f"{each.node} misses messages of {each.peer} within one link: {each.detail}"
            case "again":
                yield f"{each.node} got a message of {each.peer} out of order: {each.detail}"

    def _while_denied(self, each: Sighting) -> Iterator[str]:
        for denial in self.denials:
            if denial.peer in {each.peer, each.node} and denial.covers(each.at):
                yield (
                    f"{each.node} was linked with {each.peer} at {each.at:.3f}, though {denial.peer} "
                    f"was denied and all had acknowledged it at {denial.since:.3f}"
                )

    def ended(self, node: str, pid: int) -> None:
        """That process of it is gone, and links with nobody any more, whatever its last lines say."""
        self.up.pop(node, None)
        self._gone[node] = str(pid)

    def stopped(self, node: str, until: float = inf) -> None:
        """Its process can write nothing until then: nor that a link has ended."""
        self._silent[node] = until

    def denied(self, now: float) -> Iterator[str]:
        """What is still up with a peer that is denied now."""
        for denial in self.denials:
            if not denial.covers(now):
                continue
            for node, links in self.up.items():
                if now <= self._silent.get(node, 0.0) + GRACE_SECONDS:
                    continue
                if denial.peer in links or (node == denial.peer and links):
                    yield f"{node} is linked with {sorted(links)}, though {denial.peer} is denied"

    def whole(self, expected: Collection[str]) -> bool:
        """Whether each of `expected` is linked with each other one, and with nobody else."""
        return all(self.up.get(node, set()) == set(expected) - {node} for node in expected)

    def lacking(self, expected: Collection[str]) -> Mapping[str, list[str]]:
        """By node, which of `expected` it is not linked with."""
        missing = {node: sorted(set(expected) - {node} - self.up.get(node, set())) for node in expected}
        return {node: peers for node, peers in missing.items() if peers}
