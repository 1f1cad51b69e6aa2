"""The clock of a node that is set by a day while it runs: nothing that is over is revived, and what was right
before is right again when the clock is. What a node judges by is erlang/src/distsec_clock.erl.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf
from tests.system.clocks import DAY, Clocks, guest, knock, pids
from tests.system.cluster import HOST, Cluster
from tests.system.of_module import of_module

A = f"a@{HOST}"
HOUR = timedelta(hours=1)
DAYS = timedelta(days=1)


otp = of_module(OTPS)


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Clocks]:
    with Cluster(otp, beams) as cluster:
        clocks = Clocks(cluster, "a")
        clocks.start()
        yield clocks


@pytest.fixture
def clocks(shared: Clocks) -> Iterator[Clocks]:
    """All right, and the three nodes meshed; so is it left. Those of b and c are always right."""
    yield shared
    shared.set(0)
    shared.cluster.wait_meshed()


def over_in_a_moment(cluster: Cluster) -> Leaf:
    """A certificate that was admitted and has ended since: after the policy was issued, whose time would be
    enough else. A busy machine takes its time to show it.
    """
    for seconds in (2, 8, 32):
        leaf, end = guest(cluster, -3 * DAYS, timedelta(seconds=seconds)), time.time() + seconds
        admitted = knock(cluster, "a", leaf) == "admitted"
        cluster.wait(lambda end=end: time.time() > end + 1, "its end")
        if admitted:
            return leaf
    pytest.fail("it was refused before its end")


def test_a_clock_that_is_set_back_revives_no_certificate_and_no_policy(clocks: Clocks) -> None:
    cluster = clocks.cluster
    good = guest(cluster, -3 * DAYS, DAYS)
    revoked = guest(cluster, -3 * DAYS, DAYS)
    old = cluster.erl("a", "distsec_policy:document()")
    cluster.distsec("certs", "revoke", revoked.serial)
    over = over_in_a_moment(cluster)
    now = {"over": over, "good": good, "revoked": revoked}
    right = {"over": "expired", "good": "admitted", "revoked": "revoked"}
    assert {title: knock(cluster, "a", leaf) for title, leaf in now.items()} == right
    before, generation = pids(cluster), cluster.status_of("a")["policy_generation"]

    clocks.set(-DAY, "a")  # by the wall clock, which is OTP's measure, the first is valid again
    assert {title: knock(cluster, "a", leaf) for title, leaf in now.items()} == right
    assert "reason => generation" in cluster.erl("a", f"distsec_command:run(policy, #{{document => {old}}})")
    assert cluster.status_of("a")["policy_generation"] == generation
    cluster.wait_meshed()  # nobody who was there has lost a link
    assert pids(cluster) == before


def test_what_is_not_yet_valid_is_refused_as_such_until_it_is(clocks: Clocks) -> None:
    cluster = clocks.cluster
    coming = guest(cluster, 12 * HOUR, 3 * DAYS)
    fresh = guest(cluster, -HOUR, 3 * DAYS)
    assert knock(cluster, "a", coming) == "not_yet_valid"
    clocks.set(-DAY, "a")
    assert knock(cluster, "a", fresh) == "not_yet_valid"  # by a's clock it is to be issued tomorrow
    clocks.set(0, "a")
    assert knock(cluster, "a", fresh) == "admitted"


def test_a_clock_that_is_set_ahead_ends_links_and_setting_it_right_brings_them_back(clocks: Clocks) -> None:
    cluster = clocks.cluster
    before = pids(cluster)
    fresh = guest(cluster, -HOUR, DAYS - HOUR)  # by a's clock it is to be over for sure, not in this second
    clocks.set(DAY, "a")
    cluster.wait(lambda: {("b", "c"), ("c", "b")} == cluster.links(), "a to be alone")
    for name in ("b", "c"):
        cluster.wait_event("NodeDown", node=A, reason="expired", peer=cluster.node(name))
    downs = cluster.events("NodeDown", node=A, reason="expired")
    assert {event["peer"] for event in downs} == {f"b@{HOST}", f"c@{HOST}"}
    assert knock(cluster, "a", fresh) == "expired"
    assert cluster.erl("a", f"net_kernel:connect_node('b@{HOST}')") == "false"
    assert cluster.erl("b", f"net_kernel:connect_node('{A}')") == "false"

    clocks.set(0, "a")
    cluster.wait_meshed()
    assert knock(cluster, "a", fresh) == "admitted"
    assert pids(cluster) == before  # nothing had to be started anew
