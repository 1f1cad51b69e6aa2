"""One agent's connection as a state machine, without I/O: bytes in; messages, and bytes to send, out.

docs/port-protocol.md is the specification; `link` does the I/O. The states and what leads where:

    HELLO ──hello──▶ PROOF ──proof──▶ ADMISSION ──admit()──▶ SNAPSHOT ──snapshot──▶ OPEN
    OPEN ──event, heartbeat, reply──▶ OPEN
    any ──refuse()──▶ CLOSED

Whatever is not in the table raises ProtocolError and changes nothing: the same bytes raise it again. Nothing
that an agent says has any effect before it has proven that it has the node's key.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from struct import Struct
from typing import Any, Final, NoReturn, TypeAlias

from distsec.beam import reading
from distsec.beam.frames import Frames, frame
from distsec.beam.messages import AgentRefusal, Command, Lane, LaneEvent, Message, Opened, Reply, Snapshot
from distsec.beam.term import MAX_FRAME_BYTES, Atom, Term, decode, encode
from distsec.errors import ProtocolError
from distsec.model.secret import Secret
from distsec.model.text import escape

VERSION: Final = 1
SPOKEN: Final = frozenset({VERSION})
"""Versions of agents that are understood, those of nodes from before an upgrade among them."""

NONCE_BYTES: Final = 32
MAX_OPENING_FRAME_BYTES: Final = (
    4096  # hello and proof hold a name of 255 bytes, two nonces and a MAC at most
)
MAX_OUTSTANDING: Final = 256  # commands that an agent has not answered

_LAUNCH = re.compile(rb"[0-9a-f]{32}")
_length = Struct(">I").pack


class State(StrEnum):
    """Of a connection. `TRANSITIONS` says what leads where."""

    HELLO = "hello"  # nothing has come
    PROOF = "proof"  # challenged
    ADMISSION = "admission"  # proven; the link decides: admit() or refuse()
    SNAPSHOT = "snapshot"  # welcomed
    OPEN = "open"
    CLOSED = "closed"


TRANSITIONS: Final[Mapping[State, Mapping[str, State]]] = {
    State.HELLO: {"hello": State.PROOF},
    State.PROOF: {"proof": State.ADMISSION},
    State.ADMISSION: {},
    State.SNAPSHOT: {"snapshot": State.OPEN, "reply": State.SNAPSHOT},
    State.OPEN: {"event": State.OPEN, "heartbeat": State.OPEN, "reply": State.OPEN},
    State.CLOSED: {},
}

_SAID: Final = frozenset({AgentRefusal.VERSION, AgentRefusal.PROOF, AgentRefusal.PROCESS, AgentRefusal.BUSY})
"""Refusals that the agent is told, so that its log says what to do. The rest is for what no agent sends."""

Argument: TypeAlias = "bytes | str | int | Secret | Mapping[str, Argument]"


def orchestrator_mac(key: Secret, node: str, agent_nonce: bytes, nonce: bytes) -> bytes:
    """What the orchestrator proves itself with: bound to its role, the node and both nonces."""
    return _mac(key, b"distsec orchestrator 1", node.encode(), agent_nonce, nonce)


def agent_mac(key: Secret, node: str, agent_nonce: bytes, nonce: bytes, launch: bytes) -> bytes:
    """What an agent proves itself with. Its label is another, so that neither proof can be reflected."""
    return _mac(key, b"distsec agent 1", node.encode(), agent_nonce, nonce, launch)


def _mac(key: Secret, *parts: bytes) -> bytes:
    return hmac.digest(key.reveal(), b"".join(_length(len(part)) + part for part in parts), "sha256")


class AgentConnection:
    """One connection of the agent of `node`.

    `key`: the node's agent key. `nonce`: 32 random bytes, for this connection only. `acked(launch)`: the last
    sequence number that was handed on, by lane, of that launch of the node's VM; asked once, by `admit`.
    """

    def __init__(
        self, node: str, key: Secret, nonce: bytes, acked: Callable[[str], Mapping[Lane, int]]
    ) -> None:
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        self.node = node
        self.state = State.HELLO
        self.launch = ""  # not known before the proof
        self.duplicates = 0  # events that had come before: sent again after a reconnect
        self.missed = 0  # events that the agent's ring had evicted, as far as gaps show
        self._key = key
        self._nonce = nonce
        self._acked = acked
        self._agent_nonce = b""
        self._frames = Frames(MAX_OPENING_FRAME_BYTES)
        self._outgoing: list[bytes] = []
        self._seen: dict[str, int] = {}
        self._outstanding: dict[int, Command] = {}

    # ---- what comes in

    def receive_data(self, received: bytes, max_bytes: int | None = None) -> list[Message]:
        """Adds `received` and returns the messages that are whole now, in order.

        Stops after about `max_bytes` of frames, and after Opened; then `pending` says whether there is more.
        Raises ProtocolError for the first frame that no honest agent sends, once all messages before it were
        returned.
        """
        frames = self._frames
        frames.feed(received)
        messages: list[Message] = []
        done = 0
        while max_bytes is None or done < max_bytes:
            try:
                payload = frames.peek()
                if payload is None:
                    break
                message = self._take(payload)
            except ProtocolError:
                if messages:
                    break  # the next call meets it again, as nothing has changed
                raise
            frames.take()
            done += len(payload) + 4
            if message is not None:
                messages.append(message)
                if self.state is State.ADMISSION:
                    break
        return messages

    @property
    def pending(self) -> bool:
        """Whether `receive_data(b"")` would do something."""
        return self._frames.pending

    @property
    def held(self) -> int:
        """Bytes received and not yet worked on."""
        return self._frames.held

    def _take(self, payload: bytes) -> Message | None:
        term = decode(payload)
        if type(term) is not tuple or not term or type(term[0]) is not Atom:
            _wrong("not a tuple that begins with an atom")
        following = TRANSITIONS[self.state].get(term[0])
        if following is None:
            _wrong(f"{escape(term[0], 40)} in state {self.state}")
        message = _READERS[term[0]](self, term)  # raises before it changes anything
        self.state = following
        return message

    def _hello(self, term: tuple[Term, ...]) -> None:
        version = term[1] if len(term) > 1 else None
        if type(version) is not int:
            _wrong("hello without a version")
        if version not in SPOKEN:
            agent_is_older = version < VERSION
            raise ProtocolError(
                f"the agent speaks version {escape(str(version), 10)}, the orchestrator {VERSION}",
                reason=AgentRefusal.VERSION,
                do=f"upgrade the {'agent' if agent_is_older else 'orchestrator'}",
            )
        _arity(term, 4)
        node, nonce = term[2], term[3]
        if type(nonce) is not bytes or len(nonce) != NONCE_BYTES:
            _wrong("hello: nonce")
        if type(node) is not bytes or node != self.node.encode():
            _wrong(f"hello from {escape(node, 80) if type(node) is bytes else 'no node'}")
        self._agent_nonce = nonce
        mac = orchestrator_mac(self._key, self.node, nonce, self._nonce)
        self._send((Atom("challenge"), version, self._nonce, mac))

    def _proof(self, term: tuple[Term, ...]) -> Opened:
        _arity(term, 3)
        mac, launch = term[1], term[2]
        if type(mac) is not bytes or type(launch) is not bytes or not _LAUNCH.fullmatch(launch):
            _wrong("proof")
        if not hmac.compare_digest(
            mac, agent_mac(self._key, self.node, self._agent_nonce, self._nonce, launch)
        ):
            raise ProtocolError(
                "the agent's proof does not verify",
                reason=AgentRefusal.PROOF,
                do="restart the node if its agent.key was replaced",
            )
        self.launch = launch.decode("ascii")
        return Opened(self.launch)

    def _snapshot(self, term: tuple[Term, ...]) -> Snapshot:
        _arity(term, 2)
        return self._own(reading.snapshot(term[1]))

    def _own(self, snapshot: Snapshot) -> Snapshot:
        if snapshot.node != self.node or snapshot.launch != self.launch:
            _wrong("a snapshot of another node or launch")
        return snapshot

    def _event(self, term: tuple[Term, ...]) -> LaneEvent | None:
        _arity(term, 4)
        lane = reading.lane(term[1])
        number = reading.sequence(term[2])
        last = self._seen[lane]
        if number <= last:
            self.duplicates += 1
            return None
        # 0 after a restart of the orchestrator, whatever the agent sent before: a gap is not known then.
        missed = number - last - 1 if last else 0
        event = reading.event(lane, number, term[3], self.launch, missed)
        self._seen[lane] = number
        self.missed += missed
        return event

    def _heartbeat(self, term: tuple[Term, ...]) -> Message:
        _arity(term, 2)
        return reading.heartbeat(term[1])

    def _reply(self, term: tuple[Term, ...]) -> Reply | None:
        _arity(term, 4)
        number = term[1]
        if type(number) is not int:
            _wrong("reply: to what")
        kind = self._outstanding.get(number)
        if kind is None:
            return None  # to a command of an earlier connection, which nobody waits for any more
        reply = reading.reply(number, kind, term[2], term[3])
        if kind is Command.STATUS and reply.ok:
            self._own(reply.fields["snapshot"])
        del self._outstanding[number]
        return reply

    # ---- what goes out

    def admit(self) -> None:
        """Welcomes the agent that has proven itself."""
        if self.state is not State.ADMISSION:
            raise RuntimeError(f"admit() in state {self.state}")
        acked = self._acked(self.launch)
        self._seen = {lane: acked.get(lane, 0) for lane in Lane}
        self._frames.limit = MAX_FRAME_BYTES
        self.state = State.SNAPSHOT
        self._send((Atom("welcome"), {Atom(lane): self._seen[lane] for lane in Lane}))

    def refuse(self, reason: AgentRefusal) -> None:
        """Says goodbye, where the agent should know why, and takes nothing more."""
        if reason in _SAID and self.state is not State.CLOSED:
            self._send((Atom("goodbye"), Atom(reason)))
        self.state = State.CLOSED

    def send_command(self, number: int, kind: Command, arguments: Mapping[str, Argument]) -> None:
        """Queues a command; `number` is new, and the Reply has it. Texts and secrets go out as binaries."""
        if self.state is not State.OPEN or number in self._outstanding:
            raise RuntimeError(f"send_command({number}) in state {self.state}")
        fields: dict[Any, Term] = {Atom(key): _argument(value) for key, value in arguments.items()}
        self._send((Atom("command"), number, Atom(kind), fields))
        self._outstanding[number] = kind

    @property
    def outstanding(self) -> int:
        """Commands that were not answered yet, those that nobody waits for any more included."""
        return len(self._outstanding)

    def acknowledge(self, lane: Lane, number: int) -> None:
        """Queues the word that everything of `lane` up to `number` was handed on."""
        self._send((Atom("ack"), Atom(lane), number))

    def data_to_send(self) -> bytes:
        """What was queued since the last call."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def _send(self, term: Term) -> None:
        payload = encode(term)
        if len(payload) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {len(payload)} bytes is too long to send")
        self._outgoing.append(frame(payload))


def _argument(value: Argument) -> Term:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, Mapping):
        return {key.encode(): _argument(inner) for key, inner in value.items()}
    return value


def _arity(term: tuple[Term, ...], size: int) -> None:
    if len(term) != size:
        _wrong(f"a tuple of {len(term)} where one of {size} was due")


def _wrong(what: str) -> NoReturn:
    raise ProtocolError(f"not what an agent says: {what}")


_READERS: Final[Mapping[str, Callable[[AgentConnection, tuple[Term, ...]], Message | None]]] = {
    "hello": AgentConnection._hello,
    "proof": AgentConnection._proof,
    "snapshot": AgentConnection._snapshot,
    "event": AgentConnection._event,
    "heartbeat": AgentConnection._heartbeat,
    "reply": AgentConnection._reply,
}
