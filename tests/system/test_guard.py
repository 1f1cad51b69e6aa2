"""A node whose own flags would take the guard out of force never listens unguarded, and says why.

One cluster of a release holds all cases at once; the tests look at what became of each.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from distsec.beam import proc
from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.system.guard_cases import CASES, Case, command_line, give, wrap
from tests.system.intruder import string
from tests.system.of_module import of_module
from tests.system.secrets import secrets_of
from tests.system.sockets import Seen, SocketWatch
from tests.waiting import wait_until

HARMLESS = ("own-name", "hidden", "interface", "helpers-first")
CHANGED = "optfile-changed"
DEADLINE_SECONDS = 10
SETTLED_SECONDS = 150


@dataclass(frozen=True, slots=True)
class Given:
    """A cluster in which everything has settled, and the sockets that were seen up to then."""

    cluster: Cluster
    watch: SocketWatch
    settled: dict[str, dict[str, Any]]

    def status(self) -> dict[str, dict[str, Any]]:
        """As it is now; `settled` is as it was then."""
        return _status(self.cluster)

    def events(self, kind: str, name: str, **wanted: Any) -> list[dict[str, Any]]:
        return self.cluster.events(kind, node=self.cluster.node(name), **wanted)

    def seen(self, name: str) -> set[Seen]:
        return self.watch.of(self.cluster.node(name))


otp = of_module(OTPS)


@pytest.fixture(scope="module")
def given(otp: Otp, beams: Path) -> Iterator[Given]:
    refused = [case.head for case in CASES]
    with Cluster(otp, beams, [*HARMLESS, CHANGED, *refused]) as cluster:
        cluster.settings["security"]["distribution"]["connect"] = "none"
        # All boot at once, one of them three times over: none is to be ended for being slow at that.
        cluster.settings["cluster"]["start_deadline_seconds"] = SETTLED_SECONDS
        for case in CASES:
            give(cluster, case)
        _make_harmless_ones(cluster)
        _make_optfile_change(cluster)
        yield from _settled(cluster, fatal=[CHANGED, *refused], running=HARMLESS)


def _make_harmless_ones(cluster: Cluster) -> None:
    cluster.table("own-name")["command"] += ["-name", cluster.node("own-name")]
    cluster.table("hidden")["command"] += ["-hidden"]
    cluster.table("interface")["command"] += ["-kernel", "inet_dist_use_interface", "{0,0,0,0}"]
    erl = shlex.quote(cluster.otps["helpers-first"].erl)
    wrap(
        cluster,
        "helpers-first",
        f"{erl} -noinput -eval 'halt().' || exit 3",  # with all the flags of the node
        f"env -u ERL_AFLAGS {erl} -noinput -setcookie its_own -eval 'halt().' || exit 4",
        "exec " + command_line(cluster, "helpers-first"),
    )


def _make_optfile_change(cluster: Cluster) -> None:
    optfile = shlex.quote(str(cluster.node_directory(CHANGED) / "dist.conf"))
    wrap(cluster, CHANGED, f"echo '% more' >> {optfile}", "exec " + command_line(cluster, CHANGED))


def _settled(cluster: Cluster, *, fatal: list[str], running: tuple[str, ...]) -> Iterator[Given]:
    """Starts the orchestrator, with the sockets of all below it watched from the first moment."""
    cluster.init()
    cluster.run()
    assert cluster.orchestrator is not None
    watch = SocketWatch(cluster.orchestrator.pid, cluster.state)

    def missing() -> set[str]:
        at_rest = {
            event["node"].partition("@")[0]
            for event in cluster.events("NodeStateChanged")
            if event["detail"].partition(":")[0] == "FATAL"
        }
        proven = {
            event["node"].partition("@")[0]
            for event in cluster.events("NodeStateChanged")
            if event["detail"].partition(":")[0] == "RUNNING"
        }
        return (set(fatal) - at_rest) | (set(running) - proven)

    with watch.watching():
        cluster.wait(lambda: not missing(), "everything to settle", SETTLED_SECONDS)
    yield Given(cluster, watch, _status(cluster))


def _status(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {node["name"].partition("@")[0]: node for node in cluster.status()["nodes"]}


# ---- flags that take it out of force -----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_flag_that_takes_the_guard_out_of_force_ends_the_node_before_it_listens(
    given: Given, case: Case
) -> None:
    assert given.seen(case.head) == set(), "it listened"
    node = given.settled[case.head]
    assert (node["state"], node["reason"], node["pid"]) == ("FATAL", "carrier_not_in_force", None)
    assert case.flag in node["detail"]
    (event,) = given.events("NodeStateChanged", case.head, severity="critical")
    assert event["reason"] == "carrier_not_in_force"
    assert case.flag in event["detail"]
    assert len(given.events("NodeStarted", case.head)) == (1 if case.boots else 0), "no loop of restarts"
    assert given.events("NodeStateChanged", case.head, reason="flapping") == []


def test_the_status_calls_that_a_violation(given: Given) -> None:
    done = given.cluster.distsec("status", check=False)
    assert done.returncode == 2
    assert "-proto_dist" in done.stdout


def test_an_optfile_that_is_changed_before_the_boot_halts_the_node(given: Given) -> None:
    node = given.settled[CHANGED]
    assert (node["state"], node["reason"]) == ("FATAL", "carrier_not_in_force")
    assert node["detail"].startswith("optfile_changed: ")
    assert given.seen(CHANGED) == set()
    assert len(given.events("NodeStarted", CHANGED)) == 1


# ---- what is harmless --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_touch_the_guard_runs_and_listens_with_tls_alone(given: Given, name: str) -> None:
    node = given.status()[name]
    assert (node["state"], node["guard"], node["agent"]) == ("RUNNING", "proven", "connected")
    seen, pid = given.seen(name), given.cluster.pid(name)
    # While it boots its self-check listens too, on a port of its own, for TLS with itself.
    assert Seen(given.cluster.node(name), given.cluster.port(name), plaintext=False) in seen
    assert not any(each.plaintext for each in seen), seen
    assert {listener.port for listener in proc.listening([pid])} == {given.cluster.port(name)}
    assert given.cluster.erl(name, "node()") == f"'{given.cluster.node(name)}'"
    assert len(given.events("NodeStarted", name)) == 1


def test_a_child_of_a_node_is_no_node(given: Given) -> None:
    name = "own-name"
    before = given.status()[name]
    question = "io:format([126,112],[node()]),halt()."
    child = string(f"{given.cluster.otps[name].erl} -noinput -eval '{question}'")
    assert given.cluster.erl(name, f"os:cmd({child})", 60) == '"nonode@nohost"'
    assert given.cluster.erl(name, 'os:getenv("ERL_AFLAGS")') == '"-start_epmd false -dist_listen false"'
    assert given.status()[name]["pid"] == before["pid"]
    assert given.events("AgentRefused", name) == []
    assert given.events("AgentLost", name) == []


def test_a_child_that_is_given_the_flags_of_its_node_does_not_take_its_place(given: Given) -> None:
    name = "hidden"
    environment = Path(f"/proc/{given.cluster.pid(name)}/environ").read_bytes().decode().split("\0")
    (flags,) = [entry for entry in environment if entry.startswith("ERL_AFLAGS=")]
    twin = shlex.join(["env", flags, given.cluster.otps[name].erl, "-noinput", "-eval", "halt()."])
    launch = given.cluster.erl(name, "distsec_guard:launch()")
    said = given.cluster.erl(name, f"os:cmd({string(twin)})", 60)
    assert "eaddrinuse" in said, "it got as far as its parent's port, and no further"
    # one that says nothing of all that and goes to the agent's socket
    path = str(given.cluster.node_directory(name) / "agent.sock")
    knock = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.makefile('rb').read()"
    knocking = string(shlex.join([sys.executable, "-c", knock]))
    assert given.cluster.erl(name, f"os:cmd({knocking})", 30) == "[]", "it is told why, and no more"
    given.cluster.wait_event("AgentRefused", node=given.cluster.node(name), reason="process")
    assert given.events("AgentLost", name) == []
    assert len(given.events("AgentConnected", name)) == 1
    node = given.status()[name]
    assert (node["state"], node["agent"], node["guard"]) == ("RUNNING", "connected", "proven")
    assert given.cluster.erl(name, "distsec_guard:launch()") == launch


# ---- without the guard's flags -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stripped(otp: Otp, beams: Path) -> Iterator[Given]:
    """Wrappers that take ERL_AFLAGS away, and with it everything of ours; and a node that is none."""
    with Cluster(otp, beams, ["named", "later", "undistributed"]) as cluster:
        cluster.settings["cluster"]["start_deadline_seconds"] = DEADLINE_SECONDS
        plain = f"exec env -u ERL_AFLAGS {shlex.quote(otp.erl)} -noinput -pa {shlex.quote(str(beams))}"
        resolver = "-start_epmd false -epmd_module distsec_test_epmd -setcookie known"
        wrap(cluster, "named", f"{plain} {resolver} -name {cluster.node('named')}")
        start = f"net_kernel:start(['{cluster.node('later')}',longnames])."
        wrap(cluster, "later", f"{plain} {resolver} -eval {shlex.quote(start)}")
        cluster.table("undistributed")["command"] += ["-kernel", "start_distribution", "false"]
        yield from _settled(cluster, fatal=cluster.names, running=())


def test_a_node_that_takes_its_name_without_the_guard_is_ended_before_it_listens(stripped: Given) -> None:
    assert stripped.seen("named") == set()
    node = stripped.settled["named"]
    assert (node["state"], node["reason"]) == ("FATAL", "carrier_not_in_force")
    assert "-name" in node["detail"]
    assert "ERL_AFLAGS" in node["detail"]


def test_a_node_that_never_becomes_one_is_ended_by_the_deadline(stripped: Given) -> None:
    assert stripped.seen("undistributed") == set()
    node = stripped.settled["undistributed"]
    assert (node["state"], node["reason"]) == ("FATAL", "carrier_not_in_force")
    assert "no hello from its agent within" in node["detail"]


def test_a_node_that_listens_without_an_agent_is_ended_by_the_deadline(stripped: Given) -> None:
    (seen,) = stripped.seen("later")
    assert seen.plaintext, "or this proves nothing"
    node = stripped.settled["later"]
    assert (node["state"], node["reason"]) == ("FATAL", "carrier_not_in_force")
    assert f"no hello from its agent within {DEADLINE_SECONDS} s" in node["detail"]
    (started,) = stripped.events("NodeStarted", "later")
    (ended,) = stripped.events("NodeStateChanged", "later", severity="critical")
    lived = datetime.fromisoformat(ended["time"]) - datetime.fromisoformat(started["time"])
    assert lived.total_seconds() < DEADLINE_SECONDS + 4
    assert stripped.cluster.orchestrator is not None
    alone = [stripped.cluster.orchestrator.pid]
    wait_until(lambda: proc.tree(alone[0]) == alone, "nothing to be left below the orchestrator")


# ---- what everybody on the host can read -------------------------------------------------------------------


def test_no_secret_is_in_the_arguments_or_environment_of_any_process(given: Given) -> None:
    secrets = secrets_of(given.cluster.state)
    assert len(secrets) > 3 * len(CASES), "a cookie, an agent key and a private key of each node, and the CA"
    assert given.cluster.orchestrator is not None
    pids = proc.tree(given.cluster.orchestrator.pid)
    assert len(pids) > len(HARMLESS)
    for pid in pids:
        shown = dict.fromkeys(("cmdline", "environ"), b"")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            shown |= {what: Path(f"/proc/{pid}/{what}").read_bytes() for what in shown}
        if (found := proc.stat(pid)) is None or not found.alive:
            continue  # what a test before this one had a node run has ended meanwhile, and shows nothing
        assert str(given.cluster.directory).encode() in b"".join(shown.values()), "it is of this cluster"
        for what, content in shown.items():
            leaked = [source for secret, source in secrets.items() if secret in content]
            assert leaked == [], f"{what} of {pid}"
