"""allow and deny while the cluster runs: on every node or, of an allow, on none; and what survives what."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.system.of_module import meshed, of_module

ACKNOWLEDGE_SECONDS = 3
LATE_SECONDS = 5
"""That a command may take for itself."""


otp = of_module(OTPS)


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams) as cluster:
        cluster.settings["cluster"]["acknowledge_deadline_seconds"] = ACKNOWLEDGE_SECONDS
        cluster.start()
        yield cluster


cluster = meshed()


def links_since(cluster: Cluster) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Every link with what a new one in its place would change."""
    return {
        (node["name"], link["peer"]): (link["since"], link["address"], link["direction"])
        for node in cluster.status()["nodes"]
        for link in node["links"]
    }


def generations(cluster: Cluster, *names: str) -> set[int]:
    """What is in force in these nodes (default: all), as they say themselves."""
    expression = "maps:get(policy_generation, distsec_policy:summary())"
    return {int(cluster.erl(name, expression)) for name in names or cluster.names}


def listed(cluster: Cluster, name: str) -> str:
    """The policy in force in a node, as text."""
    return cluster.erl(name, "distsec_policy:in_force()")


def watch_phases(cluster: Cluster, name: str, newcomer: str) -> None:
    """Has a node look all the while at what its policy says of `newcomer`; see `phases_seen`."""
    cluster.erl(
        name,
        "Watch = fun Watch(Seen) -> "
        f'Now = [Phase || #{{name := <<"{newcomer}">>, phase := Phase}} '
        "<- maps:get(peers, distsec_policy:in_force())], "
        "receive {ask, From} -> From ! {seen, Seen} after 1 -> Watch(lists:usort(Now ++ Seen)) end end, "
        "register(phases, spawn(fun() -> Watch([]) end))",
    )


def phases_seen(cluster: Cluster, name: str) -> str:
    return cluster.erl(name, "phases ! {ask, self()}, receive {seen, Seen} -> Seen after 25000 -> none end")


def connects(cluster: Cluster, name: str, peer: str) -> bool:
    return cluster.erl(name, f"net_kernel:connect_node('{cluster.node(peer)}')", 30) == "true"


def assert_shut_out(cluster: Cluster, name: str) -> None:
    """No link with `name`, at either end, and none that can be made from either end."""
    others = [other for other in cluster.names if other != name]
    for other in others:
        assert cluster.node(name) not in cluster.erl(other, "nodes(connected)")
    assert cluster.erl(name, "nodes(connected)") == "[]"
    for other in others:
        assert not connects(cluster, other, name)
        assert not connects(cluster, name, other)


def one_line(text: str) -> str:
    """The text, which is one line."""
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text


def seconds_of_a_start(cluster: Cluster) -> float:
    """What a command takes that is answered at once: on a busy machine, more than all the rest of it."""
    began = time.monotonic()
    cluster.status()
    return time.monotonic() - began


