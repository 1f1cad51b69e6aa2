"""Renewals against a machine in memory: what is done in which order, and what is said when it fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from distsec.beam.messages import Command, LinkProof, LinkUnproven
from distsec.beam.probe import ProbeResult
from distsec.core.renewal import Life
from distsec.core.wanted import Overlay
from distsec.errors import CaKeyUnavailable, Unavailable, UsageError
from distsec.model.cluster import Carrier, Link, Mode, NodeSpec
from distsec.model.events import EventType, Severity
from distsec.supervisor import dropped, renewal, serving
from distsec.supervisor.credentials import INTERRUPTED, Place, Seen
from distsec.supervisor.proving import Proving
from tests.unit.fake_machine import FakeCredentials, FakeMachine
from tests.unit.later import later
from tests.unit.test_supervisor import Cluster, running, until, up
from tests.waiting import PATIENCE_SECONDS

A, B, C = (f"{name}@127.0.0.1" for name in "abc")
NEW = 0x10000
pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(renewal, "LINKS_TICKS", 10**9)
    monkeypatch.setattr(serving, "SERVED_SECONDS", 0.2)
    monkeypatch.setattr(dropped, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(dropped, "QUIET_SECONDS", 0.3)


def link(peer: str, direction: str = "out", serial: str = "00") -> Link:
    return Link(
        peer, "127.0.0.1:5", None, None, serial, 2_000_000_000, direction, False, "tlsv1.3", "X", 1, "allow",
        None,
    )  # fmt: skip


def link_up(cluster: Cluster, one: str, other: str) -> None:
    """`one` has dialled `other`."""
    cluster.supervisor.nodes[one].observed.links[other] = link(other, "out")
    cluster.supervisor.nodes[other].observed.links[one] = link(one, "in")


def serial(cluster: Cluster, name: str) -> str:
    return cluster.machine.credentials.life(cluster.supervisor.nodes[name].spec).serial


def of(cluster: Cluster, name: str) -> dict[str, Any]:
    status = cluster.status(name)
    return {"serial": status["certificate"]["serial"], "state": None, **(status["renewal"] or {})}


def ends_in(seconds: float, **more: Any) -> Life:
    """Of a certificate of an hour."""
    now = time.time()
    return Life("abcd", now + seconds - 3600, now + seconds, **{"latest": now + 10**9, **more})


def preparing(**lives: Life) -> Callable[[FakeMachine], object]:
    def prepare(machine: FakeMachine) -> None:
        machine.credentials.lives = {f"{head}@127.0.0.1": life for head, life in lives.items()}

    return prepare


async def test_a_renewal_is_read_seen_on_the_wire_proven_and_told() -> None:
    async with up("a", "b", carrier=Carrier.DISTSEC) as cluster:
        link_up(cluster, A, B)
        before, fake = serial(cluster, A), cluster.fake(A)
        fake.renewed = [LinkProof(B, serial(cluster, B), 2_000_000_000, True)]
        answer = await cluster.supervisor.renewal.renew([A])
        new = f"{int(before, 16) + NEW:06x}"
        assert answer["done"] is True
        [node] = answer["nodes"]
        assert (node["serial"], node["links_proven"], node["why"]) == (new, [B], None)
        assert fake.server is not None
        assert [c for c in fake.server.commands if c in (Command.RELOAD, Command.RENEW)] == [
            Command.RELOAD,
            Command.RENEW,
        ]
        assert of(cluster, A)["serial"] == new
        [event] = cluster.of_type(EventType.CERTIFICATE_RENEWED)
        assert (event.node, event.serial, event.reason, event.severity) == (A, new, "command", Severity.INFO)
        assert event.detail == f"in place of {before}, 1 links proven"


async def test_links_that_a_neighbour_has_dialled_are_renewed_by_the_neighbour() -> None:
    async with up("a", "b", "c", carrier=Carrier.DISTSEC) as cluster:
        link_up(cluster, B, A)
        link_up(cluster, B, C)
        link_up(cluster, A, C)
        cluster.fake(A).renewed = (LinkProof(C, serial(cluster, C), 2_000_000_000, True),)
        new = f"{int(serial(cluster, A), 16) + NEW:06x}"
        cluster.fake(B).renewed = [LinkProof(A, new, 2_000_000_000, True)]
        [node] = (await cluster.supervisor.renewal.renew([A]))["nodes"]
        assert cluster.fake(B).asked_to_renew == [{A: 1}]
        assert cluster.fake(C).asked_to_renew == []
        assert node["links_proven"] == [B, C]


async def test_a_link_that_is_not_proven_is_named_and_it_is_not_done() -> None:
    async with up("a", "b", "c", carrier=Carrier.DISTSEC) as cluster:
        link_up(cluster, A, B)
        link_up(cluster, C, A)
        cluster.fake(A).unproven = [LinkUnproven(B, "handshake_timeout")]
        cluster.fake(C).renewed = [LinkProof(A, "0bad", 2_000_000_000, True)]
        answer = await cluster.supervisor.renewal.renew([A])
        assert answer["done"] is False
        [node] = answer["nodes"]
        assert node["served"] is True
        assert node["why"] == (
            f"link with {B}: handshake_timeout; link with {C}: {A} proved itself with serial 0bad"
        )


async def test_a_peer_that_is_managed_elsewhere_renews_the_links_that_it_dialled_itself() -> None:
    async with up("a", "b", carrier=Carrier.DISTSEC) as cluster:
        gone = cluster.supervisor.nodes.pop(B)  # listed, and not managed here
        cluster.supervisor.nodes[A].observed.links[B] = link(B, "in")
        [node] = (await cluster.supervisor.renewal.renew([A]))["nodes"]
        assert node["done"] is True
        assert list(node["links_left"]) == [B]
        cluster.supervisor.nodes[B] = gone


async def test_a_link_that_was_proven_with_the_certificate_before_is_proven_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renewal, "LINKS_TICKS", 1)
    async with up("a", "b", carrier=Carrier.DISTSEC) as cluster:
        link_up(cluster, A, B)  # with serial 00
        await until(lambda: cluster.fake(A).asked_to_renew)
        for one, other in ((A, B), (B, A)):
            node = cluster.supervisor.nodes[one]
            node.observed.links[other] = replace(node.observed.links[other], serial=serial(cluster, other))
        await looked_at(cluster)  # after one that was under way
        asked = len(cluster.fake(A).asked_to_renew)
        await looked_at(cluster)
        await looked_at(cluster)
        assert len(cluster.fake(A).asked_to_renew) == asked


async def test_a_certificate_that_the_node_does_not_take_is_taken_back() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        before = serial(cluster, A)
        cluster.fake(A).reload_error = "certificate_rejected"
        [node] = (await cluster.supervisor.renewal.renew([A]))["nodes"]
        assert node["done"] is False
        assert node["why"].startswith("its agent did not take the certificate (certificate_rejected)")
        assert serial(cluster, A) == before
        assert of(cluster, A)["serial"] == before


async def test_a_port_that_goes_on_with_the_old_one_is_named_with_both_serials_and_asked_again() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        before, fake = serial(cluster, A), cluster.fake(A)
        fake.serves, fake.serves_for_ever = before, True
        [node] = (await cluster.supervisor.renewal.renew([A]))["nodes"]
        new = serial(cluster, A)
        assert node["why"] == f"its port serves serial {before}, and should serve {new}"
        await until(lambda: of(cluster, A)["state"] == "failing")
        assert of(cluster, A)["why"] == node["why"]
        fake.serves_for_ever = False
        await until(lambda: of(cluster, A)["state"] == "current")
        assert fake.serves == new
        assert cluster.of_type(EventType.CERTIFICATE_RENEWED, reason="installed", serial=new)


async def test_a_node_that_does_not_run_is_given_it_for_its_next_start() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        await cluster.supervisor.stop([A])
        [node] = (await cluster.supervisor.renewal.renew([A]))["nodes"]
        assert (node["done"], node["running"]) == (True, False)
        await cluster.supervisor.start([A])
        assert of(cluster, A)["serial"] == node["serial"]


async def test_a_node_whose_agent_is_away_is_told_when_it_is_back() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        fake = cluster.fake(A)
        fake.serves = serial(cluster, A)
        fake.goodbye()
        [node] = (await cluster.supervisor.renewal.renew([A]))["nodes"]
        assert "its agent is not connected" in node["why"]
        fake.hello()
        await until(lambda: fake.serves == serial(cluster, A) == node["serial"])


async def test_without_the_cas_key_the_command_says_what_to_do_and_nothing_is_changed() -> None:
    async with up("a", "b", carrier=Carrier.DISTSEC) as cluster:
        before = serial(cluster, A)
        cluster.machine.credentials.renew_error = CaKeyUnavailable("the CA's key is sealed", do="give it")
        with pytest.raises(CaKeyUnavailable, match="the CA's key is sealed; give it"):
            await cluster.supervisor.renewal.renew([A, B])
        assert serial(cluster, A) == before
        assert not cluster.of_type(EventType.CERTIFICATE_RENEWED)


async def test_what_is_due_is_renewed_by_itself_and_what_is_not_due_is_left_alone() -> None:
    machine = preparing(a=ends_in(1000.0), b=ends_in(3500.0))
    async with running("a", "b", carrier=Carrier.DISTSEC, machine=machine) as cluster:
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_RENEWED))
        [event] = cluster.of_type(EventType.CERTIFICATE_RENEWED)
        assert (event.node, event.reason) == (A, "due")
        await until(lambda: of(cluster, A)["state"] == "current")
        assert serial(cluster, B) == "abcd"


async def test_a_certificate_that_cannot_be_renewed_is_tried_again_and_warned_of() -> None:
    def prepare(machine: FakeMachine) -> None:
        machine.credentials.lives[A] = ends_in(700.0)
        machine.credentials.renew_error = CaKeyUnavailable("the CA's key is elsewhere")

    async with up("a", carrier=Carrier.DISTSEC, machine=prepare) as cluster:
        await until(lambda: of(cluster, A)["state"] == "failing")
        assert of(cluster, A)["why"] == "the CA's key is elsewhere"
        [event] = cluster.of_type(EventType.CERTIFICATE_EXPIRING)
        assert (event.node, event.severity, event.reason) == (A, Severity.NOTICE, "expiring")
        assert event.detail is not None
        assert event.detail.startswith("the certificate ends in 12 minutes")
        cluster.machine.credentials.renew_error = None
        await until(lambda: of(cluster, A)["state"] == "current")
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_RENEWED, reason="due"))


async def test_a_look_at_the_files_in_the_middle_of_a_renewal_makes_no_other_one_of_it() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        credentials, renewal = cluster.machine.credentials, cluster.supervisor.renewal
        installed, go_on, renew = threading.Event(), threading.Event(), credentials.renew

        def slow(*given: Any) -> Any:
            pair = renew(*given)
            installed.set()
            assert go_on.wait(PATIENCE_SECONDS)
            return pair

        credentials.renew = slow  # type: ignore[method-assign]
        renewing = asyncio.create_task(renewal.renew([A]))
        await until(installed.is_set)
        await renewal._read_all()
        go_on.set()
        assert (await renewing)["done"]
        await looked_at(cluster)  # which waits for whoever is at it
        assert [event.reason for event in cluster.of_type(EventType.CERTIFICATE_RENEWED)] == ["command"]


async def test_one_that_has_expired_makes_the_cluster_degraded() -> None:
    machine = preparing(a=ends_in(-10.0, ours=False))
    async with up("a", carrier=Carrier.DISTSEC, machine=machine) as cluster:
        await until(lambda: of(cluster, A)["state"] == "expired")
        assert cluster.supervisor.status()["healthy"] is False
        assert cluster.of_type(EventType.CERTIFICATE_EXPIRING, severity=Severity.CRITICAL, reason="expired")
        assert not cluster.of_type(EventType.CERTIFICATE_RENEWED)  # not ours


async def test_a_revoked_certificate_is_renewed_by_command_alone() -> None:
    def prepare(machine: FakeMachine) -> None:
        machine.credentials.lives[A] = ends_in(1000.0)
        machine.overlay = Overlay(revoked=frozenset({"abcd"}))

    async with up("a", carrier=Carrier.DISTSEC, machine=prepare) as cluster:
        await until(lambda: of(cluster, A)["state"] == "due")
        assert not cluster.of_type(EventType.CERTIFICATE_RENEWED)
        assert (await cluster.supervisor.renewal.renew([A]))["done"] is True


async def test_the_end_of_the_ca_is_warned_of_for_no_node() -> None:
    def prepare(machine: FakeMachine) -> None:
        now = time.time()
        machine.credentials.ca = Life("ca", now - 3600 * 86400, now + 50 * 86400)

    async with up("a", carrier=Carrier.DISTSEC, machine=prepare) as cluster:
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_EXPIRING))
        [event] = cluster.of_type(EventType.CERTIFICATE_EXPIRING)
        assert (event.node, event.severity, event.serial) == ("", Severity.CRITICAL, "ca")
        assert event.detail == "the CA's own certificate ends in 50 days"
        assert cluster.supervisor.status()["authority"]["serial"] == "ca"
        assert "distsec_ca_expiry_timestamp_seconds{" in cluster.metrics.render().decode()


async def test_nothing_is_renewed_where_there_are_no_certificates_or_at_the_end() -> None:
    async with running("a", mode=Mode.DEVELOPMENT, carrier=Carrier.INET_TCP) as cluster:
        with pytest.raises(UsageError, match="no certificates in development mode"):
            await cluster.supervisor.renewal.renew([A])
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        cluster.supervisor.begin_end()
        with pytest.raises(Unavailable):
            await cluster.supervisor.renewal.renew([A])


async def test_stock_otp_proves_no_link_and_recycles_each_when_asked() -> None:
    async with up("a", "b", carrier=Carrier.INET_TLS) as cluster:
        link_up(cluster, A, B)
        answer = await cluster.supervisor.renewal.renew([A, B])
        assert answer["done"] is True
        assert [list(node["links_left"]) for node in answer["nodes"]] == [[B], [A]]
        fake = cluster.fake(A)
        assert fake.server is not None
        assert Command.RENEW not in fake.server.commands
        again = asyncio.create_task(cluster.supervisor.renewal.renew([A, B], recycle=True))
        await until(lambda: fake.server and Command.DISCONNECT in fake.server.commands)
        link_up(cluster, A, B)  # they find each other again
        answer = await again
        assert [node["links_proven"] for node in answer["nodes"]] == [[B], [A]]
        assert fake.server.commands.count(Command.DISCONNECT) == 1


# ---- what somebody else brings ----------------------------------------------------------------------------


async def test_a_node_whose_links_are_never_proven_does_not_hold_up_renewals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may say for ever that they have an old proof, and answer nothing that it is asked."""
    monkeypatch.setattr(renewal, "LINKS_TICKS", 1)
    looks, begun, go_on = 0, 0, asyncio.Event()

    async def prove(cluster: object, serials: object) -> dict[str, object]:
        await go_on.wait()
        return {}

    async with up("a", "b", carrier=Carrier.DISTSEC) as cluster:
        watched = cluster.supervisor.renewal
        look, again = watched._look_at_links, watched._prove_again

        def counted_look() -> None:
            nonlocal looks
            looks += 1
            look()

        async def counted_again(names: frozenset[str]) -> None:
            nonlocal begun
            begun += 1
            await again(names)

        monkeypatch.setattr(watched, "_look_at_links", counted_look)
        monkeypatch.setattr(watched, "_prove_again", counted_again)
        with monkeypatch.context() as patched:
            patched.setattr(renewal.link_proof, "prove", prove)
            link_up(cluster, A, B)
            await until(lambda: begun)
            waiting = asyncio.create_task(watched.renew([B]))
            seen = looks
            await until(lambda: looks > seen + 3)
            assert begun == 1, "who renews is next"
        before = serial(cluster, B)
        go_on.set()
        await waiting
        assert serial(cluster, B) != before


