"""The modes, and nodes that something else starts with what `distsec env` gives."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.releases import Otp
from tests.system.cluster import Cluster
from tests.system.outside import Outside


def carried(cluster: Cluster) -> set[tuple[str | None, str | None]]:
    return {
        (link["tls_version"], link["identity"])
        for node in cluster.status()["nodes"]
        for link in node["links"]
    }


def test_development_runs_on_cookies_and_admits_none_without_one(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "b"], mode="development")
    cluster.start()
    cluster.wait_well()
    status = cluster.status()
    assert (status["mode"], status["carrier"], status["healthy"]) == ("development", "inet_tcp", True)
    assert carried(cluster) == {(None, None)}
    directions = {link["direction"] for node in status["nodes"] for link in node["links"]}
    assert directions == {"in", "out"}
    assert all(set((node["certificate"] or {}).values()) <= {None} for node in status["nodes"])

    stranger = cluster.intruder(leaf=None, carrier="inet_tcp", cookie="guessed")
    assert not stranger.connect(cluster.node("a"))
    cluster.wait_event(
        "UnauthorizedAccess", node=cluster.node("a"), reason="bad_cookie", peer="evil@127.0.0.1"
    )
    # b's name without the cookie of that pair: the stranger knows b's own cookie, which is another
    impostor = cluster.intruder("c", leaf=None, carrier="inet_tcp", cookie=cluster.cookie("b"))
    assert not impostor.connect(cluster.node("a"))
    assert cluster.links() == {("a", "b"), ("b", "a")}


def test_hybrid_on_loopback_is_cookies_and_production_is_never(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otps[0], ["a"], mode="hybrid")
    cluster.start()
    assert (cluster.status()["mode"], cluster.status()["carrier"]) == ("hybrid", "inet_tcp")
    cluster.settings["security"]["mode"] = "production"
    cluster.settings["security"]["distribution"]["carrier"] = "inet_tcp"
    cluster.write()
    refused = cluster.distsec("run", check=False)
    assert refused.returncode == 78
    assert "carrier" in refused.stderr


def test_a_node_that_something_else_starts_is_guarded_proven_and_linked(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "x"])
    for key in ("command", "port"):
        del cluster.table("x")[key]
    # Allotted to it is one of ours: the system's may since have been given to any connection of the host.
    only = cluster.port("x")
    cluster.settings["security"]["distribution"]["listen_ports"] = [only, only]
    cluster.init()
    cluster.run()
    cluster.wait_states(a="RUNNING", x="STOPPED")
    with Outside(cluster, "x") as outside:
        outside.start()
        cluster.wait_states(x="RUNNING")
        outside.stop()
        cluster.wait_states(x="STOPPED")
        # What a VM before it left behind is told, and is nothing against the next one.
        refused = cluster.node_directory("x") / "guard.refused"
        written = refused.with_name("guard.refused.tmp")  # whole at once, as the guard does it
        written.write_text("proto_dist left behind\n")
        written.rename(refused)
        cluster.wait_event("NodeStateChanged", node=cluster.node("x"), reason="carrier_not_in_force")
        assert cluster.status_of("x")["detail"] == "proto_dist: left behind"
        assert not refused.exists()
        outside.start()
        cluster.wait_states(x="RUNNING")
        cluster.wait_links(("a", "x"))
        status = cluster.status_of("x")
        assert outside.process is not None
        assert (status["pid"], status["guard"]) == (outside.process.pid, "proven")
        stranger = cluster.intruder(leaf=cluster.leaf("evil"), cookie=cluster.cookie("a"))
        assert not stranger.connect(cluster.node("a"))
    cluster.wait_states(x="STOPPED")
    assert cluster.distsec("status", check=False).returncode == 1  # listed, external and not there


@pytest.mark.parametrize("form", ["--shell", "--systemd", "--json"])
def test_what_env_prints_holds_no_secret_and_names_private_files(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster], form: str
) -> None:
    cluster = make_cluster(otps[0], ["a"])
    cluster.start()
    printed = cluster.distsec("env", "a@127.0.0.1", form).stdout
    document = json.loads(cluster.distsec("env", "a@127.0.0.1", "--json").stdout)
    assert document["files"].keys() == {"certificate", "key", "trust_bundle", "optfile", "policy", "cookie"}
    for path in document["files"].values():
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert "ERL_AFLAGS" in printed
    for secret in ("agent.key", "cookie.term", "key.pem"):
        for word in (cluster.node_directory("a") / secret).read_text().replace('"', " ").split():
            assert len(word) < 32 or word not in printed
