"""A distribution handshake by hand that can stop anywhere: between two frames, or in the middle of one.

Steps are generators: each `yield` names a gap between two gates of the carrier, at which everything that the
other side needs to come that far was sent. The frames are those of erl_dist_protocol (OTP's ERTS guide,
"Distribution Handshake"), over TLS as {packet,4}; OTP's own code for them is kernel/src/dist_util.erl.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.attacks.claim import HIDDEN
from tests.system.certificates import Leaf

SECONDS = 20.0
"""For a step of the other side, however busy the machine is. That it gave up by itself has another reason."""
INBOUND_GAPS = ("accepted", "verified", "half a name", "challenged", "half a reply")
OUTBOUND_GAPS = ("dialled", "verified", "half a challenge", "answered", "half an ack")


@dataclass(slots=True)
class Dialler:
    """Dials a node as `name`, with that certificate and cookie."""

    port: int
    leaf: Leaf
    name: str
    cookie: str
    host: str = "127.0.0.1"
    connection: socket.socket = field(init=False)
    address: str = field(init=False)

    def steps(self) -> Iterator[str]:
        """INBOUND_GAPS. Ends where the node admits or refuses; OSError where it closes earlier."""
        self.connection = socket.create_connection((self.host, self.port), SECONDS)
        host, port = self.connection.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        yield "accepted"
        self.connection = _tls(ssl.PROTOCOL_TLS_CLIENT, self.leaf).wrap_socket(self.connection)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield "verified"
        body = struct.pack(">QIH", HIDDEN, 1 + secrets.randbelow(1 << 30), len(self.name))
        name = frame(b"N" + body + self.name.encode())
        self.connection.sendall(name[:12])
        yield "half a name"
        self.connection.sendall(name[12:])
        status = receive(self.connection)
        if status not in (b"sok", b"sok_simultaneous"):
            raise ConnectionRefusedError(status)
        (challenge,) = struct.unpack(">I", receive(self.connection)[9:13])  # $N, 8 bytes of flags
        yield "challenged"
        reply = frame(b"r" + secrets.token_bytes(4) + _digest(self.cookie, challenge))
        self.connection.sendall(reply[:12])
        yield "half a reply"
        self.connection.sendall(reply[12:])


@dataclass(slots=True)
class Answerer:
    """Is dialled by a node at `port`, as `name`, with that certificate and cookie."""

    port: int
    leaf: Leaf
    name: str
    cookie: str
    connection: socket.socket = field(init=False)
    listener: socket.socket = field(init=False)

    def listen(self) -> None:
        """Before the node is told to dial. Ends with `close`."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.listener.settimeout(SECONDS)

    def close(self) -> None:
        """Listens no more."""
        self.listener.close()

    def steps(self) -> Iterator[str]:
        """OUTBOUND_GAPS, from the moment at which the node dials; as with Dialler."""
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(SECONDS)
        yield "dialled"
        context = _tls(ssl.PROTOCOL_TLS_SERVER, self.leaf)
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        receive(self.connection)  # $N
        yield "verified"
        self.connection.sendall(frame(b"sok"))
        body = struct.pack(">QIIH", HIDDEN, secrets.randbelow(1 << 32), 1, len(self.name))
        challenge = frame(b"N" + body + self.name.encode())
        self.connection.sendall(challenge[:12])
        yield "half a challenge"
        self.connection.sendall(challenge[12:])
        (theirs,) = struct.unpack(">I", receive(self.connection)[1:5])  # $r
        yield "answered"
        ack = frame(b"a" + _digest(self.cookie, theirs))
        self.connection.sendall(ack[:12])
        yield "half an ack"
        self.connection.sendall(ack[12:])


def frame(content: bytes) -> bytes:
    """With its length before it."""
    return struct.pack(">I", len(content)) + content


def receive(connection: socket.socket) -> bytes:
    """The next frame. ConnectionResetError where there is none."""
    (length,) = struct.unpack(">I", _exactly(connection, 4))
    return _exactly(connection, length)


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends the connection within SECONDS, whatever it sends before."""
    try:
        connection.settimeout(SECONDS)
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:  # reset, an alert (ssl.SSLError is one), or closed by ssl after one
        pass
    return True


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("ended by the other side")
        data += more
    return data


def _digest(cookie: str, challenge: int) -> bytes:
    return hashlib.md5(f"{cookie}{challenge}".encode(), usedforsecurity=False).digest()


def _tls(protocol: int, leaf: Leaf) -> ssl.SSLContext:
    """Trusts everybody."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(leaf.certificate, leaf.key)
    return context
