"""A managed node that was taken over: whatever it says to the orchestrator, nobody else suffers."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest

from tests.faults.chaos.pressure import waited_seconds
from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster

FRAMES = 50_000
ACKNOWLEDGE_SECONDS = 3
PATIENCE_SECONDS = 2.0
"""For `status` (half of the answers: others may use this machine as well) and for a denial being in force at
the other nodes, neither of which needs anything of the node that floods. To this and every other limit comes
by how much longer than STARTED_SECONDS a command took at that moment that asks nobody (`held_up`): most of
any command is the start of its interpreter, and how long that takes is the machine's doing.
"""

STARTED_SECONDS = 0.15
"""Of `distsec deny --help` on a core of its own."""

HICCUP_SECONDS = 5.0
"""For any single command, and for what a restart may take longer than without the flood: a VM boots in it."""

LEAST_RATE = 10_000
"""Frames a second that make it a flood: one that hardly anything is taken of proves nothing. Seconds
in which the orchestrator waited for a core do not count.
"""


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """One release: it is the orchestrator that is under test."""
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams) as cluster:
        cluster.settings["cluster"]["acknowledge_deadline_seconds"] = ACKNOWLEDGE_SECONDS
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(shared: Cluster, otp: Otp, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three nodes, RUNNING and meshed; c will be the hostile one. Each is left like that, failed or not."""
    request.node.user_properties.append(("otp", otp.stands_for))
    shared.wait_running()
    shared.wait_meshed()
    yield shared
    if shared.erl("c", "is_pid(whereis(distsec_test_hostile))") == "true":
        shared.erl("c", "distsec_test_hostile:stop()")
    overlay = shared.state / "policy.overlay"
    if json.loads(overlay.read_bytes())["deny"]:
        shared.wait(lambda: shared.status_of("c")["agent"] == "connected", "the honest agent of c")
        shared.distsec("allow", "b@127.0.0.1")


@pytest.mark.alone
def test_a_node_that_floods_slows_no_command_of_the_others(cluster: Cluster) -> None:
    def seconds_of(*arguments: str) -> float:
        asked = time.monotonic()
        cluster.distsec(*arguments)
        return time.monotonic() - asked

    def held_up() -> float:
        return max(0.0, seconds_of("deny", "--help") - STARTED_SECONDS)

    def waited() -> float:
        assert cluster.orchestrator is not None
        pid = cluster.orchestrator.pid
        return waited_seconds([pid])[pid]

    def taken() -> int:
        return int(cluster.erl("c", "distsec_test_hostile:sent()"))

    quiet = seconds_of("restart", "b@127.0.0.1")
    cluster.wait_meshed()
    cluster.erl("c", "distsec_test_hostile:flood()")
    began, waited_before = time.monotonic(), waited()
    answers: list[float] = []
    delays: list[float] = []
    while taken() < FRAMES or len(answers) < 5:  # as fast as they are taken
        asked = time.monotonic()
        assert '"schema"' in cluster.distsec("status", "--json", check=False).stdout
        answers.append(time.monotonic() - asked)
        delays.append(held_up())
        assert asked - began < 60, cluster.story()
    assert median(answers) < PATIENCE_SECONDS + median(delays), (answers, delays)
    assert max(answers) < HICCUP_SECONDS + max(delays), (answers, delays)
    with ThreadPoolExecutor(1) as pool:
        delaying = pool.submit(held_up)
        busy = seconds_of("restart", "b@127.0.0.1")
        delay = delaying.result()
    assert busy < quiet + HICCUP_SECONDS + delay
    cluster.wait_links(("a", "b"))

    # What every node has to acknowledge is in force where it can be at once, and ends, in time, with the name
    # of the only one that does not.
    with ThreadPoolExecutor(2) as pool:
        asked = time.monotonic()
        delaying = pool.submit(held_up)
        denying = pool.submit(cluster.distsec, "deny", "b@127.0.0.1", check=False)
        cluster.wait(lambda: "b@127.0.0.1" not in cluster.erl("a", "nodes(connected)"), "a without b")
        in_force = time.monotonic() - asked
        denied = denying.result()
        ended = time.monotonic() - asked
        delay = delaying.result()
    assert in_force < PATIENCE_SECONDS + delay
    assert ended < ACKNOWLEDGE_SECONDS + PATIENCE_SECONDS + delay
    assert denied.returncode == 75
    assert "b@127.0.0.1 is denied, for good, but c@127.0.0.1 has not acknowledged;" in denied.stderr
    assert "b@127.0.0.1" not in cluster.erl("a", "nodes(connected)")
    flooded, seconds = taken(), time.monotonic() - began - (waited() - waited_before)
    rate = flooded / seconds
    print(f"{rate:,.0f} frames/s taken; restart of another node {quiet:.2f} s quiet, {busy:.2f} s meanwhile;")
    print(f"status {median(answers):.2f} s; a denial in force after {in_force:.2f} s", end="; ")
    print(f"held up by the machine: {median(delays):.2f} s, at the denial {delay:.2f} s")
    assert rate >= LEAST_RATE, f"{flooded} frames in {seconds:.1f} s"
    cluster.wait(lambda: taken() > flooded, "the flood, which has gone on all the while")

    cluster.erl("c", "distsec_test_hostile:stop()")
    wanted = cluster.status()["policy_generation"]
    cluster.wait(lambda: cluster.status_of("c")["policy_generation"] == wanted, "the honest agent of c")
    cluster.distsec("allow", "b@127.0.0.1")
    cluster.wait_meshed()


