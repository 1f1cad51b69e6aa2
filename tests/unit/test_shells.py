"""Shells of operators in the orchestrator: who gets one, how its end is noticed, and what is on record."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from distsec.beam.messages import Command
from distsec.beam.shell_directory import ShellRecord
from distsec.errors import CommandFailed, NotFound, StoreError, Unavailable
from distsec.model.cluster import Link, NodeState, PeerSpec
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.names import NodeName
from distsec.model.shells import NAMES, Operator, shell_pattern
from distsec.supervisor import shells
from tests.unit.descriptors import closed_what_is_left, open_descriptors
from tests.unit.fake_place import FakePlace
from tests.unit.test_supervisor import A, B, Cluster, running, until
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.asyncio


@contextlib.contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process as the command is, which ends when the test says so."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def operator(pid: int) -> Operator:
    return Operator(pid, 1000, "ann")


def place(cluster: Cluster) -> FakePlace:
    made = cluster.supervisor.shells._place
    assert isinstance(made, FakePlace)
    return made


def attach(cluster: Cluster, shell: str, node: str = A) -> None:
    """The node tells of the link."""
    cluster.bus.publish(
        SecurityEvent(
            EventType.LINK_UP, Severity.INFO, node, 1.0, peer=shell, result="allow", address="127.0.0.1:4"
        )
    )


async def test_a_shell_is_prepared_and_its_node_told_before_the_command_is_answered() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            answer = await cluster.supervisor.shell(A, operator(child.pid))
            (record,) = place(cluster).made.values()
            assert answer["shell"] == record.name
            assert answer["node"] == A
            assert record.identity.startswith("spiffe://demo/shell/127.0.0.1/distsec-shell-")
            assert cluster.fake(A).server is not None
            assert cluster.fake(A).server.commands[-1] is Command.ADMIT_SHELL  # type: ignore[union-attr]


async def test_attach_and_detach_are_events_with_operator_and_duration() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            answer = await cluster.supervisor.shell(A, operator(child.pid))
            attach(cluster, answer["shell"])
            attach(cluster, answer["shell"])
            (attached,) = cluster.of_type(EventType.SHELL_ATTACHED)
            assert (attached.node, attached.peer) == (A, answer["shell"])
            assert (attached.operator, attached.address) == ("ann (uid 1000)", "127.0.0.1:4")
            assert attached.rule == "distsec-shell-*@127.0.0.1"
            assert b'distsec_shells{node="a@127.0.0.1"} 1.0' in cluster.metrics.render()
        await until(lambda: cluster.of_type(EventType.SHELL_DETACHED))
        (detached,) = cluster.of_type(EventType.SHELL_DETACHED)
        assert (detached.peer, detached.operator) == (answer["shell"], "ann (uid 1000)")
        assert detached.seconds is not None
        assert detached.detail is None
        assert b'distsec_shells{node="a@127.0.0.1"} 0.0' in cluster.metrics.render()


async def test_a_killed_shell_leaves_no_key_and_is_admitted_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "LATE_EVENT_SECONDS", 0.05)
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            await cluster.supervisor.shell(A, operator(child.pid))
            child.kill()
            await until(lambda: not place(cluster).made)
            assert cluster.fake(A).server is not None
            await until(lambda: Command.END_SHELL in cluster.fake(A).server.commands)  # type: ignore[union-attr]
        await until(lambda: cluster.of_type(EventType.SHELL_DETACHED))
        (detached,) = cluster.of_type(EventType.SHELL_DETACHED)
        assert detached.seconds is None
        assert detached.detail == "it was not seen to link with the node"
        assert not cluster.of_type(EventType.SHELL_ATTACHED)


async def test_a_link_that_is_told_late_still_counts_as_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "LATE_EVENT_SECONDS", PATIENCE_SECONDS)
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            answer = await cluster.supervisor.shell(A, operator(child.pid))
        await until(lambda: not place(cluster).made)
        attach(cluster, answer["shell"])
        await until(lambda: cluster.of_type(EventType.SHELL_DETACHED))
        assert cluster.of_type(EventType.SHELL_ATTACHED)
        assert cluster.of_type(EventType.SHELL_DETACHED)[0].detail is None


async def test_a_link_of_the_same_name_with_another_node_is_not_this_shell() -> None:
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        with process() as child:
            answer = await cluster.supervisor.shell(A, operator(child.pid))
            attach(cluster, answer["shell"], node=B)
            assert not cluster.of_type(EventType.SHELL_ATTACHED)


async def test_two_shells_at_once_have_different_names_and_identities() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as one, process() as other:
            await cluster.supervisor.shell(A, operator(one.pid))
            await cluster.supervisor.shell(A, operator(other.pid))
            first, second = place(cluster).made.values()
            assert first.name != second.name
            assert first.identity != second.identity


async def test_ten_thousand_shells_have_few_names_and_an_identity_each() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        node = cluster.supervisor.nodes[A]
        records = [cluster.supervisor.shells._begin(node, operator(1), 1) for _ in range(10_000)]
        assert len({record.name for record in records}) == NAMES
        assert len({record.identity for record in records}) == 10_000


async def test_a_node_that_does_not_run_is_said_to() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        await cluster.supervisor.stop([A])
        with pytest.raises(CommandFailed, match=r"STOPPED .*needs it RUNNING; see `distsec status`"):
            await cluster.supervisor.shell(A, operator(os.getpid()))
        assert not place(cluster).made


async def test_a_node_whose_agent_is_away_takes_no_shell() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        cluster.fake(A).goodbye()
        with pytest.raises(CommandFailed, match=r"agent of a@127\.0\.0\.1 is not connected"):
            await cluster.supervisor.shell(A, operator(os.getpid()))


async def test_a_peer_on_another_host_and_an_unknown_name_are_told_apart() -> None:
    elsewhere = PeerSpec(NodeName.parse("far@10.0.0.7"), "10.0.0.7", 9100)
    async with running("a", peers=(elsewhere,)) as cluster:
        with pytest.raises(NotFound, match=r"far@10\.0\.0\.7 runs on another host"):
            await cluster.supervisor.shell("far@10.0.0.7", operator(os.getpid()))
        with pytest.raises(NotFound, match=r"no such managed node; the managed nodes are: a@127\.0\.0\.1"):
            await cluster.supervisor.shell("nobody@127.0.0.1", operator(os.getpid()))


async def test_a_denied_node_takes_no_shell() -> None:
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        await cluster.supervisor.deny(B, False)
        with pytest.raises(CommandFailed, match="is denied"):
            await cluster.supervisor.shell(B, operator(os.getpid()))


async def test_whoever_has_ended_already_gets_nothing() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            gone = child.pid
        with pytest.raises(Unavailable, match="has ended"):
            await cluster.supervisor.shell(A, operator(gone))


async def test_what_cannot_be_made_leaves_nothing_open() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        place(cluster).error = StoreError("the disk is full")
        descriptors = closed_what_is_left()
        with process() as child:
            with pytest.raises(StoreError):
                await cluster.supervisor.shell(A, operator(child.pid))
            assert not cluster.supervisor.shells._open
        assert open_descriptors() == descriptors


async def test_one_node_has_a_bounded_number_of_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "MAX_SHELLS_OF_A_NODE", 1)
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        with process() as child:
            await cluster.supervisor.shell(A, operator(child.pid))
            with pytest.raises(CommandFailed, match=r"1 shells are open at a@127\.0\.0\.1 already"):
                await cluster.supervisor.shell(A, operator(child.pid))
            await cluster.supervisor.shell(B, operator(child.pid))


def left(child: subprocess.Popen[bytes], token: str, start_time: int) -> ShellRecord:
    return ShellRecord.begin(
        token=token,
        node=A,
        name="distsec-shell-7@127.0.0.1",
        identity="spiffe://demo/shell/127.0.0.1/distsec-shell-7.0",
        operator=operator(child.pid),
        start_time=start_time,
        opened_at=int(time.time()) - 60,
    )


async def test_the_next_orchestrator_watches_what_lives_and_sweeps_what_does_not() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        made = place(cluster)
        with process() as child:
            start_time = made.start_time(child.pid)
            assert start_time is not None
            living, dead = left(child, "a" * 16, start_time), left(child, "b" * 16, start_time - 1)
            made.made = {record.token: record for record in (living, dead)}
            cluster.supervisor.shells.restore()
            assert list(made.made) == [living.token]
            (swept,) = cluster.of_type(EventType.SHELL_DETACHED)
            assert swept.detail == "it ended while the orchestrator was away"
            child.kill()
            await until(lambda: len(cluster.of_type(EventType.SHELL_DETACHED)) == 2)
        assert not made.made
        seconds = cluster.of_type(EventType.SHELL_DETACHED)[1].seconds
        assert seconds is not None and 55 <= seconds <= 65


async def test_shells_go_on_when_the_orchestrator_ends() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            await cluster.supervisor.shell(A, operator(child.pid))
            made = place(cluster)
            cluster.supervisor.shells.close()
            child.kill()
            child.wait()
            await asyncio.sleep(0)
            assert len(made.made) == 1


async def test_metrics_call_every_shell_by_the_pattern() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        for number in range(3):
            attach(cluster, f"distsec-shell-{number}@127.0.0.1")
            refused = SecurityEvent(
                EventType.UNAUTHORIZED_ACCESS,
                Severity.WARNING,
                A,
                1.0,
                peer=f"distsec-shell-{number}@127.0.0.1",
                result="deny",
                reason="not_hidden",
                direction="in",
                rule=f"distsec-shell-{number}@127.0.0.1",
            )
            cluster.bus.publish(refused)
        text = cluster.metrics.render().decode()
        label = f'peer="{shell_pattern("127.0.0.1")}"'
        for result in ("allow", "deny"):
            family = "distsec_security_connection_attempts_total"
            line = next(
                line
                for line in text.splitlines()
                if line.startswith(family) and label in line and f'result="{result}"' in line
            )
            assert line.endswith(" 3.0")
        assert "distsec-shell-1@" not in text


async def test_a_process_that_ends_while_its_shell_is_made_leaves_nothing() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        made = place(cluster)
        with process() as child:

            def end_it() -> None:
                child.kill()
                child.wait()
                time.sleep(0.05)  # the event loop hears of it before the files are there

            made.meanwhile = end_it
            await cluster.supervisor.shell(A, operator(child.pid))
        await until(lambda: not made.made)
        server = cluster.fake(A).server
        assert server is not None
        await until(lambda: Command.END_SHELL in server.commands)
        assert server.commands.index(Command.ADMIT_SHELL) < server.commands.index(Command.END_SHELL)
        await until(lambda: not cluster.supervisor.shells._open)


def shell_link(peer: str, identity: str | None) -> Link:
    return Link(peer, None, identity, None, "0a", 1, "in", True, None, None, 1, "allow", None)


async def test_a_shell_is_nobody_whom_a_compromise_could_reach_other_nodes_by() -> None:
    """A script that opens one a minute fills no record of links, which would then be with everybody."""
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        memory = cluster.supervisor.memory
        for number in range(200):
            identity = f"spiffe://demo/shell/127.0.0.1/distsec-shell-1.{number:x}"
            link = shell_link("distsec-shell-1@127.0.0.1", identity)
            memory.up(A, link)
            memory.down(A, link)
        memory.all_up(A, [shell_link("distsec-shell-2@127.0.0.1", None)])
        assert memory.tainted(A, 0, {A, B}).keys() == {A}
        memory.up(A, shell_link("tool-1@127.0.0.1", "spiffe://demo/cli/x"))
        memory.up(A, shell_link("distsec-shell-1@127.0.0.1", "spiffe://demo/node/127.0.0.1/b"))
        assert memory.knows("tool-1@127.0.0.1")
        assert memory.knows("distsec-shell-1@127.0.0.1")
