"""deny --compromised and certs revoke, against a machine in memory; interrupted wherever it can be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from distsec.beam.messages import Command
from distsec.beam.node import Exit
from distsec.core import node_status as life
from distsec.core.contacts import ContactBook
from distsec.core.rollback import Found
from distsec.core.taint import Contact
from distsec.core.wanted import Overlay, Recovered, Taint, TaintStage
from distsec.errors import CaKeyUnavailable, NotAcknowledged, NotFound, StoreError, UsageError
from distsec.model.cluster import Carrier, Certificate, CliRuleSpec, NodeSpec, NodeState
from distsec.model.events import EventType
from distsec.supervisor import containment
from tests.unit.fake_machine import FakeMachine, cluster_spec, node_spec
from tests.unit.test_supervisor import A, B, C, Cluster, link, until

D = "d@127.0.0.1"
STAGES = TaintStage


@pytest.fixture(autouse=True)
def _settles_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "SETTLE_SECONDS", 0.05)


def linked(*pairs: tuple[str, str]) -> Callable[[FakeMachine], None]:
    """Nodes whose agents report links with each other, as from the first hello on."""

    def prepare(machine: FakeMachine) -> None:
        for one, other in pairs:
            for node, peer in ((one, other), (other, one)):
                if node in machine.nodes:
                    machine.nodes[node].links += (replace(link(peer), serial=None),)

    return prepare


@contextlib.asynccontextmanager
async def cluster_of(
    *names: str, machine: FakeMachine | None = None, prepare: Callable[[FakeMachine], object] = lambda _: None
) -> AsyncIterator[Cluster]:
    spec = machine.spec if machine else cluster_spec(*(node_spec(name) for name in names))
    cluster = Cluster(spec, machine)
    prepare(cluster.machine)
    async with cluster.supervisor.running():
        yield cluster


async def all_running(cluster: Cluster) -> None:
    await until(lambda: all(cluster.state(name) is NodeState.RUNNING for name in cluster.supervisor.nodes))


def happened(cluster: Cluster, *kinds: str) -> list[tuple[str, ...]]:
    return [entry for entry in cluster.machine.order if entry[0] in kinds]


@pytest.mark.asyncio
async def test_whoever_was_linked_is_ended_re_keyed_and_started_again_and_the_others_are_left_alone() -> None:
    async with cluster_of("a", "b", "c", "d", prepare=linked((A, B), (B, C))) as cluster:
        await all_running(cluster)
        pids = {name: node.status.pid for name, node in cluster.supervisor.nodes.items()}
        cluster.machine.order.clear()
        answer = await cluster.supervisor.deny(C, compromised=True)

        assert (answer["rekeyed"], answer["held"], answer["tainted"]) == ([A, B, C], C, [])
        assert cluster.machine.records.keys == {A: 1, B: 1, C: 1}
        overlay = cluster.machine.overlay
        assert overlay.deny == {C}
        assert overlay.revoked == {"6100", "6200", "6300"}
        assert overlay.epochs == ((A, 1), (B, 1), (C, 1))
        assert overlay.tainted == (Taint(C, STAGES.HELD, 0, False, C, "0-0", overlay.tainted[0].rekeyed_at),)
        assert cluster.status(D)["pid"] == pids[D]
        for name in (A, B):
            assert cluster.state(name) is NodeState.RUNNING
            assert cluster.status(name)["pid"] != pids[name]
            assert cluster.fake(name).key == b"key of generation 1"
        assert cluster.state(C) is NodeState.STOPPED
        assert cluster.status(C)["tainted"] is True
        assert {event.node for event in cluster.of_type(EventType.CERTIFICATE_ROTATED)} == {A, B, C}
        # Saved before anybody was ended; all ended before the first was re-keyed, all re-keyed before the
        # first was started.
        steps = [entry[0] for entry in happened(cluster, "save", "forget", "rekey", "start")]
        assert [step for n, step in enumerate(steps) if step not in steps[:n]] == [
            "save",
            "forget",
            "rekey",
            "start",
        ]
        assert steps.index("rekey") > max(n for n, step in enumerate(steps) if step == "forget")
        assert steps.index("start") > max(n for n, step in enumerate(steps) if step == "rekey")


@pytest.mark.asyncio
async def test_a_condemned_node_is_told_nothing_while_the_others_get_the_new_cookies() -> None:
    async with cluster_of("a", "b", "d", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        for name in (A, B, D):
            cluster.fake(name).told_cookies.clear()
        await cluster.supervisor.deny(B, compromised=True)
        assert len(cluster.fake(D).told_cookies) == 1
        assert cluster.fake(A).told_cookies == cluster.fake(B).told_cookies == []


@pytest.mark.asyncio
async def test_a_condemned_node_is_killed_at_once_and_neither_warned_nor_asked() -> None:
    async with cluster_of("a", "b", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        process = cluster.fake(A).process
        assert process is not None
        commands = len(cluster.fake(A).server.commands)  # type: ignore[union-attr]
        await cluster.supervisor.deny(B, compromised=True)
        assert process.signals == [signal.SIGKILL]
        told = cluster.fake(A).server.commands[commands:]  # type: ignore[union-attr]
        assert Command.STOP not in told


@pytest.mark.asyncio
async def test_whom_a_condemned_node_reached_while_it_ended_is_re_keyed_as_well() -> None:
    async with cluster_of("a", "b", "d", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        before = cluster.status(D)["pid"]
        denied = asyncio.create_task(cluster.supervisor.deny(B, compromised=True))
        await until(lambda: cluster.fake(A).process is None)
        cluster.supervisor.memory.up(D, link(A))  # d tells of it only now
        answer = await denied
        assert (answer["rekeyed"], answer["tainted"]) == ([A, B, D], [])
        assert cluster.machine.records.keys == {A: 1, B: 1, D: 1}
        assert cluster.status(D)["pid"] != before


@pytest.mark.asyncio
async def test_nobody_that_is_condemned_goes_on_until_a_silent_neighbour_has_answered() -> None:
    async with cluster_of("a", "b", "d", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        cluster.fake(D).answers = False
        cluster.supervisor.desk.spec = replace(cluster.supervisor.spec, acknowledge_deadline_seconds=60.0)
        task = asyncio.create_task(cluster.supervisor.deny(B, compromised=True))
        await until(lambda: cluster.fake(A).process is None)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_no_way_of_starting_a_node_starts_one_that_is_held() -> None:
    async with cluster_of("a", "b", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        await cluster.supervisor.deny(B, compromised=True)
        starts = cluster.fake(B).starts
        cluster.supervisor.nodes[B].feed(life.StartRequested())  # as a reload does
        await until(lambda: cluster.state(B) is NodeState.FATAL)
        assert "held until it is allowed" in cluster.status(B)["detail"]
        assert cluster.fake(B).starts == starts


@pytest.mark.asyncio
async def test_one_that_does_not_end_keeps_all_others_from_starting_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(containment, "END_SECONDS", 0.3)
    async with cluster_of("a", "b", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        process = cluster.fake(A).process
        assert process is not None
        monkeypatch.setattr(process, "signal_group", lambda number: True)  # nothing reaches it
        cluster.supervisor.spec = replace(cluster.supervisor.spec, start_deadline_seconds=0.1)
        with pytest.raises(NotAcknowledged, match=r"a@127\.0\.0\.1 has not ended") as raised:
            await cluster.supervisor.deny(B, compromised=True)
        assert set(raised.value.missing) == {A, B}
        assert happened(cluster, "rekey") == []
        assert cluster.machine.overlay.condemned == {A, B}
        cluster.fake(A).die(Exit(signal=9))
        await until(lambda: cluster.state(A) is NodeState.RUNNING)
        assert cluster.machine.records.keys == {A: 1, B: 1}


@pytest.mark.asyncio
async def test_who_is_held_is_started_by_nobody_before_it_is_allowed() -> None:
    async with cluster_of("a", "b", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        await cluster.supervisor.deny(B, compromised=True)
        for act in (cluster.supervisor.start, cluster.supervisor.restart):
            with pytest.raises(UsageError, match=r"held until it is allowed again; .*distsec allow b@127"):
                await act([B])
        assert cluster.supervisor.status()["healthy"]
        machine = cluster.machine
    async with cluster_of(machine=adopted(machine)) as cluster:
        await until(lambda: cluster.state(A) is NodeState.RUNNING)
        assert cluster.state(B) is NodeState.STOPPED
        assert cluster.status(B)["taint"] == {"stage": "held", "cause": B}
        await cluster.supervisor.allow(B, None)
        assert cluster.status(B)["tainted"] is False
        await cluster.supervisor.start([B])
        assert cluster.state(B) is NodeState.RUNNING


@pytest.mark.asyncio
async def test_without_the_cas_key_it_is_said_why_and_gone_on_with_as_soon_as_it_is_there() -> None:
    async with cluster_of("a", "b", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        records, began = cluster.machine.records, asyncio.get_running_loop().time()
        records.rekey_error = CaKeyUnavailable("the CA's key is sealed, and no passphrase was given")
        with pytest.raises(
            NotAcknowledged, match=r"has not been re-keyed \(the CA's key is sealed"
        ) as caught:
            await cluster.supervisor.deny(B, compromised=True)
        assert asyncio.get_running_loop().time() - began < containment.END_SECONDS
        assert sorted(caught.value.missing) == [A, B]
        assert cluster.machine.overlay.condemned == {A, B}
        records.rekey_error = None
        await until(lambda: cluster.state(A) is NodeState.RUNNING)
        assert records.keys == {A: 1, B: 1}


def adopted(machine: FakeMachine) -> FakeMachine:
    """The same machine for the next orchestrator: what runs is found again."""
    for node in machine.nodes.values():
        node.server = None
        machine.leftover[node.name] = node.process is not None
    return machine


@pytest.mark.asyncio
@pytest.mark.parametrize("when", ["saved", "ended", "re-keyed", "started"])
async def test_an_orchestrator_that_is_killed_in_the_middle_is_taken_over_from(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one goes on from what is saved; at no point does anything run with a key that was known."""
    async with cluster_of("a", "b", "c", prepare=linked((A, B), (B, C))) as cluster:
        await all_running(cluster)
        machine = cluster.machine
        machine.records.book = ContactBook([Contact(A, B, 1), Contact(B, C, 1)])
        old = {name: machine.nodes[name].process for name in (A, B, C)}
        if when == "saved":
            for process in old.values():
                monkeypatch.setattr(process, "signal_group", lambda number: True)
        elif when == "ended":
            machine.records.rekey_error = StoreError("killed here")
        elif when == "re-keyed":
            machine.start_error = StoreError("killed here")
        else:
            machine.nodes[A].says_hello = False
        task = asyncio.create_task(cluster.supervisor.deny(C, compromised=True))
        reached: dict[str, Callable[[], object]] = {
            "saved": lambda: machine.overlay.condemned,
            "ended": lambda: machine.overlay.condemned and not any(n.process for n in machine.nodes.values()),
            "re-keyed": lambda: {t.stage for t in machine.overlay.tainted} == {STAGES.REKEYED, STAGES.HELD},
            "started": lambda: machine.nodes[A].starts == 2,
        }
        await until(reached[when])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    monkeypatch.undo()
    machine.records.rekey_error = machine.start_error = None
    machine.nodes[A].says_hello = True
    for name in (A, B, C):
        machine.leftover[name] = machine.nodes[name].process is not None
    survivors = {name for name, left in machine.leftover.items() if left}
    if when == "saved":
        assert survivors == {A, B, C}

    async with cluster_of(machine=machine) as cluster:
        await until(lambda: [cluster.state(name) for name in (A, B)] == [NodeState.RUNNING] * 2)
        await until(lambda: [taint.stage for taint in machine.overlay.tainted] == [STAGES.HELD])
        assert cluster.state(C) is NodeState.STOPPED
        assert all(machine.records.keys[name] >= 1 for name in (A, B, C))
        assert machine.overlay.deny == {C}
        assert machine.overlay.revoked >= {"6100", "6200", "6300"}


