"""The orchestrator knocks at each node's port like a stranger, and alarms nobody with it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.releases import Otp
from tests.system.cluster import Cluster
from tests.system.intruder import refused, tls

REFUSALS = "distsec_security_refusals_total"
PER_PROBE = 2  # TLS 1.3 without a certificate, and TLS 1.2


def in_the_node(cluster: Cluster) -> int:
    return int(cluster.erl("a", "lists:sum([N || {_, _, N} <- maps:get(refusals, distsec_count:report())])"))


def refused_and_told(cluster: Cluster) -> int | None:
    """How many connections of probes the node has refused, once none is left whose refusal is still to come:
    with stock OTP such a one would take a stranger's in its place.
    """
    known = json.loads((cluster.node_directory("a") / "probes.json").read_bytes())
    count = in_the_node(cluster)
    return count if not known["expected"] and sum(known["absorbed"].values()) == count else None


def denials(cluster: Cluster) -> list[str | None]:
    return [
        event.get("reason")
        for kind in ("CertificateValidationFailed", "UnauthorizedAccess", "NodeConnectionAttempt")
        for event in cluster.events(kind, result="deny")
    ]


@pytest.mark.parametrize("carrier", ["distsec", "inet_tls"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_its_probes_are_refused_by_the_node_and_counted_nowhere(
    otp: Otp, make_cluster: Callable[..., Cluster], carrier: str, host: str
) -> None:
    cluster = make_cluster(otp, ["a"], carrier=carrier, host=host)
    cluster.start()
    for _ in range(2):  # whoever adopts a node looks again
        cluster.kill()
        cluster.run()
        cluster.wait_running()
    # It counts the last a moment after it has ended the connection.
    probes = cluster.wait(lambda: refused_and_told(cluster), "the node to tell of all probes")
    assert probes >= 3 * PER_PROBE  # more where one had no answer in time, and was made again
    assert (cluster.metric(REFUSALS), cluster.status()["refusals"], denials(cluster)) == (0, [], [])
    with tls(cluster.port("a"), host=host) as stranger:
        assert refused(stranger)
    # by the heartbeat after its event; and nothing of the probes comes with it
    cluster.wait(
        lambda: cluster.metric(REFUSALS) and cluster.status()["refusals"], "the stranger to be counted"
    )
    assert cluster.metric(REFUSALS) == 1
    assert [each["count"] for each in cluster.status()["refusals"]] == [1]
    assert denials(cluster) == ["certificate_required"]
    assert in_the_node(cluster) == probes + 1
