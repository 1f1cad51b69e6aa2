"""One link between two nodes: how long it takes to come up, and how much it carries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from scripts.benchmarks.carriers import (
    Place,
    start_distsec,
    start_documented,
    start_plain,
)
from scripts.benchmarks.clusters import busy_seconds, directory
from scripts.benchmarks.nodes import MODULE, Control, Release
from scripts.benchmarks.rows import Row, compare, in_turn

SETTLE_SECONDS = 0.01
"""After a join, so that nobody pays for the events, logs and garbage of the one before."""

MESSAGE_SIZES = {"1 KB": 1024, "64 KB": 65_536, "1 MB": 1_048_576}

_NAMES = ("a@127.0.0.1", "b@127.0.0.1")
_DISTSEC, _PLAIN, _DOCUMENTED, _NEWEST = "distsec", "no TLS", "documented", "documented, 1.3"

Pair = tuple[Control, Control]


def start_pairs(stack: ExitStack, place: Path, release: Release, beams: Path) -> dict[str, Pair]:
    """Two nodes of each carrier, without a link."""
    here = Place(place, release, beams, _NAMES, alone=True)
    started = {
        _DISTSEC: start_distsec(stack, here),  # first: the others use its certificates
        _PLAIN: start_plain(stack, here),
        _DOCUMENTED: start_documented(stack, here),
        _NEWEST: start_documented(stack, here, newest_tls=True),
    }
    return {carrier: (nodes[0], nodes[1]) for carrier, nodes in started.items()}


def join(release: Release, beams: Path, quick: bool) -> list[Row]:
    """Milliseconds from net_kernel:connect_node/1 to its answer."""

    def measure(pair: Pair) -> Callable[[], float]:
        def one() -> float:
            dialling, dialled = pair
            (taken,) = dialling.integers(f"{MODULE}:join({dialled.atom})")
            dialled.ask(f"{MODULE}:await_down({dialling.atom})")
            time.sleep(SETTLE_SECONDS)
            return taken / 1000

        return one

    with directory() as place, ExitStack() as stack:
        pairs = start_pairs(stack, place, release, beams)
        taken = in_turn(_each(pairs, measure), 5 if quick else 60)
    return [
        _row(taken, f"{release}: join", against, lambda value: f"{value:.1f} ms", goal)
        for against, goal in ((_DOCUMENTED, "≤ 1.1"), (_NEWEST, ""), (_PLAIN, ""))
    ]


def throughput(release: Release, beams: Path, quick: bool) -> list[Row]:
    """MB a second from one process to one process, for each size of message, and the CPU time that they take.

    The first needs a machine that does nothing else: what is fast wants all of both cores. The second holds
    on a busy one as well.
    """
    milliseconds, rounds = (60, 3) if quick else (250, 12)
    goal = {25: "≥ 10", 27: "≥ 10"}.get(release.number, "≥ 1.25")

    processor: dict[int, list[float]] = {}  # process of the sender → CPU seconds of both for a GB, per round

    def measure(size: int) -> Callable[[Pair], Callable[[], float]]:
        def of(pair: Pair) -> Callable[[], float]:
            def one() -> float:
                sending, receiving = pair
                before = sum(busy_seconds(node.pid) for node in pair)
                count, taken = sending.integers(f"{MODULE}:push({receiving.atom},{size},{milliseconds})")
                used = sum(busy_seconds(node.pid) for node in pair) - before
                processor.setdefault(sending.pid, []).append(used / (count * size) * 1e9)
                return count * size / taken

            return one

        return of

    rows = []
    with directory() as place, ExitStack() as stack:
        pairs = start_pairs(stack, place, release, beams)
        for carrier, (a, b) in pairs.items():
            if a.ask(f"net_kernel:connect_node({b.atom})") != "true":
                raise SystemExit(f"bench: {release}, {carrier}: no link")
        for name, size in MESSAGE_SIZES.items():
            taken = in_turn(_each(pairs, measure(size)), rounds)
            wanted = goal if name == "64 KB" else ""
            rows += [
                _row(taken, f"{release}: {name} messages", against, megabytes_a_second, each)
                for against, each in ((_DOCUMENTED, wanted), (_NEWEST, ""), (_PLAIN, ""))
            ]
            used = {carrier: processor.pop(a.pid)[-rounds:] for carrier, (a, _) in pairs.items()}
            rows.append(_row(used, f"{release}: CPU for 1 GB of {name}", _DOCUMENTED, seconds, ""))
    return rows


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def megabytes_a_second(value: float) -> str:
    return f"{value:,.0f} MB/s"


def _each(
    pairs: Mapping[str, Pair], measure: Callable[[Pair], Callable[[], float]]
) -> dict[str, Callable[[], float]]:
    return {carrier: measure(pair) for carrier, pair in pairs.items()}


def _row(
    taken: Mapping[str, list[float]], what: str, against: str, show: Callable[[float], str], goal: str
) -> Row:
    return compare(what, taken[_DISTSEC], taken[against], show=show, against=against, goal=goal)
