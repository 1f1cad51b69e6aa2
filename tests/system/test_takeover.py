"""The orchestrator is gone, and comes back: nodes go on, guarded, and lose nothing that they could hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.system.of_module import meshed, of_module

ONE_RELEASE = pytest.mark.parametrize("otp", OTPS[:1], indirect=True, ids=str)
"""For what the orchestrator alone decides: no release of OTP makes a difference."""

REFUSALS = 300
FLOOD = 100_000
RING = 8192
"""Capacity of lane refusals (docs/port-protocol.md)."""

VIOLATIONS = 5
PRINTED_BYTES = 20_000


otp = of_module(OTPS)


@pytest.fixture(scope="module", params=["distsec"])
def carrier(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path, carrier: str) -> Iterator[Cluster]:
    with Cluster(otp, beams, carrier=carrier) as cluster:
        cluster.start()
        for name in cluster.names:
            print_forever(cluster, name)
        yield cluster


cluster = meshed()


def print_forever(cluster: Cluster, name: str) -> None:
    cluster.erl(
        name,
        'spawn(fun Print() -> io:format("~s~n", [lists:duplicate(60, $.)]), '
        "receive after 2 -> Print() end end)",
    )


def printed(cluster: Cluster, name: str) -> int:
    return (cluster.node_directory(name) / "log" / "output.log").stat().st_size


def identities(cluster: Cluster) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Every link with what a new one would change, and every node with its pid."""
    nodes = cluster.status()["nodes"]
    links = {
        (node["name"], link["peer"]): (link["since"], link["address"], link["direction"])
        for node in nodes
        for link in node["links"]
    }
    return links | {(node["name"], ""): (node["pid"],) for node in nodes}


def take_over(cluster: Cluster) -> None:
    """A new orchestrator, until it has all nodes, and their heartbeats."""
    cluster.run()
    cluster.wait_running()
    cluster.wait_meshed()


def expect_same(cluster: Cluster, before: dict[tuple[str, str], tuple[Any, ...]]) -> None:
    """Nodes and links are those from before. What was up in between and is not any more is told once again,
    its end after its beginning: the status may show it for a moment.
    """
    cluster.wait(lambda: identities(cluster) == before, f"the links and nodes from before: {before}")


def reported(events: list[dict[str, Any]]) -> int:
    """How many events these lines stand for: of a flood the rest is summed up in one line."""
    return sum(event.get("suppressed", 1) for event in events)


