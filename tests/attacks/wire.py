"""What a wiretap sees: a relay between two nodes, and TLS records as they are (RFC 8446, 4.1.3 and 5.1)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread

HANDSHAKE, APPLICATION_DATA, CHANGE_CIPHER_SPEC = 22, 23, 20
SERVER_HELLO = 2
SUPPORTED_VERSIONS = 43
TLS_1_3 = 0x0304


@dataclass(slots=True)
class Tap:
    """All bytes of one connection so far, by who sent them."""

    dialler: bytearray = field(default_factory=bytearray)
    listener: bytearray = field(default_factory=bytearray)

    @property
    def everything(self) -> bytes:
        return bytes(self.dialler + self.listener)


@dataclass(frozen=True, slots=True)
class ServerHello:
    """`version` is the one that the extension supported_versions selects, None without it."""

    version: int | None
    cipher_suite: int


def records(stream: bytes) -> list[tuple[int, bytes]]:
    """(type, content) of each whole TLS record; raises ValueError for what is none."""
    found, at = [], 0
    while at + 5 <= len(stream):
        kind, major, length = stream[at], stream[at + 1], int.from_bytes(stream[at + 3 : at + 5])
        if kind not in (20, 21, 22, 23) or major != 3:
            raise ValueError(f"no TLS record: {stream[at : at + 5].hex()}")
        found.append((kind, stream[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


def server_hello(stream: bytes) -> ServerHello:
    """The first handshake message of a server."""
    kind, message = records(stream)[0]
    if (kind, message[0]) != (HANDSHAKE, SERVER_HELLO):
        raise ValueError("the first record is no ServerHello")
    at = 4 + 2 + 32  # header, legacy_version, random
    at += 1 + message[at]  # legacy_session_id_echo
    (suite,) = struct.unpack_from(">H", message, at)
    at += 3  # and the compression method
    end = at + 2 + int.from_bytes(message[at : at + 2])
    at += 2
    version = None
    while at < end:
        extension, length = struct.unpack_from(">HH", message, at)
        if extension == SUPPORTED_VERSIONS:
            (version,) = struct.unpack_from(">H", message, at + 4)
        at += 4 + length
    return ServerHello(version, suite)


@contextmanager
def relay(target: int, port: int = 0) -> Iterator[tuple[int, list[Tap]]]:
    """Listens on `port` of loopback (0: a free one) and passes everything on to `target`; the taps fill."""
    taps: list[Tap] = []
    threads: list[Thread] = []
    sockets: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket, seen: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                seen += data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):  # closed: the test is over
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", target), 30)
                far.settimeout(None)
                tap = Tap()
                taps.append(tap)
                sockets.extend((near, far))
                for arguments in ((near, far, tap.dialler), (far, near, tap.listener)):
                    threads.append(Thread(target=pump, args=arguments))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        threads.append(Thread(target=serve, args=(listener,)))
        threads[0].start()
        try:
            yield listener.getsockname()[1], taps
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join(30)
            for end in sockets:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(30)
            for end in sockets:
                end.close()
