"""A link whose peer does not prove itself anew ends when its last proof does: not earlier, not later.

Nodes of all releases in one cluster. a and h are honest and under load; the links of all others are proven by
certificates that are about to end, and each has another reason for which no newer one is taken from it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.releases import Otp
from tests.system import short_lives
from tests.system.certificates import Leaf
from tests.system.cluster import Cluster
from tests.system.loads import Load

LIFE_SECONDS = 15
REVOKED, STRANGER, BARE, STOPPED = LOSING = ("revoked", "stranger", "bare", "stopped")
NODES = ("a", "h", *LOSING)
LINKS = "length(nodes(connected))"
LATEST_MS = 2500
"""After the second in which a certificate ends: to notice it, and to end the link. To this comes for how long
messages between a and h, one each 20 ms, have stood still: it is the machine that did.
"""


@pytest.fixture
def cluster(otps: tuple[Otp, ...], beams: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    releases = cycle(otps)
    with Cluster({name: next(releases) for name in NODES}, beams, nodes=NODES) as made:
        request.node.user_properties.extend(("otp", otp.stands_for) for otp in otps)
        yield made


def issue(cluster: Cluster, name: str, end: float) -> Leaf:
    """A certificate that ends at `end`, Unix seconds."""
    return cluster.leaf(name, valid_for=timedelta(days=1, seconds=end - time.time()))


def renewed(cluster: Cluster, end: float) -> dict[str, Leaf]:
    """All links of LOSING are proven by certificates that end at `end`."""
    leaves = {name: issue(cluster, name, end) for name in LOSING}
    for name, leaf in leaves.items():
        short_lives.give(cluster, name, leaf)
        assert leaf.serial in short_lives.command(cluster, name, "reload")
    for name in cluster.names:
        assert "failed => []" in short_lives.command(cluster, name, "renew", "#{peers => #{}}")
    return leaves


@contextmanager
def held(cluster: Cluster) -> Iterator[None]:
    """Without the orchestrator, which would put a good certificate in place of a bad one."""
    cluster.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.signal(signal.SIGCONT)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def refusals(cluster: Cluster, leaf: Leaf) -> list[dict[str, Any]]:
    kinds = ("CertificateValidationFailed", "UnauthorizedAccess")
    return [event for kind in kinds for event in cluster.events(kind, serial=leaf.serial)]


def test_a_link_whose_peer_cannot_prove_itself_ends_when_its_proof_does(cluster: Cluster) -> None:
    cluster.start()
    cluster.wait_answering()
    tomorrow = time.time() + 86_400
    revoked = issue(cluster, REVOKED, tomorrow)
    cluster.distsec("certs", "revoke", revoked.serial)
    pid = cluster.pid(STOPPED)
    short_lives.watch(cluster, "a", "h")
    with Load(cluster, "a", "h") as load:
        with held(cluster):
            began = time.monotonic()
            renewed(cluster, tomorrow)
            took = time.monotonic() - began
            # All in one and the same second: else who is lost first tells the others of the links that it
            # has lost itself, and they end theirs (prevent_overlapping_partitions).
            end = int(time.time() + 4 * took) + LIFE_SECONDS + 0.5
            short = renewed(cluster, end)
            short_lives.give(cluster, REVOKED, revoked)
            assert revoked.serial in short_lives.command(cluster, REVOKED, "reload")
            nobody = issue(cluster, "nobody", tomorrow)
            short_lives.give(cluster, STRANGER, nobody)
            short_lives.command(cluster, STRANGER, "reload")  # it may see to that itself, or not
            assert time.time() < end, "the machine is too slow for this test"
            with stopped(pid):
                cluster.wait(
                    lambda: all(cluster.erl(*pair) == "1" for pair in (("a", LINKS), ("h", LINKS))),
                    "a and h to be left",
                    end - time.time() + 60,
                )
                load.assert_flows()
        lives = short_lives.seen(cluster, "a", "h")
        for node in ("a", "h"):
            for name in LOSING:
                event = cluster.wait_event("NodeDown", node=cluster.node(node), peer=cluster.node(name))
                assert (event["reason"], event["serial"]) == ("expired", short[name].serial)
                assert revoked.serial not in {life.serial for life in lives[node, name]}
        of_another = {"not_allowed", "name_not_in_certificate"}  # as its gate is before the name, or after
        for leaf, reasons in ((revoked, {"revoked"}), (nobody, of_another)):
            # Refusals have a lane of their own: they may come after the ends of the links.
            cluster.wait(
                lambda leaf=leaf: (
                    {event["node"] for event in refusals(cluster, leaf)}
                    >= {cluster.node("a"), cluster.node("h")}
                ),
                f"a and h to tell of refusals: {reasons}",
            )
            assert {event["reason"] for event in refusals(cluster, leaf)} <= reasons
    stood_still_ms = max(pair.longest_pause_ms for pair in load.report.pairs.values())
    for node, name in ((node, name) for node in ("a", "h") for name in LOSING):
        [life] = [life for life in lives[node, name] if life.serial == short[name].serial]
        # It was looked at every 20 ms of its last second, unless the machine stood still for all of that.
        assert min(0, 1000 - stood_still_ms) <= life.overdue_ms, (node, name, life)
        assert life.overdue_ms < 1000 + LATEST_MS + stood_still_ms, (node, name, life)
    changes = {(change.node, change.peer) for change in load.report.nodedowns}
    assert changes == {(node, name) for node in ("a", "h") for name in LOSING}
    assert all(pair.lost == pair.reordered == 0 for pair in load.report.pairs.values())
