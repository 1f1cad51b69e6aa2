"""What a shell's certificate is good for, in other hands: nothing beyond its own name, node, way and time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from distsec.control.attach import EXPRESSION, Use, environment, use_words
from tests.attacks.claim import VISIBLE, Claim, claim, false_node
from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf
from tests.system.cluster import Cluster
from tests.system.intruder import atom
from tests.waiting import wait_until

_ASK = """
import json, sys
from distsec.control.client import ControlClient
print(json.dumps(ControlClient(sys.argv[1]).shell(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Held:
    """A shell that was asked for and is not attached, its process waits: all that a thief could have."""

    node: str
    name: str
    identity: str
    cookie: str
    leaf: Leaf
    words: list[str]
    directory: Path


@contextmanager
def held(cluster: Cluster, node: str) -> Iterator[Held]:
    """A shell at `node` until the block ends; what it leaves in `cluster.directory/stolen` stays."""
    command = [sys.executable, "-c", _ASK, str(cluster.state / "control.sock"), cluster.node(node)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        directory = Path(answer["directory"])
        record = json.loads((directory / "shell.json").read_bytes())
        yield Held(
            node=cluster.node(node),
            name=answer["shell"],
            identity=record["identity"],
            cookie=(directory / ".erlang.cookie").read_text(),
            leaf=_stolen(cluster, directory),
            words=answer["words"],
            directory=directory,
        )
        process.stdin.close()
    wait_until(lambda: not directory.exists(), "the shell's directory to go")


def _stolen(cluster: Cluster, directory: Path) -> Leaf:
    """Copies, since the shell's own files go with it."""
    copies = cluster.directory / "stolen" / directory.name
    copies.mkdir(parents=True)
    paths = []
    for name in ("certificate.pem", "key.pem", "trust.pem"):
        (copies / name).write_bytes((directory / name).read_bytes())
        paths.append(copies / name)
    return Leaf(paths[0], paths[1], paths[2], "")


@pytest.fixture(scope="module", params=OTPS, ids=str)
def cluster(request: pytest.FixtureRequest, agent_ebin: Path, beams: Path) -> Iterator[Cluster]:
    """Two nodes that dial nobody, so that each link is a test's own."""
    with Cluster(request.param, beams, ["a", "b"]) as made:
        made.settings["security"]["distribution"]["connect"] = "none"
        made.settings["security"]["distribution"]["rules"] = [
            {"names": ["tool-*@127.0.0.1"], "kind": "cli"}  # every identity of kind cli
        ]
        made.init()
        made.run()
        made.wait_running()
        yield made


@pytest.fixture(autouse=True)
def _tested_release(request: pytest.FixtureRequest) -> None:
    otp: Otp = request.getfixturevalue("cluster").otps["a"]
    request.node.user_properties.append(("otp", otp.stands_for))


def try_as(cluster: Cluster, shell: Held, **changed: Any) -> Claim:
    """A claim with all that the shell has, but for what is `changed`."""
    how: dict[str, Any] = {"node": shell.node, "leaf": shell.leaf, "name": shell.name} | changed
    return claim(cluster.port(how.pop("node")), how.pop("leaf"), how.pop("name"), shell.cookie, **how)


def refusals(cluster: Cluster, shell: Held, address: str) -> list[tuple[str, str]]:
    """(event, reason) of what was refused that came from there with that shell's certificate: a port is used
    again, and an identity is not.
    """
    found = []
    for line in cluster.orchestrator_lines():
        event = json.loads(line)
        if (
            event.get("address") == address
            and event.get("identity") == shell.identity
            and event.get("result") == "deny"
        ):
            found.append((event["event"], event["reason"]))
    return found


def expect_refused(cluster: Cluster, shell: Held, claimed: Claim, reason: str) -> None:
    assert not claimed.admitted
    told = cluster.wait(lambda: refusals(cluster, shell, claimed.address), f"the refusal {reason}")
    assert told == [("UnauthorizedAccess", reason)]
    assert cluster.erl("a", "nodes(connected)") == "[]"
    claimed.connection.close()


@pytest.mark.otp
def test_it_admits_its_own_name_once_and_never_after_it_is_gone(cluster: Cluster) -> None:
    with held(cluster, "a") as shell:
        claimed = try_as(cluster, shell)
        assert claimed.admitted
        cluster.wait(lambda: shell.name in cluster.erl("a", "nodes(hidden)"), "the link")
        claimed.connection.close()
        cluster.wait(lambda: cluster.erl("a", "nodes(hidden)") == "[]", "its end")
        wait_until(lambda: cluster.erl("a", "distsec_shells:rules()") == "[]", "the node to forget it")
        expect_refused(cluster, shell, try_as(cluster, shell), "not_allowed")


@pytest.mark.otp
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("distsec-shell-999@127.0.0.1", "not_allowed"),
        ("b@127.0.0.1", "name_not_in_certificate"),
        ("tool-1@127.0.0.1", "name_not_in_certificate"),
        ("evil@127.0.0.1", "not_allowed"),
    ],
)
def test_it_admits_no_other_name(cluster: Cluster, name: str, reason: str) -> None:
    with held(cluster, "a") as shell:
        expect_refused(cluster, shell, try_as(cluster, shell, name=name), reason)


@pytest.mark.otp
def test_it_admits_not_even_the_name_of_another_shell_that_is_open(cluster: Cluster) -> None:
    with held(cluster, "a") as shell, held(cluster, "a") as other:
        claimed = try_as(cluster, shell, name=other.name)
        expect_refused(cluster, shell, claimed, "name_not_in_certificate")


@pytest.mark.otp
def test_it_admits_no_visible_node(cluster: Cluster) -> None:
    with held(cluster, "a") as shell:
        expect_refused(cluster, shell, try_as(cluster, shell, flags=VISIBLE), "not_hidden")


@pytest.mark.otp
def test_it_is_good_for_no_other_node(cluster: Cluster) -> None:
    with held(cluster, "a") as shell:
        expect_refused(cluster, shell, try_as(cluster, shell, node="b@127.0.0.1"), "not_allowed")


@pytest.mark.otp
def test_an_expired_one_is_refused_while_its_shell_is_open(cluster: Cluster) -> None:
    with held(cluster, "a") as shell:
        old = cluster.leaf(
            uris=[shell.identity], valid_from=-timedelta(hours=13), valid_for=timedelta(hours=12)
        )
        claimed = try_as(cluster, shell, leaf=old)
        assert not claimed.admitted
        told = cluster.wait(lambda: refusals(cluster, shell, claimed.address), "the refusal")
        assert told == [("CertificateValidationFailed", "expired")]


@pytest.mark.otp
def test_one_of_a_shell_that_never_attached_is_refused_as_soon_as_that_is_closed(cluster: Cluster) -> None:
    with held(cluster, "a") as shell:
        pass
    wait_until(lambda: cluster.erl("a", "distsec_shells:rules()") == "[]", "the node to be told")
    expect_refused(cluster, shell, try_as(cluster, shell), "not_allowed")


@pytest.mark.otp
def test_nobody_who_listens_with_it_is_linked_with(cluster: Cluster) -> None:
    """The node dials b; there a shell's certificate answers."""
    cluster.distsec("stop", "b@127.0.0.1")
    try:
        with held(cluster, "a") as shell, false_node(cluster.port("b"), shell.leaf, "b@127.0.0.1"):
            assert cluster.erl("a", "net_kernel:connect_node('b@127.0.0.1')") == "false"
            assert cluster.erl("a", "nodes(connected)") == "[]"
            serial = cluster.wait(
                lambda: [
                    event
                    for kind in ("CertificateValidationFailed", "UnauthorizedAccess")
                    for event in cluster.events(kind, direction="out", identity=shell.identity)
                ],
                "the refusal",
            )
            assert {event["reason"] for event in serial} == {"key_usage"}
    finally:
        cluster.distsec("start", "b@127.0.0.1")


@pytest.mark.otp
def test_a_shell_links_with_nobody_but_its_node(cluster: Cluster) -> None:
    """Another listed node's certificate answers at the node's address."""
    with held(cluster, "a") as shell:
        (shell.directory / EXPRESSION).write_text("node().")
        cluster.distsec("stop", "a@127.0.0.1")
        try:
            with false_node(cluster.port("a"), cluster.leaf("b"), "a@127.0.0.1"):
                done = subprocess.run(
                    [*shell.words, *use_words(Use.EVALUATE, shell.node, timeout_seconds=40, prompt=False)],
                    env=environment(str(shell.directory), {}, None),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
        finally:
            cluster.distsec("start", "a@127.0.0.1")
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.startswith("distsec: no link with a@127.0.0.1: ")
    assert any(why in done.stderr for why in ("wrong_peer", "name_not_in_certificate", "not_allowed"))


@pytest.mark.otp
def test_its_vm_starts_with_no_other_flags(cluster: Cluster) -> None:
    """The guard of nodes holds for shells too: none that listens, in plaintext, or with another resolver."""
    with held(cluster, "a") as shell:
        for more in (["-proto_dist", "inet_tcp"], ["-dist_listen", "true"], ["-setcookie", "x"]):
            words = use_words(Use.EVALUATE, shell.node, timeout_seconds=40, prompt=False)
            done = subprocess.run(
                [*shell.words, *more, *words],
                env=environment(str(shell.directory), {}, None),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 78, done
            assert more[0].removeprefix("-") in done.stdout + done.stderr


@pytest.mark.otp
def test_who_steals_it_meanwhile_does_not_get_in_beside_it(cluster: Cluster) -> None:
    """The name is taken, and the one who has it stays."""
    with held(cluster, "a") as shell:
        first = try_as(cluster, shell)
        assert first.admitted
        # Until net_kernel has it up, a second one is taken for a dial from both sides, and replaces it.
        # That is a moment after nodes/1 knows it (dist_util: do_setnode/1, then mark_nodeup/2).
        state = f"net_kernel:node_info({atom(shell.name)}, state)"
        cluster.wait(lambda: cluster.erl("a", state) == "{ok,up}", "the link")
        second = try_as(cluster, shell)
        assert not second.admitted
        second.connection.close()
        assert shell.name in cluster.erl("a", "nodes(hidden)")
        first.connection.close()
    cluster.wait(lambda: cluster.erl("a", "nodes(hidden)") == "[]", "its end")