async def looked_at(cluster: Cluster) -> None:
    """Until both places have been looked at since."""
    seen = cluster.machine.credentials.looks + 4
    await until(lambda: cluster.machine.credentials.looks >= seen)


def dropped_pair(number: str, stamp: int = 1) -> Seen:
    return Seen((stamp,), number, pair=FakeCredentials.pair(number))


async def test_a_good_drop_is_installed_served_and_consumed() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        cluster.machine.credentials.drops[A, Place.INCOMING] = dropped_pair("d0d0")
        await until(lambda: ("consume", A, "incoming") in cluster.machine.order)
        assert cluster.fake(A).serves == "d0d0"
        [event] = cluster.of_type(EventType.CERTIFICATE_RENEWED)
        assert (event.reason, event.serial) == ("dropped", "d0d0")


async def test_a_drop_that_the_node_does_not_take_is_refused_once_and_the_old_one_is_back() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        before = serial(cluster, A)
        cluster.fake(A).reload_error = "certificate_rejected"
        cluster.machine.credentials.drops[A, Place.INCOMING] = dropped_pair("d0d0")
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_REFUSED))
        assert serial(cluster, A) == before
        await until(lambda: cluster.machine.order.count(("install", A, "d0d0")) > 2)
        [event] = cluster.of_type(EventType.CERTIFICATE_REFUSED)
        assert (event.reason, event.serial) == ("certificate_rejected", "d0d0")


