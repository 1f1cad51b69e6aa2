"""One link between two nodes: how long it takes to come up, and how much it carries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from scripts.benchmarks.calm import Calm
from scripts.benchmarks.carriers import (
    Place,
    start_distsec,
    start_documented,
    start_plain,
)
from scripts.benchmarks.clusters import directory
from scripts.benchmarks.nodes import MODULE, Control, Release
from scripts.benchmarks.rows import Row, Samples, compare, in_turn

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
    with directory() as place, ExitStack() as stack:
        pairs = start_pairs(stack, place, release, beams)
        taken = _in_turn(pairs, _join_once, 5 if quick else 60, quick)
    return [
        compare(f"{release}: join", taken, _DISTSEC, against, show=_milliseconds, goal=goal)
        for against, goal in ((_DOCUMENTED, "≤ 1.1"), (_NEWEST, ""), (_PLAIN, ""))
    ]


def throughput(release: Release, beams: Path, quick: bool) -> list[Row]:
    """MB a second from one process to one process, for each size of message.

    What is fast wants all of both CPUs, and what is slow does not: on a busy machine the ratios shrink.
    """
    milliseconds, rounds = (60, 3) if quick else (250, 12)
    rows = []
    with directory() as place, ExitStack() as stack:
        pairs = start_pairs(stack, place, release, beams)
        for carrier, (a, b) in pairs.items():
            if a.ask(f"net_kernel:connect_node({b.atom})") != "true":
                raise SystemExit(f"bench: {release}, {carrier}: no link")
        for name, size in MESSAGE_SIZES.items():
            once = partial(_push_once, size=size, milliseconds=milliseconds)
            taken = _in_turn(pairs, once, rounds, quick)
            for against in (_DOCUMENTED, _NEWEST, _PLAIN):
                goal = _goal(release) if (name, against) == ("64 KB", _DOCUMENTED) else ""
                what = f"{release}: {name} messages"
                rows.append(compare(what, taken, _DISTSEC, against, show=_megabytes_a_second, goal=goal))
    return rows


def _goal(release: Release) -> str:
    """From OTP 28 on ssl itself reads in larger pieces."""
    return "≥ 10" if release.number < 28 else "≥ 1.25"


def _join_once(pair: Pair) -> float:
    dialling, dialled = pair
    (taken,) = dialling.integers(f"{MODULE}:join({dialled.atom})")
    dialled.ask(f"{MODULE}:await_down({dialling.atom})")
    time.sleep(SETTLE_SECONDS)
    return taken / 1000


def _push_once(pair: Pair, size: int, milliseconds: int) -> float:
    sending, receiving = pair
    count, taken = sending.integers(f"{MODULE}:push({receiving.atom},{size},{milliseconds})")
    return count * size / taken


def _in_turn(pairs: Mapping[str, Pair], once: Callable[[Pair], float], rounds: int, quick: bool) -> Samples:
    measures = {carrier: partial(once, pair) for carrier, pair in pairs.items()}
    return in_turn(measures, rounds) if quick else in_turn(measures, rounds, calm=Calm().was_calm)


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms"


def _megabytes_a_second(value: float) -> str:
    return f"{value:,.0f} MB/s"
