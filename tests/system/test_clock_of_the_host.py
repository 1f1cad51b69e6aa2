"""Clocks set by a day: the orchestrator's alone, with that of one node, and those of all, as on one host.

One release: what nodes do with their clocks is tested on each of them in test_clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.releases import OTPS
from tests.system.clocks import DAY, RUN, Clocks, guest, knock, pids, relink
from tests.system.cluster import Cluster
from tests.system.loads import Load

pytestmark = pytest.mark.otp
DAYS = timedelta(days=1)
NOT_RENEWED = "a certificate was not renewed"
HELD = "NodeUp", "LinkRenewed"
"""What tells which certificate of its peer an end of a link stands on."""


@pytest.fixture(scope="module")
def shared(agent_ebin: Path, beams: Path) -> Iterator[Clocks]:
    with started(beams) as clocks:
        yield clocks


@pytest.fixture
def fresh(agent_ebin: Path, beams: Path) -> Iterator[Clocks]:
    """Nobody has a certificate but the first one, which ends within the day."""
    with started(beams) as clocks:
        yield clocks


@contextmanager
def started(beams: Path) -> Iterator[Clocks]:
    with Cluster(OTPS[-1], beams) as cluster:
        clocks = Clocks(cluster, *cluster.names)
        clocks.start()
        yield clocks


@pytest.fixture
def clocks(shared: Clocks) -> Iterator[Clocks]:
    """All right, and the three nodes meshed; so is it left."""
    yield shared
    shared.set(0)
    shared.cluster.wait_meshed()


@pytest.mark.parametrize(
    ("own", "node"), [(-DAY, 0), (-DAY, -DAY), (DAY, 0)], ids=["back", "both back", "ahead"]
)
def test_an_orchestrator_with_another_clock_costs_nobody_a_link(clocks: Clocks, own: int, node: int) -> None:
    cluster = clocks.cluster
    before, generation = pids(cluster), cluster.status()["policy_generation"]
    revoked = guest(cluster, -3 * DAYS, DAYS)
    with Load(cluster) as load:
        clocks.set(own, RUN)
        clocks.set(node, "a")
        cluster.distsec("certs", "revoke", revoked.serial)
        assert knock(cluster, "a", revoked) == "revoked"
        load.assert_flows()
        if own > 0:  # it renews what has expired by its clock
            cluster.wait(lambda: cluster.events(NOT_RENEWED), "the nodes not to take that")
            assert "not yet valid by the clock" in cluster.events(NOT_RENEWED)[0]["error"]
        clocks.set(0, RUN, "a")
        assert knock(cluster, "a", revoked) == "revoked"
        assert cluster.status()["policy_generation"] > generation
        load.assert_flows()
    load.report.assert_intact()
    assert pids(cluster) == before
    # And they can link anew.
    relink(cluster, "a", "b")


def test_a_host_whose_clock_jumps_ahead_and_back_comes_back_by_itself_both_times(fresh: Clocks) -> None:
    clocks, cluster = fresh, fresh.cluster
    before, ends = pids(cluster), cluster.links()
    assert not cluster.events("CertificateRenewed")

    def anew() -> bool:
        """Every end of a link has seen what its peer was given since, and none has ended at one end alone.

        Whether a node sees first that the old ones have expired, and ends its links, or that its peer has
        proven a new one, is left to chance: it looks at its clock once a second.
        """
        given = {event["node"]: event["serial"] for event in cluster.events("CertificateRenewed")}
        seen = {(_end(event), event["serial"]) for kind in HELD for event in cluster.events(kind)}
        over = Counter(_end(event) for event in cluster.events("NodeDown"))
        return len(given) == len(cluster.names) and all(
            ((name, peer), given[cluster.node(peer)]) in seen and over[name, peer] == over[peer, name]
            for name, peer in ends
        )

    clocks.set(DAY)  # all certificates have expired, and the orchestrator sees that as well
    cluster.wait(anew, "every link to stand on certificates that were issued tomorrow")
    over = cluster.events("NodeDown")
    assert {frozenset(_end(event)) for event in over} == {
        frozenset(_end(event)) for event in over if event.get("reason") == "expired"
    }
    cluster.wait_meshed()
    downs, renewed = len(cluster.events("NodeDown")), len(cluster.events("CertificateRenewed"))
    clocks.set(0)  # they are not yet valid
    cluster.wait(lambda: len(cluster.events("CertificateRenewed")) >= renewed + 3, "others")
    assert len(cluster.events("NodeDown")) == downs
    relink(cluster, "a", "b")
    assert pids(cluster) == before


def _end(event: dict[str, Any]) -> tuple[str, str]:
    """Of a link: by the names of the node that tells of it and of its peer."""
    return event["node"].partition("@")[0], event["peer"].partition("@")[0]
