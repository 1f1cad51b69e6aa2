"""A distribution handshake by hand, in either role: a peer that is no BEAM, and says what it likes.

The frames are those of the distribution protocol, version 6 (erl_dist_protocol in OTP's ERTS guide,
"Distribution Handshake"); OTP's own code for it is kernel/src/dist_util.erl. Over TLS they are {packet,4}
(ssl/src/inet_tls_dist.erl), over TCP {packet,2}.
"""

from __future__ import annotations

import hashlib
import secrets
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

HIDDEN = 0x0000_000D_0707_0FBC
"""What OTP 25 to 29 demand of a peer (kernel/include/dist.hrl, DFLAGS_MANDATORY and MANDATORY_25_DIGEST), and
DFLAG_SPAWN, DFLAG_DIST_MONITOR and its _NAME. No atom cache, so that messages are pass-through."""

VISIBLE = HIDDEN | 1  # DFLAG_PUBLISHED
NAME_ME = 1 << 33  # DFLAG_NAME_ME: asks for a name that the acceptor makes up

SECONDS = 10.0
"""How long a peer may be silent."""

MAX_FRAME_BYTES = 1 << 20


class Ended(ConnectionError):
    """The other side ended the connection."""


@dataclass(slots=True)
class Wire:
    """A connection, its own end as the victim sees it, and when the first byte of it was sent."""

    socket: socket.socket
    address: str
    header: str = ">I"
    began: float = field(default_factory=time.monotonic)

    def send(self, frame: bytes) -> None:
        self.socket.sendall(self.framed(frame))

    def framed(self, *frames: bytes) -> bytes:
        return b"".join(struct.pack(self.header, len(frame)) + frame for frame in frames)

    def receive(self) -> bytes:
        """The next frame. Raises Ended, or another OSError."""
        (length,) = struct.unpack(self.header, self._exactly(struct.calcsize(self.header)))
        if length > MAX_FRAME_BYTES:
            raise Ended(f"a frame of {length} bytes")
        return self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise Ended("ended by the other side")
            data += more
        return data

    def wait(self, other: int, seconds: float) -> bool:
        """Waits for something to read here, or at the file descriptor `other`; whether there is any."""
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        poll = select.poll()
        for descriptor in (self.socket.fileno(), other):
            poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def until_end(self, seconds: float = SECONDS) -> float | None:
        """Reads to the end of the connection: seconds since it began, or None where it does not end."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(65536):
                    return time.monotonic() - self.began
        except TimeoutError:
            return None
        except OSError:  # an alert or a reset; ssl.SSLError is one
            return time.monotonic() - self.began
        return None

    def close(self) -> None:
        self.socket.close()


def tcp(address: tuple[str, int], source: str | None = None, seconds: float = SECONDS) -> Wire:
    """A plain connection, optionally from another address of this host."""
    began = time.monotonic()
    raw = socket.create_connection(address, seconds, (source, 0) if source else None)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms for each small frame
    return Wire(raw, text_of(raw.getsockname()), ">H", began)


def tls(address: tuple[str, int], context: ssl.SSLContext, source: str | None = None) -> Wire:
    """A TLS connection. Raises ssl.SSLError where the handshake is refused; the victim's end is in `refused`.

    With TLS 1.3 a server refuses the client's certificate after the client is done: read to see it.
    """
    wire = tcp(address, source)
    try:
        wire.socket = context.wrap_socket(wire.socket, do_handshake_on_connect=False)
        wire.header = ">I"
    except BaseException:
        wire.close()
        raise
    return wire


def handshake(wire: Wire) -> None:
    """TLS's own. Raises ssl.SSLError or another OSError."""
    assert isinstance(wire.socket, ssl.SSLSocket)
    wire.socket.do_handshake()


def trusting(certificate: str | None = None, key: str | None = None, **how: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that trusts every server. `maximum`: the newest TLS version that it speaks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = how.get("maximum", ssl.TLSVersion.TLSv1_3)
    if certificate:
        context.load_cert_chain(certificate, key)
    return context


def text_of(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """`127.0.0.1:40112`, IPv6 in brackets: as events write it."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---- the frames


def name_frame(name: bytes, flags: int = HIDDEN, creation: int | None = None) -> bytes:
    """$N: version 6's first frame."""
    ours = 1 + secrets.randbelow(1 << 30) if creation is None else creation
    return b"N" + struct.pack(">QIH", flags, ours, len(name)) + name


def old_name_frame(name: bytes, flags: int = HIDDEN & 0xFFFF_FFFF) -> bytes:
    """$n: version 5's, of nodes before OTP 23."""
    return b"n" + struct.pack(">HI", 5, flags) + name


def digest(cookie: str, challenge: int) -> bytes:
    return hashlib.md5(f"{cookie}{challenge}".encode(), usedforsecurity=False).digest()


@dataclass(frozen=True, slots=True)
class Challenge:
    """The victim's $N: what it wants to be told the cookie's digest with, and which incarnation it is."""

    number: int
    creation: int
    name: str


def read_challenge(frame: bytes) -> Challenge:
    number, creation, length = struct.unpack(">IIH", frame[9:19])
    return Challenge(number, creation, frame[19 : 19 + length].decode(errors="replace"))


def introduce(
    wire: Wire, name: bytes, flags: int = HIDDEN, creation: int = 1
) -> tuple[str, Challenge | None]:
    """Says a name; the status that came for it (`ok`, `alive`, …) and the challenge after it."""
    wire.send(name_frame(name, flags, creation))
    frame = wire.receive()  # $s
    status = frame[1:].decode(errors="replace") if frame[:1] == b"s" else ""
    if status == "alive":  # the name is in use: insist
        wire.send(b"strue")
    elif not status.startswith(("ok", "named:")):
        return status, None
    return status, read_challenge(wire.receive())


def reply_frame(cookie: str, challenge: int, ours: int | None = None) -> bytes:
    """$r: our challenge, and the answer to theirs."""
    return (
        b"r"
        + struct.pack(">I", secrets.randbelow(1 << 32) if ours is None else ours)
        + digest(cookie, challenge)
    )


# ---- the other role: the victim dials us


def accept_handshake(
    wire: Wire, name: str, cookie: str | None, creation: int = 1, words: Sequence[bytes] = ()
) -> bytes | None:
    """Takes whoever dials, as `name`, and answers any cookie; the last frame that came, None if there was
    none.

    `cookie` None: not known, the answer to the victim's challenge is made up. `words`: what is said right
    behind that answer, in the same write.
    """
    wire.receive()  # $N
    wire.send(b"sok")
    wire.send(
        b"N" + struct.pack(">QIIH", HIDDEN, secrets.randbelow(1 << 32), creation, len(name)) + name.encode()
    )
    reply = wire.receive()  # $r, 4 bytes of challenge, digest
    (number,) = struct.unpack(">I", reply[1:5])
    answer = b"a" + (digest(cookie, number) if cookie is not None else secrets.token_bytes(16))
    wire.socket.sendall(wire.framed(answer, *words))
    return reply
