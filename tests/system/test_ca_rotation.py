"""certs rotate-ca on real nodes: a new CA takes the old one's place, and no link notices."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf, TestAuthority
from tests.system.cluster import Cluster
from tests.system.loads import Load
from tests.system.secrets import contents
from tests.system.test_continuity import run_spoiled, wait_killed

SECONDS = 90.0


@pytest.fixture(scope="module", params=OTPS, ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(shared: Cluster, otp: Otp, request: pytest.FixtureRequest) -> Cluster:
    """a, b and c, RUNNING and meshed; each test leaves them so, with no rotation under way."""
    request.node.user_properties.append(("otp", otp.stands_for))
    shared.wait_running()
    shared.wait_meshed()
    assert rotation(shared)["phase"] == "idle"
    return shared


def step(cluster: Cluster, *words: str) -> str:
    """`certs rotate-ca WORDS`, and what it says."""
    return cluster.distsec("certs", "rotate-ca", *words, seconds=SECONDS).stdout


def rotation(cluster: Cluster) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(step(cluster, "status", "--json"))
    return document


def leaves(cluster: Cluster) -> set[str]:
    """Which CA the nodes' certificates are of."""
    return {node["leaf"] for node in rotation(cluster)["nodes"]}


def issuers(cluster: Cluster) -> set[str]:
    """Of the certificates that the links are proven with."""
    return {link["issuer"] for node in cluster.status()["nodes"] for link in node["links"]}


def subject(cluster: Cluster, role: str) -> str:
    return str(next(each["subject"] for each in rotation(cluster)["authorities"] if each["role"] == role))


def phase_on_disk(cluster: Cluster) -> str:
    """Without asking the orchestrator."""
    path = cluster.state / "ca/rotation.json"
    return str(json.loads(path.read_bytes())["phase"]) if path.exists() else "idle"


