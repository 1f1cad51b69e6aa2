"""What one node's agent has told: links, refusals, the policy in force. Feeds the bus and the metrics;
decides nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from distsec.beam.messages import EventKind, Heartbeat, Lane, LaneEvent, Snapshot
from distsec.beam.security_events import to_security_event
from distsec.model.cluster import Carrier, Link, NodeSpec
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.policy import Direction, Reason, Verdict
from distsec.observe.bus import Bus
from distsec.observe.metrics import Metrics
from distsec.supervisor.echoes import Echoes
from distsec.supervisor.machine import Machine

MAX_LINKS = 4096
"""Links that are remembered of one node; a compromised agent may report any number."""

LINKS_DIFFER_HEARTBEATS = 3
"""Heartbeats in a row that count other links than are known, before they are asked for anew: one may be on
its way.
"""


class Observed:
    """Of one node. `now` is loop time, in seconds; events are stamped with the orchestrator's own clock."""

    def __init__(self, spec: NodeSpec, bus: Bus, metrics: Metrics, machine: Machine) -> None:
        self.name = str(spec.name)
        self._spec = spec
        self._machine = machine
        self.launch: str | None = None
        self.snapshot: Snapshot | None = None
        self.links: dict[str, Link] = {}
        self.generation: int | None = None
        self.digest: str | None = None
        self.echoes = Echoes()
        self._bus = bus
        self._metrics = metrics
        self._refusals_before: Counter[tuple[Direction, Reason]] = Counter()  # of earlier launches
        self._refusals: Mapping[tuple[Direction, Reason], int] = {}
        self._dropped: Counter[Lane] = Counter()
        self._links_differ = 0

    def opened(self, launch: str, now: float) -> None:
        """An agent has proven itself; another launch is another VM, which counts from 0."""
        if launch == self.launch:
            return
        self.launch = launch
        self._refusals_before.update(self._refusals)
        self._refusals = {}
        self._dropped.clear()
        # An orchestrator before this one may have probed the same VM, which counts on.
        self.echoes.begin_launch(self._machine.load_echoes(self._spec, launch), now)

    def knocked(self, address: str, now: float) -> None:
        """A probe of ours has connected from `address`; kept before the node can tell of it."""
        self.echoes.expect(address, now)
        self._save_echoes(now)

    def showed_a_witness(self, address: str, now: float) -> None:
        """From `address` we show it a certificate that it is to refuse (`echoes.refused_for`)."""
        self.echoes.expect_proof(address, now)

    def show(self, snapshot: Snapshot) -> None:
        """What it says of itself replaces what was known."""
        self.snapshot = snapshot
        self.echoes.addressed = snapshot.carrier == Carrier.DISTSEC
        self.links = {link.peer: link for link in snapshot.links[:MAX_LINKS]}
        self._links_differ = 0
        self.applied(snapshot.policy_generation, snapshot.policy_digest)
        self._count_links()

    def applied(self, generation: int | None, digest: str | None) -> None:
        """That policy is in force in it."""
        self.generation, self.digest = generation, digest

    def ended(self) -> None:
        """Its process is gone."""
        self.links.clear()
        self._count_links()

    def event(self, event: LaneEvent, now: float) -> None:
        """Publishes it, unless it is the echo of a probe of ours."""
        if event.missed:
            text = f"{event.missed} events of lane {event.lane} were dropped before they could be sent"
            self._lost(event.lane, text)
        if event.kind is EventKind.REFUSAL and self.echoes.absorbs(
            event.sequence, event.direction, event.reason, event.address, now
        ):
            self._save_echoes(now)
            return
        self._bus.publish(to_security_event(event, self.name, time.time()))
        if event.link is None:
            return
        if event.kind is EventKind.LINK_DOWN:
            self.links.pop(event.link.peer, None)
        elif len(self.links) < MAX_LINKS or event.link.peer in self.links:
            self.links[event.link.peer] = event.link
        self._count_links()

    def heartbeat(self, heartbeat: Heartbeat, now: float) -> bool:
        """Takes over its counts. True: its links are others than are known here; ask for a snapshot."""
        told, before = self.echoes.taken_off(heartbeat.refusals, now), self._refusals
        self._refusals = {
            key: max(told.get(key, 0), before.get(key, 0)) for key in told.keys() | before.keys()
        }
        if self.launch is not None:
            self._metrics.heartbeat(self.name, self.launch, replace(heartbeat, refusals=self._refusals))
        for lane, dropped in heartbeat.dropped.items():
            if dropped > self._dropped[lane]:
                self._lost(lane, f"{dropped} events of lane {lane} were dropped since the node started")
            self._dropped[lane] = dropped
        self.applied(heartbeat.policy_generation, heartbeat.policy_digest)
        self._links_differ = self._links_differ + 1 if heartbeat.links != len(self.links) else 0
        return self._links_differ > 0 and self._links_differ % LINKS_DIFFER_HEARTBEATS == 0

    def refusals(self) -> Counter[tuple[Direction, Reason]]:
        """How many peers it refused, all launches together, our own probes taken off."""
        return self._refusals_before + Counter(self._refusals)

    def _save_echoes(self, now: float) -> None:
        if self.launch is not None:
            self._machine.save_echoes(self._spec, self.launch, self.echoes.record(now))

    def _lost(self, lane: Lane, text: str) -> None:
        event = SecurityEvent(
            EventType.EVENTS_DROPPED,
            Severity.WARNING,
            self.name,
            time.time(),
            reason=str(lane),
            detail=text,
            launch=self.launch,
        )
        self._bus.publish(event)

    def _count_links(self) -> None:
        denied = sum(link.verdict == Verdict.DENY for link in self.links.values())
        counts = {str(Verdict.ALLOW): len(self.links) - denied, str(Verdict.DENY): denied}
        self._metrics.set_links(self.name, counts)
