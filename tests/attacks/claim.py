"""A distribution handshake by hand: whoever holds a certificate claims any name with any cookie, fast.

The frames are those of the distribution protocol, version 6 (erl_dist_protocol in OTP's ERTS guide,
"Distribution Handshake"); OTP's own code for it is kernel/src/dist_util.erl. Over TLS they are {packet,4}
(ssl/src/inet_tls_dist.erl), not {packet,2} as over TCP.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

from tests.system.certificates import Leaf
from tests.system.intruder import tls

HIDDEN = 0x0000_0004_0707_0F94
"""What OTP 25 to 29 demand of a peer (kernel/include/dist.hrl, DFLAGS_MANDATORY and MANDATORY_25_DIGEST)."""

VISIBLE = HIDDEN | 1  # DFLAG_PUBLISHED


@dataclass(frozen=True, slots=True)
class Claim:
    """How far it got: the status (`ok`, `alive`, …; "" none came), and whether the cookie was taken."""

    connection: ssl.SSLSocket
    address: str
    status: str
    admitted: bool


def claim(
    port: int,
    leaf: Leaf,
    name: str,
    cookie: str,
    *,
    flags: int = HIDDEN,
    before_reply: Callable[[], object] = lambda: None,
) -> Claim:
    """Dials as `name`. The connection stays open; where `admitted` it is a link.

    `before_reply` is called once the name was taken, and before the cookie is shown.
    """
    connection = tls(port, leaf)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms for each small frame
    address = "{}:{}".format(*connection.getsockname())
    status, admitted = "", False
    try:
        _send(
            connection,
            b"N" + struct.pack(">QIH", flags, 1 + secrets.randbelow(1 << 30), len(name)) + name.encode(),
        )
        status = _receive(connection)[1:].decode()  # $s
        if status in {"ok", "ok_simultaneous"}:
            (challenge,) = struct.unpack(">I", _receive(connection)[9:13])  # $N, 8 bytes of flags
            before_reply()
            ours = secrets.token_bytes(4)
            digest = hashlib.md5(f"{cookie}{challenge}".encode(), usedforsecurity=False).digest()
            _send(connection, b"r" + ours + digest)
            admitted = _receive(connection)[:1] == b"a"
    except OSError:  # ended by the other side; ssl.SSLError is one
        pass
    return Claim(connection, address, status, admitted)


@contextmanager
def false_node(port: int, leaf: Leaf, name: str) -> Iterator[None]:
    """Listens as `name` for whoever dials it, takes any cookie, and makes up its own answer to theirs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.certificate, leaf.key)
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                accepted.settimeout(5)
                with accepted:
                    try:
                        with context.wrap_socket(accepted, server_side=True) as connection:
                            _receive(connection)  # $N
                            _send(connection, b"sok")
                            body = struct.pack(">QIIH", HIDDEN, secrets.randbelow(1 << 32), 1, len(name))
                            _send(connection, b"N" + body + name.encode())
                            _receive(connection)  # $r
                            _send(connection, b"a" + secrets.token_bytes(16))
                            _receive(connection)  # the end of it
                    except OSError:
                        pass

        thread = Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)
            assert not thread.is_alive()


def _send(connection: ssl.SSLSocket, frame: bytes) -> None:
    connection.sendall(struct.pack(">I", len(frame)) + frame)


def _receive(connection: ssl.SSLSocket) -> bytes:
    (length,) = struct.unpack(">I", _exactly(connection, 4))
    return _exactly(connection, length)


def _exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("ended by the other side")
        data += more
    return data
