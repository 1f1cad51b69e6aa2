"""A compromised node at its agent socket: whatever it sends costs it the connection, and is counted."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from distsec.beam.agent_peer import MAX_OPENING
from distsec.beam.link import ACCEPT_BURST
from distsec.beam.messages import AgentRefusal
from distsec.beam.term import MAX_FRAME_BYTES, Atom, Term, encode
from distsec.model.secret import Secret
from tests.unit.fake_agent import (
    NODE,
    FakeAgent,
    atoms,
    heartbeat_fields,
    packet,
    refusal,
    refusals,
    snapshot_fields,
)
from tests.unit.later import later
from tests.unit.test_link import Watched, listening, until

pytestmark = pytest.mark.asyncio


def raw(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


BOMB = b"\x83P" + struct.pack(">I", 2**32 - 1) + zlib.compress(bytes(50_000_000), 9)

AFTER_OPENING: dict[str, tuple[bytes, AgentRefusal]] = {
    "random bytes": (b"\0\0\0\x20" + random.Random(7).randbytes(32), AgentRefusal.TERM),
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", AgentRefusal.FRAME_TOO_LARGE),
    "a frame of four gigabytes": (b"\xff\xff\xff\xff", AgentRefusal.FRAME_TOO_LARGE),
    "an empty frame": (bytes(4), AgentRefusal.TERM),
    "a compressed term": (raw(BOMB), AgentRefusal.TERM),
    "a bignum": (raw(b"\x83o" + struct.pack(">I", 900_000) + bytes(900_001)), AgentRefusal.TERM),
    "deep nesting": (raw(b"\x83" + b"h\1" * 500_000), AgentRefusal.TERM),
    "a count": (raw(b"\x83l\xff\xff\xff\xff"), AgentRefusal.TERM),
    "a pid": (raw(b"\x83X" + b"w\1x" + bytes(12)), AgentRefusal.TERM),
    "an unknown message": (packet((Atom("shutdown"),)), AgentRefusal.PROTOCOL),
    "hello again": (packet((Atom("hello"), 1, NODE.encode(), bytes(32))), AgentRefusal.PROTOCOL),
    "another snapshot": (packet((Atom("snapshot"), snapshot_fields())), AgentRefusal.PROTOCOL),
    "a made-up reason": (packet(refusal(2, reason=Atom("\x1b[2J"))), AgentRefusal.PROTOCOL),
    "a violation in the wrong lane": (packet(refusal(2, type=Atom("violation"))), AgentRefusal.PROTOCOL),
    "a reply that is none": (packet((Atom("reply"), Atom("ok"), {})), AgentRefusal.PROTOCOL),
    "a negative count": (
        packet((Atom("heartbeat"), heartbeat_fields(check_micros_sum=-1))),
        AgentRefusal.PROTOCOL,
    ),
}


@asynccontextmanager
async def with_a_good_neighbour(tmp_path: Path) -> AsyncIterator[Watched]:
    """The attacked socket; another node's agent is served before, during and after."""
    async with listening(tmp_path / "a.sock") as attacked, listening(tmp_path / "b.sock", "good@h") as good:
        agent = await FakeAgent(good.path, "good@h").open()
        yield attacked
        agent.send(refusal(1))
        assert await agent.receive_a("ack") == ("ack", "refusals", 1)
        assert good.refused == good.lost == []


@pytest.mark.parametrize("name", AFTER_OPENING)
async def test_whatever_an_opened_connection_sends_costs_that_connection_only(
    tmp_path: Path, name: str
) -> None:
    hostile, reason = AFTER_OPENING[name]
    async with with_a_good_neighbour(tmp_path) as watched:
        agent = await watched.opened()
        agent.send(refusal(1))
        agent.send_bytes(hostile)
        await agent.closed()
        assert watched.reasons == [reason]
        assert watched.lost == [f"refused: {reason}"]
        assert len(watched.events) == 1, "what came before it counts"
        (_, detail) = watched.refused[0]
        assert detail.isprintable()
        assert len(detail) < 300

        again = await watched.opened()  # an honest one is welcome at once
        again.send(refusal(1))
        await again.receive_a("ack")


BEFORE_PROOF: dict[str, tuple[bytes, AgentRefusal]] = {
    "no frame": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", AgentRefusal.FRAME_TOO_LARGE),
    "a large hello": (raw(bytes(5000)), AgentRefusal.FRAME_TOO_LARGE),
    "events at once": (packet(refusal(1)), AgentRefusal.PROTOCOL),
    "another node": (packet((Atom("hello"), 1, b"other@h", bytes(32))), AgentRefusal.PROTOCOL),
    "another version": (packet((Atom("hello"), 2, NODE.encode(), bytes(32))), AgentRefusal.VERSION),
}


@pytest.mark.parametrize("name", BEFORE_PROOF)
async def test_whatever_comes_before_the_proof_has_no_effect(tmp_path: Path, name: str) -> None:
    hostile, reason = BEFORE_PROOF[name]
    async with with_a_good_neighbour(tmp_path) as watched:
        agent = await FakeAgent(watched.path).connect()
        agent.send_bytes(hostile)
        said = await agent.closed()
        assert said == ([("goodbye", "version")] if reason is AgentRefusal.VERSION else [])
        assert watched.reasons == [reason]
        assert watched.messages == watched.lost == []


