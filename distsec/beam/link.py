"""The Unix socket that the agent of one node connects to: all I/O of the port protocol, none of its meaning.

What a connection goes through: at most 10 a second are accepted; SO_PEERCRED names a process, and one that is
not of this node is dropped before a byte of it is read; at most 4 at once may be in the opening, for 5
seconds; one agent at a time. Whatever bytes come, the worst is that this connection is dropped and
`on_refused` says why.

`agent_peer` is the connection itself; it keeps a node that floods from taking more than its share of time.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from distsec.beam.agent_peer import Peer
from distsec.beam.messages import AgentRefusal, Command, Lane, LaneEvent, Message, Reply
from distsec.beam.protocol import MAX_OUTSTANDING, Argument
from distsec.beam.unix_socket import Listening, listen
from distsec.errors import CommandFailed
from distsec.model.secret import Secret
from distsec.model.text import escape

OPENING_DEADLINE_SECONDS: Final = 5.0
ACCEPT_BURST: Final = 20
ACCEPTS_PER_SECOND: Final = 10.0


class AgentCommandFailed(CommandFailed):
    """A command was not carried out. `reason`: `timeout`, `lost` (not connected, or no longer), `busy`, or
    what the
    agent said (messages.ERROR_REASONS, `other`)."""

    def __init__(self, what: str, *, reason: str, where: str = "", do: str = "") -> None:
        self.reason = reason
        super().__init__(what, where=where, do=do)


class AgentServer:
    """Listens for the agent of `node` at `path` and keeps its one connection.

    `accept_peer(pid, uid)` decides whether a process may be this node's agent. `on_message(node, message)`
    gets Opened, Snapshot, LaneEvent and Heartbeat, in order; an event is acknowledged when it has returned.
    `on_lost(node, why)` follows each Opened once. `on_refused(node, reason, detail)`: a connection was
    dropped; `reason` is an AgentRefusal, `detail` is escaped and bounded. Callbacks run in the event loop and
    do not block. `gid`: the group of the node's user, see unix_socket.listen.
    """

    def __init__(
        self,
        node: str,
        path: Path,
        key: Secret,
        accept_peer: Callable[[int, int], bool],
        on_message: Callable[[str, Message], None],
        on_lost: Callable[[str, str], None],
        on_refused: Callable[[str, str, str], None],
        *,
        gid: int | None = None,
        opening_deadline_seconds: float = OPENING_DEADLINE_SECONDS,
    ) -> None:
        self.node = node
        self.path = path
        self.key = key
        self.accept_peer = accept_peer
        self.on_message = on_message
        self.on_lost = on_lost
        self.on_refused = on_refused
        self._gid = gid
        self.opening_deadline_seconds = opening_deadline_seconds
        self.opening: set[Peer] = set()
        self._current: Peer | None = None
        self._closing: set[Peer] = set()
        self._launch = ""
        self._handed_on: dict[Lane, int] = {}
        self._numbers = itertools.count(1 + secrets.randbelow(2**32))  # not an earlier orchestrator's
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._listening: Listening | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens. Raises StoreError or PortInUse (see unix_socket.listen)."""
        listening = self._listening = listen(self.path, gid=self._gid)
        self._accepting = asyncio.create_task(
            self._accept(listening.socket), name=f"agent socket {self.node}"
        )

    async def mend(self) -> bool:
        """Listens anew where the socket's file is gone, or is another's: no agent finds us there, and nobody
        would notice before one has to come back. Whether it did. The connection stays. Raises like `start`.
        """
        listening, accepting = self._listening, self._accepting
        if listening is None or accepting is None or listening.is_there():
            return False
        await self.start()
        accepting.cancel()
        await asyncio.wait([accepting])
        listening.socket.close()
        return True

    async def close(self) -> None:
        """Stops listening, drops the connections and removes the socket file. The node goes on."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        for peer in [*self.opening, *self._closing, *([self._current] if self._current else [])]:
            peer.drop("the orchestrator stops listening")
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def drop(self, why: str) -> None:
        """Ends the connection, if there is one, as lost. The agent may come back."""
        if self._current is not None:
            self._current.drop(why)

    def rekey(self, key: Secret) -> None:
        """From now on the agent proves itself with `key`; who did with another is dropped."""
        self.key = key
        self.drop("its agent key was replaced")

    @property
    def connected(self) -> bool:
        """Whether an agent has proven itself and sent its snapshot."""
        return self._current is not None and self._current.usable

    @property
    def pid(self) -> int | None:
        """The process of the connected agent."""
        return None if self._current is None else self._current.pid

    def present(self) -> bool:
        """Whether the process of the connected agent lives. The connection may outlive it, in the hands of a
        child, and its pid be given to another.
        """
        return self._current is not None and self._current.present()

    async def command(
        self,
        kind: Command | str,
        arguments: Mapping[str, Argument],
        timeout: float,  # noqa: ASYNC109 - each command has a deadline of its own
    ) -> Reply:
        """Has the agent carry out a command; returns its reply, which is `ok`.

        `timeout` is seconds. Raises AgentCommandFailed: no agent, none in time, gone meanwhile, or it said
        no.
        """
        kind, peer = Command(kind), self._current
        if peer is None or not peer.usable:
            raise self._failed(kind, "lost", "no agent is connected")
        if peer.connection.outstanding >= MAX_OUTSTANDING:
            raise self._failed(kind, "busy", f"{MAX_OUTSTANDING} commands are not answered yet")
        number = next(self._numbers)
        future = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            peer.send_command(number, kind, arguments)
            async with asyncio.timeout(timeout):
                reply: Reply = await future
        except ValueError as error:
            raise self._failed(kind, "too_long", str(error)) from None
        except TimeoutError:
            raise self._failed(kind, "timeout", f"no answer in {timeout:g} s") from None
        finally:
            self._replies.pop(number, None)
        if reply.ok:
            return reply
        reason, detail = reply.fields["reason"], reply.fields["detail"]
        raise self._failed(kind, reason, f"{reason}: {detail}" if detail else reason)

    def _failed(self, kind: Command, reason: str, what: str) -> AgentCommandFailed:
        return AgentCommandFailed(
            f"the agent did not carry out {kind}: {what}", reason=reason, where=self.node
        )

    async def _accept(self, listener: socket.socket) -> None:
        """Accepts at a bounded rate: whoever connects in a loop is slowed, and nobody else."""
        loop = asyncio.get_running_loop()
        allowance, counted_at = float(ACCEPT_BURST), loop.time()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(lambda: Peer(self), accepted)
            except OSError:  # no descriptors left, or the other side has gone already
                allowance = 0.0
            now = loop.time()
            allowance = min(ACCEPT_BURST, allowance + (now - counted_at) * ACCEPTS_PER_SECOND) - 1
            counted_at = now
            if allowance < 0:
                await asyncio.sleep(-allowance / ACCEPTS_PER_SECOND)

    # ---- what a connection asks of the server

    def admit(self, peer: Peer) -> bool:
        """Whether `peer`, which has proven itself, becomes the connection."""
        if self._current is not None:
            if not self._current.gone():
                return False
            self._current.drop("its process has ended")
        self._current = peer
        return True

    def acked(self, launch: str) -> Mapping[Lane, int]:
        """Where `launch` goes on. A launch that is new here replaces the one before: that VM is gone."""
        if launch != self._launch:
            self._launch, self._handed_on = launch, {}
        return self._handed_on

    def hand_on(self, message: Message) -> None:
        """Gives a message to whoever waits for it."""
        if isinstance(message, Reply):
            future = self._replies.get(message.id)
            if future is not None and not future.done():
                future.set_result(message)
            return
        self.on_message(self.node, message)
        if isinstance(message, LaneEvent):
            self._handed_on[message.lane] = message.sequence

    def lost(self, peer: Peer, why: str) -> None:
        """The connection has ended."""
        if self._current is not peer:
            return
        self._current = None
        for future in self._replies.values():
            if not future.done():
                future.set_result(Reply(0, False, {"reason": "lost", "detail": why}))
        self.on_lost(self.node, why)

    def refused(self, reason: AgentRefusal, detail: str) -> None:
        """A connection is dropped for what it sent or is."""
        self.on_refused(self.node, str(reason), escape(detail))

    def remember(self, peer: Peer, closing: bool) -> None:
        """Keeps hold of a connection that is being closed, until it is."""
        (self._closing.add if closing else self._closing.discard)(peer)
