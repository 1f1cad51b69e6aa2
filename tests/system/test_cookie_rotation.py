"""`distsec cookie rotate` on real nodes: no link ends and nobody is locked out, wherever it is interrupted.

One cluster of all releases, so that each of them dials and is dialled by the others in every phase.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.releases import OTPS, Otp
from tests.system import broken_otp
from tests.system.cluster import HOST, Cluster
from tests.system.intruder import Intruder, atom
from tests.system.processes import belonging_to
from tests.system.secrets import secrets_of
from tests.system.test_continuity import run_spoiled, wait_killed

DEADLINE_SECONDS = 8
EX_TEMPFAIL = 75
GHOST = f"ghost@{HOST}"
CLI = f"cli-1@{HOST}"
PHASES = ("accepting", "using", "forgetting")

KILLED_IN_A_PHASE = """
import asyncio, os, pathlib, signal
from distsec.supervisor.cookie_rotation import CookieRotator
ask = CookieRotator._ask
armed = pathlib.Path({armed!r})
async def asked(self, node, rotation, deadline):
    if armed.exists() and armed.read_text() == str(rotation.phase):
        if not node.name.startswith("a@"):
            await asyncio.sleep(3600)
        await ask(self, node, rotation, deadline)
        os.kill(os.getpid(), signal.SIGKILL)
    return await ask(self, node, rotation, deadline)
CookieRotator._ask = asked
"""
"""In the phase that the file `armed` names: a has been told of it, the others have not."""


@pytest.fixture(scope="module")
def shared(beams: Path, agent_ebin: Path) -> Iterator[Cluster]:
    names = ["a", "b", "c"]
    otps = dict(zip(names, (OTPS * len(names))[: len(names)], strict=True))
    with Cluster(otps, beams, names) as cluster:
        distribution = cluster.settings["security"]["distribution"]
        cluster.settings["cluster"]["acknowledge_deadline_seconds"] = DEADLINE_SECONDS
        distribution["allowed_nodes"].append(GHOST)
        distribution["rules"] = [{"names": [f"cli-*@{HOST}"], "kind": "cli"}]
        for name in names:  # a link that ends is to end alone, also later: `global` would end others with it
            cluster.table(name)["command"] += ["-kernel", "prevent_overlapping_partitions", "false"]
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(shared: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """Three nodes of different releases, RUNNING and meshed, with no rotation under way."""
    for otp in shared.otps.values():
        request.node.user_properties.append(("otp", otp.stands_for))
    shared.wait_running()
    shared.wait_meshed()
    assert phase(shared) == "idle"
    return shared


@pytest.fixture(scope="module")
def ghost(shared: Cluster) -> Intruder:
    """A listed node that nobody manages, with its certificate, and whatever cookie it is given."""
    return shared.intruder("ghost", leaf=shared.leaf("ghost"), hidden=True)


@pytest.fixture(scope="module")
def cli(shared: Cluster) -> Intruder:
    """A command-line node, which a rule admits: it has no cookie of its own but a node's default one."""
    leaf = shared.leaf(uris=[f"spiffe://{shared.name}/cli/1"])
    return shared.intruder("cli-1", leaf=leaf, hidden=True)


def kept(cluster: Cluster) -> dict[str, Any]:
    """What the orchestrator keeps of a rotation."""
    with contextlib.suppress(FileNotFoundError):
        document: dict[str, Any] = json.loads((cluster.state / "ca" / "cookie.rotation").read_bytes())
        return document
    return {"phase": "idle", "step": 0}


def phase(cluster: Cluster) -> str:
    return str(kept(cluster)["phase"])


