"""The agent socket: opening, events and acknowledgements, commands, one agent at a time, fairness, bounds."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from distsec.beam import agent_peer
from distsec.beam.link import AgentCommandFailed, AgentServer
from distsec.beam.messages import Heartbeat, Lane, LaneEvent, Message, Opened, Snapshot
from distsec.beam.term import Atom
from distsec.beam.unix_socket import MAX_PATH_BYTES, ProcessHandle, listen
from distsec.errors import CommandFailed, PortInUse, StoreError
from tests.unit.fake_agent import (
    DIGEST,
    KEY,
    NODE,
    FakeAgent,
    critical,
    heartbeat_fields,
    packet,
    refusal,
    refusals,
    snapshot_fields,
)
from tests.unit.later import later
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.asyncio

HERE = Path(__file__)


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Waits for a condition, with a deadline."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:g} s for {what}") from None


class Watched:
    """An AgentServer with all that it reported."""

    def __init__(self, path: Path, node: str = NODE, deadline: float = 5.0) -> None:
        self.path = path
        self.messages: list[Message] = []
        self.lost: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.may_connect: Callable[[int, int], bool] = lambda pid, uid: pid > 0 and uid == os.getuid()
        self.server = AgentServer(
            node,
            path,
            KEY,
            lambda pid, uid: self.may_connect(pid, uid),
            self.take,
            lambda node, why: self.lost.append(why),
            lambda node, reason, detail: self.refused.append((reason, detail)),
            opening_deadline_seconds=deadline,
        )

    def take(self, node: str, message: Message) -> None:
        self.messages.append(message)

    @property
    def events(self) -> list[LaneEvent]:
        return [message for message in self.messages if isinstance(message, LaneEvent)]

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.refused]

    async def opened(self) -> FakeAgent:
        agent = await FakeAgent(self.path).open()
        await until(lambda: self.server.connected, "the agent to be connected")
        return agent


@asynccontextmanager
async def listening(path: Path, node: str = NODE, deadline: float = 5.0) -> AsyncIterator[Watched]:
    watched = Watched(path, node, deadline)
    await watched.server.start()
    try:
        yield watched
    finally:
        await watched.server.close()


def agent_process(mode: str, path: Path, node: str, *more: str) -> subprocess.Popen[bytes]:
    """fake_agent.py as a process of its own. Whoever starts it ends it."""
    return subprocess.Popen(
        [
            sys.executable,
            str(HERE.with_name("fake_agent.py")),
            mode,
            str(path),
            node,
            KEY.reveal().hex(),
            *more,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[2])},
    )


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


async def test_who_cannot_be_looked_at_for_want_of_descriptors_is_accused_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path / "a.sock") as watched:

        def none_left(pid: int) -> ProcessHandle:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(agent_peer, "ProcessHandle", none_left)
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
            async with asyncio.timeout(20):
                assert await reader.read() == b""
            writer.close()
        assert (watched.refused, watched.server.opening) == ([], set())
        await watched.opened()


@pytest.mark.parametrize(("gives_up", "reasons"), [(True, []), (False, ["proof"])])
async def test_who_gave_up_before_it_was_challenged_is_accused_of_nothing(
    tmp_path: Path, gives_up: bool, reasons: list[str]
) -> None:
    """The orchestrator was stopped, say. Who goes when it is challenged has another key."""
    async with listening(tmp_path / "a.sock") as watched:
        with socket.socket(socket.AF_UNIX) as agent:  # nothing is awaited: the orchestrator stands still
            agent.connect(str(tmp_path / "a.sock"))
            agent.sendall(packet((Atom("hello"), 1, NODE.encode(), bytes(32))))
            if not gives_up:
                agent.setblocking(False)
                await asyncio.get_running_loop().sock_recv(agent, 4096)
        await watched.opened()  # who comes after it is taken after it
        await until(lambda: not watched.server.opening, "the end of the first")
        assert watched.reasons == reasons


# ---- an agent's day ---------------------------------------------------------------------------------


async def test_an_agents_day(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        assert agent.welcomed == {"critical": 0, "refusals": 0}
        assert watched.server.pid == os.getpid()

        agent.send(refusal(1))
        agent.send(critical(1, type=Atom("guard"), detail=b"x"))
        agent.send(refusal(2))
        acknowledged = {}
        while acknowledged != {"refusals": 2, "critical": 1}:
            _, lane, number = await agent.receive_a("ack")
            acknowledged[lane] = number

        agent.send((Atom("heartbeat"), heartbeat_fields()))
        asking = asyncio.create_task(watched.server.command("status", {}, timeout=10))
        command = await agent.receive_a("command")
        agent.send(
            (Atom("reply"), command[1], Atom("ok"), snapshot_fields(NODE, agent.launch, policy_generation=9))
        )
        assert (await asking).fields["snapshot"].policy_generation == 9

        await agent.leave()
        await until(lambda: watched.lost, "the loss to be reported")
        assert [type(message) for message in watched.messages] == [
            Opened,
            Snapshot,
            *[LaneEvent] * 3,
            Heartbeat,
        ]
        assert not watched.server.connected
        assert watched.refused == []


async def test_after_a_reconnect_goes_on_where_it_was_and_takes_nothing_twice(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        first = await watched.opened()
        first.send_bytes(refusals(1, 500))
        await until(lambda: len(watched.events) == 500, "500 events")
        await first.leave()
        await until(lambda: watched.lost, "the loss")

        second = FakeAgent(watched.path, launch=first.launch)
        await second.open()
        assert second.welcomed == {"critical": 0, "refusals": 500}
        second.send_bytes(refusals(499, 4))
        await until(lambda: len(watched.events) == 502, "two new events")
        assert [event.sequence for event in watched.events] == list(range(1, 503))
        await second.leave()
        await until(lambda: len(watched.lost) == 2, "the second loss")

        other_vm = await watched.opened()
        assert other_vm.welcomed == {"critical": 0, "refusals": 0}
        await other_vm.leave()


async def test_acknowledges_only_what_was_handed_on(tmp_path: Path) -> None:
    """An error of ours costs that connection; the agent then sends again what nobody has taken."""
    async with listening(tmp_path / "a.sock") as watched:
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: errors.append(context["exception"])
        )
        agent = await watched.opened()

        def broken(node: str, message: Message) -> None:
            raise LookupError("a bug")

        watched.server.on_message = broken
        agent.send(refusal(1))
        assert [term for term in await agent.closed() if term[0] == "ack"] == []  # type: ignore[index]
        assert [type(error) for error in errors] == [LookupError]
        assert len(watched.lost) == 1

        watched.server.on_message = watched.take
        again = await FakeAgent(watched.path, launch=agent.launch).open()
        assert again.welcomed == {"critical": 0, "refusals": 0}
        await again.leave()


async def test_takes_the_last_words_of_a_node_that_died(tmp_path: Path) -> None:
    """It wrote more and was gone while we worked, so that our acknowledgement meets a closed socket."""
    async with listening(tmp_path / "a.sock") as watched:
        process = agent_process("last-words", watched.path, NODE, "200")

        def let_it_end(node: str, message: Message) -> None:
            watched.take(node, message)
            if len(watched.events) == 1:
                process.communicate(b"go on")

        watched.server.on_message = let_it_end
        try:
            await until(lambda: watched.lost, "the loss", 60)
            assert len(watched.events) == 400
        finally:
            end(process)


# ---- commands ---------------------------------------------------------------------------------------


async def test_a_command_without_an_agent_fails_at_once(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        with pytest.raises(AgentCommandFailed) as caught:
            await watched.server.command("stop", {}, timeout=60)
        assert caught.value.reason == "lost"
        assert isinstance(caught.value, CommandFailed)
        assert NODE in str(caught.value)


async def test_a_command_that_is_not_answered_times_out_and_a_late_reply_harms_nobody(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        with pytest.raises(AgentCommandFailed) as caught:
            await watched.server.command("stop", {}, timeout=0.02)
        assert caught.value.reason == "timeout"

        await agent.answer()
        asking = asyncio.create_task(watched.server.command("disconnect", {"peer": "x@y"}, timeout=10))
        command = await agent.answer()
        assert command[2:] == ("disconnect", {"peer": b"x@y"})
        assert (await asking).ok
        assert watched.server.connected


async def test_an_agent_that_goes_away_fails_the_commands_it_owes(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        asking = [asyncio.create_task(watched.server.command("stop", {}, timeout=60)) for _ in range(3)]
        await agent.receive_a("command")
        await agent.leave()
        for task in asking:
            with pytest.raises(AgentCommandFailed) as caught:
                await task
            assert caught.value.reason == "lost"


async def test_a_connection_that_is_dropped_is_lost_and_the_agent_may_come_back(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        watched.server.drop("nobody is there")
        agent = await watched.opened()
        watched.server.drop("nothing was heard of it")
        assert not watched.server.connected
        assert watched.lost == ["nothing was heard of it"]
        await agent.closed()
        await watched.opened()
        assert watched.server.connected


async def test_an_agent_that_says_no_says_why(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        policy = {"document": b"x", "cookies": {}}
        asking = asyncio.create_task(watched.server.command("policy", policy, timeout=10))
        await agent.answer("error", reason="signature", detail=b"not \x1b[31mours")
        with pytest.raises(AgentCommandFailed) as caught:
            await asking
        assert caught.value.reason == "signature"
        assert r"not \x1b[31mours" in str(caught.value)

        asking = asyncio.create_task(watched.server.command("policy", policy, timeout=10))
        await agent.answer(generation=8, digest=DIGEST)
        assert (await asking).fields == {"generation": 8, "digest": DIGEST.decode()}


async def test_a_command_that_is_too_long_to_send_fails_alone(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        with pytest.raises(AgentCommandFailed) as caught:
            await watched.server.command("policy", {"document": bytes(2**20), "cookies": {}}, timeout=10)
        assert caught.value.reason == "too_long"
        assert watched.server.connected
        await agent.leave()


async def test_a_reply_to_a_command_of_an_earlier_connection_harms_nobody(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        first = await watched.opened()
        asking = asyncio.create_task(watched.server.command("stop", {}, timeout=60))
        command = await first.receive_a("command")
        await first.leave()
        with pytest.raises(AgentCommandFailed):
            await asking
        late = (Atom("reply"), command[1], Atom("ok"), {})
        second = await FakeAgent(watched.path, launch=first.launch).connect()
        second.send(second.proof(await second.hello()))
        second.send(late)
        second.send((Atom("snapshot"), snapshot_fields(NODE, first.launch)))
        second.send(late)
        second.send(refusal(1))
        await second.receive_a("ack")
        assert watched.refused == []
        await second.leave()


async def test_commands_that_nobody_answers_are_bounded(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        asked = [watched.server.command("status", {}, timeout=0.2) for _ in range(300)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        reasons = {result.reason for result in results if isinstance(result, AgentCommandFailed)}
        assert reasons == {"timeout", "busy"}
        await agent.leave()


async def test_an_agent_that_does_not_read_is_dropped_before_it_costs_memory(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        policy = {"document": bytes(900_000), "cookies": {}}
        asked = [watched.server.command("policy", policy, timeout=60) for _ in range(20)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        reasons = {result.reason for result in results if isinstance(result, AgentCommandFailed)}
        assert reasons == {"lost"}
        assert watched.lost == ["it does not read what it is sent"]
        await agent.leave()


async def test_acknowledgements_to_an_agent_that_does_not_read_do_not_pile_up(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        agent.writer.transport.pause_reading()  # type: ignore[attr-defined]
        policy = {"document": bytes(900_000), "cookies": {}}
        with pytest.raises(AgentCommandFailed):
            await watched.server.command("policy", policy, timeout=0.05)
        peer = watched.server._current
        assert peer is not None
        assert peer._transport is not None
        unsent = peer._transport.get_write_buffer_size()
        assert unsent > agent_peer.HIGH_WATER_BYTES

        for first in range(1, 5001, 1000):
            agent.send_bytes(refusals(first, 1000))
            await agent.writer.drain()
        await until(lambda: len(watched.events) == 5000, "5,000 events", 60)
        assert peer._transport.get_write_buffer_size() == unsent

        agent.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await agent.receive_a("ack") == ("ack", "refusals", 5000)


# ---- who may connect --------------------------------------------------------------------------------


async def test_one_agent_at_a_time(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        first = await watched.opened()
        second = await FakeAgent(watched.path).connect()
        second.send(second.proof(await second.hello()))
        assert await second.closed() == [("goodbye", "busy")]
        assert watched.reasons == ["busy"]
        first.send(refusal(1))
        assert await first.receive_a("ack") == ("ack", "refusals", 1)
        assert watched.lost == []


async def test_an_agent_whose_process_has_ended_gives_way_though_its_socket_is_open(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        process = agent_process("orphan", watched.path, NODE)
        child = 0
        try:
            assert process.stdout is not None
            child = int(await asyncio.to_thread(process.stdout.readline))
            await asyncio.to_thread(process.wait)
            await until(lambda: watched.server.connected, "the first agent")
            assert watched.server.pid == process.pid
            assert not watched.server.present(), "its pid may be anybody's from here on"
            await watched.opened()
            assert watched.server.present()
            assert watched.server.pid == os.getpid()
            assert watched.lost == ["its process has ended"]
            assert watched.refused == []
        finally:
            if child:
                os.kill(child, signal.SIGKILL)
            end(process)


async def test_asks_who_is_there_before_it_reads_a_byte(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        asked: list[tuple[int, int]] = []

        def nobody(pid: int, uid: int) -> bool:
            asked.append((pid, uid))
            return False

        watched.may_connect = nobody
        agent = await FakeAgent(watched.path).connect()
        agent.send((Atom("hello"), 1, NODE.encode(), agent.nonce))
        assert await agent.closed() == [("goodbye", "process")]
        assert asked == [(os.getpid(), os.getuid())]
        assert watched.reasons == ["process"]


async def test_a_process_that_has_ended_is_no_agent(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:

        def gone(pid: int, uid: int) -> bool:
            raise ProcessLookupError

        watched.may_connect = gone
        agent = await FakeAgent(watched.path).connect()
        assert await agent.closed() == [("goodbye", "process")]
        assert watched.reasons == ["process"]


async def test_a_pid_that_is_another_users_by_now_is_no_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever connected has ended, its socket in a child's hands, and its pid was given to somebody."""
    monkeypatch.setattr(agent_peer.proc, "owner", lambda pid: os.getuid() + 1)
    async with listening(tmp_path / "a.sock") as watched:
        agent = await FakeAgent(watched.path).connect()
        assert await agent.closed() == [("goodbye", "process")]
        assert watched.reasons == ["process"]


