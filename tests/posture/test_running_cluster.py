"""`distsec check` of clusters that distsec runs: nothing above info, whatever else runs on this host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distsec.posture.finding import NOT_COUNTED, Code, Severity
from tests.releases import OTPS, ROOT, Otp
from tests.system.cluster import COMMAND, Cluster
from tests.waiting import wait_until

OF_OTHERS = {
    *(Code.COOKIE_IN_ARGUMENTS, Code.COOKIE_IN_ENVIRONMENT, Code.COOKIE_WEAK, Code.COOKIE_WELL_KNOWN),
    Code.EPMD_EXPOSED,
}
"""What is told of any emulator on this host, and so of those of other tests."""


def check(cluster: Cluster, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the findings about this cluster that count; of listeners that were heard to the end:
    a machine may be slow.
    """

    def looked() -> tuple[int, list[dict[str, Any]]] | None:
        done = cluster.distsec("check", "--json", *arguments, check=False)
        assert done.returncode in {0, 1, 2}, done.stderr
        document = json.loads(done.stdout)
        assert document["schema"] == 1
        findings = document["findings"]
        assert all(list(each) == ["severity", "code", "what", "where", "fix"] for each in findings)
        ours = [each for each in findings if is_ours(each, cluster.state)]
        unclear = any(each["code"] == Code.LISTENER_UNCLEAR for each in ours)
        return None if unclear else (done.returncode, ours)

    return wait_until(looked, "a listener of each node to be clear")


def check_port(cluster: Cluster, name: str) -> str:
    """What it prints of a node's port that it has heard to the end; it must end with 0."""
    arguments = ("check", "--port", f"127.0.0.1:{cluster.port(name)}")

    def looked() -> subprocess.CompletedProcess[str] | None:
        done = cluster.distsec(*arguments, check=False)
        return None if Code.LISTENER_UNCLEAR in done.stdout else done

    done = wait_until(looked, f"the port of {name} to be clear")
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def is_ours(finding: dict[str, Any], state: Path) -> bool:
    if finding["code"] in OF_OTHERS:
        return str(state) in finding["where"]
    return finding["code"] not in NOT_COUNTED


def above_info(findings: list[dict[str, Any]]) -> set[str]:
    return {each["code"] for each in findings if each["severity"] != Severity.INFO}


def test_a_running_cluster_has_nothing_above_info(otp: Otp, make_cluster: Callable[..., Cluster]) -> None:
    oldest = otp.release == min(each.release for each in OTPS)
    cluster = make_cluster(otp, ["a", "b", "c"] if oldest else ["a"])
    cluster.start()
    _, findings = check(cluster)
    assert above_info(findings) == set(), findings
    listeners = [each["what"] for each in findings if each["code"] == Code.LISTENER]
    assert len(listeners) == len(cluster.names)
    for name in cluster.names:
        status = cluster.status_of(name)
        [served] = [what for what in listeners if what.startswith(cluster.node(name))]
        assert "TLSv1.3" in served and "demands a certificate" in served
        assert status["certificate"]["serial"] in served

    if oldest:  # what follows is the same on every release
        (cluster.node_directory("a") / "key.pem").chmod(0o644)
        code, findings = check(cluster)
        assert (code, above_info(findings)) == (2, {Code.SECRET_EXPOSED})
        one = check_port(cluster, "a")
        assert "demands a certificate" in " ".join(one.split()) and "nothing above info" in one
        (cluster.node_directory("a") / "key.pem").chmod(0o600)
        cluster.distsec("stop", cluster.node("a"))
        _, findings = check(cluster)
        assert above_info(findings) == set(), "a node that the operator stopped is no finding"


@pytest.mark.parametrize("otp", OTPS[:1], ids=str)
def test_development_mode_has_nothing_above_info_either(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a"], mode="development")
    cluster.start()
    _, findings = check(cluster)
    assert above_info(findings) == set(), findings
    assert {Code.MODE, Code.LISTENER, Code.CONFIGURATION_WARNING} <= {each["code"] for each in findings}


def test_the_demo_has_nothing_above_info(tmp_path: Path) -> None:
    state = tmp_path / "d"
    state.mkdir(mode=0o700)
    shutil.copyfile(ROOT / "config/demo/distsec.toml", state / "distsec.toml")

    def distsec(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        return subprocess.run(
            [*COMMAND, *arguments], cwd=state, env=environment, capture_output=True, text=True, timeout=60
        )

    assert distsec("init", ".").returncode == 0
    findings = json.loads(distsec("check", "--json").stdout)["findings"]
    ours = [each for each in findings if is_ours(each, state)]
    assert above_info(ours) == set(), ours