async def test_without_the_key_nothing_is_taken_and_nothing_reusable_is_learnt(tmp_path: Path) -> None:
    async with with_a_good_neighbour(tmp_path) as watched:
        first = await FakeAgent(watched.path).connect()
        challenge = await first.hello()
        reflected: Term = (Atom("proof"), challenge[3], first.launch.encode())
        first.send(reflected)
        assert await first.closed() == [("goodbye", "proof")]

        honest = await FakeAgent(watched.path).connect()
        proof = honest.proof(await honest.hello())
        await honest.leave()  # overheard, not used up

        replay = FakeAgent(watched.path)
        replay.nonce, replay.launch = honest.nonce, honest.launch
        await replay.connect()
        await replay.hello()
        replay.send(proof)
        assert await replay.closed() == [("goodbye", "proof")]

        guessing = FakeAgent(watched.path, key=Secret(bytes(32)))
        await guessing.connect()
        with pytest.raises(AssertionError, match="not our orchestrator"):
            guessing.proof(await guessing.hello())
        await guessing.leave()

        await until(lambda: len(watched.refused) == 4, "four refusals")
        assert set(watched.reasons) == {"proof"}
        assert watched.messages == []


async def test_an_orchestrator_that_does_not_know_the_key_is_noticed_by_the_agent_and_said(
    tmp_path: Path,
) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await FakeAgent(watched.path, key=Secret(b"k" * 32)).connect()
        await agent.hello()
        await agent.leave()
        await until(lambda: watched.refused, "the refusal")
        assert watched.refused[0][0] == "proof"
        assert "agent.key" in watched.refused[0][1]


async def test_silent_connections_are_few_and_keep_the_agent_out_for_a_deadline_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path / "a.sock", deadline=600.0) as watched:
        opened = await watched.opened()
        silent = [await FakeAgent(watched.path).connect() for _ in range(MAX_OPENING)]
        await until(lambda: len(watched.server.opening) == MAX_OPENING, "all of them")
        assert watched.refused == [], "one that is opened takes none of their places"
        one_more = await FakeAgent(watched.path).connect()
        await one_more.closed()
        assert watched.reasons == ["too_many"]
        later(monkeypatch, 600.0)
        for agent in silent:
            await agent.closed()
        assert watched.reasons == ["too_many"] + ["timeout"] * MAX_OPENING
        await opened.leave()
        await until(lambda: watched.lost, "the loss")
        opened = await watched.opened()
        await opened.leave()


async def test_connecting_in_a_loop_is_slowed(tmp_path: Path) -> None:
    async with with_a_good_neighbour(tmp_path) as watched:
        watched.may_connect = lambda pid, uid: False
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(ACCEPT_BURST + 10):
            agent = await FakeAgent(watched.path).connect()
            await agent.closed()
        assert loop.time() - began > 0.7
        assert watched.reasons == ["process"] * (ACCEPT_BURST + 10)


async def test_a_hello_byte_by_byte_is_served_or_timed_out(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock", deadline=0.3) as watched:
        slow = await FakeAgent(watched.path).connect()
        for byte in packet((Atom("hello"), 1, NODE.encode(), slow.nonce))[:-1]:
            slow.send_bytes(bytes([byte]))
            await asyncio.sleep(0)
        await slow.closed()
        assert watched.reasons == ["timeout"]


async def test_an_agent_that_is_cut_off_in_a_frame_loses_only_that_frame(tmp_path: Path) -> None:
    async with listening(tmp_path / "a.sock") as watched:
        agent = await watched.opened()
        agent.send_bytes(refusals(1, 3)[:-1])
        await until(lambda: len(watched.events) == 2, "two events")
        await agent.leave()
        await until(lambda: watched.lost, "the loss")
        assert len(watched.events) == 2
        assert watched.refused == []


async def test_the_largest_frames_that_are_legal_are_survived(tmp_path: Path) -> None:
    async with with_a_good_neighbour(tmp_path) as watched:
        agent = await watched.opened()
        wide = atoms(invented=[[] for _ in range(65_000)])
        long = atoms(invented=bytes(MAX_FRAME_BYTES - 1000))
        for number, more in enumerate((wide, long, wide), 1):
            agent.send((Atom("event"), Atom("refusals"), number, refusal(1)[3] | more))  # type: ignore[index,operator]
        await until(lambda: len(watched.events) == 3, "three events")


async def test_random_conversations_end_in_a_refusal_or_not_at_all(tmp_path: Path) -> None:
    """Honest frames, damaged at random, over a real socket."""
    chance = random.Random(os.environ.get("PYTEST_SEED", "distsec"))
    honest = [
        encode(refusal(1)),
        encode((Atom("heartbeat"), heartbeat_fields())),
        encode((Atom("snapshot"), snapshot_fields())),
    ]
    async with with_a_good_neighbour(tmp_path) as watched:
        for _ in range(15):
            agent = await watched.opened()
            before = len(watched.lost)
            for _ in range(40):
                frame = bytearray(chance.choice(honest))
                for _ in range(chance.randrange(3)):
                    frame[chance.randrange(len(frame))] = chance.randrange(256)
                agent.send_bytes(raw(bytes(frame)))
            agent.send_bytes(b"\xff\xff\xff\xff")
            await until(lambda before=before: len(watched.lost) > before, "the end")  # type: ignore[misc]
            await agent.leave()
        assert set(watched.reasons) <= {"term", "protocol", "frame_too_large"}
        assert len(watched.reasons) == 15
