"""One event, one straight line: a refused handshake, followed to every place where an operator may look."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.releases import Otp
from tests.system.cluster import Cluster


def test_a_refused_handshake_is_the_same_event_everywhere(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["poller"])
    cluster.init()
    cluster.run()
    cluster.wait_running()
    poller = "poller@127.0.0.1"

    # A peer dials: it has a certificate by the cluster's own CA, the cookie, and a name that is on no list.
    leaf = cluster.leaf("evil")
    evil = cluster.intruder("evil", leaf=leaf, cookie=cluster.cookie("poller"))
    assert evil.connect(poller) is False

    # In the node: distsec_verify asked distsec_policy, which said no; counted, before any nodeup.
    assert cluster.erl("poller", "nodes(connected)") == "[]"
    refusals = "[R || {_, not_allowed, _} = R <- maps:get(refusals, distsec_count:report())]"
    # (It ends the connection first.)
    counted = cluster.wait(lambda: (now := cluster.erl("poller", refusals)) != "[]" and now, "the count")
    assert counted == "[{in,not_allowed,1}]"

    # The agent hands the event over, and the orchestrator writes it as a line of JSON.
    line = cluster.wait_event("UnauthorizedAccess", node=poller)
    assert line["level"] == line["severity"] == "warning"
    expected = {
        "node": poller,
        "result": "deny",
        "direction": "in",
        "reason": "not_allowed",
        "identity": "spiffe://demo/node/127.0.0.1/evil",
        "serial": leaf.serial,
    }
    assert expected.items() <= line.items()
    host, _, port = line["address"].rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)

    # Prometheus counts it: no label of it was chosen by the peer.
    refused = {"node": poller, "direction": "in", "reason": "not_allowed"}
    assert cluster.metric("distsec_security_refusals_total", **refused) == 1
    attempts = {"node": poller, "result": "deny", "peer": "unlisted"}
    assert cluster.metric("distsec_security_connection_attempts_total", **attempts) == 1
    assert "evil" not in cluster.metrics()

    # `distsec events` has the same event, field for field,
    events = json.loads(cluster.distsec("events", "--json").stdout)["events"]
    (event,) = [event for event in events if event["type"] == "UnauthorizedAccess"]
    assert {key: event[key] for key in line if key not in {"time", "level", "event"}} == {
        key: line[key] for key in line if key not in {"time", "level", "event"}
    }
    # and `distsec status` its sum. A refusal is what the guard is for: all is well.
    # (The sum comes with the heartbeat, once a second.)
    cluster.wait(lambda: cluster.status()["refusals"] == [{**refused, "count": 1}], "the sum in the status")
    assert cluster.distsec("status").returncode == 0
