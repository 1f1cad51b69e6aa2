"""Strangers that connect and leave it at that: silent ones, and ones that send a byte now and then."""

from __future__ import annotations

import itertools
import resource
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(506)
"""The record header and the beginning of a ClientHello (RFC 8446, 4.1.2 and 5.1), and whatever."""

TRICKLE_SECONDS = 1.0
MOST_AT_ONCE = 8
CONNECT_SECONDS = 25.0
"""Beyond the kernel's fourth try (after 15 s): what the other side's queue has no room for comes again."""


@dataclass(slots=True)
class Flood:
    """Counts every connection that the kernel of the other side took. Everything ends with `close`."""

    port: int
    host: str = "127.0.0.1"
    made: int = 0
    _silent: list[socket.socket] = field(default_factory=list)
    _trickling: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)

    def idle(self, count: int, sources: Sequence[str] = ("",)) -> None:
        """Opens `count` connections that stay silent, from these addresses in turn ("": any)."""
        for source in itertools.islice(itertools.cycle(sources), count):
            self._connect(source, self._silent)

    def trickle(self, count: int, sources: Sequence[str] = ("",)) -> None:
        """As `idle`, for connections that send a byte of a TLS handshake each second (see `trickling`)."""
        for source in itertools.islice(itertools.cycle(sources), count):
            self._connect(source, self._trickling)

    @contextmanager
    def trickling(self) -> Iterator[None]:
        """Sends the bytes meanwhile; to those that the other side has closed, in vain."""
        with self._meanwhile(self._send_bytes):
            yield

    @contextmanager
    def arriving(self, per_second: int, source: str = "") -> Iterator[None]:
        """Opens so many more meanwhile and keeps them open; evenly, whatever else holds this process up."""

        def arrive() -> None:
            began, due = time.monotonic(), 0
            while not self._end.wait(0.01):
                until = int((time.monotonic() - began) * per_second)
                for _ in range(min(until - due, MOST_AT_ONCE)):
                    self._connect(source, self._silent)
                due = until

        with self._meanwhile(arrive):
            yield

    def open(self) -> int:
        """How many the other side has not closed."""
        return sum(not _closed(each) for each in (*self._silent, *self._trickling))

    def close(self) -> None:
        for each in (*self._silent, *self._trickling):
            each.close()

    def _connect(self, source: str, into: list[socket.socket]) -> None:
        connection = socket.create_connection(
            (self.host, self.port), CONNECT_SECONDS, (source, 0) if source else None
        )
        connection.setblocking(False)
        with self._lock:
            self.made += 1
            into.append(connection)

    def _send_bytes(self) -> None:
        for byte in CLIENT_HELLO:
            for each in self._trickling:
                with suppress(OSError):
                    each.send(bytes([byte]))
            if self._end.wait(TRICKLE_SECONDS):
                return

    @contextmanager
    def _meanwhile(self, work: object) -> Iterator[None]:
        failed: list[BaseException] = []

        def run() -> None:
            try:
                work()  # type: ignore[operator]
            except BaseException as error:
                failed.append(error)

        self._end.clear()
        thread = threading.Thread(target=run, name="flood", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join(30)
        assert not failed, failed


@contextmanager
def flood(port: int, host: str = "127.0.0.1") -> Iterator[Flood]:
    """A flood of that port; this process may then have as many files open as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = Flood(port, host)
    try:
        yield made
    finally:
        made.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
