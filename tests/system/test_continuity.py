"""The orchestrator is killed at bad moments, stopped, upgraded, moved: nodes go on, none runs twice, and none
is lost sight of."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from distsec.beam import proc
from tests.releases import OTPS, ROOT, Otp
from tests.system.cluster import Cluster
from tests.system.of_module import of_module
from tests.system.processes import gone

A, B = "a@127.0.0.1", "b@127.0.0.1"
MAIN = "\nfrom distsec.cli import main\nmain()\n"
STOPPED_SECONDS = 30.0


otp = of_module(OTPS[:1])
"""One release: what is tested here is the orchestrator's."""


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams, ["a", "b"]) as cluster:
        cluster.settings["cluster"] |= {"start_deadline_seconds": 60, "stop_deadline_seconds": 60}
        cluster.settings["security"]["distribution"]["allowed_nodes"].append("x@127.0.0.1")
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Two nodes, RUNNING and meshed. Each test leaves them like that."""
    shared.wait_running()
    shared.wait_meshed()
    yield shared
    if shared.orchestrator is None or shared.orchestrator.poll() is not None:
        shared.run()


def run_spoiled(cluster: Cluster, program: str, **environment: str) -> None:
    """Starts an orchestrator in which `program` has changed something beforehand."""
    assert cluster.orchestrator is None or cluster.orchestrator.poll() is not None
    with cluster.orchestrator_log.open("ab") as output:
        cluster.orchestrator = subprocess.Popen(
            [sys.executable, "-c", program + MAIN, "run", "-c", str(cluster.config)],
            cwd=cluster.directory,
            env=cluster.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_killed(cluster: Cluster) -> None:
    assert cluster.orchestrator is not None
    assert cluster.orchestrator.wait(60) == -signal.SIGKILL


def emulators(cluster: Cluster, name: str) -> list[int]:
    """The VMs that run as `name` now, by the flags that they were given."""
    words = ("-distsec_dir", str(cluster.node_directory(name).resolve()))
    found = []
    for each in proc.everything():
        argv = proc.arguments(each.pid) if each.name.startswith("beam") and each.alive else ()
        if any(argv[at : at + 2] == words for at in range(len(argv))):
            found.append(each.pid)
    return found


def pids(cluster: Cluster) -> dict[str, int]:
    return {name: cluster.status_of(name)["pid"] for name in cluster.names}


def has_told(cluster: Cluster, name: str) -> bool:
    """Whether nothing that has happened in that node is still on its way to the orchestrator."""
    lanes = "[critical, refusals]"
    untold = f"lists:append([element(1, distsec_ring:read(Lane, 0, 1, pass)) || Lane <- {lanes}])"
    return cluster.erl(name, untold) == "[]"


# ---- killed in the middle of something -----------------------------------------------------------------


KILLED_BEFORE_THE_RECORD = """
import os, signal
from distsec.beam.node import RunRecord
RunRecord.to_bytes = lambda self: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_start_that_was_interrupted_before_it_was_on_record_is_found_and_not_repeated(
    cluster: Cluster,
) -> None:
    command = cluster.table("a")["command"]
    before = cluster.pid("a")
    cluster.kill()
    os.kill(before, signal.SIGKILL)
    cluster.wait(lambda: gone(before), "the end of a")
    cluster.table("a")["command"] = [
        "/bin/sh",
        "-c",
        'until [ -e go ]; do sleep 0.1; done; exec "$@"',
        "sh",
        *command,
    ]
    cluster.write()
    started = len(cluster.events("NodeStarted", node=A))
    run_spoiled(cluster, KILLED_BEFORE_THE_RECORD)
    wait_killed(cluster)
    directory = cluster.node_directory("a")
    assert not (directory / "run.json").exists() and (directory / "start.json").exists()
    assert emulators(cluster, "a") == [], "the shell waits, and nothing tells by its name whose it is"
    (cluster.directory / "go").touch()
    cluster.run()
    cluster.wait_running()
    assert len(cluster.events("NodeStarted", node=A)) == started, "taken over, not started"
    assert emulators(cluster, "a") == [cluster.pid("a")]
    assert json.loads((directory / "run.json").read_text())["pid"] == cluster.status_of("a")["pid"]
    cluster.table("a")["command"] = command
    cluster.write()


def test_a_record_that_was_lost_is_made_anew(cluster: Cluster) -> None:
    before = pids(cluster)
    cluster.signal(signal.SIGABRT)  # as systemd's watchdog does
    assert cluster.orchestrator is not None and cluster.orchestrator.wait(60) == -signal.SIGABRT
    for name in cluster.names:
        (cluster.node_directory(name) / "run.json").unlink()
    cluster.run()
    cluster.wait_running()
    assert pids(cluster) == before
    assert all((cluster.node_directory(name) / "run.json").exists() for name in cluster.names)
    os.kill(before["a"], signal.SIGKILL)
    cluster.wait(lambda: cluster.status_of("a")["pid"] not in {None, before["a"]}, "another process of a")


