"""A node whose BEAM is stopped by a signal: seen to be lost while it is, and well again without any loss."""

from __future__ import annotations

import os
import signal
import time
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


def test_an_orchestrator_that_was_stopped_itself_loses_nobody(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otps[0], ["a", "b"])
    cluster.start()
    cluster.signal(signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    cluster.signal(signal.SIGCONT)
    time.sleep(2.0)  # two ticks
    assert cluster.status()["healthy"]
    assert cluster.events("AgentLost") == []
