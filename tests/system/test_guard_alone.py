"""The guard inside a node, with no orchestrator there: what it halts, and whom it admits.

The nodes are started by hand with what `distsec env` prints, as a unit of systemd would.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distsec.control.client import ControlClient
from tests.releases import OTPS, Otp
from tests.system.beam_control import Control
from tests.system.cluster import Cluster
from tests.system.intruder import Intruder, atom
from tests.system.of_module import of_module
from tests.system.sockets import Seen, SocketWatch
from tests.waiting import wait_until

EX_CONFIG = 78

HALTED: Mapping[str, tuple[str, str]] = {
    "tcp": ("-proto_dist inet_tcp", "proto_dist -proto_dist "),
    "again": ("-proto_dist distsec", "proto_dist -proto_dist "),
    "stock": ("-proto_dist inet_tls", "proto_dist -proto_dist "),
    "opt": ("-ssl_dist_opt server_verify verify_none", "ssl_dist_opt -ssl_dist_opt "),
    "cookie": ("-setcookie shown_to_all", "setcookie -setcookie "),
    "name": ("-name other@127.0.0.1", "name the node must be "),
    "sname": ("-sname other", "name the node must be "),
    "epmd": ("-no_epmd", "no_epmd -no_epmd "),
    "deaf": ("-dist_listen false", "dist_listen -dist_listen "),
}
"""Node → what it is given too, and how its guard.refused begins."""

CRASHED = "optfile"
"""A second -ssl_dist_optfile ends OTP's own start, before the guard's turn."""

POLICIES = ("missing", "garbage", "foreign", "good")
FRIEND = "friend"


@dataclass(slots=True)
class Alone:
    """Nodes that something else starts; `environments` are those that `distsec env` gave."""

    cluster: Cluster
    otp: Otp
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        log = self.cluster.node_directory(name) / "log"
        environment = {
            "HOME": str(self.cluster.directory),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "ERL_CRASH_DUMP": f"{log}/erl_crash.dump",
            **self.environments[name],
        }
        control = Control.arguments(self.cluster.beams, self.control(name).path)
        log.mkdir(exist_ok=True)
        with (log / "output.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [self.otp.erl, "-noinput", *words, *control],
                cwd=self.cluster.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def control(self, name: str) -> Control:
        return Control(self.cluster.directory / f"{name}.sock")

    def exit_code(self, name: str) -> int | None:
        """None while it runs."""
        return self.processes[name].poll()

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


otp = of_module(OTPS)


@pytest.fixture(scope="module")
def alone(otp: Otp, beams: Path) -> Iterator[Alone]:
    names = [*HALTED, CRASHED, *POLICIES]
    with Cluster(otp, beams, names) as cluster:
        distribution = cluster.settings["security"]["distribution"]
        distribution["connect"] = "none"
        distribution["allowed_nodes"] += [cluster.node(FRIEND)]
        for name in names:
            del cluster.table(name)["command"]
        cluster.init()
        cluster.run()
        client = ControlClient(str(cluster.state / "control.sock"))
        cluster.wait(cluster.states, "the orchestrator")
        made = Alone(cluster, otp)
        for name in names:
            made.environments[name] = client.environment(cluster.node(name))["env"]
        cluster.kill()
        try:
            yield made
        finally:
            made.stop()


# ---- flags ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watch(alone: Alone) -> SocketWatch:
    """All nodes with a flag too many have been started and given time to end; their sockets were watched."""
    watch = SocketWatch(os.getpid(), alone.cluster.state)
    with watch.watching():
        for name, (words, _) in HALTED.items():
            alone.start(name, *words.split())
        alone.start(CRASHED, "-ssl_dist_optfile", "/nowhere/own.conf")
        with contextlib.suppress(AssertionError):  # each test then says of its node that it did not end
            wait_until(
                lambda: all(alone.exit_code(name) is not None for name in (*HALTED, CRASHED)),
                "their end",
                120,
            )
    return watch


@pytest.mark.parametrize("name", HALTED)
def test_the_guard_halts_a_node_before_it_listens_and_leaves_the_reason(
    alone: Alone, watch: SocketWatch, name: str
) -> None:
    assert watch.of(alone.cluster.node(name)) == set()
    assert alone.exit_code(name) == EX_CONFIG
    told = alone.cluster.node_directory(name) / "guard.refused"
    assert stat.S_IMODE(told.stat().st_mode) == 0o600
    refused = told.read_text()
    assert refused.startswith(HALTED[name][1])
    assert "this node does not listen" in alone.cluster.log(name)


def test_a_second_optfile_ends_the_boot_before_anything_listens(alone: Alone, watch: SocketWatch) -> None:
    assert watch.of(alone.cluster.node(CRASHED)) == set()
    assert alone.exit_code(CRASHED) not in {None, 0}


# ---- the policy at boot -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policies(alone: Alone, watch: SocketWatch) -> Alone:
    """Nodes whose policy.term is as their name says; they listen."""
    file = {name: alone.cluster.node_directory(name) / "policy.term" for name in POLICIES}
    file["missing"].unlink()
    file["garbage"].write_bytes(b"\xff{distsec_policy, nonsense")
    file["foreign"].write_bytes(_signed_by_another(file["foreign"].read_bytes()))
    for name in POLICIES:
        alone.start(name)
    for name in POLICIES:
        wait_until(alone.control(name).ready, f"{name} to boot")
    return alone


def _signed_by_another(document: bytes) -> bytes:
    body = document[: document.rindex(b"{signature,")]
    signature = base64.b64encode(Ed25519PrivateKey.generate().sign(body))
    return body + b'{signature, <<"' + signature + b'">>}.\n'


def test_a_node_without_a_good_policy_admits_nobody_until_it_is_pushed_one(policies: Alone) -> None:
    cluster = policies.cluster
    friend = cluster.intruder(FRIEND, leaf=cluster.leaf(FRIEND))
    for name in POLICIES:
        cookie = atom(_pair_cookie(cluster.node_directory(name), cluster.node(FRIEND)))
        friend.erl(f"erlang:set_cookie({atom(cluster.node(name))}, {cookie})")

    def admitted() -> dict[str, bool]:
        return {name: _linked(cluster, friend, name) for name in POLICIES}

    assert admitted() == {"missing": False, "garbage": False, "foreign": False, "good": True}
    for name in ("missing", "garbage", "foreign"):
        assert policies.control(name).evaluate("distsec_policy:in_force()") == "undefined"
        assert policies.control(name).evaluate("nodes(connected)") == "[]"
    cluster.run()
    cluster.wait_running(*POLICIES)
    wait_until(lambda: admitted() == dict.fromkeys(POLICIES, True), "all to admit who is listed")


def _linked(cluster: Cluster, friend: Intruder, name: str) -> bool:
    return friend.connect(cluster.node(name)) and cluster.node(name) in friend.links()


def _pair_cookie(directory: Path, peer: str) -> str:
    text = (directory / "cookie.term").read_text()
    found = re.search(rf'<<"{re.escape(peer)}">>\s*=>\s*<<"([A-Za-z0-9]+)">>', text)
    assert found is not None
    return found[1]


def test_whatever_its_policy_a_node_listens_with_tls_alone(policies: Alone) -> None:
    watch = SocketWatch(os.getpid(), policies.cluster.state)
    wanted = {
        Seen(policies.cluster.node(name), policies.cluster.port(name), plaintext=False) for name in POLICIES
    }
    with watch.watching():
        wait_until(lambda: wanted <= watch.seen, "their sockets")
        wait_until(lambda: watch.looks > 20, "a good look")
    assert watch.seen == wanted