@pytest.mark.asyncio
async def test_who_was_linked_before_and_not_since_is_left_alone() -> None:
    machine = FakeMachine(cluster_spec(*(node_spec(name) for name in "abc")))
    machine.records.book = ContactBook([Contact(A, C, 1000, 2000), Contact(B, C, 3000, 4000)])
    async with cluster_of(machine=machine) as cluster:
        await all_running(cluster)
        answer = await cluster.supervisor.deny(C, compromised=True, since=2500.0)
        assert answer["rekeyed"] == [B, C]
        assert cluster.machine.nodes[A].starts == 1


@pytest.mark.asyncio
async def test_a_damaged_record_of_links_means_that_everybody_was_linked() -> None:
    machine = FakeMachine(cluster_spec(*(node_spec(name) for name in "abc")))
    machine.records.load_error = StoreError("is damaged")
    async with cluster_of(machine=machine) as cluster:
        await all_running(cluster)
        assert "all are taken for linked" in cluster.log.getvalue()
        answer = await cluster.supervisor.deny(C, compromised=True)
        assert answer["rekeyed"] == [A, B, C]


@pytest.mark.asyncio
@pytest.mark.parametrize("word", ["allow", "revoke"])
async def test_a_peer_that_is_not_managed_here_is_tainted_until_the_operator_says_more(word: str) -> None:
    """What serial it shows says nothing: it may have been renewed, or a liar has named the one before."""
    far, tool = "far@10.0.0.9", "spiffe://demo/cli/x"
    spec = cluster_spec(node_spec("a"), node_spec("b"))
    machine = FakeMachine(
        replace(spec, allowed_nodes=(*spec.allowed_nodes, type(spec.nodes[0].name).parse(far)))
    )
    machine.nodes[A].links = (
        replace(link(far), serial="f1"),
        replace(link(B), serial="6200"),
        replace(link("cli-1@127.0.0.1"), identity=tool, serial="f2"),
    )
    async with cluster_of(machine=machine) as cluster:
        await all_running(cluster)
        answer = await cluster.supervisor.deny(B, compromised=True)
        assert (answer["elsewhere"], answer["others"]) == ([far], [tool])
        assert cluster.machine.overlay.revoked == {"6100", "6200", "f1", "f2"}
        assert cluster.supervisor.status()["tainted_elsewhere"] == [far]
        fake = cluster.fake(A)
        fake.links = (replace(link(far), serial="f1", verdict="deny"),)
        fake.says(fake.snapshot())
        cluster.supervisor.changed()
        assert cluster.supervisor.status()["tainted_elsewhere"] == [far]
        fake.links = (replace(link(far), serial="f9"),)
        fake.says(fake.snapshot())
        cluster.supervisor.changed()
        await asyncio.sleep(0.1)  # longer than a look at who is clean takes
        assert cluster.supervisor.status()["tainted_elsewhere"] == [far]
        if word == "allow":
            await cluster.supervisor.allow(far, None)
        else:
            await cluster.supervisor.revoke(far)
        assert cluster.supervisor.status()["tainted_elsewhere"] == []


