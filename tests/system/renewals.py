"""What tests of renewals look at, and how somebody else brings a certificate."""

from __future__ import annotations

from tests.system.certificates import Leaf
from tests.system.cluster import Cluster


def serials(cluster: Cluster) -> dict[str, str]:
    """By node, what the status shows."""
    return {node["name"]: node["certificate"]["serial"] for node in cluster.status()["nodes"]}


def link_serials(cluster: Cluster) -> dict[tuple[str, str], str]:
    """By (node, peer), the serial of the peer that the node's link was proven with."""
    return {
        (node["name"], link["peer"]): link["serial"]
        for node in cluster.status()["nodes"]
        for link in node["links"]
    }


def downs(cluster: Cluster) -> int:
    return len(cluster.events("NodeDown"))


def drop(cluster: Cluster, name: str, leaf: Leaf, place: str = "incoming") -> None:
    """As a well-behaved helper does it: each file whole, under its name in one step, the key first. Nothing
    comes between the two steps: a pair that is half in its place for two seconds is put back.
    """
    directory = cluster.node_directory(name) / place
    whole = []
    for source, target in ((leaf.key, "key.pem"), (leaf.certificate, "certificate.pem")):
        temporary = directory / f".{target}.new"
        temporary.touch(0o600)
        temporary.write_bytes(source.read_bytes())
        whole.append((temporary, directory / target))
    for temporary, place_of_it in whole:
        temporary.rename(place_of_it)


def in_use(cluster: Cluster, name: str) -> tuple[bytes, bytes]:
    directory = cluster.node_directory(name)
    return (directory / "key.pem").read_bytes(), (directory / "certificate.pem").read_bytes()
