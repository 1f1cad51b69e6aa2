"""The modes, and nodes that something else starts with what `distsec env` gives."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.releases import Otp
from tests.system.beam_control import Control
from tests.system.cluster import Cluster


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


class Outside:
    """A node of the cluster that is started by hand, in a shell, with the output of `distsec env`."""

    def __init__(self, cluster: Cluster, name: str, beams: Path) -> None:
        self.cluster, self.name = cluster, name
        cluster.ports[name] = 0
        node = cluster.node(name)
        cluster.settings["nodes"].append({"name": node})
        cluster.settings["security"]["distribution"]["allowed_nodes"].append(node)
        self.control = Control(cluster.directory / f"{name}.sock")
        self.command = ["erl", "-noinput", *Control.arguments(beams, self.control.path)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, otp: Otp) -> None:
        shell = self.cluster.distsec("env", self.cluster.node(self.name), "--shell").stdout
        script = f'{shell}\nexec "$@"'
        environment = {**self.cluster.environment(), "PATH": f"{Path(otp.erl).parent}:{os.environ['PATH']}"}
        self.process = subprocess.Popen(
            ["sh", "-c", script, "sh", *self.command],
            env=environment,
            cwd=self.cluster.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)


def test_a_node_that_something_else_starts_is_guarded_proven_and_linked(
    otp: Otp, make_cluster: Callable[..., Cluster], beams: Path
) -> None:
    cluster = make_cluster(otp, ["a"])
    outside = Outside(cluster, "x", beams)
    cluster.init()
    cluster.run()
    cluster.wait_states(a="RUNNING", x="STOPPED")
    try:
        outside.start(otp)
        cluster.wait_states(x="RUNNING")
        outside.end()
        cluster.wait_states(x="STOPPED")
        # What a VM before it left behind is told, and is nothing against the next one.
        refused = cluster.node_directory("x") / "guard.refused"
        refused.write_text("proto_dist left behind\n")
        cluster.wait_event("NodeStateChanged", node=cluster.node("x"), reason="carrier_not_in_force")
        assert cluster.status_of("x")["detail"] == "proto_dist: left behind"
        assert not refused.exists()
        outside.start(otp)
        cluster.wait_states(x="RUNNING")
        cluster.wait_links(("a", "x"))
        status = cluster.status_of("x")
        assert outside.process is not None
        assert (status["pid"], status["guard"]) == (outside.process.pid, "proven")
        stranger = cluster.intruder(leaf=cluster.leaf("evil"), cookie=cluster.cookie("a"))
        assert not stranger.connect(cluster.node("a"))
    finally:
        outside.end()
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