@pytest.mark.parametrize("carrier", ["distsec", "inet_tls"], indirect=True)
def test_nodes_go_on_guarded_and_a_new_orchestrator_takes_them_over(cluster: Cluster) -> None:
    a = cluster.node("a")
    before, generation = identities(cluster), cluster.status()["policy_generation"]
    refused = cluster.metric("distsec_security_refusals_total", node=a)
    refused_as = cluster.metric("distsec_security_refusals_total", node=a, reason="not_allowed")
    events_before = {
        kind: len(cluster.events(kind))
        for kind in ("UnauthorizedAccess", "NodeStarted", "NodeStopped", "NodeDown", "EventsDropped")
    }
    leaf, borrowed, cookie = cluster.leaf("evil"), cluster.leaf("b"), cluster.cookie("a")

    cluster.kill()
    sizes = {name: printed(cluster, name) for name in cluster.names}
    cluster.wait(
        lambda: all(printed(cluster, name) > sizes[name] + PRINTED_BYTES for name in cluster.names),
        "what all nodes print into files that nobody reads",
    )
    for name in cluster.names:
        others = ",".join(f"'{cluster.node(other)}'" for other in cluster.names if other != name)
        assert cluster.erl(name, "lists:sort(nodes())") == f"[{others}]"
    evil = cluster.intruder("evil", leaf=leaf, cookie=cookie)
    attempts = f"lists:usort([net_kernel:connect_node('{a}') || _ <- lists:seq(1, {REFUSALS})])"
    assert evil.erl(attempts, 180) == "[false]"
    # A listed certificate, and the cookie that only the node itself knows: stock OTP lets it in, and the
    # watcher ends it (docs/security-model.md).
    violated = cluster.carrier == "inet_tls"
    liar = cluster.intruder("liar", leaf=borrowed, cookie=cookie, hidden=True)
    critical = int(cluster.erl("a", "distsec_ring:sequence(critical)"))
    connected = liar.connect(a)
    if violated:
        cluster.wait(
            lambda: int(cluster.erl("a", "distsec_ring:sequence(critical)")) >= critical + 2,
            "the violation, and the end of that link",
        )
    else:
        assert not connected
        assert int(cluster.erl("a", "distsec_ring:sequence(critical)")) == critical
    liar.stop()
    evil.stop()

    take_over(cluster)
    expect_same(cluster, before)

    def in_force() -> int:
        """The generation of the policy that all have, else 0."""
        status = cluster.status()
        wanted: int = status["policy_generation"]
        return wanted if {node["policy_generation"] for node in status["nodes"]} == {wanted} else 0

    assert cluster.wait(in_force, "all nodes to have the policy") > generation

    reason = "unlisted_link" if violated else "name_not_in_certificate"
    cluster.wait(
        lambda: cluster.metric("distsec_security_refusals_total", node=a, reason=reason) == 1,
        "the liar to be counted",
    )

    def counted() -> float:
        return cluster.metric("distsec_security_refusals_total", node=a, reason="not_allowed") - refused_as

    cluster.wait(lambda: counted() >= REFUSALS, "all others to be counted")
    assert counted() == REFUSALS
    # What the orchestrator that was killed had knocked with in that moment is a stranger's to the next one,
    # and may be counted while we look: all that is compared is of one answer.
    metrics = cluster.metrics()
    knocks = sum(
        sum_of(metrics, "distsec_security_refusals_total", node=a, reason=why)
        for why in ("certificate_required", "protocol_version")
    )
    of_strangers = sum_of(metrics, "distsec_security_refusals_total", node=a) - refused - knocks
    assert of_strangers == REFUSALS + 1 and knocks <= 2, metrics
    denied = {"node": a, "result": "deny", "peer": "unlisted"}
    attempts_denied = sum_of(metrics, "distsec_security_connection_attempts_total", **denied)
    assert attempts_denied - knocks == REFUSALS + (not violated), metrics
    accesses = cluster.wait(
        lambda: (
            (found := cluster.events("UnauthorizedAccess")[events_before["UnauthorizedAccess"] :])
            and reported(found) >= REFUSALS + 1
            and found
        ),
        "every refusal in the log",
    )
    assert reported(accesses) == REFUSALS + 1
    [of_the_liar] = [event for event in accesses if event.get("peer") == "liar@127.0.0.1"]
    assert (of_the_liar["node"], of_the_liar["reason"]) == (a, "name_not_in_certificate")
    assert [event for event in accesses if event["severity"] == "critical"] == [of_the_liar] * violated
    # With stock OTP it is ended before it is known which session it came by, or right after.
    known_by = of_the_liar.get("identity", cluster.identity("b") if violated else None)
    assert known_by == cluster.identity("b")
    for kind in ("NodeStarted", "NodeStopped", "EventsDropped"):
        assert len(cluster.events(kind)) == events_before[kind], kind

    def downs() -> list[str]:
        return [event["peer"] for event in cluster.events("NodeDown")[events_before["NodeDown"] :]]

    cluster.wait(lambda: downs() or not violated, "the end of the liar's link to be told")
    assert downs() == (["liar@127.0.0.1"] if violated else [])


def sum_of(metrics: str, name: str, **labels: str) -> float:
    """As Cluster.metric, of an answer that is there already."""
    samples = (sample for family in text_string_to_metric_families(metrics) for sample in family.samples)
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


def test_a_flood_of_refusals_evicts_no_violation(cluster: Cluster) -> None:
    a = cluster.node("a")
    # What is not acknowledged when the orchestrator is killed is in the ring still, and is told again.
    unread = f"element(1, distsec_ring:read(refusals, 0, {RING}, pass))"
    cluster.wait(lambda: cluster.erl("a", unread) == "[]", "all refusals so far to be acknowledged")
    before = cluster.metric("distsec_security_refusals_total", node=a, direction="in", reason="not_allowed")
    dropped = int(cluster.erl("a", "distsec_ring:dropped(refusals)"))
    known = {kind: len(cluster.events(kind)) for kind in ("UnauthorizedAccess", "EventsDropped")}

    cluster.kill()
    cluster.erl("a", violations("before"))
    cluster.erl(
        "a",
        '[distsec_report:refusal(in, not_allowed, #{claimed => <<"evil@127.0.0.1">>}) '
        f"|| _ <- lists:seq(1, {FLOOD})], ok",
        60,
    )
    cluster.erl("a", violations("after"))
    take_over(cluster)

    def evicted() -> float:
        return cluster.metric("distsec_events_dropped_total", node=a, lane="refusals")

    cluster.wait(lambda: evicted() >= FLOOD - RING, "the evicted events to be counted")
    assert evicted() == dropped + FLOOD - RING
    assert cluster.metric("distsec_events_dropped_total", node=a, lane="critical") == 0
    counted = cluster.metric("distsec_security_refusals_total", node=a, direction="in", reason="not_allowed")
    assert counted - before == FLOOD
    accesses = cluster.wait(
        lambda: (
            (found := cluster.events("UnauthorizedAccess")[known["UnauthorizedAccess"] :])
            and reported(found) >= RING + 2 * VIOLATIONS
            and found
        ),
        "all that the ring held",
    )
    assert reported(accesses) == RING + 2 * VIOLATIONS
    assert sorted(event["peer"] for event in accesses if event["severity"] == "critical") == sorted(
        f"{when}-{number}@127.0.0.1" for when in ("before", "after") for number in range(1, VIOLATIONS + 1)
    )

    def told() -> list[dict[str, Any]]:
        return cluster.events("EventsDropped")[known["EventsDropped"] :]

    cluster.wait(lambda: any(str(FLOOD - RING) in event["detail"] for event in told()), "that to be told")
    assert {event["reason"] for event in told()} == {"refusals"}


