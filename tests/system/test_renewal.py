"""Certificates that are renewed, by command or when somebody else brings them: nobody notices."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.releases import OTPS
from tests.system.cluster import Cluster
from tests.system.of_module import meshed, of_module, started
from tests.system.renewals import downs, drop, in_use, link_serials, serials

otp = of_module(OTPS)
shared = started()
cluster = meshed()


def test_all_nodes_are_renewed_at_once_and_every_link_stays_up(cluster: Cluster) -> None:
    before, down, pids = serials(cluster), downs(cluster), [cluster.pid(name) for name in cluster.names]
    began = time.monotonic()
    done = cluster.distsec("certs", "renew", "--all", "--json")
    print(f"renew --all of 3 nodes: {time.monotonic() - began:.2f} s, the command's own start included")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["done"] is True
    told = {node["node"]: node["serial"] for node in answer["nodes"]}
    assert told.keys() == before.keys()
    assert not set(told.values()) & set(before.values())
    assert serials(cluster) == told
    links = cluster.wait(
        lambda: (found := link_serials(cluster)) == {(a, b): told[b] for a, b in found} and found,
        "every link to be proven with the new certificates",
    )
    assert len(links) == 6
    assert downs(cluster) == down
    assert [cluster.pid(name) for name in cluster.names] == pids
    assert {node["node"]: len(node["links_proven"]) for node in answer["nodes"]} == dict.fromkeys(told, 2)


def test_one_node_is_renewed_and_its_neighbours_prove_it_anew(cluster: Cluster) -> None:
    before, down = serials(cluster), downs(cluster)
    done = cluster.distsec("certs", "renew", "b@127.0.0.1")
    after = serials(cluster)
    assert {name for name in after if after[name] != before[name]} == {"b@127.0.0.1"}
    serial = after["b@127.0.0.1"]
    assert done.stdout == f"b@127.0.0.1 serves serial {serial}, 2 links proven with it\n"
    cluster.wait(
        lambda: {s for (_, peer), s in link_serials(cluster).items() if peer == "b@127.0.0.1"} == {serial},
        "b's links to be proven with its new certificate",
    )
    assert downs(cluster) == down
    event = cluster.wait_event("CertificateRenewed", node="b@127.0.0.1", serial=serial)
    assert event["reason"] == "command"
    assert f"in place of {before['b@127.0.0.1']}" in event["detail"]
    assert cluster.metric("distsec_security_cert_rotations_total", cert_cn="b@127.0.0.1") >= 1


@pytest.mark.parametrize("place", ["incoming", "."])
def test_a_pair_that_somebody_drops_is_taken_within_a_second(cluster: Cluster, place: str) -> None:
    down, leaf = downs(cluster), cluster.leaf("a")
    began = time.monotonic()
    drop(cluster, "a", leaf, place)
    cluster.wait_event("CertificateRenewed", node="a@127.0.0.1", serial=leaf.serial, reason="dropped")
    print(f"dropped into {place}: served after {time.monotonic() - began:.2f} s")
    assert serials(cluster)["a@127.0.0.1"] == leaf.serial
    assert in_use(cluster, "a")[1] == leaf.certificate.read_bytes()
    incoming = cluster.node_directory("a") / "incoming"
    cluster.wait(lambda: not list(incoming.glob("*.pem")), "what was dropped to be taken away")
    cluster.wait(
        lambda: (
            {s for (_, peer), s in link_serials(cluster).items() if peer == "a@127.0.0.1"} == {leaf.serial}
        ),
        "the links to be proven with it at the other ends too",
    )
    assert downs(cluster) == down
