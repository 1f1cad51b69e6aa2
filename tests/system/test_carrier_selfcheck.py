"""A node whose OTP does not do what the carrier leans on never listens, nor one whose optfile would undo it.

Each node is started by hand with a stand-in of one OTP module before OTP's own in its code path, or with an
optfile that its guard would take: the orchestrator's own hand, misled, could have written it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from distsec.control.client import ControlClient
from tests.releases import OTPS, Otp
from tests.system.broken_otp import STAND_INS, make
from tests.system.cluster import Cluster
from tests.system.of_module import of_module
from tests.system.sockets import SocketWatch
from tests.system.test_guard_alone import EX_CONFIG, Alone
from tests.waiting import wait_until

AT_ONCE = 4
END_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Optfile:
    """`old` is replaced by `new` for one role; `says`: how the reason for not listening begins."""

    role: str
    old: str
    new: str
    says: str


def added(option: str, says: str, role: str = "server") -> Optfile:
    return Optfile(role, "{verify,verify_peer}", "{verify,verify_peer}," + option, says)


OPTFILES: Mapping[str, Optfile] = {
    "ktls": added("{ktls,true}", "server.ktls is no option"),
    "tickets": added("{session_tickets,stateless}", "server.session_tickets is no option"),
    "early-data": added("{early_data,enabled}", "server.early_data is no option"),
    "reuse": added("{reuse_sessions,true}", "client.reuse_sessions is no option", "client"),
    "use-ticket": added("{use_ticket,[]}", "client.use_ticket is no option", "client"),
    "sni": added("{sni_hosts,[]}", "server.sni_hosts is no option"),
    "anybody": Optfile(
        "server", "{verify,verify_peer}", "{verify,verify_none}", "server must have {verify,verify_peer}"
    ),
    "any-server": Optfile(
        "client", "{verify,verify_peer}", "{verify,verify_none}", "client must have {verify,verify_peer}"
    ),
    "twice": added("{verify,verify_none}", "server.verify is given twice"),
    "older": Optfile(
        "server", "{versions,['tlsv1.3']}", "{versions,['tlsv1.3','tlsv1.2']}", "server must have {versions,"
    ),
    "no-cert": Optfile(
        "server",
        "{fail_if_no_peer_cert,true}",
        "{fail_if_no_peer_cert,false}",
        "server must have {fail_if_no_",
    ),
    "other-key": Optfile("client", "key.pem", "trust.pem", "keyfile holds no key"),
}

GOOD = "good"
NAMES = (*STAND_INS, *OPTFILES, GOOD)


otp = of_module(OTPS)


@dataclass(frozen=True, slots=True)
class Ended:
    """All nodes have been started and all but GOOD have ended; their sockets were watched."""

    alone: Alone
    watch: SocketWatch

    def refused(self, name: str) -> str:
        """Why a node did not listen, having checked that it did not."""
        assert not _listens(self.alone, self.watch, name)
        assert self.alone.exit_code(name) == EX_CONFIG, self.alone.cluster.log(name)[-2000:]
        assert "this node does not listen" in self.alone.cluster.log(name)
        return (self.alone.cluster.node_directory(name) / "guard.refused").read_text()


@pytest.fixture(scope="module")
def ended(otp: Otp, beams: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    stand_ins = make(otp, tmp_path_factory.mktemp("stand-ins") / str(otp))
    with Cluster(otp, beams, NAMES) as cluster:
        alone = _environments(cluster, otp)
        for name, optfile in OPTFILES.items():
            _rewrite(cluster.node_directory(name), optfile)
        words = {name: ("-nostick", "-pa", str(ebin)) for name, ebin in stand_ins.items()}
        watch = SocketWatch(os.getpid(), cluster.state)
        try:
            with watch.watching():
                for at in range(0, len(NAMES), AT_ONCE):
                    some = NAMES[at : at + AT_ONCE]
                    for name in some:
                        alone.start(name, *words.get(name, ()))
                    with suppress(AssertionError):  # each test then says of its node that it did not end
                        wait_until(partial(_at_rest, alone, watch, some), "their end", END_SECONDS)
            yield Ended(alone, watch)
        finally:
            alone.stop()


def _environments(cluster: Cluster, otp: Otp) -> Alone:
    cluster.settings["security"]["distribution"]["connect"] = "none"
    for name in NAMES:
        del cluster.table(name)["command"]
    cluster.init()
    cluster.run()
    client = ControlClient(str(cluster.state / "control.sock"))
    cluster.wait(cluster.states, "the orchestrator")
    made = Alone(cluster, otp)
    for name in NAMES:
        made.environments[name] = client.environment(cluster.node(name))["env"]
    cluster.kill()
    return made


def _rewrite(directory: Path, change: Optfile) -> None:
    """Changes the optfile, and its digest in the guard."""
    path = directory / "dist.conf"
    before = path.read_text()
    head, middle, tail = before.partition("{client,")
    if change.role == "server":
        head = head.replace(change.old, change.new, 1)
    else:
        tail = tail.replace(change.old, change.new, 1)
    after = head + middle + tail
    assert after != before
    path.write_text(after)
    guard = directory / "guard.term"
    digest = hashlib.sha256(after.encode()).hexdigest()
    text, count = re.subn(r'(optfile_sha256 => <<")[0-9a-f]{64}', rf"\g<1>{digest}", guard.read_text())
    assert count == 1
    guard.write_text(text)


def _at_rest(alone: Alone, watch: SocketWatch, names: Sequence[str]) -> bool:
    return all(alone.exit_code(name) is not None or _listens(alone, watch, name) for name in names)


def _listens(alone: Alone, watch: SocketWatch, name: str) -> bool:
    """Where the distribution of that node would; the self-check listens for itself before that."""
    return alone.cluster.port(name) in {seen.port for seen in watch.of(alone.cluster.node(name))}


def test_a_node_with_all_that_the_carrier_needs_listens(ended: Ended) -> None:
    """So what ends the others is what was broken in them."""
    assert ended.alone.exit_code(GOOD) is None, ended.alone.cluster.log(GOOD)[-2000:]
    assert _listens(ended.alone, ended.watch, GOOD)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_broken_assumption_halts_the_node_before_it_listens_and_is_named(ended: Ended, name: str) -> None:
    begin = "carrier_selfcheck the carrier does not work on this release of OTP ("
    assert ended.refused(name).startswith(begin + STAND_INS[name].says)


@pytest.mark.parametrize("name", OPTFILES)
def test_an_optfile_that_would_undo_the_carrier_halts_the_node(ended: Ended, name: str) -> None:
    code, _, text = ended.refused(name).partition(" ")
    assert code == "carrier_options"
    assert text.startswith(OPTFILES[name].says)
