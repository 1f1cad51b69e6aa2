"""A node's life: it dies and comes back, flaps and is given up, is started and stopped by command, and ends
in order with the orchestrator.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.system.intruder import string
from tests.system.of_module import meshed, of_module, started

ONE_RELEASE = pytest.mark.parametrize("otp", OTPS[:1], indirect=True, ids=str)
"""For what the orchestrator alone decides: no release of OTP makes a difference."""

STOP_DEADLINE_SECONDS = 12


otp = of_module(OTPS)
shared = started()
cluster = meshed()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def one_line(text: str) -> str:
    """The text, which is one line."""
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text


# ---- one that dies -----------------------------------------------------------------------------------------


def test_a_node_that_is_killed_is_started_again_and_meshes_again(cluster: Cluster) -> None:
    killed, others = cluster.pid("b"), (cluster.pid("a"), cluster.pid("c"))
    before = len(cluster.events("NodeStopped", node="b@127.0.0.1"))
    os.kill(killed, signal.SIGKILL)
    cluster.wait(lambda: cluster.status_of("b")["pid"] not in {None, killed}, "another process of b")
    cluster.wait_running()
    cluster.wait_meshed()
    assert cluster.pid("b") != killed
    assert (cluster.pid("a"), cluster.pid("c")) == others
    assert cluster.erl("b", "lists:sort(nodes())") == "['a@127.0.0.1','c@127.0.0.1']"
    [stopped] = cluster.events("NodeStopped", node="b@127.0.0.1")[before:]
    assert stopped["detail"] == "ended by signal 9"
    assert cluster.events("NodeStateChanged", node="b@127.0.0.1", reason="exited")


@ONE_RELEASE
def test_restart_policies_and_a_node_that_flaps(otp: Otp, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(otp)
    cluster.table("a")["restart"] = "never"
    cluster.table("b")["restart"] = "on-failure"
    flapper = cluster.table("c")
    flapper |= {"restart_intensity": 2, "restart_period_seconds": 60}
    flapper["command"] = ["sh", "-c", 'test -e calm && exec "$@"; exit 3', "sh", *flapper["command"]]
    cluster.init()
    cluster.run()

    cluster.wait_states(a="RUNNING", b="RUNNING", c="FATAL")
    given_up = cluster.status_of("c")
    assert given_up["reason"] == "flapping"
    assert given_up["detail"] == "exited with status 3; restarted 2 times within 60 s"
    assert len(cluster.events("NodeStarted", node="c@127.0.0.1")) == 3
    assert cluster.events("NodeStateChanged", node="c@127.0.0.1", severity="critical", reason="flapping")
    assert cluster.distsec("status", check=False).returncode == 1
    still = cluster.distsec("start", "c@127.0.0.1", check=False)
    assert still.returncode == 70
    assert "c@127.0.0.1 is FATAL (flapping" in one_line(still.stderr)

    (cluster.directory / "calm").touch()
    cluster.distsec("start", "c@127.0.0.1")
    assert cluster.states()["c"] == "RUNNING"
    cluster.wait_meshed()

    os.kill(cluster.pid("a"), signal.SIGKILL)
    cluster.erl_at_its_end("b", "init:stop()")
    cluster.wait_states(a="STOPPED", b="STOPPED")
    assert cluster.status_of("a")["detail"] == "ended by signal 9"
    assert cluster.status_of("b")["detail"] == "exited with status 0"
    assert cluster.distsec("status", check=False).returncode == 0  # both may end: it is what was asked for

    cluster.distsec("start", "b@127.0.0.1")
    killed = cluster.pid("b")
    os.kill(killed, signal.SIGKILL)
    cluster.wait(lambda: cluster.status_of("b")["pid"] not in {None, killed}, "another process of b")
    cluster.wait_states(a="STOPPED", b="RUNNING", c="RUNNING")


# ---- by command --------------------------------------------------------------------------------------------


def test_stop_start_and_restart_by_command(cluster: Cluster) -> None:
    first = cluster.pid("b")
    assert cluster.distsec("stop", "b@127.0.0.1").stdout == "stopped b@127.0.0.1\n"
    assert not alive(first)
    stopped = cluster.status_of("b")
    assert (stopped["state"], stopped["reason"], stopped["pid"]) == ("STOPPED", "operator", None)
    cluster.wait(lambda: "b" not in {peer for _, peer in cluster.links()}, "b to be gone from all links")
    assert cluster.distsec("status").returncode == 0

    assert cluster.distsec("start", "b@127.0.0.1").stdout == "started b@127.0.0.1\n"
    assert cluster.states()["b"] == "RUNNING"
    second = cluster.pid("b")
    assert cluster.distsec("start", "b@127.0.0.1").stdout == "started b@127.0.0.1\n"  # it runs already
    assert cluster.pid("b") == second

    assert cluster.distsec("restart", "b@127.0.0.1").stdout == "restarted b@127.0.0.1\n"
    assert cluster.pid("b") not in {first, second}
    cluster.wait_meshed()


@ONE_RELEASE
def test_all_nodes_by_command(cluster: Cluster) -> None:
    pids = [cluster.pid(name) for name in cluster.names]
    told = "".join(f"{{}} {cluster.node(name)}\n" for name in cluster.names)
    assert cluster.distsec("stop", "--all").stdout == told.replace("{}", "stopped")
    assert not any(map(alive, pids))
    assert set(cluster.states().values()) == {"STOPPED"}
    assert cluster.distsec("start", "--all").stdout == told.replace("{}", "started")
    assert set(cluster.states().values()) == {"RUNNING"}
    cluster.wait_meshed()


@ONE_RELEASE
@pytest.mark.parametrize("action", ["start", "stop", "restart"])
def test_unknown_names_touch_nothing(cluster: Cluster, action: str) -> None:
    pids = [cluster.pid(name) for name in cluster.names]
    unknown = cluster.distsec(action, "a@127.0.0.1", "nobody@127.0.0.1", check=False)
    assert unknown.returncode == 68
    assert one_line(unknown.stderr) == (
        "distsec: nobody@127.0.0.1: no such managed node; "
        "the managed nodes are: a@127.0.0.1, b@127.0.0.1, c@127.0.0.1\n"
    )
    invalid = cluster.distsec(action, "\x1b[2J", check=False)
    assert invalid.returncode == 65
    assert "is no node name; write it as name@host" in one_line(invalid.stderr)
    assert "\x1b" not in invalid.stderr
    for wrong in ([], ["--all", "a@127.0.0.1"]):
        usage = cluster.distsec(action, *wrong, check=False)
        assert usage.returncode == 64
        assert f"distsec {action}: " in one_line(usage.stderr)
    assert unknown.stdout == invalid.stdout == ""
    assert [cluster.pid(name) for name in cluster.names] == pids


# ---- the end -----------------------------------------------------------------------------------------------


def test_the_end_of_the_orchestrator_stops_all_in_order(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    """a ends by init:stop alone, for it ignores TERM; b ignores both, and is killed by the deadline."""
    cluster = make_cluster(otp, ["a", "b"])
    cluster.settings["cluster"] |= {"on_exit": "stop", "stop_deadline_seconds": STOP_DEADLINE_SECONDS}
    cluster.start()
    farewell = cluster.directory / "farewell"
    cluster.erl("a", on_shutdown(f"file:write_file({string(str(farewell))}, <<>>)"))
    cluster.erl("b", on_shutdown("receive never -> ok end"))

    began = time.monotonic()
    assert cluster.terminate() == 0
    took = time.monotonic() - began

    assert farewell.exists(), cluster.story()
    assert "SIGTERM" not in cluster.log("a")  # what OTP logs when a TERM comes
    assert cluster.events("NodeStopped", node="a@127.0.0.1", detail="exited with status 0")
    assert cluster.events("NodeStopped", node="b@127.0.0.1", detail="ended by signal 9")
    assert took >= STOP_DEADLINE_SECONDS - 0.5  # the deadline is b's, to the end
    # erl_child_setup goes by itself when its BEAM has gone
    cluster.wait(lambda: not cluster.processes(), "the end of every process")
    assert not [path for path in cluster.state.rglob("*") if path.is_socket()]
    assert not [path for path in cluster.state.rglob("*") if path.name in {"run.json", "orchestrator.json"}]
    gone = cluster.distsec("status", check=False)
    assert gone.returncode == 3


def on_shutdown(expression: str) -> str:
    """Erlang that ignores TERM and has the node's own shutdown evaluate `expression`, with all patience."""
    return (
        "os:set_signal(sigterm, ignore), Hook = fun() -> process_flag(trap_exit, true), "
        f"receive {{'EXIT', _, _}} -> {expression} end end, "
        "{ok, _} = supervisor:start_child(kernel_safe_sup, #{id => hook, shutdown => infinity, "
        "start => {erlang, apply, [fun() -> {ok, spawn_link(Hook)} end, []]}}), ok"
    )