def rotate(cluster: Cluster, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return cluster.distsec("cookie", "rotate", *(options or ("--elsewhere",)), check=check)


def links(cluster: Cluster) -> dict[tuple[str, str], Any]:
    """Each link between managed nodes, and since when it is up."""
    return {
        (node["name"], link["peer"]): link["since"]
        for node in cluster.status()["nodes"]
        for link in node["links"]
        if link["peer"] not in (GHOST, CLI)
    }


def cookie(cluster: Cluster, name: str, peer: str) -> str:
    """With which cookie a node dials that peer, and what it takes from it at least."""
    return cluster.erl(name, f"erlang:get_cookie({atom(peer)})").strip("'")


def comes_in(stranger: Intruder, cluster: Cluster, victim: str, with_cookie: str) -> bool:
    """Whether a link comes up if the stranger dials with that cookie; afterwards there is none."""
    node = cluster.node(victim)
    stranger.erl(f"erlang:set_cookie({atom(node)}, {atom(with_cookie)})")
    up = stranger.connect(node)
    if up:
        stranger.erl(f"erlang:disconnect_node({atom(node)})")
        cluster.wait(lambda: stranger.name not in cluster.erl(victim, "nodes(connected)"), "the link to end")
    return up


def kill_in(cluster: Cluster, wanted: str) -> dict[str, str]:
    """Begins a rotation whose orchestrator is killed in that phase. Returns the cookies of before: each
    node's with the ghost, and b's default one as "default".
    """
    armed = cluster.directory / "armed"
    cluster.kill()
    run_spoiled(cluster, KILLED_IN_A_PHASE.format(armed=str(armed)))
    cluster.wait_running()
    old = {name: cookie(cluster, name, GHOST) for name in cluster.names}
    old["default"] = cluster.cookie("b")
    armed.write_text(wanted)
    assert rotate(cluster, check=False).returncode == 69
    wait_killed(cluster)
    armed.unlink()
    assert phase(cluster) == wanted
    return old


def disconnect(cluster: Cluster, name: str, peer: str) -> None:
    """Returns when both ends have told of it: until then the status may show the link that has ended."""
    ends = [(cluster.node(name), cluster.node(peer)), (cluster.node(peer), cluster.node(name))]

    def downs() -> list[int]:
        return [len(cluster.events("NodeDown", node=node, peer=other)) for node, other in ends]

    known = downs()
    cluster.erl(name, f"erlang:disconnect_node({atom(cluster.node(peer))})")
    cluster.wait(lambda: all(now > then for now, then in zip(downs(), known, strict=True)), "the link to end")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("wanted", "restarted"), [*zip(PHASES, "abc", strict=True)])
def test_a_rotation_whose_orchestrator_was_killed_goes_on_and_locks_nobody_out(
    cluster: Cluster, ghost: Intruder, cli: Intruder, wanted: str, restarted: str
) -> None:
    before = links(cluster)
    old = kill_in(cluster, wanted)
    cluster.run()
    cluster.wait_running()
    assert phase(cluster) == wanted, "a rotation goes on when it is asked to, and not by itself"
    assert cluster.wait(lambda: links(cluster) == before or None, "the links that there were")

    # What one node has been told already, and another has not, fits together, whoever dials.
    cluster.distsec("restart", cluster.node(restarted))
    cluster.wait_meshed()
    for name in cluster.names:
        for peer in cluster.names:
            if name != peer:
                disconnect(cluster, name, peer)
                dialled = f"net_kernel:connect_node({atom(cluster.node(peer))})"
                cluster.wait(
                    lambda name=name, dialled=dialled: cluster.erl(name, dialled) == "true",
                    f"{name} and {peer}",
                )
    cluster.wait_meshed()
    refused = len(cluster.events("UnauthorizedAccess", reason="bad_cookie"))
    for name in cluster.names:
        assert not comes_in(ghost, cluster, name, "pa_cookie_that_never_was_one_of_ours")
    cluster.wait(
        lambda: len(cluster.events("UnauthorizedAccess", reason="bad_cookie")) >= refused + 3, "the refusals"
    )
    if wanted != "forgetting":  # the ghost was brought nothing new, and the old cookie still does
        assert all(comes_in(ghost, cluster, name, old[name]) for name in cluster.names)
        assert comes_in(cli, cluster, "b", old["default"])

    before = links(cluster)
    done = rotate(cluster)
    assert f"acknowledged by {len(cluster.names)} nodes" in done.stdout
    assert phase(cluster) == "idle"
    assert links(cluster) == before
    assert not (cluster.state / "ca" / "cookie.next").exists()
    for name in cluster.names:
        new = cookie(cluster, name, GHOST)
        assert new != old[name]
        assert not comes_in(ghost, cluster, name, old[name])
        assert comes_in(ghost, cluster, name, new)
    refusals = {"kind": "UnauthorizedAccess", "reason": "bad_cookie", "peer": CLI}
    refused = len(cluster.events(**refusals))
    assert not comes_in(cli, cluster, "b", old["default"])
    assert comes_in(cli, cluster, "b", cluster.cookie("b"))
    cluster.wait(lambda: len(cluster.events(**refusals)) > refused, "the refusal")


