"""A node's agent in Python: honest unless told otherwise. For tests of whatever an agent connects to.

As a program it is an agent in a process of its own:

    python fake_agent.py MODE SOCKET NODE KEY_HEX …
    flood              events as fast as they are taken, until it is ended
    orphan             opens, prints the pid of a child that keeps the socket, and ends
    last-words COUNT   opens, sends COUNT events, waits for its stdin to end, sends as many again, and ends
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distsec.beam.frames import frame
from distsec.beam.protocol import agent_mac, orchestrator_mac
from distsec.beam.term import Atom, Term, decode, encode
from distsec.model.secret import Secret

NODE = "poller@127.0.0.1"
KEY = Secret(bytes(range(32)))
DIGEST = b"ab" * 32


def atoms(**fields: object) -> dict[Any, Any]:
    """A map with atoms as keys. `in_` and the like lose the underscore; a plain str stands for an atom."""
    return {Atom(key): Atom(value) if type(value) is str else value for key, value in fields.items()}


def link_fields(**changes: object) -> dict[Any, Any]:
    return atoms(
        peer=b"agent@127.0.0.1",
        address=b"127.0.0.1:40112",
        identity=b"spiffe://demo/node/127.0.0.1/agent",
        issuer=b"CN=demo",
        serial=b"0a1b",
        not_after=1_800_000_000,
        direction="in",
        hidden=False,
        tls_version=b"tlsv1.3",
        cipher=b"TLS_AES_128_GCM_SHA256",
        since_ms=1_763_764_000_123,
        verdict="allow",
        reason=None,
    ) | atoms(**changes)


def snapshot_fields(node: str = NODE, launch: str = "00" * 16, **changes: object) -> dict[Any, Any]:
    return atoms(
        node=node.encode(),
        os_pid=os.getpid(),
        otp=b"25",
        launch=launch.encode(),
        started_ms=1_763_764_000_000,
        carrier=b"inet_tls",
        listeners=[atoms(address=b"127.0.0.1", port=9100)],
        optfile_digest=DIGEST,
        policy_generation=7,
        policy_digest=DIGEST,
        links=[link_fields()],
    ) | atoms(**changes)


def refusal_fields(**changes: object) -> dict[Any, Any]:
    return atoms(
        type="refusal",
        at_ms=1_763_764_000_123,
        direction="in",
        reason="not_allowed",
        address=b"127.0.0.1:40112",
        identity=b"spiffe://demo/node/127.0.0.1/evil",
        serial=b"0a1b2c3d4e5f60718293a4b5c6d7e8f901020304",
        claimed=b"evil@127.0.0.1",
        rule=None,
        detail=b"on no list",
    ) | atoms(**changes)


def heartbeat_fields(**changes: object) -> dict[Any, Any]:
    return atoms(
        policy_generation=7,
        policy_digest=DIGEST,
        links=1,
        sequence=atoms(critical=3, refusals=2),
        dropped=atoms(critical=0, refusals=0),
        refusals=[(Atom("in"), Atom("not_allowed"), 2)],
        checks=[(Atom("handshake_in"), Atom("deny"), 2)],
        check_seconds=[(100, 1), (Atom("infinity"), 1)],
        check_micros_sum=1234,
    ) | atoms(**changes)


def refusal(sequence: int, **changes: object) -> Term:
    return (Atom("event"), Atom("refusals"), sequence, refusal_fields(**changes))


def critical(sequence: int, **fields: object) -> Term:
    return (Atom("event"), Atom("critical"), sequence, atoms(at_ms=1, **fields))


def packet(term: Term) -> bytes:
    return frame(encode(term))


class FakeAgent:
    """The agent's side of one connection, over asyncio streams. Each step can be left out or done wrongly."""

    def __init__(self, path: Path, node: str = NODE, key: Secret = KEY, launch: str | None = None) -> None:
        self.path, self.node, self.key = path, node, key
        self.launch = launch or secrets.token_hex(16)
        self.nonce = secrets.token_bytes(32)
        self.welcomed: Mapping[Any, Any] = {}

    async def connect(self) -> FakeAgent:
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)
        return self

    async def hello(self, version: int = 1) -> tuple[Any, ...]:
        """Sends hello; returns what comes back (the challenge, or goodbye)."""
        self.send((Atom("hello"), version, self.node.encode(), self.nonce))
        return await self.receive()

    def proof(self, challenge: tuple[Any, ...]) -> Term:
        _, _, nonce, mac = challenge
        assert mac == orchestrator_mac(self.key, self.node, self.nonce, nonce), "not our orchestrator"
        launch = self.launch.encode()
        return (Atom("proof"), agent_mac(self.key, self.node, self.nonce, nonce, launch), launch)

    async def open(self, **snapshot: object) -> FakeAgent:
        """Everything up to the snapshot, honestly."""
        await self.connect()
        self.send(self.proof(await self.hello()))
        answer = await self.receive()
        assert answer[0] == "welcome", answer
        self.welcomed = answer[1]
        self.send((Atom("snapshot"), snapshot_fields(self.node, self.launch, **snapshot)))
        return self

    def send(self, term: Term) -> None:
        self.send_bytes(packet(term))

    def send_bytes(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> tuple[Any, ...]:
        """The next term. Raises IncompleteReadError or ConnectionError when the other side has closed."""
        header = await self.reader.readexactly(4)
        term = decode(await self.reader.readexactly(int.from_bytes(header)))
        assert isinstance(term, tuple)
        return term

    async def receive_a(self, tag: str) -> tuple[Any, ...]:
        """The next term that begins with `tag`."""
        while True:
            term = await self.receive()
            if term[0] == tag:
                return term

    async def answer(self, outcome: str = "ok", **fields: object) -> tuple[Any, ...]:
        """Waits for a command, answers it, and returns it."""
        command = await self.receive_a("command")
        self.send((Atom("reply"), command[1], Atom(outcome), atoms(**fields)))
        return command

    async def closed(self) -> list[Term]:
        """Waits until the other side has closed; returns what it said before."""
        said: list[Term] = []
        try:
            while True:
                said.append(await self.receive())
        except (asyncio.IncompleteReadError, ConnectionError):
            return said

    async def leave(self) -> None:
        self.writer.transport.abort()


# ---- as a process of its own ------------------------------------------------------------------------


def open_blocking(path: str, node: str, key: Secret) -> socket.socket:
    """Opens honestly with a blocking socket, and returns it."""
    agent = FakeAgent(Path(path), node, key)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.connect(path)
    stream = connected.makefile("rb")

    def receive() -> tuple[Any, ...]:
        term = decode(stream.read(int.from_bytes(stream.read(4))))
        assert isinstance(term, tuple)
        return term

    connected.sendall(packet((Atom("hello"), 1, node.encode(), agent.nonce)))
    connected.sendall(packet(agent.proof(receive())))
    assert receive()[0] == "welcome"
    connected.sendall(packet((Atom("snapshot"), snapshot_fields(node, agent.launch))))
    return connected


def refusals(first: int, count: int) -> bytes:
    """`count` refusals as bytes, made quickly: one is encoded, the others differ in their number."""
    marker = 0x7ABCDEF1
    before, after = packet(refusal(marker)).split(struct.pack(">i", marker))
    return b"".join(before + struct.pack(">i", first + at) + after for at in range(count))


def main(mode: str, path: str, node: str, key_hex: str, *more: str) -> None:
    signal.alarm(120)  # whatever becomes of the test, this ends
    connected = open_blocking(path, node, Secret(bytes.fromhex(key_hex)))
    if mode == "orphan":
        child = os.fork()
        if child:
            print(child, flush=True)
            os._exit(0)
        signal.alarm(120)
        signal.pause()
    elif mode == "last-words":
        count = int(more[0])
        connected.sendall(refusals(1, count))
        sys.stdin.read()
        connected.sendall(refusals(1 + count, count))
    else:
        sequence = 1
        while True:
            connected.sendall(refusals(sequence, 1000))
            sequence += 1000
            try:
                while connected.recv(65536, socket.MSG_DONTWAIT):
                    pass
            except BlockingIOError:
                pass


if __name__ == "__main__":
    main(*sys.argv[1:])
