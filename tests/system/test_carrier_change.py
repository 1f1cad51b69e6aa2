"""From one carrier to another: what was left running is not taken for what the configuration says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.releases import Otp
from tests.system.cluster import Cluster


@pytest.mark.parametrize(("before", "after"), [("inet_tls", "distsec"), ("distsec", "inet_tls")])
def test_nodes_that_run_with_another_carrier_are_stopped_and_started_by_the_operator(
    otp: Otp, make_cluster: Callable[..., Cluster], before: str, after: str
) -> None:
    cluster = make_cluster(otp, ["a", "b"], carrier=before)
    cluster.start()
    pid = cluster.pid("a")
    cluster.kill()
    cluster.settings["security"]["distribution"]["carrier"] = after
    cluster.write()
    cluster.run()
    cluster.wait_states(a="FATAL", b="FATAL")
    status = cluster.status_of("a")
    assert status["reason"] == "carrier_not_in_force"
    assert f"its carrier is {before}, not {after}" in status["detail"]
    assert str(pid) not in [process.split(":")[0] for process in cluster.processes()]
    cluster.distsec("start", "--all")
    cluster.wait_meshed()
    assert cluster.status()["carrier"] == after
    assert cluster.erl("a", "distsec_snapshot:carrier()") == f'<<"{after}">>'
