"""One node that cannot be started keeps no other one down: its port is held, or its program is not there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import HOST, Cluster


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """One release: what is tested is the orchestrator's."""
    chosen: Otp = request.param
    return chosen


def test_whoever_holds_a_port_keeps_that_node_alone_down_and_only_for_as_long(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp)
    cluster.init()
    cluster.table("b")["restart_intensity"] = 1
    cluster.table("c")["command"] = ["/no/such/erl", "-noinput"]
    cluster.write()
    where = f"{HOST}:{cluster.port('b')}"
    with socket.create_server((HOST, cluster.port("b"))):
        cluster.run()
        cluster.wait_states(a="RUNNING", b="BACKOFF", c="FATAL")

        held = f"{where}: the port is in use by process {os.getpid()} ("
        told = cluster.wait_event("NodeStateChanged", node="b@127.0.0.1", reason="start_failed")
        assert told["level"] == "warning"
        assert f"BACKOFF: {held}" in told["detail"]

        def shown() -> bool:  # in a try, which takes a moment, it is STARTING
            answer = cluster.distsec("status", check=False)
            assert answer.returncode == 1
            return held in " ".join(answer.stdout.split())

        cluster.wait(shown, "the reason in `distsec status`")
        status = cluster.status()
        assert (status["healthy"], status["violation"]) == (False, False)
        assert cluster.metric("distsec_node_state", node="c@127.0.0.1", state="FATAL") == 1
        assert "/no/such/erl does not exist" in cluster.status_of("c")["detail"]

        asked = cluster.distsec("start", "b@127.0.0.1", check=False)
        assert asked.returncode == 70
        assert held in asked.stderr and "it is tried again by itself" in asked.stderr

        def tries() -> int:
            return len(cluster.events("NodeStateChanged", node="b@127.0.0.1", reason="start_failed"))

        cluster.wait(lambda: tries() > 3, "more tries than restarts are allowed", 60)
        assert not cluster.events("NodeStateChanged", node="b@127.0.0.1", level="critical")
        assert not cluster.events("NodeStarted", node="b@127.0.0.1")
    cluster.wait_running("a", "b")
    cluster.wait_links(("a", "b"))
    assert len(cluster.events("NodeStarted", node="b@127.0.0.1")) == 1
    assert not cluster.events("NodeStopped")
