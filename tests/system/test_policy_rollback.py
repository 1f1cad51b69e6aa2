"""Policies that are put back: an older one is as well signed as the newer, and is taken nowhere."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.by_hand import ByHand
from tests.system.cluster import Cluster

C = "c@127.0.0.1"


@pytest.fixture(scope="module", params=OTPS, ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    chosen: Otp = request.param
    return chosen


@pytest.fixture(autouse=True)
def _count_release(otp: Otp, request: pytest.FixtureRequest) -> None:
    request.node.user_properties.append(("otp", otp.stands_for))


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    """a and c are started here, b by hand."""
    with Cluster(otp, beams) as cluster:
        del cluster.table("b")["command"]
        cluster.init()
        cluster.run()
        cluster.wait_running("a", "c")
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """c is allowed and linked with a."""
    shared.wait_running("a", "c")
    shared.wait_links(("a", "c"))
    yield shared
    if shared.orchestrator is None or shared.orchestrator.poll() is not None:
        shared.run()
    shared.wait_running("a", "c")
    shared.distsec("allow", C)


def generation(cluster: Cluster, name: str) -> int:
    return int(cluster.erl(name, "maps:get(policy_generation, distsec_policy:summary())"))


def connects(cluster: Cluster, name: str, peer: str) -> bool:
    return cluster.erl(name, f"net_kernel:connect_node('{cluster.node(peer)}')", 30) == "true"


def assert_out(cluster: Cluster, *names: str) -> None:
    """No link of these with c, and none that can be made from either side."""
    for name in names:
        assert C not in cluster.erl(name, "nodes(connected)")
        assert not connects(cluster, name, "c")
        assert not connects(cluster, "c", name)


def test_a_node_that_is_started_by_hand_takes_no_older_policy_with_or_without_an_orchestrator(
    cluster: Cluster,
) -> None:
    files = cluster.node_directory("b")
    old = (files / "policy.term").read_bytes()
    with ByHand(cluster, "b") as node:
        node.start()
        cluster.wait_running("b")
        cluster.wait_links(("b", "c"))
        cluster.distsec("deny", C)
        node.stop()
        cluster.kill()

        (files / "policy.term").write_bytes(old)
        node.start()
        assert cluster.erl("b", "distsec_policy:in_force()") == "undefined"
        assert_out(cluster, "b")
        told = "this node has no new policy (rollback): policy.term has generation"
        cluster.wait(lambda: told in cluster.log("b"), "b to say so")

        cluster.run()
        cluster.wait_running("a", "b", "c")
        cluster.wait_event("PolicyRolledBack", node="b@127.0.0.1", reason="rollback")
        wanted = cluster.status()["policy_generation"]
        cluster.wait(lambda: generation(cluster, "b") == wanted, "the wanted policy in b")
        assert_out(cluster, "b")
        cluster.wait_links(("a", "b"))


@pytest.mark.parametrize("lost", ["policy.mark", "policy.term"])
def test_without_its_mark_or_its_policy_a_node_admits_nobody(cluster: Cluster, lost: str) -> None:
    with ByHand(cluster, "b") as node:
        node.start()
        cluster.wait_running("b")
        node.stop()
        cluster.kill()
        (cluster.node_directory("b") / lost).unlink()
        node.start()
        assert cluster.erl("b", "distsec_policy:in_force()") == "undefined"
        assert not connects(cluster, "b", "a")
        assert not connects(cluster, "a", "b")
        node.stop()
        cluster.run()  # makes anew what is missing
        cluster.wait_running("a", "c")
        node.start()
        cluster.wait_links(("a", "b"))


def test_a_vm_that_restarts_within_itself_takes_no_older_policy(cluster: Cluster) -> None:
    files = cluster.node_directory("a")
    old = (files / "policy.term").read_bytes()
    cluster.distsec("deny", C)
    pid = cluster.pid("a")
    cluster.kill()
    (files / "policy.term").write_bytes(old)
    before = cluster.erl("a", "distsec_guard:launch()")
    cluster.erl_at_its_end("a", "init:restart()")
    cluster.wait(lambda: booted_again(cluster, before), "a to boot again")
    assert cluster.pid("a") == pid
    assert cluster.erl("a", "distsec_policy:in_force()") == "undefined"
    assert_out(cluster, "a")


def rolled_back(cluster: Cluster) -> list[dict[str, object]]:
    return cluster.events("PolicyRolledBack", reason="overlay_rolled_back")


def booted_again(cluster: Cluster, before: str) -> bool:
    try:
        return cluster.erl("a", "distsec_guard:launch()") != before
    except (OSError, AssertionError):
        return False


def test_a_managed_node_is_given_the_wanted_policy_at_each_start(cluster: Cluster) -> None:
    files = cluster.node_directory("a")
    old = (files / "policy.term").read_bytes()
    cluster.distsec("deny", C)
    cluster.distsec("stop", "a@127.0.0.1")
    (files / "policy.term").write_bytes(old)
    cluster.distsec("start", "a@127.0.0.1")
    cluster.wait_answering("a")
    assert_out(cluster, "a")
    (files / "policy.term").write_bytes(old)
    cluster.kill()
    cluster.run()
    cluster.wait_running("a", "c")
    assert_out(cluster, "a")


# ---- the orchestrator's own overlay ------------------------------------------------------------------------


def test_an_overlay_from_a_backup_forgets_no_denial_and_says_what_it_found(cluster: Cluster) -> None:
    overlay = cluster.state / "policy.overlay"
    backup = overlay.read_bytes()
    cluster.distsec("deny", C)
    cluster.distsec("certs", "revoke", "0badcafe")
    denied = generation(cluster, "a")
    cluster.kill()
    overlay.write_bytes(backup)
    events = len(cluster.events("PolicyRolledBack", reason="overlay_rolled_back"))

    cluster.run()
    cluster.wait_running("a", "c")
    cluster.wait(
        lambda: len(cluster.events("PolicyRolledBack", reason="overlay_rolled_back")) > events, "the event"
    )
    event = cluster.events("PolicyRolledBack", reason="overlay_rolled_back")[-1]
    assert event["severity"] == "critical"
    assert f"denied again: {C}" in event["detail"]
    cluster.wait(lambda: generation(cluster, "a") > denied, "a policy above what a had")
    assert_out(cluster, "a")
    done = cluster.distsec("status", check=False)
    assert done.returncode == 1
    assert "the policy went back" in done.stdout
    assert "0badcafe" in overlay.read_text()

    cluster.kill()
    cluster.run()  # nothing on the disk contradicts itself any more
    cluster.wait_running("a", "c")
    assert f"denied again: {C}" in cluster.status()["policy_rolled_back"]
    cluster.distsec("deny", C)  # the operator has seen it
    assert "the policy went back" not in cluster.distsec("status", check=False).stdout
    assert not (cluster.state / "rolled_back.json").exists()


def test_a_state_directory_from_a_backup_learns_from_the_nodes_that_live(
    cluster: Cluster, tmp_path: Path
) -> None:
    backup, known = tmp_path / "state", len(rolled_back(cluster))
    # Files that are being written have their own name only when they are whole.
    passing = shutil.ignore_patterns("*.sock", ".distsec-new-*", "*.new")
    shutil.copytree(cluster.state, backup, ignore=passing)
    cluster.distsec("deny", C)
    denied = generation(cluster, "a")
    cluster.kill()
    for path in backup.rglob("*"):
        if path.is_file() and path.name not in {"run.json", "orchestrator.json", "lock", "output.log"}:
            shutil.copy2(path, cluster.state / path.relative_to(backup))
    cluster.run()
    event = cluster.wait(lambda: [e for e in rolled_back(cluster)[known:] if e["node"]], "a node's event")[0]
    assert f"denied again: {C}" in event["detail"]
    cluster.wait(lambda: generation(cluster, "a") > denied, "a policy above what a had")
    assert C in (cluster.state / "policy.overlay").read_text()
    cluster.wait_running("a", "c")
    assert_out(cluster, "a")


def test_a_clock_that_was_set_back_revives_no_certificate(cluster: Cluster) -> None:
    """As seen by every gate: the policy is of a time at which the certificate had expired."""
    leaf = cluster.leaf("c")
    claim = (
        '#{direction => in, identities => [<<"spiffe://demo/node/127.0.0.1/c">>], serial => <<"'
        + leaf.serial
        + '">>, not_after => os:system_time(second) + 3600, name => <<"c@127.0.0.1">>, hidden => false, '
        "now => os:system_time(second)}"
    )
    decide = f"distsec_policy:decide({claim}, distsec_policy:in_force())"
    assert "allow" in cluster.erl("a", decide)
    cluster.terminate()
    known = len(cluster.events("PolicyRolledBack"))
    overlay = cluster.state / "policy.overlay"
    text = overlay.read_text()
    late = int(cluster.erl("a", "os:system_time(second)")) + 7200
    document = json.loads(text) | {"issued_at": late}
    overlay.write_text(json.dumps(document))
    cluster.run()
    cluster.wait_running("a", "c")
    cluster.wait(lambda: "expired" in cluster.erl("a", decide), "the certificate to be expired")
    told = "the clock was set back"
    cluster.wait(
        lambda: any(told in event["detail"] for event in cluster.events("PolicyRolledBack")[known:]),
        "that to be told",
    )
    cluster.signal(signal.SIGTERM)
    assert cluster.orchestrator is not None
    cluster.orchestrator.wait(60)
    overlay.write_text(json.dumps(document | {"issued_at": 0}))
