"""The Prometheus families of distsec. Every one has the label `node`, a managed node.

No label value is ever chosen by a stranger: `peer` is a listed name, a rule's pattern or `unlisted`;
reasons, actions and directions are members of their enums; so the number of series depends on the
configuration alone. Everything is kept per node and read when somebody scrapes, so that a node that is
removed takes all its series with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from distsec import __version__
from distsec.model.cluster import NodeState
from distsec.model.events import EventType, SecurityEvent
from distsec.model.names import glob_matches
from distsec.model.policy import Reason, Verdict
from distsec.model.shells import is_tool, tool_pattern
from distsec.observe.counts import (
    BUCKETS,
    CHECK_KEYS,
    DIRECTIONS,
    LANES,
    MAX_AGENT_REASONS,
    OTHER,
    REASONS,
    UNLISTED,
    VERDICTS,
    NodeCounts,
    bucket,
    refusal_key,
)
from distsec.observe.families import families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of `render()`: the text format of prometheus_client.generate_latest."""


class HeartbeatCounts(Protocol):
    """What is read of a heartbeat (docs/port-protocol.md); beam.messages.Heartbeat is one. Counts are since
    the launch; keys that are in no enum are left out."""

    @property
    def refusals(self) -> Mapping[Any, int]: ...  # (direction, reason) → count
    @property
    def checks(self) -> Mapping[Any, int]: ...  # (action, result) → count
    @property
    def check_seconds(self) -> Iterable[tuple[int | None, int]]: ...  # (upper bound in µs or None, count)
    @property
    def check_micros_sum(self) -> int: ...
    @property
    def dropped(self) -> Mapping[Any, int]: ...  # lane → events evicted