KILLED_AT_A_COMMAND = """
import os, pathlib, signal
from distsec.beam.link import AgentServer
whole = AgentServer.command
armed = pathlib.Path({armed!r})
async def command(self, kind, arguments, timeout):
    if str(kind) == {kind!r} and armed.exists():
        await whole(self, kind, arguments, timeout) if {after} else None
        os.kill(os.getpid(), signal.SIGKILL)
    return await whole(self, kind, arguments, timeout)
AgentServer.command = command
"""


def killed_at(cluster: Cluster, kind: str, after: bool, *operation: str) -> None:
    """An operation whose orchestrator is killed when it has, or would have, given an agent that command."""
    armed = cluster.directory / "armed"
    cluster.kill()
    run_spoiled(cluster, KILLED_AT_A_COMMAND.format(kind=kind, after=after, armed=str(armed)))
    cluster.wait_running()
    armed.touch()
    assert cluster.distsec(*operation, check=False).returncode == 69
    wait_killed(cluster)
    armed.unlink()


@pytest.mark.parametrize("after", [False, True], ids=["before it is asked", "after it was asked"])
def test_a_stop_that_was_interrupted_stays_a_stop(cluster: Cluster, after: bool) -> None:
    other = cluster.pid("b")
    killed_at(cluster, "stop", after, "stop", A)
    cluster.run()
    cluster.wait_states(a="STOPPED", b="RUNNING")
    assert emulators(cluster, "a") == []
    assert cluster.pid("b") == other
    cluster.kill()
    cluster.run()
    cluster.wait_states(a="STOPPED", b="RUNNING")
    cluster.distsec("start", A)
    cluster.kill()
    cluster.run()
    cluster.wait_running()


@pytest.mark.parametrize("after", [False, True], ids=["before a node is told", "after one was told"])
def test_a_rollout_that_was_interrupted_is_finished_for_all_or_for_none(
    cluster: Cluster, after: bool
) -> None:
    before = pids(cluster)
    killed_at(cluster, "policy", after, "deny", "x@127.0.0.1")
    cluster.run()
    cluster.wait_running()

    def agreed() -> bool:
        status = cluster.status()
        return {node["policy_generation"] for node in status["nodes"]} == {status["policy_generation"]}

    cluster.wait(agreed, "one policy everywhere")
    denied = "maps:get(denied, distsec_policy:in_force())"
    assert {cluster.erl(name, denied) for name in cluster.names} == {'[<<"x@127.0.0.1">>]'}
    assert pids(cluster) == before
    cluster.distsec("allow", "x@127.0.0.1")


@pytest.mark.parametrize("after", [False, True], ids=["before it is told", "after it was told"])
def test_a_renewal_that_was_interrupted_leaves_a_node_that_links(cluster: Cluster, after: bool) -> None:
    before = pids(cluster)
    killed_at(cluster, "reload", after, "certs", "renew", A)
    cluster.run()
    cluster.wait_running()
    cluster.wait_meshed()
    assert pids(cluster) == before
    cluster.distsec("certs", "renew", A)
    cluster.wait_meshed()


# ---- stopped, and back ---------------------------------------------------------------------------------


def test_an_orchestrator_that_was_stopped_for_30_seconds_has_lost_nothing(cluster: Cluster) -> None:
    before = pids(cluster)
    for name in cluster.names:  # what earlier tests did to them is counted
        cluster.wait(partial(has_told, cluster, name), f"all that {name} has to tell")
    refused = cluster.metric("distsec_security_refusals_total", node=A, reason="not_allowed")
    known = {kind: len(cluster.events(kind)) for kind in ("UnauthorizedAccess", "NodeStopped", "NodeDown")}
    leaf, cookie = cluster.leaf("evil"), cluster.cookie("a")
    cluster.signal(signal.SIGSTOP)
    until = time.monotonic() + STOPPED_SECONDS
    before_them = int(cluster.erl("a", "distsec_ring:sequence(refusals)"))
    evil = cluster.intruder("evil", leaf=leaf, cookie=cookie)
    tried = f"[net_kernel:connect_node('{A}') || _ <- lists:seq(1, 20)]"
    assert "true" not in evil.erl(tried, 60)
    evil.stop()
    counted = before_them + 20  # the last is counted a moment after its dial has failed
    cluster.wait(
        lambda: int(cluster.erl("a", "distsec_ring:sequence(refusals)")) >= counted, "all to be refused"
    )
    assert int(cluster.erl("a", "distsec_ring:sequence(refusals)")) == counted
    assert cluster.distsec("status", check=False, seconds=60).returncode == 3, "it does not answer"
    cluster.wait(lambda: time.monotonic() >= until, "half a minute", STOPPED_SECONDS + 60)
    cluster.signal(signal.SIGCONT)
    cluster.wait(lambda: all(node["agent"] == "connected" for node in cluster.status()["nodes"]), "agents")
    cluster.wait_running()
    assert pids(cluster) == before
    cluster.wait(
        lambda: (
            cluster.metric("distsec_security_refusals_total", node=A, reason="not_allowed") - refused == 20
        ),
        "all refusals counted",
    )

    def numbers() -> list[int]:
        told = cluster.events("UnauthorizedAccess", node=A)
        return [event["sequence"] for event in told if "sequence" in event][-20:]

    cluster.wait(lambda: numbers()[-1:] == [counted], "the last refusal to be told")
    assert numbers() == sorted(set(numbers()))
    for kind in ("NodeStopped", "NodeDown"):
        assert len(cluster.events(kind)) == known[kind], kind
    assert cluster.events("AgentRefused", node=A, reason="proof") == []