def violations(when: str) -> str:
    """Erlang that reports links as distsec_watch does one that it finds up and unlisted, and then ends."""
    return (
        f'[begin Link = #{{peer => iolist_to_binary(["{when}-", integer_to_list(N), "@127.0.0.1"]), '
        'address => <<"127.0.0.1:40112">>, identity => <<"spiffe://demo/node/127.0.0.1/evil">>, '
        'issuer => <<"CN=demo">>, serial => <<"0a1b">>, not_after => 1800000000, direction => in, '
        "hidden => true, tls_version => undefined, cipher => undefined, since_ms => 1763764000123, "
        "verdict => deny, reason => not_allowed}, "
        "distsec_report:critical(violation, #{link => Link}), "
        'distsec_report:critical(link_down, #{link => Link, detail => <<"disconnect">>}) end '
        f"|| N <- lists:seq(1, {VIOLATIONS})], ok"
    )


@ONE_RELEASE
def test_an_orderly_end_with_leave_is_taken_over_alike(cluster: Cluster) -> None:
    before = identities(cluster)
    assert cluster.terminate() == 0
    assert cluster.distsec("status", check=False).returncode == 3
    evil = cluster.intruder("late", leaf=cluster.leaf("late"), cookie=cluster.cookie("c"))
    assert not evil.connect(cluster.node("c"))
    evil.stop()
    take_over(cluster)
    expect_same(cluster, before)


@ONE_RELEASE
def test_a_second_orchestrator_ends_with_one_line_and_disturbs_nothing(cluster: Cluster) -> None:
    before = identities(cluster)
    assert cluster.orchestrator is not None
    for metrics in (f"127.0.0.1:{cluster.metrics_port}", "127.0.0.1:0"):
        other = cluster.directory / "other.toml"
        text = cluster.config.read_text()
        other.write_text(text.replace(f'"127.0.0.1:{cluster.metrics_port}"', f'"{metrics}"'))
        second = cluster.distsec("run", "-c", str(other), check=False)
        assert second.returncode == 73
        assert second.stderr == (
            f"distsec: {cluster.state}: another orchestrator runs here (pid {cluster.orchestrator.pid}); "
            "stop it first, or give this cluster a state_dir of its own\n"
        )
    expect_same(cluster, before)


@ONE_RELEASE
def test_a_pid_that_was_reused_is_never_touched(otp: Otp, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(otp, ["a"])
    cluster.start()
    run_json = cluster.node_directory("a") / "run.json"
    record = json.loads(run_json.read_bytes())
    cluster.kill()
    os.kill(record["pid"], signal.SIGKILL)
    cluster.wait(lambda: not Path(f"/proc/{record['pid']}").exists(), "the end of a")
    with bystander() as process:
        run_json.write_text(json.dumps(record | {"pid": process.pid}))
        cluster.run()
        cluster.wait_running()
        adopted = cluster.status_of("a")["pid"]
        assert adopted not in {process.pid, record["pid"]}
        assert json.loads(run_json.read_bytes())["pid"] == adopted
        cluster.distsec("restart", "a@127.0.0.1")
        cluster.distsec("stop", "a@127.0.0.1")
        assert process.poll() is None


def bystander() -> subprocess.Popen[bytes]:
    """A process that has nothing to do with any of this; `with` ends it."""

    class Bystander(subprocess.Popen[bytes]):
        def __exit__(self, *exception: Any) -> None:
            self.kill()
            super().__exit__(*exception)

    return Bystander(["sleep", "600"], start_new_session=True)