def down(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.events("NodeDown")


def test_a_whole_rotation_loses_no_link_and_no_message_and_the_old_ca_is_refused(cluster: Cluster) -> None:
    old_key = (cluster.state / "ca/key.pem").read_bytes()
    old = TestAuthority.of_cluster(cluster.state)
    before, known = subject(cluster, "current"), len(down(cluster))
    with Load(cluster) as load:
        assert "next: `distsec certs rotate-ca activate`" in step(cluster, "prepare")
        assert {tuple(node["trusts"]) for node in rotation(cluster)["nodes"]} == {("current", "next")}
        assert leaves(cluster) == {"current"}
        after = subject(cluster, "next")
        assert after != before
        assert cluster.status()["ca_rotation"]["phase"] == "prepared"
        assert "rotation of the CA: prepared" in cluster.distsec("status").stdout

        assert "next: `distsec certs rotate-ca prune`" in step(cluster, "activate")
        assert leaves(cluster) == {"next"}
        assert issuers(cluster) == {after}

        step(cluster, "prune")
        load.assert_flows()
    load.report.assert_intact()
    assert len(down(cluster)) == known
    assert (rotation(cluster)["phase"], subject(cluster, "current")) == ("idle", after)
    assert {tuple(node["trusts"]) for node in rotation(cluster)["nodes"]} == {("current",)}
    for kind in ("Prepared", "Activated", "Pruned"):
        assert cluster.wait_event(f"CaRotation{kind}")["result"] == "allow"
    alarms = cluster.events("CertificateValidationFailed", reason="unknown_ca")
    assert not alarms, "our own proof alarms nobody"
    _refused(cluster, old)
    kept = [path for path, content in contents(cluster.state) if old_key in content]
    assert kept == [], "the old key is nowhere"
    assert len(list((cluster.state / "ca/old").iterdir())) >= 1
    assert list((cluster.state / "ca/next").iterdir()) == []
    cluster.wait_well()


def _refused(cluster: Cluster, old: TestAuthority) -> None:
    """An insider with a certificate of the old CA, for a name that is allowed, and with its cookie."""
    leaf: Leaf = cluster.leaf("c", authority=old)
    seen = len(cluster.events("CertificateValidationFailed", reason="unknown_ca"))
    thief = cluster.intruder("thief", leaf=leaf, hidden=True)
    assert not thief.connect("a@127.0.0.1")
    cluster.wait(
        lambda: len(cluster.events("CertificateValidationFailed", reason="unknown_ca")) > seen,
        "the refusal of the old CA",
    )
    thief.stop()


@pytest.mark.parametrize("steps", [["prepare"], ["prepare", "activate"]], ids=lambda steps: steps[-1])
def test_a_rollback_leads_back_without_losing_a_link(cluster: Cluster, steps: list[str]) -> None:
    before, known = subject(cluster, "current"), len(down(cluster))
    for name in steps:
        step(cluster, name)
    step(cluster, "rollback")
    document = rotation(cluster)
    assert (document["phase"], len(document["authorities"])) == ("idle", 1)
    assert leaves(cluster) == {"current"}
    assert issuers(cluster) == {before}
    assert {tuple(node["trusts"]) for node in document["nodes"]} == {("current",)}
    assert len(down(cluster)) == known
    assert list((cluster.state / "ca/next").iterdir()) == []


KILLED_IN_A_PHASE = """
import os, pathlib, signal
from distsec.supervisor.ca_nodes import CaNodes
from distsec.supervisor.succession import StateSuccession
bring, retire = CaNodes.bring, StateSuccession.retire
armed = pathlib.Path({armed!r})
def ends_in(phase):
    return armed.exists() and armed.read_text() == phase
async def brought(self, phase, names):
    if ends_in(phase):
        await bring(self, phase, sorted(names)[:1])
        os.kill(os.getpid(), signal.SIGKILL)
    return await bring(self, phase, names)
def retired(self):
    retire(self)
    if ends_in("retiring"):
        os.kill(os.getpid(), signal.SIGKILL)
CaNodes.bring, StateSuccession.retire = brought, retired
"""
"""In the phase that the file `armed` names: when the first node has what it wants and the others have not, or
the old key is destroyed and nothing says so yet."""


def run_killed_in_a_phase(cluster: Cluster) -> None:
    run_spoiled(cluster, KILLED_IN_A_PHASE.format(armed=str(cluster.directory / "armed")))


@pytest.fixture(scope="module")
def disturbed(beams: Path, agent_ebin: Path) -> Iterator[Cluster]:
    """Of the oldest release: what is interrupted is the orchestrator's."""
    with Cluster(OTPS[0], beams) as cluster:
        cluster.init()
        run_killed_in_a_phase(cluster)
        cluster.wait_running()
        cluster.wait_meshed()
        yield cluster


def interrupt(cluster: Cluster, word: str, phase: str, killed: str) -> None:
    """The orchestrator is killed in the middle of `phase`, to which the command comes, and the node `killed`
    with it; starts it anew.
    """
    pid = cluster.status_of(killed)["pid"]
    armed = cluster.directory / "armed"
    armed.write_text(phase)
    assert cluster.distsec("certs", "rotate-ca", word, check=False, seconds=SECONDS).returncode == 69
    wait_killed(cluster)
    os.kill(pid, signal.SIGKILL)
    armed.unlink()
    assert phase_on_disk(cluster) == phase, "it was killed in the middle"
    run_killed_in_a_phase(cluster)
    cluster.wait_running()
    cluster.wait_meshed()
    assert rotation(cluster)["step"] == phase, "nothing leads on but a command"


def test_whatever_is_killed_in_the_middle_of_a_phase_is_gone_on_with(disturbed: Cluster) -> None:
    """Each time everybody finds everybody again before anybody goes on."""
    cluster, first = disturbed, subject(disturbed, "current")
    interrupt(cluster, "prepare", "preparing", "a")
    step(cluster, "prepare")
    interrupt(cluster, "activate", "activating", "b")
    interrupt(cluster, "rollback", "reissuing", "c")
    step(cluster, "rollback")
    assert (subject(cluster, "current"), issuers(cluster)) == (first, {first})

    step(cluster, "prepare")
    second = subject(cluster, "next")
    step(cluster, "activate")
    interrupt(cluster, "prune", "pruning", "a")
    interrupt(cluster, "rollback", "widening", "b")
    step(cluster, "rollback")
    assert (subject(cluster, "current"), issuers(cluster)) == (first, {first})

    step(cluster, "prepare")
    third = subject(cluster, "next")
    assert third not in {first, second}, "a CA that was given up does not come back"
    step(cluster, "activate")
    interrupt(cluster, "prune", "retiring", "c")
    step(cluster, "prune")
    assert (subject(cluster, "current"), issuers(cluster)) == (third, {third})
    cluster.wait_well()


def answers_within(cluster: Cluster, seconds: int) -> None:
    """What a silent node is waited for; the others have to be done by then, however busy the machine is."""
    known = len(cluster.events("ConfigurationReloaded"))
    cluster.settings["cluster"]["acknowledge_deadline_seconds"] = seconds
    cluster.write()
    cluster.signal(signal.SIGHUP)
    cluster.wait(lambda: len(cluster.events("ConfigurationReloaded")) > known, "the end of the reload")


def test_a_node_that_does_not_answer_holds_a_phase_up_until_it_does_or_is_stopped(disturbed: Cluster) -> None:
    cluster, before = disturbed, subject(disturbed, "current")
    pid = cluster.status_of("b")["pid"]
    answers_within(cluster, 4)
    os.kill(pid, signal.SIGSTOP)
    try:
        done = cluster.distsec("certs", "rotate-ca", "prepare", check=False, seconds=SECONDS)
        assert done.returncode == 75
        assert "the rotation of the CA is preparing, and nobody is locked out: b@127.0.0.1: " in done.stderr
        assert "`rollback` leads back" in done.stderr
        refused = cluster.distsec("certs", "rotate-ca", "activate", check=False)
        assert refused.returncode == 64
        assert "the rotation of the CA is preparing, so there is nothing to activate now" in refused.stderr
        assert cluster.status()["ca_rotation"]["behind"] == ["b@127.0.0.1"]
        told = cluster.distsec("certs", "rotate-ca", "rollback", seconds=SECONDS)
        assert "warning: b@127.0.0.1 has the files, and has not read them" in told.stderr
        assert rotation(cluster)["phase"] == "idle"
    finally:
        os.kill(pid, signal.SIGCONT)
    answers_within(cluster, 20)
    cluster.wait(lambda: cluster.status()["ca_rotation"] is None, "b to be told by itself")
    cluster.wait_meshed()

    cluster.distsec("stop", "b@127.0.0.1")  # a node that does not run holds nothing up
    step(cluster, "prepare")
    cluster.distsec("allow", "far@127.0.0.1")  # somebody whom we cannot give the new CA
    refused = cluster.distsec("certs", "rotate-ca", "activate", check=False)
    assert refused.returncode == 64
    assert "far@127.0.0.1: listed, not run by this orchestrator, and not known to" in refused.stderr
    assert "not run here: far@127.0.0.1" in step(cluster, "activate", "--elsewhere")
    cluster.distsec("deny", "far@127.0.0.1")
    cluster.distsec("start", "b@127.0.0.1")
    cluster.wait_meshed()
    after = subject(cluster, "next")
    assert issuers(cluster) == {after}
    step(cluster, "prune")
    assert subject(cluster, "current") == after != before


def test_under_stock_otp_links_are_made_anew_before_the_old_ca_goes(beams: Path, agent_ebin: Path) -> None:
    """A link of inet_tls keeps the certificate that it was made with."""
    with Cluster(OTPS[0], beams, nodes=["a", "b"], carrier="inet_tls") as cluster:
        cluster.start()
        before = subject(cluster, "current")
        step(cluster, "prepare")
        step(cluster, "activate")
        assert issuers(cluster) == {before}
        done = cluster.distsec("certs", "rotate-ca", "prune", check=False, seconds=SECONDS)
        assert done.returncode == 75
        assert "`distsec certs renew --all --recycle` makes them anew" in done.stderr
        assert rotation(cluster)["phase"] == "activated"
        cluster.distsec("certs", "renew", "--all", "--recycle", seconds=SECONDS)
        after = subject(cluster, "next")  # it waits for one end of each link, and prune looks at both
        cluster.wait(lambda: issuers(cluster) == {after}, "both ends to tell of the link")
        step(cluster, "prune")
        assert issuers(cluster) == {subject(cluster, "current")} == {after} != {before}
