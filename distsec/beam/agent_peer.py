"""One connection to an agent socket: slices of work, acknowledgements, limits, and its end. `link` owns it.

A slice takes 4 ms, looked at every 16 KiB; then the event loop runs everything else, and this socket is not
read meanwhile. A slice that took twice as long or more, as a single frame can, is followed by a pause of its
length. So a node that floods fills its own socket buffer and then its own ring, and nobody else's time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from distsec.beam import proc
from distsec.beam.messages import AgentRefusal, Command, Lane, LaneEvent, Message, Opened, Snapshot
from distsec.beam.protocol import NONCE_BYTES, AgentConnection, Argument, State
from distsec.beam.shortage import shortage
from distsec.beam.unix_socket import ProcessHandle, peer_credentials
from distsec.errors import ProtocolError
from distsec.model.secret import Secret

MAX_OPENING: Final = 4  # connections of one socket that have not proven themselves yet
SLICE_SECONDS: Final = 0.004
STEP_BYTES: Final = 16 * 1024
HIGH_WATER_BYTES: Final = 64 * 1024  # above it acknowledgements wait; the next one says what they would have
MAX_UNSENT_BYTES: Final = 4 * 1024 * 1024  # above it the agent is taken for dead
LINGER_SECONDS: Final = 1.0  # how long a goodbye may take to leave
MAX_LAST_WORDS_BYTES: Final = 1024 * 1024


class PeerOwner(Protocol):
    """What a connection needs of the server that owns it (`link.AgentServer`)."""

    node: str
    key: Secret
    opening_deadline_seconds: float
    opening: set[Peer]
    accept_peer: Callable[[int, int], bool]

    def acked(self, launch: str) -> Mapping[Lane, int]: ...
    def admit(self, peer: Peer) -> bool: ...
    def hand_on(self, message: Message) -> None: ...
    def lost(self, peer: Peer, why: str) -> None: ...
    def refused(self, reason: AgentRefusal, detail: str) -> None: ...
    def remember(self, peer: Peer, closing: bool) -> None: ...


class Peer(asyncio.Protocol):
    """One connection, from accept to its end."""

    def __init__(self, server: PeerOwner) -> None:
        self.pid = 0
        self._uid = 0
        self.connection = AgentConnection(
            server.node, server.key, secrets.token_bytes(NONCE_BYTES), server.acked
        )
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._process: ProcessHandle | None = None
        self._timer: asyncio.TimerHandle | None = None  # the opening's deadline, then a goodbye's
        self._next: asyncio.Handle | None = None  # the slice to come
        self._handed_on: dict[Lane, int] = {}  # and not acknowledged
        self._writable = True
        self._ended: str | None = None  # why; once set nothing more is taken

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        if not self._is_of_this_node(transport):
            if self._ended is not None:
                return
            self._refuse(AgentRefusal.PROCESS, f"process {self.pid} of user {self._uid} is not of this node")
        elif len(self._server.opening) >= MAX_OPENING:
            self._refuse(AgentRefusal.TOO_MANY, f"{MAX_OPENING} connections are in the opening")
        else:
            self._server.opening.add(self)
            self._timer = self._loop.call_later(self._server.opening_deadline_seconds, self._too_late)

    def _is_of_this_node(self, transport: asyncio.Transport) -> bool:
        """Asked before a byte is read. An error in the asking is a no.

        Who has connected may have ended since, its socket held by another: then the pid can be anybody's. So
        it must be of the user who connected; whether it is the very same is asked again at its hello
        (`present`).
        """
        try:
            self.pid, self._uid = peer_credentials(transport.get_extra_info("socket"))
            self._process = ProcessHandle(self.pid)
            return proc.owner(self.pid) == self._uid and self._server.accept_peer(self.pid, self._uid)
        except OSError as error:
            if shortage(error) is not None:  # it has done nothing wrong, and comes again
                self.drop("there is no descriptor left to look at who has connected")
            return False  # it has ended already
        except Exception as error:
            self._report(error)
            return False

    def data_received(self, data: bytes) -> None:
        if self._ended is None:
            self._work(data)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._ended is None:
            self._acknowledge()

    def connection_lost(self, exc: Exception | None) -> None:
        transport, self._transport = self._transport, None
        if self._ended is None and self.connection.state is State.OPEN and transport is not None:
            # It may have ended while acknowledgements were written, with its last words still unread.
            self._read_last_words(transport.get_extra_info("socket").fileno())
            if self._next is None:
                self._work(b"")
            if self._ended is None and self.connection.pending:
                return  # the slices go on; the last of them ends this
        state, begun = self.connection.state, self.connection.held > 0
        gave_up = self._ended is None
        self._finish(f"the connection ended{f' ({type(exc).__name__})' if exc else ''}")
        if gave_up and state is State.PROOF:
            self._server.refused(
                AgentRefusal.PROOF, "it went away when challenged: has it another agent.key?"
            )
        elif gave_up and state is State.HELLO and begun:
            self._server.refused(AgentRefusal.PROTOCOL, "it went away in the middle of its hello")

    # ---- slices

    def _work(self, data: bytes) -> None:
        """One slice: takes messages for SLICE_SECONDS, hands them on, acknowledges, plans the next one."""
        self._next = None
        began = self._loop.time()
        connection = self.connection
        before = connection.state
        spent = 0.0
        try:
            while True:
                for message in connection.receive_data(data, STEP_BYTES):
                    self._hand_on(message)
                    if self._ended is not None:
                        return
                data = b""
                spent = self._loop.time() - began
                if not connection.pending or spent >= SLICE_SECONDS:
                    break
        except ProtocolError as error:
            self._refuse(AgentRefusal(error.reason), str(error))
            return
        except Exception as error:  # a bug of ours that this node has found costs this node's connection
            self._report(error)
            self.drop("an error in the orchestrator")
            return
        if before is State.HELLO and connection.state is State.PROOF and self._has_hung_up():
            self.drop("it had given up before it could be challenged")  # we were stopped, or busy
            return
        self._acknowledge()
        self._plan(spent)

    def _has_hung_up(self) -> bool:
        if self._transport is None:
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _plan(self, spent: float) -> None:
        if self._ended is not None:
            return
        if self.connection.pending:
            if self._transport is not None:
                self._transport.pause_reading()
            if spent < 2 * SLICE_SECONDS:
                self._next = self._loop.call_soon(self._work, b"")
            else:
                self._next = self._loop.call_later(spent, self._work, b"")
        elif self._transport is None:
            self._finish("the connection ended")
        else:
            self._transport.resume_reading()

    def _hand_on(self, message: Message) -> None:
        if isinstance(message, Opened):
            if not self._server.admit(self):
                self._refuse(AgentRefusal.BUSY, "an agent of this node that lives is connected")
                return
            self._server.opening.discard(self)
            self.connection.admit()
        elif isinstance(message, Snapshot) and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._server.hand_on(message)
        if isinstance(message, LaneEvent):
            self._handed_on[message.lane] = message.sequence

    def _acknowledge(self) -> None:
        if self._writable:
            for lane, number in self._handed_on.items():
                self.connection.acknowledge(lane, number)
            self._handed_on.clear()
        self._flush()

    def _flush(self) -> None:
        data = self.connection.data_to_send()
        if not data or self._transport is None:
            return
        if self._transport.get_write_buffer_size() + len(data) > MAX_UNSENT_BYTES:
            self.drop("it does not read what it is sent")
        else:
            self._transport.write(data)

    def _read_last_words(self, descriptor: int) -> None:
        words = b""
        with contextlib.suppress(OSError):
            while len(words) < MAX_LAST_WORDS_BYTES and (more := os.read(descriptor, 256 * 1024)):
                words += more
        with contextlib.suppress(ProtocolError):
            self.connection.receive_data(words, 0)

    # ---- from outside, and the end

    def send_command(self, number: int, kind: Command, arguments: Mapping[str, Argument]) -> None:
        """Sends a command; the reply goes to the owner's `hand_on`."""
        self.connection.send_command(number, kind, arguments)
        self._flush()

    @property
    def usable(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and self.connection.state is State.OPEN

    def present(self) -> bool:
        """Whether its process lives: what was asked of its pid before this was not asked of another."""
        return self._process is not None and not self._process.ended()

    def gone(self) -> bool:
        """Whether its process has ended and everything that it said was handed on."""
        ended = self._process is None or self._process.ended()
        return ended and self._transport is not None and not self.connection.pending

    def drop(self, why: str) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._finish(why)

    def _too_late(self) -> None:
        self._refuse(
            AgentRefusal.TIMEOUT, f"the opening was not done in {self._server.opening_deadline_seconds:g} s"
        )

    def _refuse(self, reason: AgentRefusal, detail: str) -> None:
        """Says goodbye, if there is a point to it, and ends the connection."""
        self.connection.refuse(reason)
        self._flush()
        if self._transport is not None:
            self._transport.close()
        self._finish(f"refused: {reason}")
        if self._transport is not None:
            self._server.remember(self, True)
            self._timer = self._loop.call_later(LINGER_SECONDS, self._transport.abort)
        self._server.refused(reason, detail)

    def _report(self, error: Exception) -> None:
        self._loop.call_exception_handler(
            {"message": f"in a connection of the agent of {self._server.node}", "exception": error}
        )

    def _finish(self, why: str) -> None:
        """May be called more than once: the first word counts."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is None:
            self._server.remember(self, False)
        if self._ended is not None:
            return
        self._ended = why
        self.connection.refuse(AgentRefusal.PROTOCOL)  # takes nothing more, says nothing
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._process is not None:
            self._process.close()
            self._process = None
        self._server.opening.discard(self)
        self._server.lost(self, why)