def test_a_node_that_does_not_answer_costs_no_link_and_is_named(cluster: Cluster) -> None:
    before, old, made = links(cluster), cookie(cluster, "a", GHOST), status(cluster)["made"]
    silent = cluster.pid("c")
    os.kill(silent, signal.SIGSTOP)
    try:
        done = rotate(cluster, check=False)
    finally:
        os.kill(silent, signal.SIGCONT)
    assert done.returncode == EX_TEMPFAIL
    assert f"c@{HOST} has not acknowledged" in done.stderr and f"a@{HOST}" not in done.stderr
    assert status(cluster)["phase"] == "accepting"
    assert cookie(cluster, "a", GHOST) == old

    cluster.wait(lambda: cluster.status_of("c")["agent"] == "connected", "c's agent")
    assert "given up" in rotate(cluster, "--give-up").stdout
    assert status(cluster)["phase"] == "idle"
    assert cluster.distsec("cookie", "rotate", "--give-up", check=False).returncode == 64

    assert "3 links proven" in rotate(cluster).stdout
    assert links(cluster) == before
    assert cookie(cluster, "a", GHOST) != old
    assert made <= status(cluster)["made"] <= time.time()


def status(cluster: Cluster) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(cluster.distsec("cookie", "status", "--json").stdout)
    return answer


def test_names_that_nobody_here_runs_are_named_before_anything_is_done(cluster: Cluster) -> None:
    step = kept(cluster)["step"]
    done = cluster.distsec("cookie", "rotate", check=False)
    assert done.returncode == 64 and GHOST in done.stderr and "--elsewhere" in done.stderr
    assert kept(cluster)["step"] == step


def test_no_secret_is_in_any_argument_or_environment_also_in_a_rotation(cluster: Cluster) -> None:
    """Of all processes below the orchestrator, their children, and the commands that rotate."""
    secrets: dict[bytes, str] = {}
    seen: dict[int, bytes] = {}
    over = threading.Event()

    def look() -> None:
        secrets.update(secrets_of(cluster.state))
        for pid in belonging_to(cluster.directory):
            with contextlib.suppress(OSError):
                proc = Path(f"/proc/{pid}")
                seen[pid] = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()

    def watch() -> None:
        while not over.is_set():
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    silent = cluster.pid("c")
    try:
        cluster.distsec("shell", cluster.node("a"), "--eval", "1+1.")
        os.kill(silent, signal.SIGSTOP)
        rotate(cluster, check=False)
    finally:
        os.kill(silent, signal.SIGCONT)
        over.set()
        watcher.join()
    look()  # the rotation has not come any further, and the watcher may have been late
    assert "ca/cookie.next" in secrets.values()
    cluster.wait(lambda: cluster.status_of("c")["agent"] == "connected", "c's agent")
    rotate(cluster)
    look()
    assert cluster.orchestrator is not None
    assert {cluster.orchestrator.pid, *(cluster.pid(name) for name in cluster.names)} <= seen.keys()
    assert any(b"-proto_dist" in shown for shown in seen.values())
    assert [path for secret, path in secrets.items() if any(secret in shown for shown in seen.values())] == []

    planted = next(secret for secret, path in secrets.items() if path.endswith("cookie.term"))
    with subprocess.Popen(
        [sys.executable, "-c", "input()", f"{cluster.directory}/", planted.decode()], stdin=subprocess.PIPE
    ) as told:
        cluster.wait(lambda: look() or planted in seen.get(told.pid, b""), "what is shown to be found")
        told.communicate(b"\n")


@pytest.mark.parametrize("otp", OTPS[:1], ids=str)
def test_a_release_whose_handshake_is_another_is_found_out_before_it_has_to_take_two(
    otp: Otp, beams: Path, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Its nodes link with one another, and would refuse who dials with the other cookie."""
    ebin = broken_otp.patched(
        otp,
        tmp_path,
        "dist_util",
        (
            "[atom_to_list(Cookie)|integer_to_list(Challenge)]",
            "[integer_to_list(Challenge)|atom_to_list(Cookie)]",
        ),
    )
    cluster = make_cluster(otp, ["a", "b"])
    for name in cluster.names:
        cluster.table(name)["command"] += ["-nostick", "-pa", str(ebin)]
    cluster.start()
    done = cluster.distsec("cookie", "rotate", check=False)
    assert done.returncode == EX_TEMPFAIL
    assert f"a@{HOST} cannot take two cookies" in done.stderr
    assert phase(cluster) == "accepting"
    cluster.distsec("cookie", "rotate", "--give-up")
    assert phase(cluster) == "idle"
    cluster.distsec("restart", cluster.node("b"))
    cluster.wait_meshed()
