"""What the cluster's processes hold and weigh at the end of a round, each time in the same state.

An orchestrator keeps the latest events in three rings. They fill for an hour of ordinary rounds, and with
them its memory; and a new orchestrator begins with empty ones. So each round ends with a flood that fills all
three, of events that take the way that every event takes: what is weighed then is a full orchestrator, of a
ring as of its log, its metrics and its port to each node. From the second of its rounds on nothing is left to
fill, and whatever keeps something of an event, or of a round, rises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from distsec.observe.bus import RECENT_EVENTS
from tests.faults.chaos import invariants
from tests.faults.chaos.cluster import ANSWER_SECONDS, ChaosCluster
from tests.faults.chaos.levels import Levels

FLOODED = ("in", "bad_cookie")
"""What the flood's refusals are counted as: direction and reason. No stranger here is refused for it."""

INSIDE = ("memory", "processes", "ports", "atoms", "tables")
"""What a node says of itself, beside what the kernel does."""

REST_SECONDS = 20.0

MORE_EVENTS = 100
"""Of each kind and node: more than a node's share of a ring."""


def flood_events(nodes: int) -> int:
    """Of each of the three kinds, from each of so many nodes."""
    return RECENT_EVENTS // nodes + MORE_EVENTS


def flood(cluster: ChaosCluster) -> None:
    """Has every node tell as many events as fill the rings; returns while they are on their way."""
    for name in cluster.names:
        count = flood_events(len(cluster.names))
        cluster.erl(name, f"distsec_test_chaos:flood({count})", seconds=ANSWER_SECONDS)


def flooded(cluster: ChaosCluster) -> Iterator[str]:
    """Yields whose flood has not come through: then the rings may not be full, and nothing can be said of
    memory."""
    direction, reason = FLOODED
    counted = {
        sample.labels["node"]: sample.value
        for sample in cluster.samples(invariants.REFUSALS)
        if (sample.labels["direction"], sample.labels["reason"]) == FLOODED
    }
    least = flood_events(len(cluster.names))
    for name in cluster.names:
        if (found := counted.get(cluster.node(name), 0)) < least:
            yield f"{name}: {found:g} of {least} flooding events ({direction}, {reason}) are in /metrics"


def weigh(cluster: ChaosCluster, levels: Levels) -> tuple[list[str], dict[str, tuple[int, int, int]]]:
    """What has left its level; and by launch, messages sent, received and missing."""
    found: list[str] = []
    messages: dict[str, tuple[int, int, int]] = {}
    assert cluster.orchestrator is not None
    pid = cluster.orchestrator.pid
    sample = _at_rest(lambda: invariants.sample(pid), levels, "orchestrator", "orchestrator")
    found += levels.feed("orchestrator", "orchestrator", pid, sample)
    for name in cluster.names:
        beam = cluster.beam_pid(name)
        assert beam is not None

        def look(name: str = name, beam: int = beam) -> dict[str, float]:
            said = cluster.within(name, "weighed")
            messages[said["launch"]] = (said["sent"], said["received"], said["lost"])
            return {**invariants.sample(beam), **{what: float(said[what]) for what in INSIDE}}

        found += levels.feed("node", name, beam, _at_rest(look, levels, "node", name))
    return found, messages


def _at_rest(look: Callable[[], dict[str, float]], levels: Levels, role: str, name: str) -> dict[str, float]:
    """A sample once it holds no more than before. A busy machine takes a moment to let go of the last
    connections; what has leaked stays."""
    until = time.monotonic() + REST_SECONDS
    while levels.held_above(role, name, sample := look()) and time.monotonic() < until:
        time.sleep(invariants.PAUSE_SECONDS)
    return sample
