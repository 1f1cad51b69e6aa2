"""VMs that something else starts with what `distsec env` prints: guarded, seen, taken over, left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.system.of_module import of_module
from tests.system.outside import Outside
from tests.system.processes import gone

A, B = "a@127.0.0.1", "b@127.0.0.1"


otp = of_module(OTPS[:1])
"""One release: what is tested here is the orchestrator's."""


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams, ["a", "b"]) as cluster:
        del cluster.table("b")["command"]
        cluster.settings["cluster"] |= {"start_deadline_seconds": 60, "stop_deadline_seconds": 60}
        cluster.init()
        cluster.run()
        cluster.wait_running("a")
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """a has a command and runs; b is started by something else, or not at all."""
    yield shared
    if shared.orchestrator is None or shared.orchestrator.poll() is not None:
        shared.run()
    shared.wait(shared.states, "an answer")
    if shared.states()["a"] != "RUNNING":
        shared.distsec("start", A)
    shared.wait_states(a="RUNNING", b="STOPPED")


def adopt(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return cluster.distsec("adopt", *arguments, check=False)


def commands(cluster: Cluster) -> set[str]:
    """The connections of commands with the orchestrator, by inode; also of one that has just ended."""
    connected = "03"  # SS_CONNECTED, of the end that was accepted: it has the name of the socket
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    own = [each for each in lines if each[-1] == str(cluster.state / "control.sock")]
    return {each[6] for each in own if each[5] == connected}


def refusals(cluster: Cluster) -> int:
    """How many b has counted, in this VM."""
    return int(cluster.erl("b", "distsec_ring:sequence(refusals)"))


def refuses_a_stranger(cluster: Cluster, name: str) -> None:
    evil = cluster.intruder("evil", leaf=cluster.leaf("evil"), cookie=cluster.cookie(name))
    assert not evil.connect(cluster.node(name))
    evil.stop()


def test_what_env_prints_is_the_same_with_and_without_an_orchestrator(cluster: Cluster) -> None:
    forms = ("--json", "--shell", "--systemd", "--env-file", "--docker")
    online = [cluster.distsec("env", B, form).stdout for form in forms]
    cluster.kill()
    assert [cluster.distsec("env", B, form).stdout for form in forms] == online
    document = json.loads(online[0])
    assert set(document["env"]) == {"ERL_EPMD_ADDRESS", "ERL_AFLAGS"}
    assert all(Path(path).exists() for path in document["files"].values())


def test_a_node_that_a_shell_starts_is_seen_guarded_over_restarts_and_stopped_but_never_started(
    cluster: Cluster,
) -> None:
    with Outside(cluster, "b") as outside:
        pid = outside.start()
        done = adopt(cluster, B)
        assert (done.returncode, done.stdout) == (
            0,
            f"adopted {B}: RUNNING as process {pid}; something else starts it\n",
        ), done.stderr
        cluster.wait_meshed()
        refused = cluster.metric("distsec_security_refusals_total", node=B, reason="not_allowed")
        logged = len(cluster.events("UnauthorizedAccess", node=B, reason="not_allowed"))
        cluster.kill()
        before = refusals(cluster)
        refuses_a_stranger(cluster, "b")
        cluster.wait(lambda: refusals(cluster) > before, "b to count it")
        cluster.run()
        cluster.wait_running()
        cluster.wait_meshed()
        assert cluster.status_of("b")["pid"] == pid

        def fresh() -> list[dict[str, Any]]:
            return cluster.events("UnauthorizedAccess", node=B, reason="not_allowed")[logged:]

        def counted() -> float:
            return cluster.metric("distsec_security_refusals_total", node=B, reason="not_allowed") - refused

        cluster.wait(
            lambda: fresh() and counted() == sum(event.get("suppressed", 1) for event in fresh()),
            "the refusals, as many told as counted",
        )
        numbers = [event["sequence"] for event in fresh()]
        assert sorted(set(numbers)) == sorted(numbers), "each once"

        restart = cluster.distsec("restart", B, check=False)
        assert restart.returncode == 64 and "something else starts it" in restart.stderr
        assert cluster.status_of("b")["pid"] == pid
        cluster.distsec("stop", B)
        assert outside.ended() == 0, "init:stop, and nobody killed it"
        assert cluster.status_of("b")["state"] == "STOPPED"


def test_a_second_vm_with_the_same_environment_ends_and_the_first_goes_on(cluster: Cluster) -> None:
    with Outside(cluster, "b") as first, Outside(cluster, "b") as second:
        pid = first.start()
        assert adopt(cluster, B).returncode == 0
        second.start(wait=False)
        assert second.ended() != 0
        assert cluster.orchestrator is not None
        other = adopt(cluster, B, "--pid", str(cluster.orchestrator.pid))
        assert other.returncode == 64 and f"runs already, as process {pid}" in other.stderr
        assert adopt(cluster, B, "--pid", str(pid)).returncode == 0
        assert cluster.status_of("b")["pid"] == pid


def test_one_that_is_started_without_an_orchestrator_is_guarded_by_its_files_and_adopted_later(
    cluster: Cluster,
) -> None:
    cluster.kill()
    with Outside(cluster, "b") as outside:
        pid = outside.start()
        refuses_a_stranger(cluster, "b")
        cluster.wait(lambda: "a@" in cluster.erl("b", "nodes()"), "the link that the policy allows")
        cluster.run()
        cluster.wait_running()
        assert cluster.status_of("b")["pid"] == pid


def test_a_vm_of_a_node_with_a_command_is_taken_over_when_asked_for_and_started_by_it_later(
    cluster: Cluster,
) -> None:
    cluster.distsec("stop", A)
    with Outside(cluster, "a") as outside:
        pid = outside.start()
        cluster.wait_event("AgentRefused", node=A, reason="process")
        assert cluster.status_of("a")["state"] == "STOPPED", "not by itself: it was stopped by command"
        assert json.loads(adopt(cluster, A, "--pid", str(pid), "--json").stdout) == {
            "schema": 1, "node": A, "pid": pid, "command": True,
        }  # fmt: skip
        cluster.kill()
        cluster.run()
        cluster.wait_running("a")
        assert cluster.status_of("a")["pid"] == pid, "on record, so the next one finds it"
        outside.stop()
        cluster.wait(lambda: cluster.status_of("a")["pid"] not in {None, pid}, "its own command")
    cluster.wait_running("a")


def test_one_that_holds_its_port_already_when_the_orchestrator_begins_is_taken_over(cluster: Cluster) -> None:
    before = cluster.pid("a")
    cluster.kill()
    os.kill(before, signal.SIGKILL)
    cluster.wait(lambda: gone(before), "the port to be free")
    with Outside(cluster, "a") as outside:
        pid = outside.start()
        cluster.run()
        cluster.wait_running("a")
        assert cluster.status_of("a")["pid"] == pid
        assert len(cluster.events("NodeStarted", node=A, detail=f"pid {pid}")) == 0
        cluster.distsec("restart", A)
        assert outside.ended() == 0
        assert cluster.status_of("a")["pid"] != pid


def test_what_is_missing_is_one_line(cluster: Cluster) -> None:
    def missing(*arguments: str) -> str:
        done = adopt(cluster, *arguments, "--timeout", "1")
        assert done.returncode == 70 and done.stdout == ""
        [line] = done.stderr.splitlines()
        return line

    with_env = f"start it with what `distsec env {B}` prints"
    assert missing(B) == f"distsec: no process said hello as {B} in 1 s; {with_env}"
    with Outside(cluster, "b", guarded=False) as plain:
        pid = plain.start()
        assert missing(B, "--pid", str(pid)) == (
            f"distsec: process {pid} is no VM with the environment of {B}: it has no agent, and none can be "
            f"brought into a VM that runs; end it, and {with_env}"
        )
    assert (
        missing(B, "--pid", str(pid)) == f"distsec: there is no process {pid}; see `ps`, or leave --pid out"
    )
    assert adopt(cluster, "x@127.0.0.1").returncode == 68
    assert cluster.status_of("b")["state"] == "STOPPED"


def test_a_vm_whose_agent_is_another_users_or_has_another_key_is_told_apart(cluster: Cluster) -> None:
    with Outside(cluster, "b") as outside:
        key = cluster.node_directory("b") / "agent.key"
        right = key.read_text()
        key.write_text("0" * 64 + "\n")
        try:
            outside.start()
            done = adopt(cluster, B, "--timeout", "12")
        finally:
            key.write_text(right)
        assert done.returncode == 70
        assert "came and was refused" in done.stderr and "agent.key" in done.stderr
        assert adopt(cluster, B).returncode == 0, "now it has the right one"


def test_a_vm_with_another_carrier_is_not_taken_over_and_the_next_one_is(cluster: Cluster) -> None:
    for name, node in (("b", B), ("a", A)):
        if name == "a":
            cluster.distsec("stop", A)
        with (
            Outside(cluster, name, extra=("-proto_dist", "inet_tcp")) as outside,
            ThreadPoolExecutor() as pool,
        ):
            before = commands(cluster)
            adopting = pool.submit(adopt, cluster, node, "--timeout", "40")
            # Of those that come then, it is told.
            cluster.wait(lambda before=before: commands(cluster) - before, "the command to ask")
            outside.start(wait=False)
            assert outside.ended() != 0
            done = adopting.result()
            assert done.returncode == 70
            assert f"{node} has halted itself: " in done.stderr and "-proto_dist" in done.stderr
        cluster.wait_states(**{name: "STOPPED"})
    with Outside(cluster, "b") as again:
        again.start()
        assert adopt(cluster, B).returncode == 0
        again.stop()
        cluster.wait_states(b="STOPPED")