def wait_honest(cluster: Cluster) -> None:
    """Until c's own agent is back. What it has proven before counts while it is away."""
    cluster.wait(
        lambda: {"agent": "connected", "guard": "proven"}.items() <= cluster.status_of("c").items(),
        "the honest agent of c",
    )


GARBAGE = {
    "random bytes": (struct.pack(">I", 64) + random.Random(2).randbytes(64), "term"),
    "text": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "frame_too_large"),
    "a frame of four gigabytes": (b"\xff" * 4096, "frame_too_large"),
    "a term that is no message": (struct.pack(">I", 3) + b"\x83a\x01", "protocol"),
    "half a frame, then another": (struct.pack(">I", 64) + bytes(30) + b"\x83" * 64, "term"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_whatever_it_sends_costs_it_the_connection_and_nobody_else_anything(
    cluster: Cluster, what: str
) -> None:
    payload, reason = GARBAGE[what]
    before = cluster.metric("distsec_agent_refused_total", node="c@127.0.0.1", reason=reason)
    known = len(cluster.events("AgentRefused", node="c@127.0.0.1", reason=reason))
    pids = {name: cluster.pid(name) for name in cluster.names}
    cluster.erl("c", f"distsec_test_hostile:open_and_send(<<{','.join(map(str, payload))}>>)")
    cluster.wait(
        lambda: len(cluster.events("AgentRefused", node="c@127.0.0.1", reason=reason)) > known,
        f"AgentRefused, reason {reason}",
    )
    assert cluster.metric("distsec_agent_refused_total", node="c@127.0.0.1", reason=reason) == before + 1
    cluster.wait(lambda: cluster.status_of("c")["agent"] == "lost", "c without its agent")
    assert cluster.distsec("status", check=False).returncode == 1
    assert {node["agent"] for node in cluster.status()["nodes"] if node["name"] != "c@127.0.0.1"} == {
        "connected"
    }
    cluster.erl("c", "distsec_test_hostile:stop()")
    wait_honest(cluster)
    assert {name: cluster.pid(name) for name in cluster.names} == pids
    cluster.distsec("status")


def test_half_a_frame_and_silence_hold_nothing_up(cluster: Cluster) -> None:
    cluster.erl("c", "distsec_test_hostile:open_and_send(<<0,0,4,0,131>>)")
    cluster.distsec("restart", "a@127.0.0.1")
    cluster.erl("c", "distsec_test_hostile:stop()")
    wait_honest(cluster)
    cluster.wait_meshed()
