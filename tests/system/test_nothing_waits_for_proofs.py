"""A proof of a link waits for its peer, which may never answer; a denial does not wait for the proof."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distsec.control.client import ControlClient
from tests.releases import OTPS, Otp
from tests.system.cluster import COMMAND, HOST, Cluster

SPARE = f"spare@{HOST}"
"""Listed, and run by nobody."""


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def cluster(request: pytest.FixtureRequest, agent_ebin: Path, beams: Path) -> Iterator[Cluster]:
    """One release: the agent's commands are the same on all."""
    otp: Otp = request.param
    with Cluster(otp, beams) as made:
        made.settings["security"]["distribution"]["allowed_nodes"].append(SPARE)
        made.start()
        yield made


def test_a_denial_is_in_force_while_a_proof_still_waits_for_a_peer_that_is_stopped(
    cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    request.node.user_properties.append(("otp", next(iter(cluster.otps.values())).stands_for))
    dialler, silent = next(
        (node["name"].partition("@")[0], link["peer"].partition("@")[0])
        for node in cluster.status()["nodes"]
        for link in node["links"]
        if link["direction"] == "out"
    )
    pid = cluster.pid(silent)
    os.kill(pid, signal.SIGSTOP)
    try:
        with _begun(cluster, "certs", "renew", cluster.node(dialler)) as renewing:
            waiting = "[P || {_, P, tls, #{direction := out}} <- distsec_attempts:all()]"
            cluster.wait(lambda: cluster.erl(dialler, waiting) != "[]", "the proof to wait for its peer")
            known = len(cluster.events("PolicyApplied", node=cluster.node(dialler)))
            # Not the command: its start may take longer than the proof waits.
            control = ControlClient(str(cluster.state / "control.sock"))
            with ThreadPoolExecutor(1) as pool:
                denying = pool.submit(control.deny, SPARE)
                cluster.wait(
                    lambda: len(cluster.events("PolicyApplied", node=cluster.node(dialler))) > known,
                    "the denial to be in force",
                )
                assert cluster.erl(dialler, waiting) != "[]", "no proof waits any more: nothing was shown"
                os.kill(pid, signal.SIGCONT)
                denying.result()
            renewing.communicate(timeout=60)
    finally:
        os.kill(pid, signal.SIGCONT)


def _begun(cluster: Cluster, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *words],
        env=cluster.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