async def test_an_error_in_the_asking_is_a_no(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: errors.append(context["exception"])
        )

        def broken(pid: int, uid: int) -> bool:
            raise LookupError("a bug")

        watched.may_connect = broken
        agent = await FakeAgent(watched.path).connect()
        assert await agent.closed() == [("goodbye", "process")]
        assert [type(error) for error in errors] == [LookupError]


async def test_the_opening_has_a_deadline_up_to_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path / "a.sock", deadline=600.0) as watched:
        silent = await FakeAgent(watched.path).connect()
        await until(lambda: watched.server.opening, "it to be taken")
        later(monkeypatch, 600.0)
        assert await silent.closed() == []
        assert watched.reasons == ["timeout"]

        no_snapshot = await FakeAgent(watched.path).connect()
        no_snapshot.send(no_snapshot.proof(await no_snapshot.hello()))
        assert (await no_snapshot.receive())[0] == "welcome"
        later(monkeypatch, 600.0)
        assert await no_snapshot.closed() == []
        assert watched.reasons == ["timeout", "timeout"]
        assert watched.lost == ["refused: timeout"]


async def test_an_opened_connection_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(tmp_path / "a.sock", deadline=600.0) as watched:
        agent = await watched.opened()
        later(monkeypatch, 1800.0)
        await asyncio.sleep(0.05)  # whatever is due is done
        agent.send(refusal(1))
        await agent.receive_a("ack")