async def test_a_bad_drop_is_told_of_once_and_again_when_it_was_touched() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        drops = cluster.machine.credentials.drops
        drops[A, Place.INCOMING] = Seen((1,), "d0d0", "expired", "has expired (long ago)")
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_REFUSED))
        await looked_at(cluster)
        assert len(cluster.of_type(EventType.CERTIFICATE_REFUSED)) == 1
        drops[A, Place.INCOMING] = Seen((2,), "d0d0", "expired", "has expired (long ago)")
        await looked_at(cluster)
        assert len(cluster.of_type(EventType.CERTIFICATE_REFUSED)) == 2
        event = cluster.of_type(EventType.CERTIFICATE_REFUSED)[0]
        assert (event.node, event.severity, event.reason) == (A, Severity.WARNING, "expired")
        assert event.detail == "the certificate has expired (long ago)"
        assert ("restore", A) not in cluster.machine.order
        assert (
            'distsec_certificates_refused_total{node="a@127.0.0.1"} 2.0' in cluster.metrics.render().decode()
        )


async def test_a_node_that_spoils_its_files_without_end_is_told_of_now_and_then() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        drops = cluster.machine.credentials.drops
        for stamp in range(40):
            drops[A, Place.INCOMING] = Seen((stamp,), "d0d0", "expired", "has expired")
            await looked_at(cluster)
        assert len(cluster.of_type(EventType.CERTIFICATE_REFUSED)) == dropped.MAX_TOLD


