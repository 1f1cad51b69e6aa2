"""Renewals where something is in the way: bad files, a node that is away, an orchestrator that is killed.

One release: what happens here is the orchestrator's; test_renewal has what depends on OTP.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.releases import OTPS, Otp
from tests.system.certificates import BOTH_ROLES, DAY, Leaf, TestAuthority
from tests.system.cluster import COMMAND, Cluster
from tests.system.of_module import meshed, of_module, started
from tests.system.renewals import downs, drop, in_use, link_serials, serials

otp = of_module(OTPS[:1])
shared = started()
cluster = meshed()


def test_a_node_that_does_not_run_has_its_new_certificate_from_its_next_start_on(cluster: Cluster) -> None:
    cluster.distsec("stop", "c@127.0.0.1")
    old = serials(cluster)["c@127.0.0.1"]
    done = cluster.distsec("certs", "renew", "c@127.0.0.1")
    new = serials(cluster)["c@127.0.0.1"]
    assert new != old
    assert done.stdout == f"c@127.0.0.1 has serial {new} from its next start on\n"
    cluster.distsec("start", "c@127.0.0.1")
    cluster.wait_meshed()
    # Either may tell later than c of the end of the old link, and of the new one.
    for name in ("a@127.0.0.1", "b@127.0.0.1"):
        cluster.wait(
            lambda name=name: link_serials(cluster).get((name, "c@127.0.0.1")) == new,
            f"{name} to tell of the link that c's new certificate made",
        )


def test_links_are_recycled_only_for_who_wants_it_one_at_a_time(cluster: Cluster) -> None:
    down = downs(cluster)
    cluster.distsec("certs", "renew", "a@127.0.0.1", "--recycle")
    new = serials(cluster)["a@127.0.0.1"]
    # With three nodes `global` may cut the third link as well, to keep partitions from overlapping.
    cluster.wait(lambda: downs(cluster) >= down + 2, "two links to end")
    cluster.wait_meshed()
    cluster.wait(
        lambda: {s for (_, peer), s in link_serials(cluster).items() if peer == "a@127.0.0.1"} == {new},
        "a's links to be new ones",
    )
    cluster.wait_meshed()


def foreign(cluster: Cluster) -> Leaf:
    return cluster.leaf("a", authority=TestAuthority.foreign("distsec CA"))


def of_another_node(cluster: Cluster) -> Leaf:
    return cluster.leaf("b")


def for_another_key(cluster: Cluster) -> Leaf:
    one, other = cluster.leaf("a"), cluster.leaf("a")
    return replace(one, key=other.key)


def ended(cluster: Cluster) -> Leaf:
    return cluster.leaf("a", valid_from=-3 * DAY, valid_for=DAY)


def not_begun(cluster: Cluster) -> Leaf:
    return cluster.leaf("a", valid_from=DAY)


def for_clients_alone(cluster: Cluster) -> Leaf:
    return cluster.leaf("a", usage=BOTH_ROLES[1:])


def half_written(cluster: Cluster) -> Leaf:
    leaf = cluster.leaf("a")
    leaf.certificate.write_bytes(leaf.certificate.read_bytes()[:300])
    return leaf


def immense(cluster: Cluster) -> Leaf:
    leaf = cluster.leaf("a")
    leaf.certificate.write_bytes(leaf.certificate.read_bytes() * 200)
    return leaf


def revoked(cluster: Cluster) -> Leaf:
    leaf = cluster.leaf("a")
    cluster.distsec("certs", "revoke", leaf.serial)
    return leaf


BAD: dict[Callable[[Cluster], Leaf], str] = {
    foreign: "unknown_ca",
    of_another_node: "wrong_identity",
    for_another_key: "key_mismatch",
    ended: "expired",
    not_begun: "not_yet_valid",
    for_clients_alone: "key_usage",
    half_written: "unreadable",
    immense: "too_large",
    revoked: "revoked",
}


@pytest.mark.parametrize(
    ("place", "kinds"),
    [("incoming", [*BAD]), (".", [foreign, for_another_key, revoked])],
    ids=["incoming", "."],
)
def test_a_pair_that_would_not_do_is_refused_and_nothing_changes(
    cluster: Cluster, place: str, kinds: list[Callable[[Cluster], Leaf]]
) -> None:
    before, good, down = serials(cluster), in_use(cluster, "a"), downs(cluster)
    for make in kinds:
        reason = BAD[make]
        known = len(cluster.events("CertificateRefused"))
        drop(cluster, "a", make(cluster), place)
        cluster.wait(lambda n=known: len(cluster.events("CertificateRefused")) > n, f"{reason} to be refused")
        [event] = cluster.events("CertificateRefused")[known:]
        assert (event["node"], event["reason"]) == ("a@127.0.0.1", reason)
        assert event["severity"] == "warning"
        cluster.wait(lambda: in_use(cluster, "a") == good, f"a's pair to be in its place again ({reason})")
        assert "PRIVATE" not in json.dumps(event)
    for left in (cluster.node_directory("a") / "incoming").glob("*"):
        left.unlink(missing_ok=True)
    assert serials(cluster) == before
    assert downs(cluster) == down


def test_a_symbolic_link_is_not_followed_and_is_replaced_itself(cluster: Cluster) -> None:
    good, leaf = in_use(cluster, "a"), cluster.leaf("a")
    elsewhere = cluster.directory / "elsewhere.pem"
    elsewhere.write_bytes(leaf.certificate.read_bytes())
    known = len(cluster.events("CertificateRefused"))
    link = cluster.node_directory("a") / "certificate.pem"
    aside = cluster.node_directory("a") / "aside"
    aside.symlink_to(elsewhere)
    aside.rename(link)
    cluster.wait(lambda: len(cluster.events("CertificateRefused")) > known, "the link to be refused")
    assert cluster.events("CertificateRefused")[known]["reason"] == "unsafe_file"
    cluster.wait(lambda: not link.is_symlink() and in_use(cluster, "a") == good, "a's pair to be back")
    assert elsewhere.read_bytes() == leaf.certificate.read_bytes()


def test_an_orchestrator_that_is_killed_in_the_middle_leaves_the_next_one_to_finish(cluster: Cluster) -> None:
    before, down = serials(cluster), downs(cluster)
    stopped = cluster.pid("b")
    subprocess.run(["kill", "-STOP", str(stopped)], check=True)
    try:
        command = subprocess.Popen(
            [*COMMAND, "certs", "renew", "--all"], env=cluster.environment(), stderr=subprocess.DEVNULL
        )
        cluster.wait(
            lambda: all(
                old != new for old, new in zip(before.values(), serials(cluster).values(), strict=True)
            ),
            "every node to have another certificate on disk",
        )
        cluster.kill()
        assert command.wait(60) == 69
    finally:
        subprocess.run(["kill", "-CONT", str(stopped)], check=True)
    cluster.run()
    cluster.wait_running()
    installed = serials(cluster)
    assert not set(installed.values()) & set(before.values())
    cluster.wait(
        lambda: (links := link_serials(cluster)) and links == {(a, b): installed[b] for a, b in links},
        "every link to be proven with what is installed",
    )
    assert downs(cluster) == down


def test_a_spoiled_pair_that_is_found_at_a_start_is_put_right_and_told_of(cluster: Cluster) -> None:
    good, pids = in_use(cluster, "c"), [cluster.pid(name) for name in cluster.names]
    cluster.kill()
    certificate = cluster.node_directory("c") / "certificate.pem"
    certificate.write_bytes(b"garbage")
    cluster.run()
    cluster.wait_running()
    cluster.wait_event("CertificateRefused", node="c@127.0.0.1", reason="unreadable")
    assert in_use(cluster, "c") == good
    assert [cluster.pid(name) for name in cluster.names] == pids


def test_a_node_without_a_usable_pair_is_not_started_and_costs_no_other_node_anything(
    cluster: Cluster,
) -> None:
    good, pid = in_use(cluster, "c"), cluster.pid("c")
    cluster.kill()
    os.kill(pid, signal.SIGKILL)
    (cluster.state / "ca/pairs/c@127.0.0.1.pem").unlink()
    (cluster.node_directory("c") / "certificate.pem").write_bytes(in_use(cluster, "b")[1])
    cluster.run()
    cluster.wait_states(a="RUNNING", b="RUNNING", c="FATAL")
    assert "does not belong to key.pem" in cluster.status_of("c")["detail"]
    started = cluster.distsec("start", "c@127.0.0.1", check=False)
    assert started.returncode == 70
    assert "distsec certs renew c@127.0.0.1" in started.stderr
    (cluster.node_directory("c") / "certificate.pem").write_bytes(good[1])
    cluster.distsec("start", "c@127.0.0.1")
    cluster.wait_meshed()


def test_a_node_that_does_not_answer_is_named_and_the_others_are_renewed(cluster: Cluster) -> None:
    before, stopped = serials(cluster), cluster.pid("b")
    subprocess.run(["kill", "-STOP", str(stopped)], check=True)
    try:
        done = cluster.distsec("certs", "renew", "--all", check=False)
    finally:
        subprocess.run(["kill", "-CONT", str(stopped)], check=True)
    assert done.returncode == 70
    assert "distsec: b@127.0.0.1 is not renewed: its agent did not take the certificate (" in done.stderr
    after = serials(cluster)
    for name in ("a@127.0.0.1", "c@127.0.0.1"):
        assert f"{name} serves serial {after[name]}, and not all is well: link with b@" in done.stderr
        assert after[name] != before[name]
    cluster.wait(
        lambda: link_serials(cluster).get(("a@127.0.0.1", "b@127.0.0.1")) == serials(cluster)["b@127.0.0.1"],
        "b to serve its new certificate after all",
    )


def test_short_certificates_are_renewed_by_themselves_and_nobody_notices(
    make_cluster: Callable[..., Cluster], otp: Otp
) -> None:
    cluster = make_cluster(otp, ["a", "b"])
    cluster.settings["certificates"] = {"lifetime_seconds": 36.0}
    cluster.start()
    before, pids = serials(cluster), [cluster.pid(name) for name in cluster.names]
    cluster.wait(
        lambda: not set(before.values()) & set(link_serials(cluster).values()) and link_serials(cluster),
        "both ends to have proven themselves with their second certificates",
    )
    assert {event["reason"] for event in cluster.events("CertificateRenewed")} == {"due"}
    assert not cluster.events("CertificateExpiring")
    assert not cluster.events("NodeDown")
    assert [cluster.pid(name) for name in cluster.names] == pids
    cluster.wait(lambda: all(map(current, cluster.status()["nodes"])), "a moment between two renewals")
    cluster.wait(  # which the next renewal may come between
        lambda: all(
            cluster.metric("distsec_certificate_expiry_timestamp_seconds", node=node["name"])
            == node["certificate"]["not_after"]
            for node in cluster.status()["nodes"]
        ),
        "the metrics to say what the status does",
    )
    assert cluster.metric("distsec_ca_expiry_timestamp_seconds") == cluster.status()["authority"]["not_after"]


def current(node: dict[str, Any]) -> bool:
    return bool(node["renewal"]["state"] == "current")


def test_stock_otp_serves_the_new_certificate_and_its_links_are_recycled_on_request(
    make_cluster: Callable[..., Cluster], otp: Otp
) -> None:
    cluster = make_cluster(otp, ["a", "b"], carrier="inet_tls")
    cluster.start()
    before = serials(cluster)
    done = cluster.distsec("certs", "renew", "--all")
    assert "inet_tls proves no link anew" in done.stderr
    renewed = serials(cluster)
    assert not set(renewed.values()) & set(before.values())
    assert not cluster.events("NodeDown")
    assert f"a@127.0.0.1 serves serial {renewed['a@127.0.0.1']}" in done.stdout
    cluster.distsec("certs", "renew", "--all", "--recycle")
    after = serials(cluster)
    cluster.wait_event("NodeDown")
    cluster.wait_meshed()
    assert not set(after.values()) & set(renewed.values())