# ---- fairness ---------------------------------------------------------------------------------------


async def test_a_node_that_floods_slows_no_other_nodes_commands(tmp_path: Path) -> None:
    async with (
        listening(tmp_path / "a.sock", "noisy@127.0.0.1") as noisy,
        listening(tmp_path / "b.sock") as quiet,
    ):
        count = 0

        def count_events(node: str, message: Message) -> None:
            nonlocal count
            count += isinstance(message, LaneEvent)

        noisy.server.on_message = count_events
        agent = await quiet.opened()
        loop = asyncio.get_running_loop()
        process = agent_process("flood", noisy.path, "noisy@127.0.0.1")
        try:
            await until(lambda: count > 5000, "the flood", 60)
            between: list[int] = []
            first = count
            while len(between) < 50 or count < first + 20_000:
                before, began = count, loop.time()
                asking = asyncio.create_task(quiet.server.command("disconnect", {"peer": "x@y"}, timeout=10))
                await agent.answer()
                await asking
                between.append(count - before)
                assert loop.time() - began < 5
            # A command and its reply take a few turns of the loop; each lets the flood have one slice, some
            # hundred events. Waiting for the flood to be over would take for ever.
            assert sorted(between)[len(between) // 2] < 5000
        finally:
            end(process)


async def test_a_slice_ends_after_its_time_and_reading_waits(tmp_path: Path) -> None:
    """A quarter of a megabyte is read at once; other work has its turn long before all is done."""
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        loop = asyncio.get_running_loop()
        turns: list[int] = []

        def slow(node: str, message: Message) -> None:
            watched.messages.append(message)
            until_then = loop.time() + 0.0005
            while loop.time() < until_then:
                pass

        def turn() -> None:
            turns.append(len(watched.events))
            if len(watched.events) < 600:
                loop.call_soon(turn)

        watched.server.on_message = slow
        agent.send_bytes(refusals(1, 600))
        loop.call_soon(turn)
        await until(lambda: len(watched.events) == 600, "all events")
        steps = [after - before for before, after in pairwise(turns)]
        assert max(steps) <= 8 + agent_peer.STEP_BYTES // 300


async def test_what_is_not_worked_on_yet_stays_in_the_nodes_socket(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        loop = asyncio.get_running_loop()
        held: list[int] = []

        def slow(node: str, message: Message) -> None:
            watched.messages.append(message)
            peer = watched.server._current
            assert peer is not None
            held.append(peer.connection.held)
            until_then = loop.time() + 0.0002
            while loop.time() < until_then:
                pass

        watched.server.on_message = slow
        agent.send_bytes(refusals(1, 4000))
        await until(lambda: len(watched.events) == 4000, "all events", 60)
        assert max(held) < 300_000, "more than one read of 256 KiB was held"


async def test_a_frame_that_takes_long_is_followed_by_a_pause(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        loop = asyncio.get_running_loop()
        times: list[float] = []

        def very_slow(node: str, message: Message) -> None:
            watched.messages.append(message)
            times.append(loop.time())
            while loop.time() < times[-1] + 0.03:
                pass

        watched.server.on_message = very_slow
        big = b"x" * agent_peer.STEP_BYTES  # a step each
        agent.send_bytes(b"".join(packet(refusal(number, invented=big)) for number in range(1, 6)))
        await until(lambda: len(times) == 5, "five events")
        gaps = [after - before for before, after in pairwise(times)]
        assert min(gaps) >= 0.055


# ---- the socket file --------------------------------------------------------------------------------


async def test_the_socket_is_private_from_the_moment_it_exists(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with listening(tmp_path / "a.sock") as watched:
            assert watched.path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert not (tmp_path / "a.sock").exists()


async def test_replaces_a_socket_of_ours_that_nobody_listens_at(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "a.sock"))
    stale.close()
    async with listening(tmp_path / "a.sock") as watched:
        await watched.opened()


async def test_leaves_what_is_no_socket_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "target").write_text("precious")
    (tmp_path / "symlink").symlink_to(tmp_path / "target")
    for name in ("file", "symlink"):
        with pytest.raises(StoreError):
            listen(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "symlink").read_text() == "precious"


async def test_leaves_a_socket_where_somebody_listens(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        with pytest.raises(PortInUse):
            listen(watched.path)
        await watched.opened()


async def test_leaves_a_file_that_has_taken_its_place(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock"):
        (tmp_path / "a.sock").unlink()
        (tmp_path / "a.sock").write_text("another's")
    assert (tmp_path / "a.sock").read_text() == "another's"


async def test_refuses_a_directory_that_others_can_enter_and_a_path_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o750)
    with pytest.raises(StoreError, match="ours alone"):
        listen(tmp_path / "open" / "a.sock")
    with pytest.raises(StoreError, match="No such file"):
        listen(tmp_path / "none" / "a.sock")
    with pytest.raises(StoreError, match="shorter state_dir"):
        listen(tmp_path / ("x" * MAX_PATH_BYTES))


async def test_closing_drops_the_agent_and_starts_again_at_the_same_path(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
    assert await agent.closed() == []
    assert len(watched.lost) == 1
    async with listening(tmp_path / "a.sock") as watched:
        await watched.opened()


async def test_a_process_handle_knows_the_end_of_its_process() -> None:
    process = subprocess.Popen(["sleep", "60"])
    handle = ProcessHandle(process.pid)
    assert not handle.ended()
    process.kill()
    await until(handle.ended, "the end")  # a zombie has ended, too
    process.wait()
    handle.close()
    handle.close()
    with pytest.raises(ProcessLookupError):
        ProcessHandle(process.pid)


async def test_lanes_are_those_of_the_specification() -> None:
    assert set(Lane) == {"critical", "refusals"}
