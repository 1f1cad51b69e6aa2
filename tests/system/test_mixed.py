"""A node of each release in one cluster: they mesh, and each of them refuses a stranger."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.releases import Otp
from tests.system.cluster import Cluster


@pytest.fixture
def mixed(otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]) -> Cluster:
    """n25, n27, n29: one of each release that is here, and two of it where there is but one."""
    by_name = {f"n{otp.release}": otp for otp in otps}
    if len(by_name) == 1:
        by_name["twin"] = otps[0]
    cluster = make_cluster(by_name, list(by_name))
    cluster.start()
    return cluster


def test_nodes_of_all_releases_mesh_and_each_refuses_a_stranger(mixed: Cluster) -> None:
    status = mixed.status()
    for node in status["nodes"]:
        name = node["name"].partition("@")[0]
        assert node["otp"] == str(mixed.otps[name].release)
        assert {link["peer"] for link in node["links"]} == {
            mixed.node(other) for other in mixed.names if other != name
        }
        for link in node["links"]:
            assert (link["verdict"], link["tls_version"]) == ("allow", "tlsv1.3")
            assert link["identity"] == mixed.identity(link["peer"])

    leaf = mixed.leaf("evil")
    for release in {otp.release: otp for otp in mixed.otps.values()}.values():
        evil = mixed.intruder(
            f"evil{release.release}", leaf=leaf, otp=release, cookie=mixed.cookie(mixed.names[0])
        )
        for name in mixed.names:
            assert not evil.connect(mixed.node(name))
        assert evil.links() == "[]"

    strangers = len({otp.release for otp in mixed.otps.values()})
    for name in mixed.names:
        refused = {"node": mixed.node(name), "direction": "in", "reason": "not_allowed"}
        mixed.wait(partial(has_refused, mixed, strangers, refused), f"{strangers} refusals by {name}")
        mixed.wait(partial(has_told, mixed, strangers, leaf.serial, refused), f"{name} to tell of each")
        told = mixed.events("UnauthorizedAccess", serial=leaf.serial, **refused)
        assert len(told) == strangers
        assert mixed.erl(name, "length(nodes(connected))") == str(len(mixed.names) - 1)


def has_told(cluster: Cluster, times: int, serial: str, wanted: dict[str, str]) -> bool:
    return len(cluster.events("UnauthorizedAccess", serial=serial, **wanted)) >= times


def has_refused(cluster: Cluster, times: int, labels: dict[str, str]) -> bool:
    return cluster.metric("distsec_security_refusals_total", **labels) == times