async def test_a_bad_pair_in_the_directory_itself_is_replaced() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        drops = cluster.machine.credentials.drops
        drops[A, Place.DIRECTORY] = Seen((1,), None, "unsafe_file", "key.pem is a symbolic link")
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_REFUSED))
        assert ("restore", A) in cluster.machine.order
        [event] = cluster.of_type(EventType.CERTIFICATE_REFUSED)
        assert event.detail is not None
        assert event.detail.endswith("the one before it is in its place again")


async def test_files_that_may_be_half_written_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropped, "QUIET_SECONDS", 8.0)
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        drops = cluster.machine.credentials.drops
        for stamp in range(8):  # somebody writes, and writes
            drops[A, Place.DIRECTORY] = Seen((stamp,), None, "key_mismatch", "does not fit", unsettled=True)
            await looked_at(cluster)
            later(monkeypatch, 4.0)
            cluster.fake(A).says(cluster.fake(A).heartbeat())
        assert not cluster.of_type(EventType.CERTIFICATE_REFUSED)
        drops[A, Place.DIRECTORY] = dropped_pair("d0d0", 9)
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_RENEWED, serial="d0d0"))
        drops[A, Place.DIRECTORY] = Seen((10,), None, "key_mismatch", "does not fit", unsettled=True)
        await looked_at(cluster)
        assert not cluster.of_type(EventType.CERTIFICATE_REFUSED)
        later(monkeypatch, 8.0)
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_REFUSED))