class Metrics(Collector):
    """One registry with all families. The supervisor feeds it, one event loop; `render` is what /metrics
    answers.

    A node is known from the first call that names it until `forget`; after that only `set_node_state`
    brings it back, so that a late event of a removed node leaves no series behind.
    """

    def __init__(self, version: str = __version__, listed: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.unserved: str | None = None  # why nobody can ask for them, who should
        self._version = version
        self._authority_not_after: int | None = None
        self._nodes: dict[str, NodeCounts] = {}
        self._forgotten: set[str] = set()
        self._tainted: frozenset[str] = frozenset()
        self._names: frozenset[str] = frozenset()
        self._patterns: tuple[str, ...] = ()
        self._tools: frozenset[str] = frozenset()
        self.set_listed(listed)
        self.registry.register(self)

    # ---- what the supervisor calls ----------

    def set_listed(self, labels: Iterable[str], tools: Iterable[str] = ()) -> None:
        """The names and the rules' patterns (those with a `*`) that may be the label `peer`, from the
        wanted policy; and those of `tools`, which take any name and so label by certificate alone. Until this
        is called every peer is `unlisted`."""
        labels = list(labels)
        self._tools = frozenset(tools)
        self._names = frozenset(label for label in labels if "*" not in label)
        self._patterns = tuple(dict.fromkeys(label for label in labels if "*" in label))

    def event(self, event: SecurityEvent) -> None:
        """Counts `event`: a subscriber of the bus."""
        if not event.node or (counts := self._of(event.node)) is None:
            return
        if event.is_refusal:
            counts.at_launch(event.launch)
            counts.attempts.count((Verdict.DENY.value, self._peer(event)))
            counts.refusals.count(refusal_key(event))
        elif event.is_violation:
            # The agent counts no refusal for it, as the link was up.
            counts.at_launch(event.launch)
            counts.refusals.count((refusal_key(event)[0], Reason.UNLISTED_LINK.value))
        elif event.type is EventType.LINK_UP:
            counts.at_launch(event.launch)
            result = Verdict.DENY.value if event.result == Verdict.DENY else Verdict.ALLOW.value
            counts.attempts.count((result, self._peer(event)))
        elif event.type is EventType.NODE_STARTED:
            counts.starts += 1
        elif event.type in (EventType.CERTIFICATE_ROTATED, EventType.CERTIFICATE_RENEWED):
            counts.rotations += 1
        elif event.type is EventType.CERTIFICATE_REFUSED:
            counts.certificates_refused += 1
        elif event.type is EventType.CLOCK_STEPPED and event.reason in counts.clock_steps:
            counts.clock_steps[str(event.reason)] += 1

    def heartbeat(self, node: str, launch: str, heartbeat: HeartbeatCounts) -> None:
        """Takes over the exact counts that `node`'s agent has kept since `launch`."""
        if (counts := self._of(node)) is None:
            return
        counts.at_launch(launch)
        for (direction, reason), total in heartbeat.refusals.items():
            if direction in DIRECTIONS and reason in REASONS:
                counts.refusals.tell((str(direction), str(reason)), total)
        for key, total in heartbeat.checks.items():
            if key in CHECK_KEYS:
                counts.checks.tell((str(key[0]), str(key[1])), total)
        for lane, total in heartbeat.dropped.items():
            if lane in LANES:
                counts.dropped.tell(str(lane), total)
        buckets = dict.fromkeys(BUCKETS, 0)
        for bound, number in heartbeat.check_seconds:
            buckets[bucket(bound)] += number
        for known, number in buckets.items():
            counts.check_buckets.tell(known, number)
        counts.check_micros.tell("", heartbeat.check_micros_sum)

    def set_node_state(self, node: str, state: NodeState) -> None:
        self._forgotten.discard(node)
        if counts := self._of(node):
            counts.state = state

    def set_links(self, node: str, links: Mapping[str, int]) -> None:
        """How many links are up now, by verdict; a verdict that is not named has none."""
        if counts := self._of(node):
            counts.links = {verdict: links.get(verdict, 0) for verdict in VERDICTS}

    def set_shells(self, node: str, attached: int) -> None:
        """How many operators' shells are attached now."""
        if counts := self._of(node):
            counts.shells = attached

    def set_agent(self, node: str, connected: bool) -> None:
        if counts := self._of(node):
            counts.agent_connected = connected

    def set_guard_missing(self, node: str, missing: bool) -> None:
        """Whether its guard was found not in force, and has not been proven since."""
        if counts := self._of(node):
            counts.guard_missing = missing

    def set_tainted(self, names: Collection[str]) -> None:
        """Which nodes are tainted now; every other one is not."""
        self._tainted = frozenset(names)
        for node, counts in self._nodes.items():
            counts.tainted = node in self._tainted

    def set_certificate(self, node: str, not_before: int | None, not_after: int | None) -> None:
        """Unix seconds; None where the node has no certificate (development mode)."""
        if counts := self._of(node):
            counts.certificate_not_before, counts.certificate_not_after = not_before, not_after

    def set_authority(self, not_after: int | None) -> None:
        """Of the CA's own certificate; Unix seconds."""
        self._authority_not_after = not_after

    def set_policy(self, node: str, wanted: int | None, active: int | None) -> None:
        if counts := self._of(node):
            counts.policy = {"wanted": wanted, "active": active}

    def agent_refused(self, node: str, reason: str) -> None:
        """A connection to the agent socket of `node` was dropped; `reason` is a
        beam.messages.AgentRefusal."""
        if counts := self._of(node):
            known = reason in counts.agent_refused or len(counts.agent_refused) < MAX_AGENT_REASONS
            label = str(reason) if known else OTHER
            counts.agent_refused[label] = counts.agent_refused.get(label, 0) + 1

    def forget(self, node: str) -> None:
        """`node` was removed from the configuration: all its series go."""
        self._nodes.pop(node, None)
        self._forgotten.add(node)

    def render(self) -> bytes:
        """The body of GET /metrics, of type CONTENT_TYPE."""
        return generate_latest(self.registry)

    # ---- reading ----------

    def describe(self) -> Iterable[Metric]:
        """None: the registry need not collect in order to register this."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from families(self._nodes, self._version, self._authority_not_after)

    def _of(self, node: str) -> NodeCounts | None:
        counts = self._nodes.get(node)
        if counts is None and node not in self._forgotten:
            counts = self._nodes[node] = NodeCounts()
            counts.tainted = node in self._tainted
        return counts

    def _peer(self, event: SecurityEvent) -> str:
        """The label: what the policy matched. Of a refusal that matched nothing the claimed name is no
        label, since anybody can claim a listed name; a link that is up has been admitted under its name."""
        if event.rule is not None:
            if event.rule in self._names or event.rule in self._patterns or event.rule in self._tools:
                return event.rule
            # The rule of an operator's shell is for its exact name, which a pattern covers.
            if shell := next((p for p in self._patterns if glob_matches(p, event.rule)), None):
                return shell
        if event.is_refusal or event.peer is None:
            return UNLISTED
        if event.peer in self._names:
            return event.peer
        if is_tool(event.identity):
            pattern = tool_pattern(event.peer.partition("@")[2])
            return pattern if pattern in self._tools else UNLISTED
        return next((pattern for pattern in self._patterns if glob_matches(pattern, event.peer)), UNLISTED)
