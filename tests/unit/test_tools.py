"""Applications' tools in the orchestrator: whom they may reach, who is told of them, and of their end."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distsec.beam import render, shell_directory
from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Command
from distsec.beam.shell import ShellFields, shell_policy
from distsec.beam.shell_directory import ShellRecord
from distsec.beam.tool import tool_files, tool_flags
from distsec.errors import CommandFailed, StoreError
from distsec.model.cluster import Carrier, NodeState
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.names import NodeName
from distsec.model.policy import Phase, Policy, PolicyPeer
from distsec.model.secret import Secret
from distsec.model.shells import Operator, is_shell, is_tool, tool_identity, tool_pattern
from distsec.observe.metrics import Metrics
from distsec.pki.store import Store
from distsec.supervisor import tools
from tests.unit.test_shells import operator, place
from tests.unit.test_supervisor import A, B, C, Cluster, link, running, until

TARGET = PolicyPeer(A, "spiffe://demo/node/127.0.0.1/a", Phase.OPEN, "127.0.0.1", 9100)
OTHER = PolicyPeer(B, "spiffe://demo/node/127.0.0.1/b", Phase.OPEN, "127.0.0.1", 9101)
COOKIES = {A: Secret(b"d" + b"1" * 64), B: Secret(b"d" + b"2" * 64)}


@contextlib.contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def told(cluster: Cluster, name: str) -> list[Command]:
    """Which nodes were told of tools, and of their ends."""
    server = cluster.fake(name).server
    assert server is not None
    return [command for command in server.commands if command in (Command.ADMIT_TOOL, Command.END_TOOL)]


def linked(cluster: Cluster, name: str, *peers: str) -> None:
    cluster.supervisor.nodes[name].observed.links = {peer: link(peer) for peer in peers}


# ---- whom ----------


@pytest.mark.asyncio
async def test_a_tool_may_reach_its_node_and_the_managed_ones_that_are_linked_with_it() -> None:
    async with running("a", "b", "c") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING, c=NodeState.RUNNING)
        linked(cluster, A, B, "elsewhere@10.0.0.9", "rabbitmqcli-1@127.0.0.1")
        with process() as child:
            answer = await cluster.supervisor.tool(A, operator(child.pid), "rabbitmqctl")
            (record,) = place(cluster).made.values()
            assert (record.others, record.program, record.name) == ((B,), "rabbitmqctl", "*@127.0.0.1")
            assert is_tool(record.identity) and is_shell("demo", "x", record.identity)
            assert answer["node"] == A
            assert [told(cluster, name) for name in (A, B, C)] == [[Command.ADMIT_TOOL]] * 2 + [[]]
        await until(lambda: told(cluster, A) == told(cluster, B) == [Command.ADMIT_TOOL, Command.END_TOOL])
        assert not place(cluster).made and told(cluster, C) == []


@pytest.mark.asyncio
async def test_one_that_is_linked_and_cannot_be_told_keeps_no_tool_from_its_node() -> None:
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        linked(cluster, A, B)
        cluster.fake(B).goodbye()
        with process() as child:
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
            (made,) = place(cluster).made.values()
            assert made.others == ()
            assert told(cluster, A) == [Command.ADMIT_TOOL]


@pytest.mark.asyncio
async def test_an_agent_that_knows_no_tools_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)

        async def old(*_: object) -> None:
            raise AgentCommandFailed("no", reason="unknown")

        monkeypatch.setattr(cluster.fake(A).server, "command", old)
        with process() as child, pytest.raises(CommandFailed, match="its agent is older"):
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
        assert not place(cluster).made


# ---- while it runs ----------


@pytest.mark.asyncio
async def test_its_events_name_the_tool_and_what_it_called_itself() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            await cluster.supervisor.tool(A, operator(child.pid), "rabbitmqctl")
            (record,) = place(cluster).made.values()
            cluster.bus.publish(up("stranger@127.0.0.1", "spiffe://demo/shell/127.0.0.1/exec.00"))
            assert not cluster.of_type(EventType.SHELL_ATTACHED)
            cluster.bus.publish(up("rabbitmqcli-7@127.0.0.1", record.identity))
            (attached,) = cluster.of_type(EventType.SHELL_ATTACHED)
            assert (attached.peer, attached.detail) == ("rabbitmqcli-7@127.0.0.1", "rabbitmqctl")
            assert attached.rule == "*@127.0.0.1"
        await until(lambda: cluster.of_type(EventType.SHELL_DETACHED))
        (detached,) = cluster.of_type(EventType.SHELL_DETACHED)
        assert (detached.peer, detached.detail) == ("rabbitmqcli-7@127.0.0.1", "rabbitmqctl")
        label = {"node": A, "result": "allow", "peer": "*@127.0.0.1"}
        count = cluster.metrics.registry.get_sample_value("distsec_security_connection_attempts_total", label)
        assert count == 2


def up(peer: str, identity: str) -> SecurityEvent:
    return SecurityEvent(
        EventType.LINK_UP, Severity.INFO, A, time.time(), peer=peer, result="allow", identity=identity
    )


@pytest.mark.asyncio
async def test_a_node_that_has_started_anew_is_told_again_and_of_what_has_ended_meanwhile() -> None:
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        linked(cluster, A, B)
        with process() as child:
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
            cluster.bus.publish(connected(B))
            await until(lambda: told(cluster, B) == [Command.ADMIT_TOOL] * 2)
            cluster.fake(B).goodbye()
        await until(lambda: told(cluster, A)[-1] is Command.END_TOOL)
        assert told(cluster, B) == [Command.ADMIT_TOOL] * 2
        cluster.supervisor.shells._tools.connected(B, [])
        await until(lambda: not cluster.supervisor.shells._open)


def connected(name: str) -> SecurityEvent:
    return SecurityEvent(EventType.AGENT_CONNECTED, Severity.INFO, name, time.time())


@pytest.mark.asyncio
async def test_a_denial_ends_the_tools_of_that_node_and_no_restart_brings_them_back() -> None:
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        linked(cluster, A, B)
        with process() as child:
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
            await cluster.supervisor.deny(B, False)
            await until(lambda: told(cluster, A) == [Command.ADMIT_TOOL, Command.END_TOOL])
            cluster.bus.publish(connected(A))
            cluster.bus.publish(connected(A))
            assert Command.ADMIT_TOOL not in told(cluster, A)[1:]


@pytest.mark.asyncio
async def test_a_denial_while_a_tool_is_made_keeps_it_out() -> None:
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        linked(cluster, A, B)
        loop = asyncio.get_running_loop()

        def deny() -> None:
            asyncio.run_coroutine_threadsafe(cluster.supervisor.deny(B, False), loop).result(30)

        place(cluster).meanwhile = deny
        with process() as child, pytest.raises(CommandFailed, match="denied"):
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
        assert Command.ADMIT_TOOL not in told(cluster, A) + told(cluster, B)
        assert not place(cluster).made and not cluster.supervisor.shells._tools._over


@pytest.mark.asyncio
async def test_the_next_orchestrator_brings_no_tool_of_a_denied_node_back() -> None:
    async with running("a", "b") as cluster:
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        await cluster.supervisor.deny(B, False)
        with process() as child:
            start_time = place(cluster).start_time(child.pid)
            assert start_time is not None
            lives = ShellRecord.begin(
                token="a" * 16,
                node=A,
                name=tool_pattern("127.0.0.1"),
                identity=tool_identity("demo", "127.0.0.1", "a" * 16),
                operator=operator(child.pid),
                start_time=start_time,
                opened_at=int(time.time()),
                program="ctl",
            )
            place(cluster).made = {lives.token: replace(lives, others=(B,))}
            cluster.supervisor.shells.restore()
            cluster.bus.publish(connected(A))
            cluster.supervisor.shells.tick(time.monotonic() + 10 * tools.LEASE_SECONDS)
            await until(lambda: told(cluster, A) == [Command.END_TOOL])
            assert Command.ADMIT_TOOL not in told(cluster, B)


@pytest.mark.asyncio
async def test_the_next_orchestrator_tells_of_those_that_ended_while_none_was_there() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        gone = ShellRecord.begin(
            token="a" * 16,
            node=A,
            name=tool_pattern("127.0.0.1"),
            identity=tool_identity("demo", "127.0.0.1", "a" * 16),
            operator=Operator(1, 0, "root"),
            start_time=1,
            opened_at=int(time.time()),
            program="ctl",
        )
        place(cluster).made = {gone.token: gone}
        cluster.supervisor.shells.restore()
        assert not place(cluster).made and told(cluster, A) == []
        cluster.bus.publish(connected(A))
        await until(lambda: told(cluster, A) == [Command.END_TOOL])


@pytest.mark.asyncio
async def test_one_that_has_ended_is_not_told_again_while_its_last_report_is_awaited() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
        await until(lambda: told(cluster, A)[-1] is Command.END_TOOL)
        assert cluster.supervisor.shells._open, "it was never seen to link"
        cluster.bus.publish(connected(A))
        cluster.supervisor.shells.tick(time.monotonic() + 10 * tools.LEASE_SECONDS)
        await until(lambda: not cluster.supervisor.shells._open)
        assert told(cluster, A) == [Command.ADMIT_TOOL, Command.END_TOOL]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("reason", "again"), [("timeout", True), ("lost", True), ("links_remain", True), ("unknown", False)]
)
async def test_a_node_is_told_of_an_end_until_it_has_heard(
    reason: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        server = cluster.fake(A).server
        assert server is not None
        answer, failures = server.command, [reason]

        async def command(kind: Command, arguments: Any, timeout: float) -> Any:
            if kind is Command.END_TOOL and failures:
                raise AgentCommandFailed("not now", reason=failures.pop())
            return await answer(kind, arguments, timeout)

        monkeypatch.setattr(server, "command", command)
        with process() as child:
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
        await until(lambda: not failures)
        for seconds in (0, 1, 6, 12):
            cluster.supervisor.shells.tick(time.monotonic() + 10 + seconds)
        await until(lambda: told(cluster, A)[1:] == [Command.END_TOOL] * again)
        assert not cluster.supervisor.shells._tools._to_forget


@pytest.mark.asyncio
async def test_many_ends_are_told_a_few_at_a_time() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        ended = [f"tool-{number}" for number in range(3 * tools.TOLD_AT_ONCE)]
        known = cluster.supervisor.shells._tools
        for identity in ended:
            known._forget(A, identity, time.time() + 60)
        known.connected(A, [])
        assert list(known._to_forget[A]) == ended[tools.TOLD_AT_ONCE :]
        for again in (10, 20):
            cluster.supervisor.shells.tick(time.monotonic() + again)
        await until(lambda: told(cluster, A) == [Command.END_TOOL] * len(ended))


@pytest.mark.asyncio
async def test_a_lease_goes_on_while_the_tool_runs() -> None:
    async with running("a") as cluster:
        await cluster.states(a=NodeState.RUNNING)
        with process() as child:
            await cluster.supervisor.tool(A, operator(child.pid), "ctl")
            begun = time.monotonic() + 10 * tools.LEASE_SECONDS
            for seconds in (0, 1, tools.LEASED_AGAIN_SECONDS - 1, tools.LEASED_AGAIN_SECONDS + 1):
                cluster.supervisor.shells.tick(begun + seconds)
            await until(lambda: told(cluster, A) == [Command.ADMIT_TOOL] * 3)


# ---- names and labels ----------


def test_identities_are_of_no_shell_of_that_name_and_of_no_command_line_rule() -> None:
    identity = tool_identity("demo", "127.0.0.1", "ab")
    assert identity == "spiffe://demo/shell/127.0.0.1/exec.ab"
    assert not is_tool("spiffe://demo/shell/127.0.0.1/distsec-shell-7.ab")
    assert not is_tool("spiffe://demo/node/127.0.0.1/exec.ab") and not is_tool(None)


def test_a_stranger_is_no_tool_in_the_metrics_and_no_node_makes_up_labels() -> None:
    metrics = Metrics()
    metrics.set_listed([A], ["*@127.0.0.1"])

    def counted(peer: str, identity: str | None) -> str:
        return metrics._peer(replace(up(peer, ""), identity=identity))

    tool = tool_identity("demo", "127.0.0.1", "ab")
    assert counted("x@127.0.0.1", tool) == "*@127.0.0.1"
    assert counted("x@127.0.0.1", None) == "unlisted"
    assert counted("x@10.0.0.1", tool) == "unlisted"
    assert counted(A, tool) == A


# ---- what it is given ----------


def fields(carrier: Carrier = Carrier.DISTSEC) -> ShellFields:
    name = NodeName.parse("exec@127.0.0.1")
    return ShellFields("demo", name, TARGET, carrier, "/s/a dir/0123", "/ebin", "/usr/bin/erl")


def test_the_flags_are_exactly_these() -> None:
    assert tool_flags(fields()) == (
        "-distsec_dir /s/a\\ dir/0123 -mode interactive -pa /ebin -dist_listen false -proto_dist distsec"
        " -ssl_dist_optfile /s/a\\ dir/0123/dist.conf -epmd_module distsec_epmd -start_epmd false"
        " -no_epmd false -kernel inet_dist_use_interface {127,0,0,1} -nocookie"
    )
    assert " -pz /lib/ssl/ebin " in tool_flags(fields(), ["/lib/ssl/ebin"])


def test_it_has_a_cookie_for_each_of_its_nodes_and_a_policy_that_knows_no_others() -> None:
    wanted = Policy("demo", 3, 5, (TARGET, OTHER), denied=frozenset({"x@h"}))
    made = tool_files(
        fields(),
        shell_policy(wanted, TARGET, [OTHER]),
        cookies=COOKIES,
        key=Secret(b"KEY"),
        certificate=b"PEM",
        trust=b"PEM",
    )
    assert set(made) == {"cookie.term", "policy.term", "guard.term", *render_files()}
    for cookie in COOKIES.values():
        assert cookie.reveal() in made["cookie.term"]
    assert made["cookie.term"].count(COOKIES[A].reveal()) == 2, "that of its node is its default"
    assert b"kind => tool" in made["guard.term"] and b'target => <<"a@127.0.0.1">>' in made["guard.term"]
    bare = tool_files(
        fields(Carrier.INET_TCP), wanted, cookies=COOKIES, key=None, certificate=None, trust=None
    )
    assert set(bare) == {"cookie.term", "policy.term", "guard.term"}


def render_files() -> set[str]:
    return {render.KEY, render.CERTIFICATE, render.TRUST, render.OPTFILE}


def record(token: str) -> ShellRecord:
    return ShellRecord.begin(
        token=token,
        node=A,
        name="*@127.0.0.1",
        identity="x",
        operator=Operator(1, 0, "root"),
        start_time=1,
        opened_at=1,
        program="ctl",
        others=(B,),
    )


def test_its_directory_is_open_to_the_group_of_its_node_and_its_record_is_not(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "state"), record("a" * 16)
    shell_directory.write(store, made, {"key.pem": b"KEY"})
    directory = store.path(f"shells/{made.token}")
    assert mode(directory) == 0o700 and mode(directory / "key.pem") == 0o600
    shell_directory.entrust(store, made.token, directory.stat().st_gid)
    assert (mode(directory), mode(directory.parent)) == (0o711, 0o711)
    assert (mode(directory / "key.pem"), mode(directory / "shell.json")) == (0o640, 0o600)
    assert shell_directory.records(store) == [made], "the next orchestrator finds it"
    shell_directory.write(store, record("b" * 16), {"key.pem": b"KEY"})
    assert mode(store.path(f"shells/{'b' * 16}")) == 0o700


def test_what_cannot_be_given_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        shell_directory.entrust(Store(tmp_path / "state"), "c" * 16, 0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
