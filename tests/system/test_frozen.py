"""A node whose BEAM is stopped by a signal: seen to be lost while it is, and well again without any loss."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from tests.releases import Otp
from tests.system.cluster import Cluster

STOPPED_SECONDS = 8.0


def links(cluster: Cluster) -> dict[tuple[str, str], Any]:
    return {
        (node["name"], link["peer"]): (link["since"], link["address"])
        for node in cluster.status()["nodes"]
        for link in node["links"]
    }


def with_a_lost(cluster: Cluster) -> dict[str, Any] | None:
    """The status by node when the agent of `a` is lost; else None."""
    nodes = {node["name"].partition("@")[0]: node for node in cluster.status()["nodes"]}
    return nodes if nodes["a"]["agent"] == "lost" else None


def test_a_frozen_node_is_degraded_and_well_again_when_it_goes_on(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otps[0], ["a", "b"])
    cluster.start()
    before, pid = links(cluster), cluster.pid("a")
    os.kill(pid, signal.SIGSTOP)
    try:
        # One look for all of it: b gives a up too when it has been silent for three quarters of a minute.
        seen = cluster.wait(lambda: with_a_lost(cluster), "the loss of a's agent")
        assert seen["a"]["state"] == "RUNNING"
        assert seen["b"]["agent"] == "connected"
        assert cluster.distsec("status", check=False).returncode == 1
        cluster.wait_event("AgentLost", node=cluster.node("a"))
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.wait(lambda: cluster.status()["healthy"], "a to be well again")
    cluster.wait(lambda: links(cluster) == before, f"the very links of before, {before}")
    assert cluster.pid("a") == pid


def lived(cluster: Cluster) -> float:
    """Seconds since the VM of `a` was started, by its own clock."""
    return int(cluster.erl("a", "element(1, erlang:statistics(wall_clock))")) / 1000


def test_an_orchestrator_that_was_stopped_itself_loses_nobody(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otps[0], ["a", "b"])
    cluster.start()
    cluster.signal(signal.SIGSTOP)
    begun = lived(cluster)
    cluster.wait(lambda: lived(cluster) > begun + STOPPED_SECONDS, "the node to live on meanwhile", 60)
    cluster.signal(signal.SIGCONT)
    shown = cluster.status_of("a")["uptime_seconds"]
    cluster.wait(lambda: cluster.status_of("a")["uptime_seconds"] >= shown + 3, "some ticks more")
    assert cluster.status()["healthy"]
    assert cluster.events("AgentLost") == []