def test_sockets_that_were_removed_are_made_anew(cluster: Cluster) -> None:
    before = pids(cluster)
    sockets = [cluster.node_directory("a") / "agent.sock", cluster.state / "control.sock"]
    for path in sockets:
        path.unlink()
    cluster.wait(lambda: all(path.exists() for path in sockets), "both sockets")
    # A socket is there a moment before anybody listens at it.
    cluster.wait(lambda: cluster.states() == {"a": "RUNNING", "b": "RUNNING"}, "both to be seen RUNNING")
    # Its agent finds the new one.
    lost = len(cluster.events("AgentLost", node=A))
    cluster.erl("a", "exit(whereis(distsec_agent), kill)")
    cluster.wait(lambda: len(cluster.events("AgentLost", node=A)) > lost, "the agent to be missed")
    cluster.wait(lambda: cluster.status_of("a")["agent"] == "connected", "the agent to be back")
    cluster.wait_running()
    assert pids(cluster) == before


# ---- another version, another place ---------------------------------------------------------------------


def version(own: int, spoken: set[int]) -> str:
    return f"import distsec.beam.protocol as p\np.VERSION, p.SPOKEN = {own}, frozenset({spoken})\n"


def test_agents_of_an_older_version_are_adopted_where_it_is_spoken_and_else_left_and_told_of(
    cluster: Cluster,
) -> None:
    before = pids(cluster)
    cluster.kill()
    run_spoiled(cluster, version(2, {1, 2}))
    cluster.wait_running()
    assert pids(cluster) == before
    cluster.kill()

    deadline = 10  # by then its agents have come, however busy the machine is
    cluster.settings["cluster"]["start_deadline_seconds"] = deadline
    cluster.write()
    run_spoiled(cluster, version(2, {2}))
    refused = cluster.wait_event("AgentRefused", node=A, reason="version")
    since = time.monotonic()
    assert refused["detail"].endswith("the agent speaks version 1, the orchestrator 2; upgrade the agent")
    told = "upgrade the agent; `distsec restart a@127.0.0.1` gives it the agent of this orchestrator"
    cluster.wait(lambda: told in (cluster.status_of("a")["detail"] or ""), "the line in the status")
    cluster.wait(lambda: time.monotonic() > since + deadline + 1, "more than the start deadline")
    status = cluster.status()
    assert [(node["state"], node["guard"]) for node in status["nodes"]] == [("STARTING", "unproven")] * 2
    assert not status["healthy"] and pids(cluster) == before, "left running, and not called well"
    cluster.kill()
    cluster.settings["cluster"]["start_deadline_seconds"] = 60
    cluster.write()
    cluster.run()
    cluster.wait_running()
    assert pids(cluster) == before


def test_an_upgrade_to_another_place_goes_on_with_the_nodes_of_the_old_one(cluster: Cluster) -> None:
    old = cluster.directory / "old"
    shutil.copytree(
        ROOT / "distsec", old / "distsec", ignore=shutil.ignore_patterns("__pycache__", ".ebin-*")
    )
    cluster.kill()
    run_spoiled(cluster, "", PYTHONPATH=str(old))
    cluster.wait_running()
    cluster.distsec("restart", A)
    assert str(old) in cluster.erl("a", "code:which(distsec_dist)")
    before = pids(cluster)
    cluster.kill()
    shutil.rmtree(old)
    cluster.run()
    cluster.wait_running()
    cluster.wait_meshed()
    assert pids(cluster) == before
    cluster.distsec("deny", "x@127.0.0.1")
    cluster.distsec("allow", "x@127.0.0.1")
    cluster.distsec("restart", A)
    assert str(old) not in cluster.erl("a", "code:which(distsec_dist)")


def test_a_state_directory_that_was_moved_takes_its_nodes_along_by_a_restart(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a"])
    cluster.start()
    before = cluster.pid("a")
    cluster.kill()
    moved = cluster.directory / "moved"
    shutil.move(cluster.state, moved)
    cluster.settings["cluster"]["state_dir"] = "moved"
    cluster.state = moved
    cluster.write()
    cluster.run()
    cluster.wait(lambda: cluster.states() == {"a": "RUNNING"} and cluster.pid("a") != before, "a new one")
    assert emulators(cluster, "a") == [cluster.pid("a")]
    left = proc.stat(before)
    assert left is None or not left.alive, "and the old one has ended"
    warned = [line for line in cluster.orchestrator_lines() if "in another state directory" in line]
    assert len(warned) == 1 and str(cluster.directory / "state") in warned[0]
