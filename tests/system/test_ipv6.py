"""IPv6 throughout: names, certificates, listeners, links, refusals and status, of clusters over ::1."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from distsec.beam import proc
from tests.releases import Otp
from tests.system.cluster import Cluster
from tests.system.intruder import refused, tls

CARRIERS = ["distsec", "inet_tls"]


def listeners(cluster: Cluster, name: str) -> set[str]:
    return {each.address for each in proc.listening([cluster.pid(name)])}


def links(cluster: Cluster, name: str) -> dict[str, dict[str, Any]]:
    return {link["peer"]: link for link in cluster.status_of(name)["links"]}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_nodes_that_are_named_after_an_ipv6_address_are_meshed_and_guarded(
    otp: Otp, make_cluster: Callable[..., Cluster], carrier: str
) -> None:
    cluster = make_cluster(otp, ["a", "b"], carrier=carrier, host="::1")
    cluster.start()
    assert cluster.erl("a", "{node(), nodes()}") == "{'a@::1',['b@::1']}"
    assert listeners(cluster, "a") == {"::1"}
    link = links(cluster, "a")["b@::1"]
    assert link["verdict"] == "allow"
    assert link["identity"] == "spiffe://demo/node/__1/b"
    assert link["address"].startswith("[::1]:")
    assert cluster.status_of("a")["certificate"]["identity"] == "spiffe://demo/node/__1/a"

    with tls(cluster.port("a"), host="::1") as stranger:
        address = "[{}]:{}".format(*stranger.getsockname()[:2])
        assert refused(stranger)
    # stock OTP does not always know the address of who is gone already
    expected = {"address": address} if carrier == "distsec" else {}
    cluster.wait_event("CertificateValidationFailed", node="a@::1", reason="certificate_required", **expected)
    unlisted = cluster.intruder("evil", leaf=cluster.leaf("evil"))
    assert not unlisted.connect("a@::1")
    seen = cluster.wait_event("UnauthorizedAccess", node="a@::1", reason="not_allowed")
    assert seen["identity"] == "spiffe://demo/node/__1/evil"
    assert seen["address"].startswith("[::1]:")


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("host", ["node.example", "node"], ids=["long", "short"])
def test_nodes_that_are_named_after_a_host_listen_and_dial_at_their_ipv6_address(
    otp: Otp, make_cluster: Callable[..., Cluster], carrier: str, host: str
) -> None:
    """The name is resolved by nobody: there is no such host."""
    cluster = make_cluster(otp, ["a", "b"], carrier=carrier, host=host, address="::1")
    cluster.start()
    assert listeners(cluster, "a") == {"::1"}
    assert links(cluster, "a")[f"b@{host}"]["identity"] == f"spiffe://demo/node/{host}/b"


def test_the_carrier_links_nodes_at_ipv4_with_nodes_at_ipv6(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "b", "c"], host="node.example", address="127.0.0.1")
    cluster.table("b")["address"] = "::1"
    cluster.start()
    assert [listeners(cluster, name) for name in "abc"] == [{"127.0.0.1"}, {"::1"}, {"127.0.0.1"}]
    link = links(cluster, "a")["b@node.example"]
    assert link["address"].startswith("[::1]:" if link["direction"] == "out" else "127.0.0.1:")


def test_every_release_is_linked_with_every_other_over_ipv6(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    by_name = {f"n{otp.release}": otp for otp in otps}
    cluster = make_cluster(by_name, list(by_name), host="::1")
    cluster.start()
    for name in by_name:
        assert len(links(cluster, name)) == len(by_name) - 1


def test_without_tls_they_are_linked_over_ipv6_too(otp: Otp, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(otp, ["a", "b"], mode="development", host="::1")
    cluster.start()
    assert cluster.erl("a", "distsec_snapshot:carrier()") == '<<"inet6_tcp">>'
    assert cluster.status()["carrier"] == "inet_tcp"


def test_a_denied_node_is_out_and_a_command_line_tool_gets_in_over_ipv6(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "b"], host="::1")
    rule = {"names": ["tool-*@::1"], "kind": "cli"}
    cluster.settings["security"]["distribution"]["rules"] = [rule]
    cluster.start()
    cluster.distsec("deny", "b@::1")
    assert cluster.erl("a", "nodes()") == "[]"
    tool = cluster.intruder(
        "tool-7",
        leaf=cluster.leaf(uris=["spiffe://demo/cli/__1/tool"]),
        hidden=True,
        cookie=cluster.cookie("a"),
    )
    assert tool.connect("a@::1")

    def shown() -> dict[str, str]:
        return {link["peer"]: link["verdict"] for link in cluster.status_of("a")["links"]}

    cluster.wait(lambda: shown() == {"tool-7@::1": "allow"}, "its link in the status, and no other")


def test_metrics_and_the_environment_name_a_node_at_ipv6(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a"], host="::1")
    cluster.start()
    environment = json.loads(cluster.distsec("env", "a@::1", "--json").stdout)["env"]["ERL_AFLAGS"]
    assert "-name a@::1" in environment and "inet_dist_use_interface {0,0,0,0,0,0,0,1}" in environment
    assert cluster.metric("distsec_node_state", node="a@::1", state="RUNNING") == 1