@contextlib.contextmanager
def stopped(cluster: Cluster, name: str) -> Iterator[None]:
    """The node's VM gets no time at all meanwhile."""
    pid = cluster.pid(name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_denial_ends_the_link_at_both_ends_and_outlives_every_restart(cluster: Cluster) -> None:
    began = time.monotonic()
    told = cluster.distsec("deny", "c@127.0.0.1")
    seconds = time.monotonic() - began
    # It has returned, so it is done: nothing is waited for.
    assert cluster.node("c") not in cluster.erl("a", "nodes(connected)")
    assert cluster.erl("c", "nodes(connected)") == "[]"
    generation = cluster.status()["policy_generation"]
    assert generations(cluster) == {generation}
    assert told.stdout == (
        f"c@127.0.0.1 is denied: policy generation {generation}, acknowledged by 3 nodes\n"
    )
    assert_shut_out(cluster, "c")
    assert connects(cluster, "a", "b")
    print(f"deny returned after {seconds:.2f} s, the start of the command included")

    cluster.distsec("restart", "c@127.0.0.1", "a@127.0.0.1")
    assert_shut_out(cluster, "c")

    reloads = len(cluster.events("ConfigurationReloaded"))
    cluster.signal(signal.SIGHUP)
    cluster.wait(lambda: len(cluster.events("ConfigurationReloaded")) > reloads, "the reload")
    assert_shut_out(cluster, "c")

    cluster.kill()
    cluster.run()
    cluster.wait_running()
    assert_shut_out(cluster, "c")
    cluster.wait_links(("a", "b"))
    cluster.wait_well()

    began = time.monotonic()
    told = cluster.distsec("allow", "c@127.0.0.1")
    seconds = time.monotonic() - began
    generation = cluster.status()["policy_generation"]
    assert generations(cluster) == {generation}
    assert told.stdout == (
        f"c@127.0.0.1 is allowed: policy generation {generation}, acknowledged by 3 nodes\n"
    )
    print(f"allow returned after {seconds:.2f} s, the start of the command included")
    cluster.wait_meshed()


def test_an_allow_that_a_stopped_node_misses_is_rolled_back_and_costs_no_link(cluster: Cluster) -> None:
    newcomer = "d@127.0.0.1"
    before = links_since(cluster)
    assert len(before) == 6
    watch_phases(cluster, "a", newcomer)
    with stopped(cluster, "b"):
        start = seconds_of_a_start(cluster)
        began = time.monotonic()
        told = cluster.distsec("allow", newcomer, check=False)
        seconds = time.monotonic() - began - start
        assert told.returncode == 75
        assert one_line(told.stderr) == (
            "distsec: d@127.0.0.1 is not allowed: b@127.0.0.1 has not acknowledged; rolled back; "
            "see to these nodes (`distsec status`) and repeat it\n"
        )
        assert told.stdout == ""
        assert seconds < 2 * ACKNOWLEDGE_SECONDS + LATE_SECONDS
        assert links_since(cluster) == before
        for name in ("a", "c"):
            assert newcomer not in listed(cluster, name)
        assert phases_seen(cluster, "a") == "[prepared]"  # never open, not even for a moment
        assert newcomer not in (cluster.state / "policy.overlay").read_text()

    wanted = cluster.status()["policy_generation"]
    cluster.wait(lambda: generations(cluster) == {wanted}, "the wanted policy in every node")
    assert links_since(cluster) == before
    assert newcomer not in listed(cluster, "b")
    stranger = cluster.intruder("d", leaf=cluster.leaf("d"), cookie=cluster.cookie("b"))
    for name in cluster.names:
        assert not stranger.connect(cluster.node(name))
    stranger.stop()

    cluster.distsec("allow", newcomer)
    assert all(newcomer in listed(cluster, name) for name in cluster.names)
    cluster.distsec("deny", newcomer)
    assert links_since(cluster) == before


def test_a_denial_that_a_stopped_node_misses_stays_and_reaches_it_later(cluster: Cluster) -> None:
    with stopped(cluster, "b"):
        told = cluster.distsec("deny", "c@127.0.0.1", check=False)
        assert told.returncode == 75
        assert one_line(told.stderr) == (
            "distsec: c@127.0.0.1 is denied, for good, but b@127.0.0.1 has not acknowledged; "
            "these nodes take the denial up when they answer; stop them if that cannot wait\n"
        )
        assert cluster.node("c") not in cluster.erl("a", "nodes(connected)")
        assert "c@127.0.0.1" in json.loads((cluster.state / "policy.overlay").read_bytes())["deny"]
        wanted = cluster.status()["policy_generation"]
        assert generations(cluster, "a", "c") == {wanted}

    cluster.wait(lambda: generations(cluster) == {wanted}, "the denial in force in b too")
    # Which ends its link with c after that, and each end sees it for itself.
    cluster.wait(lambda: cluster.erl("c", "nodes(connected)") == "[]", "the end of the last link of c")
    cluster.wait(lambda: cluster.node("c") not in cluster.erl("b", "nodes(connected)"), "that in b")
    assert_shut_out(cluster, "c")
    cluster.wait_links(("a", "b"))

    cluster.distsec("allow", "c@127.0.0.1")
    cluster.wait_meshed()
