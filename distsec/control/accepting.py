"""Accepts connections that anybody on this host may open, and never more than supervising can spare.

asyncio's own server takes a hundred at once before any of them could be refused, has no bound, and, out of
descriptors, logs each second. Here one too many is closed at once, as is one that takes a descriptor of the
last few: those are for the nodes.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable

from aiohttp import web

from distsec.beam.shortage import RETRY_SECONDS, TOLD_EVERY_SECONDS, shortage

RESERVED_DESCRIPTORS = 64
"""For nodes: a start takes about ten for a moment, one that runs four. Of a small limit, a quarter."""


class Acceptor:
    """Hands at most `most` connections of `listener` at a time to `server`.

    Each is aborted after `seconds`, unless `spare` was called for it. `welcome` is asked about a connection
    once half of them are in use; what it does not welcome is closed. Belongs to one event loop.
    """

    def __init__(
        self,
        listener: socket.socket,
        server: web.Server,
        *,
        most: int,
        seconds: float,
        welcome: Callable[[socket.socket], bool] = lambda _: True,
    ) -> None:
        self._listener = listener
        self._server = server
        self._most = most
        self._seconds = seconds
        self._welcome = welcome
        self._due: dict[asyncio.Transport, float] = {}
        self._look: asyncio.TimerHandle | None = None
        self._told_at = float("-inf")
        self._task = asyncio.create_task(self._accept(), name="connections")

    def spare(self, transport: asyncio.Transport | None) -> None:
        """It has asked for something, and is no longer ended for its age."""
        if transport is not None:
            self._due.pop(transport, None)

    async def close(self) -> None:
        """Accepts nothing more and closes the listener; connections that are open stay. May be called
        twice."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._listener.close()
        if self._look is not None:
            self._look.cancel()
            self._look = None

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except ConnectionError:  # it was gone before it was taken
                continue
            except OSError as error:
                self._tell(shortage(error) or str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                await self._take(connection)
            except OSError:  # it has gone already
                connection.close()
            except Exception as error:  # of this one: nobody else is kept out for it
                connection.close()
                self._tell(f"unexpected {type(error).__name__}: {error}")
            await asyncio.sleep(0)  # sock_accept does not yield while there is somebody to accept

    async def _take(self, connection: socket.socket) -> None:
        if self._refuses(connection):
            connection.close()
            return
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(self._server, connection)
        self._watch(transport)

    def _refuses(self, connection: socket.socket) -> bool:
        open_now = len(self._server.connections)
        if open_now >= self._most:
            return True
        # The kernel gives the lowest number that is free (open(2)), so all below are taken.
        if connection.fileno() >= _most_descriptors():
            self._tell("file descriptors are running out, and the last are kept for the nodes")
            return True
        return open_now >= self._most // 2 and not self._welcome(connection)

    def _watch(self, transport: asyncio.Transport) -> None:
        if len(self._due) > 2 * self._most:  # those that have ended are not kept until somebody looks
            self._due = {each: at for each, at in self._due.items() if not each.is_closing()}
        loop = asyncio.get_running_loop()
        self._due[transport] = loop.time() + self._seconds
        if self._look is None:
            self._look = loop.call_at(self._due[transport], self._end_overdue)

    def _end_overdue(self) -> None:
        loop, self._look = asyncio.get_running_loop(), None
        for transport, due in tuple(self._due.items()):  # the oldest first
            if due > loop.time():
                self._look = loop.call_at(due, self._end_overdue)
                return
            del self._due[transport]
            transport.abort()  # close() would wait for a reader that does not read

    def _tell(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= TOLD_EVERY_SECONDS:
            self._told_at = now
            logging.getLogger("distsec.accept").error("connections are refused: %s", why)


def _most_descriptors() -> int:
    """Descriptors from this number on are not for clients."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - min(RESERVED_DESCRIPTORS, soft // 4) if soft != resource.RLIM_INFINITY else 2**31
