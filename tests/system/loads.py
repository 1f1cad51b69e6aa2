"""Message load between all nodes of a cluster, and the proof that none of it was lost, reordered or doubled.

    with Load(cluster) as load:                  # every node sends numbered messages to every other one
        cluster.distsec("certs", "renew", "--all")
        load.assert_flows()                      # messages come in from everybody while nothing is to be lost
    load.report.assert_intact()                  # sent = received, in order, no nodedown; else says what

    load.report.nodedowns                        # [Change(node="a", kind="nodedown", peer="b", …)]
    load.report.problems                         # the same as texts; [] is what a rotation has to leave

Each ordered pair has a sender of its own, 50 messages a second, with bursts and 100 KB now and then (see
`Rate`); leaving the `with` ends the senders with a last message each, waits until all that was sent has come
(or 30 s), and makes the report. It costs a core about 5 % for three nodes. The nodes must be linked before,
and stay the same processes: one that is restarted has no load any more. Nothing here dials: a message that is
sent while no link is up counts as lost. Where a loss is wanted (a node denied, a link that must end), look at
`report.pairs["a", "b"]` and `report.nodedowns` in place of `assert_intact`; `Load(cluster, "a", "b")` is load
among those alone. Made of the module distsec_test_load in the nodes (fixture `beams`, which a Cluster has).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.system.cluster import Cluster
from tests.waiting import PATIENCE_SECONDS, wait_until

SETTLE_SECONDS = 30.0
"""For what was sent last to come in."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Of each ordered pair: a message each `every_ms`; at each `burst_every`th time `burst` at once, and at
    each `large_every`th messages of `large_bytes`."""

    every_ms: int = 20
    burst: int = 50
    burst_every: int = 50
    large_bytes: int = 100_000
    large_every: int = 37

    def as_erlang(self) -> str:
        return (
            f"every_ms => {self.every_ms}, burst => {self.burst}, burst_every => {self.burst_every}, "
            f"large_bytes => {self.large_bytes}, large_every => {self.large_every}"
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """What went from one node to another. `gaps`: numbers before the last received that never came."""

    sent: int
    received: int = 0
    last: int = 0
    """The highest number that has come; numbers begin with 1."""
    gaps: int = 0
    reordered: int = 0
    duplicates: int = 0
    spoiled: int = 0
    longest_pause_ms: int = 0
    """The longest time between two messages, from the first to the last."""

    @property
    def lost(self) -> int:
        """Sent and not received, wherever in the row."""
        return self.sent - self.received + self.duplicates


@dataclass(frozen=True, slots=True)
class Change:
    """A nodeup or nodedown as `node` saw it; `at_ms` by its wall clock, in Unix milliseconds."""

    node: str
    kind: str
    peer: str
    at_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    pairs: Mapping[tuple[str, str], Pair]
    """By (sender, receiver), names without the host."""
    changes: tuple[Change, ...]
    """Of nodes that the load was not among, too."""

    @property
    def nodedowns(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.kind == "nodedown")

    @property
    def sent(self) -> int:
        return sum(pair.sent for pair in self.pairs.values())

    @property
    def lost(self) -> int:
        return sum(pair.lost for pair in self.pairs.values())

    @property
    def problems(self) -> list[str]:
        """What was not as it should be, a line for each; empty if nothing was lost and no link went down."""
        found = [
            f"{sender} to {receiver}: {pair}"
            for (sender, receiver), pair in self.pairs.items()
            if pair.lost or pair.gaps or pair.reordered or pair.duplicates or pair.spoiled or not pair.sent
        ]
        return found + [
            f"{down.node} lost {down.peer} at {down.at_ms}: {down.why}" for down in self.nodedowns
        ]

    def assert_intact(self) -> None:
        """That every message came once and in order, and that no link went down."""
        assert not self.problems, "\n".join(self.problems)
        assert self.sent > 0

    def summary(self) -> str:
        """For the record: one line."""
        longest = max((pair.longest_pause_ms for pair in self.pairs.values()), default=0)
        return (
            f"{self.sent} messages sent, {self.lost} lost, "
            f"{sum(pair.reordered for pair in self.pairs.values())} reordered, "
            f"{len(self.nodedowns)} nodedowns, longest pause {longest} ms"
        )


class Load:
    """See the module. Runs within `with`; afterwards `report` is there."""

    def __init__(self, cluster: Cluster, *names: str, rate: Rate | None = None) -> None:
        self.cluster = cluster
        self.names = names or tuple(cluster.names)
        self.rate = rate or Rate()
        self._report: Report | None = None

    @property
    def report(self) -> Report:
        assert self._report is not None, "the load still runs"
        return self._report

    def __enter__(self) -> Load:
        for name in self.names:
            self.cluster.wait_answering(name)
            self.cluster.erl(name, "distsec_test_load:listen()")
        for name in self.names:
            peers = ",".join(f"'{self.cluster.node(peer)}'" for peer in self.names if peer != name)
            self.cluster.erl(
                name, f"distsec_test_load:start(#{{peers => [{peers}], {self.rate.as_erlang()}}})"
            )
        self.assert_flows()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._report = self._end()

    def received(self) -> dict[tuple[str, str], Pair]:
        """What has come so far, by (sender, receiver); `sent` is 0: the senders still run."""
        found = {}
        for receiver in self.names:
            counts: dict[str, Any] = self._ask(receiver, "counts")
            for peer, fields in counts.items():
                found[peer.partition("@")[0], receiver] = Pair(0, **fields)
        return found

    def assert_flows(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until every pair has received something that it had not when this was called."""
        before = self.received()
        pairs = {(a, b) for a in self.names for b in self.names if a != b}

        def more() -> bool:
            now = self.received()
            return all(
                pair in now and now[pair].received > (before[pair].received if pair in before else 0)
                for pair in pairs
            )

        wait_until(more, "messages of every pair", seconds, poll_seconds=0.1)

    def _end(self) -> Report:
        sent = {
            (sender, peer.partition("@")[0]): count
            for sender in self.names
            for peer, count in self._ask(sender, "stop").items()
        }

        def arrived() -> bool:  # the last of each: what has not come by then does not come
            now = self.received()
            return all(pair in now and now[pair].last >= count for pair, count in sent.items())

        with contextlib.suppress(AssertionError):  # the report says what is missing
            wait_until(arrived, "what was sent last", SETTLE_SECONDS, poll_seconds=0.1)
        got = self.received()
        pairs = {
            pair: Pair(count, *(getattr(got.get(pair, Pair(0)), field) for field in _RECEIVED))
            for pair, count in sent.items()
        }
        return Report(pairs, tuple(change for name in self.names for change in self._changes(name)))

    def _changes(self, name: str) -> list[Change]:
        return [
            Change(name, kind, peer.partition("@")[0], at_ms, why)
            for kind, peer, at_ms, why in self._ask(name, "downs")
        ]

    def _ask(self, name: str, what: str) -> Any:
        text = self.cluster.erl(name, f"distsec_test_load:{what}()")
        return json.loads(json.loads(text) if text.startswith('"') else "[]")


_RECEIVED = ("received", "last", "gaps", "reordered", "duplicates", "spoiled", "longest_pause_ms")
