"""Twenty nodes until each has a link to every other one, and what such a node holds in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from distsec.beam.tls_options import IDLE_MILLISECONDS
from scripts.benchmarks.calm import Calm
from scripts.benchmarks.carriers import Place, start_distsec, start_same_options
from scripts.benchmarks.clusters import directory, node_names, resident_megabytes
from scripts.benchmarks.nodes import MODULE, Control, Release
from scripts.benchmarks.rows import Row, compare, in_turn

SETTLE_SECONDS = 0.5
IDLE_SECONDS = 2 * IDLE_MILLISECONDS / 1000
"""After the burst, for links to become idle."""
BURST_MILLISECONDS = 50
BURST_BYTES = 65_536
_DISTSEC, _SAME = "distsec", "same options"


def mesh(release: Release, beams: Path, quick: bool) -> list[Row]:
    """Seconds from the order to all links up, under `distsec run` and with a bare script."""
    count, rounds = (5, 2) if quick else (20, 9)
    with directory() as place, ExitStack() as stack:
        here = Place(place, release, beams, node_names(count), alone=False)
        groups = {_DISTSEC: start_distsec(stack, here), _SAME: start_same_options(stack, here)}
        measures = {name: partial(_mesh_once, nodes) for name, nodes in groups.items()}
        taken = in_turn(measures, rounds, 1) if quick else in_turn(measures, rounds, 1, Calm().was_calm)
        for nodes in groups.values():
            _link(nodes)
            _burst(nodes)
        time.sleep(0 if quick else IDLE_SECONDS)
        memory = {
            name: statistics.mean(resident_megabytes(node.pid) for node in nodes)
            for name, nodes in groups.items()
        }
    return [
        compare(f"{release}: mesh of {count} nodes", taken, _DISTSEC, _SAME, show=_seconds, goal="≤ 1.1"),
        Row(
            f"{release}: memory of a node of {count} after a burst",
            f"{memory[_DISTSEC]:.0f} MB",
            f"{_SAME} {memory[_SAME]:.0f} MB",
            memory[_DISTSEC] / memory[_SAME],
        ),
    ]


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _mesh_once(nodes: Sequence[Control]) -> float:
    taken = _link(nodes)
    while set(_all(nodes, "nodes(connected)")) != {"[]"}:
        _all(nodes, f"{MODULE}:part()")
        time.sleep(SETTLE_SECONDS)
    return taken


def _link(nodes: Sequence[Control]) -> float:
    """Seconds until every node has all others."""
    names = "[" + ",".join(node.atom for node in nodes) + "]"
    begun = time.monotonic()
    _all(nodes, f"{MODULE}:mesh({names})")
    return time.monotonic() - begun


def _burst(nodes: Sequence[Control]) -> None:
    """Large messages from each node to its next three."""
    for distance in (1, 2, 3):
        targets = [*nodes[distance:], *nodes[:distance]]
        for node, target in zip(nodes, targets, strict=True):
            node.begin(f"{MODULE}:push({target.atom},{BURST_BYTES},{BURST_MILLISECONDS})")
        for node in nodes:
            node.answer()


def _all(nodes: Sequence[Control], expression: str) -> list[str]:
    """What each of them answers; all work on it at the same time."""
    for node in nodes:
        node.begin(expression)
    return [node.answer() for node in nodes]
