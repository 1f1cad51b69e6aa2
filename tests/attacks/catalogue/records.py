"""What the servers of `tls12` and `tls13` have in common: TLS records, and what of a socket a distribution
handshake needs.
"""

from __future__ import annotations

import socket

from cryptography.exceptions import InvalidTag

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION = 20, 21, 22, 23
MAX_RECORD_BYTES = 16384 + 256


class Refused(ConnectionError):
    """The client did not take it: an alert, or the end of the connection."""


class Server:
    """The server's side of one connection; `sendall` and `recv` carry application data once its handshake is
    done.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._transcript = self._unread = b""

    def sendall(self, data: bytes) -> None:
        self._send(APPLICATION, data)

    def recv(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end."""
        while not self._unread:
            try:
                kind, content = self._record()
            except (OSError, InvalidTag):
                return b""
            if kind == ALERT:
                return b""
            if kind == APPLICATION:
                self._unread = content
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def _send(self, kind: int, content: bytes) -> None:
        """One record."""
        raise NotImplementedError

    def _record(self) -> tuple[int, bytes]:
        """The next record: (type, content)."""
        raise NotImplementedError

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._connection.recv(size - len(data))
            if not more:
                raise Refused("ended by the client")
            data += more
        return data