async def test_an_installation_of_another_command_is_finished_and_served_and_no_refusal() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        credentials = cluster.machine.credentials
        credentials.drops[A, Place.DIRECTORY] = Seen((1,), None, INTERRUPTED, unsettled=True)
        await until(lambda: ("restore", A) in cluster.machine.order)
        assert not cluster.of_type(EventType.CERTIFICATE_REFUSED)
        credentials.lives[A] = replace(credentials.life(cluster.supervisor.nodes[A].spec), serial="e0e0")
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_RENEWED, serial="e0e0", reason="installed"))
        assert cluster.fake(A).serves == "e0e0"


async def test_a_look_at_a_port_from_before_a_renewal_makes_no_other_one_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        node, machine = cluster.supervisor.nodes[A], cluster.machine

        async def look(spec: NodeSpec, opened: Callable[[str], object]) -> ProbeResult:
            seen = replace(machine.probed, certificate=machine.certificate(spec))
            await cluster.supervisor.renewal.renew([A])
            return seen

        monkeypatch.setattr(machine, "probe", look)
        await Proving(node).prove(node.status.attempt)
        await looked_at(cluster)
        assert [event.reason for event in cluster.of_type(EventType.CERTIFICATE_RENEWED)] == ["command"]


async def test_what_a_start_found_spoiled_is_told_of() -> None:
    async with up("a", carrier=Carrier.DISTSEC) as cluster:
        cluster.machine.credentials.spoiled[A] = [("key_mismatch", "does not belong to key.pem beside it")]
        await until(lambda: cluster.of_type(EventType.CERTIFICATE_REFUSED, reason="key_mismatch"))
