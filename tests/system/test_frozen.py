"""A node whose BEAM is stopped by a signal: seen to be lost while it is, and well again without any loss."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from tests.releases import Otp
from tests.system.cluster import Cluster

NOTICED_SECONDS = 8.0
WELL_SECONDS = 10.0
STOPPED_SECONDS = 8.0


def links(cluster: Cluster) -> dict[tuple[str, str], Any]:
    return {
        (node["name"], link["peer"]): (link["since"], link["address"])
        for node in cluster.status()["nodes"]
        for link in node["links"]
    }


def test_a_frozen_node_is_degraded_and_well_again_when_it_goes_on(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otps[0], ["a", "b"])
    cluster.start()
    before, pid = links(cluster), cluster.pid("a")
    os.kill(pid, signal.SIGSTOP)
    try:
        cluster.wait(
            lambda: cluster.status_of("a")["agent"] == "lost", "the loss of a's agent", NOTICED_SECONDS
        )
        assert cluster.status_of("a")["state"] == "RUNNING"
        assert cluster.status_of("b")["agent"] == "connected"
        assert cluster.distsec("status", check=False).returncode == 1
        cluster.wait_event("AgentLost", node=cluster.node("a"))
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.wait(lambda: cluster.status()["healthy"], "a to be well again", WELL_SECONDS)
    assert (links(cluster), cluster.pid("a")) == (before, pid)


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