@pytest.mark.asyncio
async def test_what_a_node_says_that_others_showed_revokes_no_certificate_of_ours() -> None:
    """A compromised agent reports links under a neighbour's serial, to have it cut off."""
    async with cluster_of("a", "b", "d") as cluster:
        await all_running(cluster)
        fake = cluster.fake(B)
        fake.links = (replace(link("ghost@127.0.0.1"), serial="6400"), replace(link(A), serial="6400"))
        fake.says(fake.snapshot())
        await cluster.supervisor.deny(B, compromised=True)
        assert "6400" not in cluster.machine.overlay.revoked
        assert cluster.state(D) is NodeState.RUNNING


@pytest.mark.asyncio
async def test_a_second_denial_takes_effect_while_the_first_waits_for_a_node_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster_of("a", "b", "c", "d", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        process = cluster.fake(A).process
        assert process is not None
        monkeypatch.setattr(process, "signal_group", lambda number: True)  # nothing reaches it
        first = asyncio.create_task(cluster.supervisor.deny(B, compromised=True))
        await until(lambda: cluster.fake(B).process is None)
        second = asyncio.create_task(cluster.supervisor.deny(C, compromised=True))
        await until(lambda: cluster.fake(C).process is None)
        assert cluster.machine.overlay.deny == {B, C}
        assert cluster.machine.overlay.revoked == {"6100", "6200", "6300"}
        assert not first.done()
        cluster.fake(A).die(Exit(signal=9))
        answers = await asyncio.gather(first, second)
        assert [answer["held"] for answer in answers] == [B, C]
        assert {t.name: t.stage for t in cluster.machine.overlay.tainted} == {B: STAGES.HELD, C: STAGES.HELD}


@pytest.mark.asyncio
async def test_who_is_held_stays_held_when_one_that_it_was_linked_with_is_denied_too() -> None:
    async with cluster_of("a", "b", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        await cluster.supervisor.deny(B, compromised=True)
        cluster.supervisor.memory.up(A, link(B))  # a liar's word, or a late one
        await cluster.supervisor.deny(A, compromised=True)
        assert cluster.status(B)["taint"] == {"stage": "held", "cause": B}
        assert cluster.state(B) is NodeState.STOPPED


@pytest.mark.asyncio
async def test_a_certificate_file_that_cannot_be_read_keeps_nobody_from_revoking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster_of("a", "b", "d", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        machine = cluster.machine
        whole = machine.certificate

        def read(node: NodeSpec) -> Certificate | None:
            if str(node.name) in (A, D) and not machine.records.keys.get(A):
                raise StoreError("is no certificate (PEM)")
            return whole(node)

        monkeypatch.setattr(machine, "certificate", read)
        cluster.supervisor.memory.up(B, replace(link(A), serial="a1"))
        cluster.supervisor.memory.up(B, replace(link(A), serial="6400"))  # d's: a lie
        cluster.supervisor.memory.up(B, replace(link(A), serial="ca"))  # the CA's: another
        document = await cluster.supervisor.certificates()
        assert [each["node"] for each in document["certificates"]] == [B]
        assert set(document["unknown"]) == {A, D}
        assert (await cluster.supervisor.revoke("0b"))["unknown"] == [A, D]
        answer = await cluster.supervisor.deny(B, compromised=True)
        assert answer["unknown"] == [A]
        assert machine.overlay.revoked == {"0b", "a1", "6100", "6200"}
        assert "what it has shown is revoked" in cluster.log.getvalue()


@pytest.mark.asyncio
async def test_a_tool_whose_name_is_forgotten_is_taken_for_every_one_that_it_may_have_been() -> None:
    tool, other = "spiffe://demo/cli/x", "spiffe://demo/cli/y"
    spec = cluster_spec(node_spec("a"), node_spec("b"), rules=(CliRuleSpec(("cli-*@127.0.0.1",)),))
    async with cluster_of(machine=FakeMachine(spec)) as cluster:
        await all_running(cluster)
        for number in range(20):
            seen = replace(link(f"cli-{number}@127.0.0.1"), identity=tool, serial="f2")
            cluster.supervisor.memory.up(A, seen)
        cluster.supervisor.memory.up(B, replace(link("cli-99@127.0.0.1"), identity=other, serial="f3"))
        answer = await cluster.supervisor.deny("cli-0@127.0.0.1", compromised=True)
        assert (answer["rekeyed"], answer["presumed"]) == ([A], [tool])
        assert cluster.machine.overlay.revoked == {"6100", "f2"}


@pytest.mark.asyncio
async def test_links_of_shells_make_nobody_linked_with_everybody() -> None:
    async with cluster_of("a", "b", "d", prepare=linked((A, B))) as cluster:
        await all_running(cluster)
        for number in range(200):
            name = f"distsec-shell-{number}@127.0.0.1"
            identity = f"spiffe://demo/shell/127.0.0.1/distsec-shell-{number}.0{number}"
            cluster.supervisor.memory.up(A, replace(link(name), identity=identity, serial="f2"))
        assert (await cluster.supervisor.deny(B, compromised=True))["rekeyed"] == [A, B]


@pytest.mark.asyncio
async def test_nobody_that_was_ever_seen_is_an_error() -> None:
    async with cluster_of("a") as cluster:
        with pytest.raises(NotFound, match="was never linked"):
            await cluster.supervisor.deny("x@127.0.0.1", compromised=True)
        assert cluster.machine.overlay.deny == frozenset()


@pytest.mark.asyncio
async def test_who_is_condemned_again_while_it_is_re_keyed_is_re_keyed_again() -> None:
    """The certificate that was just made for it may be among those that the second denial has revoked."""
    machine = FakeMachine(cluster_spec(*(node_spec(name) for name in "abc")))
    machine.overlay = Overlay(
        generation=5, deny=frozenset({B}), epochs=((A, 1),),
        tainted=(Taint(A, STAGES.CONDEMNED, 0, True, B),),
    )  # fmt: skip
    machine.records.rekey_may_end.clear()
    async with cluster_of(machine=machine) as cluster:
        await until(lambda: ("rekeying", A) in machine.order)
        cluster.supervisor.memory.up(C, link(A))  # told of too late to be condemned beside it
        task = asyncio.create_task(cluster.supervisor.deny(C, compromised=True))
        await until(lambda: machine.overlay.epoch(A) == 2)
        machine.records.rekey_may_end.set()
        await task
        assert machine.records.keys == {A: 2, C: 1}
        assert machine.overlay.condemned == frozenset()
        assert cluster.state(A) is NodeState.RUNNING


# ---- nodes that something else starts ----------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_external_node_is_ended_re_keyed_and_tainted_until_it_says_hello_anew() -> None:
    spec = cluster_spec(node_spec("a", command=()), node_spec("b"))
    machine = FakeMachine(spec)
    linked((A, B))(machine)
    async with cluster_of(machine=machine) as cluster:
        fake = cluster.fake(A)
        fake.boot(b'{"generation": 1}')
        fake.hello()
        await all_running(cluster)
        with pytest.raises(NotAcknowledged, match="wants to be started by whatever starts it"):
            await cluster.supervisor.deny(B, compromised=True)
        assert fake.process is None
        assert cluster.machine.records.keys == {A: 1, B: 1}
        assert cluster.status(A)["taint"] == {"stage": "rekeyed", "cause": B}
        fake.boot(b'{"generation": 1}')
        fake.hello()
        await until(lambda: not cluster.status(A)["tainted"])
        assert cluster.machine.records.keys == {A: 1, B: 1}


@pytest.mark.asyncio
async def test_an_external_node_that_lives_out_of_sight_is_not_given_the_new_key() -> None:
    spec = cluster_spec(node_spec("a", command=()), node_spec("b"))
    machine = FakeMachine(spec)
    machine.records.book = ContactBook([Contact(A, B, 1)])
    machine.records.busy_ports = {machine.ports[A]}
    async with cluster_of(machine=machine) as cluster:
        await until(lambda: cluster.state(B) is NodeState.RUNNING)
        with pytest.raises(NotAcknowledged, match=r"a@127\.0\.0\.1 has not ended"):
            await cluster.supervisor.deny(B, compromised=True)
        assert A not in cluster.machine.records.keys
        assert cluster.status(A)["taint"]["stage"] == "condemned"
        fake = cluster.fake(A)
        process = fake.boot(b'{"generation": 1}')
        fake.hello()  # it shows itself, with the key that it has
        await until(lambda: process.ended.done())
        machine.records.busy_ports = set()
        cluster.supervisor.changed()
        await until(lambda: cluster.machine.records.keys.get(A) == 1)


@pytest.mark.asyncio
async def test_a_process_that_was_there_all_the_time_and_has_read_its_new_key_is_condemned_again() -> None:
    spec = cluster_spec(node_spec("a", command=()), node_spec("b"))
    machine = FakeMachine(spec)
    machine.overlay = Overlay(
        generation=5, deny=frozenset({B}), epochs=((A, 1),),
        tainted=(Taint(A, STAGES.REKEYED, 0, False, B, "0-0", rekeyed_at=10**6),),
    )  # fmt: skip
    machine.records.keys = {A: 1}
    async with cluster_of(machine=machine) as cluster:
        fake = cluster.fake(A)
        process = fake.boot(b'{"generation": 1}')
        fake.hello()
        await until(lambda: process.ended.done())
        await until(lambda: cluster.machine.records.keys[A] == 2)
        assert cluster.machine.overlay.revoked == {"6101"}
        assert cluster.machine.overlay.epoch(A) == 2


# ---- certs revoke ------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("text", ["0A:1B", "a1b", " 0x0a1b ", "000a1b"])
async def test_a_serial_is_revoked_however_it_is_written(text: str) -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        answer = await cluster.supervisor.revoke(text)
        assert (answer["serials"], answer["current_of"]) == (["0a1b"], [])
        assert cluster.machine.overlay.revoked == {"0a1b"}
        (event,) = cluster.of_type(EventType.POLICY_CHANGED)
        assert (event.result, event.reason) == ("deny", "revoked")


@pytest.mark.asyncio
async def test_a_managed_nodes_own_certificate_is_revoked_by_its_name_and_said_to_be_its_own() -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        answer = await cluster.supervisor.revoke(A)
        assert (answer["serials"], answer["current_of"]) == (["6100"], [A])
        assert cluster.status(A)["certificate"]["revoked"] is True
        assert not cluster.supervisor.status()["healthy"]
        certificates = (await cluster.supervisor.certificates())["certificates"]
        assert [(each["node"], each["revoked"]) for each in certificates] == [(A, True), (B, False)]


@pytest.mark.asyncio
@pytest.mark.parametrize("text", ["", "xyz", "0" * 41, "a b", "ca", "-1"])
async def test_what_is_no_serial_changes_nothing(text: str) -> None:
    async with cluster_of("a") as cluster:
        with pytest.raises(UsageError):
            await cluster.supervisor.revoke(text)
        assert cluster.machine.overlay.revoked == frozenset()


@pytest.mark.asyncio
async def test_of_a_stranger_that_never_showed_a_certificate_none_can_be_revoked() -> None:
    async with cluster_of("a") as cluster:
        with pytest.raises(NotFound, match="name its serial number"):
            await cluster.supervisor.revoke("x@127.0.0.1")


@pytest.mark.asyncio
async def test_without_certificates_there_is_nothing_to_revoke() -> None:
    machine = FakeMachine(replace(cluster_spec(node_spec("a")), carrier=Carrier.INET_TCP))
    machine.nodes[A].carrier = "inet_tcp"
    async with cluster_of(machine=machine) as cluster:
        with pytest.raises(UsageError, match="show no certificate"):
            await cluster.supervisor.revoke("0a")


# ---- policies that went back -------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_overlay_that_was_put_back_takes_over_what_the_nodes_files_refuse() -> None:
    machine = FakeMachine(cluster_spec(node_spec("a"), node_spec("b")))
    machine.overlay = Overlay(generation=3)
    machine.records.evidence = (Found(A, Recovered(9, denied=frozenset({B}), revoked=frozenset({"0a"})), 9),)
    async with cluster_of(machine=machine) as cluster:
        await until(lambda: cluster.state(A) is NodeState.RUNNING)
        assert (machine.overlay.generation, machine.overlay.deny) == (11, frozenset({B}))
        (event,) = cluster.of_type(EventType.POLICY_ROLLED_BACK)
        assert (event.reason, event.severity.name) == ("overlay_rolled_back", "CRITICAL")
        assert "went back" not in (cluster.supervisor.status()["policy_rolled_back"] or "")
        assert not cluster.supervisor.status()["healthy"]
        await cluster.supervisor.deny(B)  # the operator decides, knowing of it
        assert cluster.supervisor.status()["policy_rolled_back"] is None


@pytest.mark.asyncio
async def test_a_living_node_that_is_ahead_and_proves_it_is_learned_from() -> None:
    async with cluster_of("a", "b") as cluster:
        await all_running(cluster)
        machine, fake = cluster.machine, cluster.fake(A)
        fake.document = b"signed"
        machine.records.documents[b"signed"] = Recovered(50, denied=frozenset({B}))
        fake.generation, fake.digest = 50, "0" * 64
        fake.says(fake.heartbeat())
        await until(lambda: machine.overlay.generation > 50)
        assert machine.overlay.deny == {B}
        await until(lambda: fake.policies[-1]["denied"] == [B])
        assert fake.policies[-1]["generation"] == 51


@pytest.mark.asyncio
async def test_a_node_that_only_claims_to_be_ahead_is_told_of_and_not_followed() -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        before = cluster.machine.overlay
        fake = cluster.fake(A)
        fake.document, fake.generation, fake.digest = b"forged", 2**60, "0" * 64
        fake.says(fake.heartbeat())
        await until(lambda: cluster.of_type(EventType.POLICY_ROLLED_BACK))
        (event,) = cluster.of_type(EventType.POLICY_ROLLED_BACK)
        assert (event.node, event.reason) == (A, "generation_unproven")
        assert cluster.machine.overlay == before
        fake.says(fake.heartbeat())
        await asyncio.sleep(0)
        assert len(cluster.of_type(EventType.POLICY_ROLLED_BACK)) == 1


@pytest.mark.asyncio
async def test_a_node_that_comes_back_behind_what_it_had_acknowledged_is_told_of_and_brought_up() -> None:
    async with cluster_of("a") as cluster:
        await all_running(cluster)
        await cluster.supervisor.deny(A)
        fake = cluster.fake(A)
        fake.goodbye()
        fake.generation, fake.digest = 1, "0" * 64
        fake.hello()
        await until(lambda: cluster.of_type(EventType.POLICY_ROLLED_BACK))
        (event,) = cluster.of_type(EventType.POLICY_ROLLED_BACK)
        assert (event.node, event.reason) == (A, "node_rolled_back")
        await until(lambda: fake.generation == cluster.machine.overlay.generation)


@pytest.mark.asyncio
async def test_no_policy_is_issued_for_a_time_before_the_last_one() -> None:
    machine = FakeMachine(cluster_spec(node_spec("a")))
    machine.overlay = Overlay(generation=3, issued_at=2**40)
    async with cluster_of(machine=machine) as cluster:
        await all_running(cluster)
        assert machine.overlay.issued_at == 2**40
        assert "the clock was set back" in str(cluster.of_type(EventType.POLICY_ROLLED_BACK)[0].detail)
        assert json.loads(cluster.supervisor.desk.wanted.document)["generation"] == 4


@pytest.mark.asyncio
async def test_a_node_is_shown_as_tainted_until_it_is_back_and_one_that_is_held_is_not() -> None:
    async with cluster_of("a", "b", prepare=linked((A, B))) as cluster:
        await all_running(cluster)

        def shown(name: str) -> bytes:
            lines = cluster.metrics.render().splitlines()
            return next(
                line for line in lines if line.startswith(f'distsec_node_tainted{{node="{name}"'.encode())
            )

        cluster.machine.nodes[A].says_hello = False
        denied = asyncio.create_task(cluster.supervisor.deny(B, compromised=True))
        await until(lambda: shown(A).endswith(b" 1.0") and shown(B).endswith(b" 0.0"))
        denied.cancel()
        await asyncio.gather(denied, return_exceptions=True)
