"""The load that proves rotations notices what it is there to notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import OTPS
from tests.system.cluster import HOST, Cluster
from tests.system.loads import Load

pytestmark = pytest.mark.otp


@pytest.fixture(scope="module")
def cluster(beams: Path, agent_ebin: Path) -> Iterator[Cluster]:
    """Two nodes of one release: what is tested is the counting."""
    with Cluster(OTPS[0], beams, nodes=["a", "b"]) as made:
        made.start()
        yield made


def test_a_load_that_nobody_disturbs_is_intact(cluster: Cluster) -> None:
    with Load(cluster) as load:
        cluster.wait(lambda: min(p.received for p in load.received().values()) > 150, "a burst and 100 KB")
    load.report.assert_intact()
    assert set(load.report.pairs) == {("a", "b"), ("b", "a")}
    assert all(pair.received > 150 for pair in load.report.pairs.values())


def test_a_link_that_is_cut_shows_as_nodedown_and_as_lost_messages(cluster: Cluster) -> None:
    with Load(cluster) as load:
        # long enough for a message to be due: the node dials again 50 ms after a loss
        assert cluster.erl("a", f"erlang:disconnect_node('b@{HOST}')") == "true"
        cluster.wait_meshed()
        load.assert_flows()
    assert {(down.node, down.peer) for down in load.report.nodedowns} == {("a", "b"), ("b", "a")}
    assert load.report.lost > 0
    assert load.report.lost == sum(pair.gaps for pair in load.report.pairs.values())
    with pytest.raises(AssertionError, match="a lost b at"):
        load.report.assert_intact()


def test_numbers_that_are_missing_late_or_doubled_are_told_apart(cluster: Cluster) -> None:
    wanted = {
        "[1,2,3]": "{3,[],0,0}",
        "[1,3]": "{2,[2],0,0}",
        "[1,3,2]": "{3,[],1,0}",
        "[1,2,2,3]": "{4,[],0,1}",
        "[2,5,3,3,1]": "{5,[4],2,1}",
    }
    found = {
        numbers: cluster.erl(
            "a",
            "#{received := R, missing := M, reordered := O, duplicates := D} = "
            f"distsec_test_load:judge({numbers}, undefined), {{R, maps:keys(M), O, D}}",
        )
        for numbers in wanted
    }
    assert found == wanted
