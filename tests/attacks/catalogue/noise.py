"""Bytes that are no handshake, or only the beginning of one, or one that was recorded before."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.attacks.catalogue import dialogue
from tests.attacks.catalogue.attack import Attack, Need, Play, Stage, Target, Try
from tests.attacks.catalogue.dialogue import Wire
from tests.attacks.catalogue.entry import enter

BEFORE_TLS = (
    bytes(range(128, 256)),
    bytes(64),
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(40),  # an SSLv2 ClientHello
    b"\x16\x03\x01\0\x40" + bytes(range(128, 192)),
    b"\x16\x03\x01\xff\xff" + bytes(600),  # a record longer than any may be
    b"\x17\x03\x03\0\x20" + bytes(32),  # application data first
    b"\x14\x03\x03\0\x01\x01" * 50,  # ChangeCipherSpec, again and again
    b"\x15\x03\x03\0\x02\x02\x28",  # an alert
)

AFTER_TLS = (
    b"\0\0\0\5hello",
    b"\0\0\0\0" * 20,  # empty frames
    b"\0\0\0\1N",
    b"\0\0\0\2Nx",
    b"\0\0\0\x10N" + bytes(15),
    b"\0\0\0\x13N" + bytes(8) + b"\0\0\0\1\xff\xffabc!",  # a name longer than its frame
    b"\0\0\0\x03n\0\5",
    b"\0\0\0\x03sok",
    b"\0\0\0\x15a" + bytes(20),
    b"\0\0\0\x15r" + bytes(20),
    b"\0\0\0\x05p\x83h\0\0",  # a message of an established link
    bytes(range(256)),
)

OVERSIZED = (0xFFFF_FFFF, 0x7FFF_FFFF, 0x1000_0000, 0x0100_0000, 0x0010_0000, 0x0001_0001)

TRICKLE_SECONDS = 0.002
"""Between two bytes of a handshake that comes one by one."""


def _plain(stage: Stage, number: int, content: bytes) -> Try:
    wire = dialogue.tcp(stage.target.address)
    try:
        with suppress(OSError):
            wire.socket.sendall(content)
            wire.socket.shutdown(socket.SHUT_WR)
        return Try(wire.address, wire.until_end())
    finally:
        wire.close()


def before_tls(stage: Stage) -> Iterable[Try]:
    return stage.each(lambda number: _plain(stage, number, BEFORE_TLS[number % len(BEFORE_TLS)]))


def random_bytes(stage: Stage) -> Iterable[Try]:
    """Noise that does not even begin as TLS does; the same in every run."""

    def attempt(number: int) -> Try:
        drawn = random.Random(number)
        return _plain(stage, number, b"\0" + drawn.randbytes(drawn.randrange(1, 4096)))

    return stage.each(attempt)


def plaintext_peer(stage: Stage) -> Iterable[Try]:
    """A peer that speaks inet_tcp: the first frame of a link without TLS."""
    frame = dialogue.name_frame(stage.target.listed().encode())
    return stage.each(lambda number: _plain(stage, number, struct.pack(">H", len(frame)) + frame))


def tls_1_2(stage: Stage) -> Iterable[Try]:
    """A client that speaks nothing newer; its certificate is listed."""
    target = stage.target
    context = stage.context(target.leaf(target.listed()), maximum=ssl.TLSVersion.TLSv1_2)
    return stage.each(
        lambda _number: enter(stage, context, target.listed(1), target.cookie(target.listed(1)))
    )


def inside_tls(contents: Callable[[int], bytes], *, piecewise: bool = False, hangs_up: bool = False) -> Play:
    """With a listed certificate: TLS is well, and then come these bytes. `hangs_up`: and then the end."""

    def play(stage: Stage) -> Iterable[Try]:
        target = stage.target
        context = stage.context(target.leaf(target.listed()))

        def attempt(number: int) -> Try:
            wire = dialogue.tls(target.address, context)
            try:
                with suppress(OSError):
                    dialogue.handshake(wire)
                    content = contents(number)
                    for at in range(len(content)) if piecewise else ():
                        wire.socket.sendall(content[at : at + 1])
                    if not piecewise:
                        wire.socket.sendall(content)
                    if hangs_up:
                        _say_no_more(wire)
                return Try(wire.address, wire.until_end())
            finally:
                wire.close()

        return stage.each(attempt)

    return play


def _say_no_more(wire: Wire) -> None:
    """close_notify, and the end of what we send; what the victim says is still heard."""
    assert isinstance(wire.socket, ssl.SSLSocket)
    wire.socket.settimeout(0.0)
    with suppress(OSError):  # the victim's own close_notify has not come: never mind
        wire.socket.unwrap()
    with suppress(OSError):
        wire.socket.shutdown(socket.SHUT_WR)


def oversized(number: int) -> bytes:
    """A first frame whose length promises more than anybody should wait for, and some of it."""
    return struct.pack(">I", OVERSIZED[number % len(OVERSIZED)]) + b"N" * 70000


def piecewise_name(_number: int) -> bytes:
    frame = dialogue.name_frame(b"ghost@127.0.0.1")
    return struct.pack(">I", len(frame)) + frame


class Recorder:
    """TLS of Python's own, with its bytes in our hands: what a client says, to be cut, trickled or said
    again.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)

    def flights(self, wire: Wire) -> Iterable[bytes]:
        """Each flight of the client's; whoever takes it passes it on, as much of it as he likes."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                yield self._outgoing.read()
                data = wire.socket.recv(65536)
                if not data:
                    return
                self._incoming.write(data)
            else:
                frame = dialogue.name_frame(b"ghost@127.0.0.1")
                self._tls.write(struct.pack(">I", len(frame)) + frame)
                yield self._outgoing.read()
                return


def truncated(stage: Stage) -> Iterable[Try]:
    """Each attempt goes away after another number of bytes of a good handshake."""
    target = stage.target
    context = stage.context(target.leaf(target.listed()))

    def attempt(number: int) -> Try:
        wire = dialogue.tcp(target.address)
        left = 1 + (number * 7) % 1900  # bytes that are said before the end
        try:
            with suppress(OSError):
                for flight in Recorder(context).flights(wire):
                    wire.socket.sendall(flight[:left])
                    left -= len(flight)
                    if left <= 0:
                        break
                wire.socket.shutdown(socket.SHUT_WR)
            return Try(wire.address, wire.until_end())
        finally:
            wire.close()

    return stage.each(attempt)


def replayed(stage: Stage) -> Iterable[Try]:
    """What a listed client said once, byte by byte again: the ClientHello, and all that came after it."""
    target = stage.target
    recorded: list[bytes] = []
    wire = dialogue.tcp(target.address)
    with suppress(OSError):
        for flight in Recorder(stage.context(target.leaf(target.listed()))).flights(wire):
            wire.socket.sendall(flight)
            recorded.append(flight)
    first = Try(wire.address, wire.until_end())  # the name it claims is not listed
    wire.close()

    def attempt(number: int) -> Try:
        if number == 0:
            return first
        again = dialogue.tcp(target.address, stage.source(number))
        try:
            with suppress(OSError):
                again.socket.sendall(recorded[0])
                again.socket.recv(65536)  # the server's own part, which differs
                again.socket.sendall(b"".join(recorded[1:]))
            return Try(again.address, again.until_end())
        finally:
            again.close()

    return stage.each(attempt, threads=WAITING)


def trickled(stage: Stage) -> Iterable[Try]:
    """A whole handshake, every byte of it in a write of its own, for a name that is not listed."""
    target = stage.target
    context = stage.context(target.leaf(target.listed()))

    def attempt(_number: int) -> Try:
        wire = dialogue.tcp(target.address)
        try:
            with suppress(OSError):
                for flight in Recorder(context).flights(wire):
                    for at in range(len(flight)):
                        wire.socket.sendall(flight[at : at + 1])
            return Try(wire.address, wire.until_end())
        finally:
            wire.close()

    return stage.each(attempt)


WAITING = 200
"""Attempts at the same time that the victim leaves waiting: below the carrier's bound for all addresses."""

SLOW_SECONDS = 20.0
"""Longer than the carrier's deadline for a handshake."""


def slow_tls(stage: Stage) -> Iterable[Try]:
    """A ClientHello of which a byte comes every 100 ms: who waits for it to end waits for ever."""
    target = stage.target

    def attempt(number: int) -> Try:
        wire = dialogue.tcp(target.address, stage.source(number))
        try:
            hello = next(iter(Recorder(stage.context(None)).flights(wire)))
            wire.socket.settimeout(0.1)
            for at in range(min(len(hello) - 1, int(SLOW_SECONDS * 10))):
                try:
                    wire.socket.sendall(hello[at : at + 1])
                    if not wire.socket.recv(1):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                return Try(wire.address, None)
            return Try(wire.address, time.monotonic() - wire.began)
        finally:
            wire.close()

    return stage.each(attempt, threads=WAITING)


def half_open(stage: Stage) -> Iterable[Try]:
    """Connections that say nothing at all, all of them at once, until the victim drops them."""
    target = stage.target
    wires: list[Wire] = []
    tries: list[Try] = []
    try:
        for number in range(stage.attempts):
            with suppress(OSError):
                wires.append(dialogue.tcp(target.address))
            stage.progress(number + 1, stage.attempts)
        deadline = time.monotonic() + SLOW_SECONDS
        for wire in wires:
            ended = wire.until_end(max(0.01, deadline - time.monotonic()))
            tries.append(Try(wire.address, ended))
    finally:
        for wire in wires:
            wire.close()
    return tries


_NONE: frozenset[Need] = frozenset()
_INSIDER = frozenset({Need.INSIDER})


def _identity(target: Target) -> str:
    return target.identity(target.listed())


def _attack(
    name: str,
    title: str,
    play: Play,
    *reasons: str,
    needs: frozenset[Need] = _NONE,
    limit: int | None = None,
    disturbs: bool = False,
) -> Attack:
    shown = _identity if needs else (lambda _target: None)
    return Attack(
        name, title, play, frozenset(reasons), needs, identity=shown, limit=limit, disturbs=disturbs
    )


ATTACKS = (
    _attack("garbage_before_tls", "garbage before TLS", before_tls, "malformed", "handshake_failed"),
    _attack("random_bytes", "random bytes before TLS", random_bytes, "malformed", "closed"),
    _attack("plaintext_peer", "a peer that speaks inet_tcp", plaintext_peer, "malformed", "closed"),
    Attack(
        "tls_1_2", "TLS 1.2 with a listed certificate", tls_1_2, frozenset({"protocol_version"}), _INSIDER
    ),
    _attack(
        "garbage_after_tls",
        "garbage after TLS",
        inside_tls(lambda number: AFTER_TLS[number % len(AFTER_TLS)], hangs_up=True),
        "malformed",
        "closed",
        "unsafe_name",
        "name_not_in_certificate",
        needs=_INSIDER,
    ),
    _attack(
        "oversized_frame",
        "oversized first frame",
        inside_tls(oversized),
        "malformed",
        "closed",
        needs=_INSIDER,
    ),
    _attack(
        "one_byte_frames",
        "the first frame in 1-byte records",
        inside_tls(piecewise_name, piecewise=True),
        "name_not_in_certificate",
        needs=_INSIDER,
    ),
    _attack(
        "one_byte_writes",
        "TLS in 1-byte writes",
        trickled,
        "name_not_in_certificate",
        needs=_INSIDER,
        limit=2000,
    ),
    _attack(
        "truncated",
        "a handshake cut off anywhere",
        truncated,
        "closed",
        "name_not_in_certificate",
        needs=_INSIDER,
    ),
    _attack(
        "replayed",
        "a recorded handshake again",
        replayed,
        "malformed",
        "handshake_timeout",
        "flood_dropped",
        "name_not_in_certificate",
        needs=_INSIDER,
    ),
    _attack(
        "slow_tls", "TLS a byte every 100 ms", slow_tls, "handshake_timeout", "flood_dropped", disturbs=True
    ),
    _attack(
        "half_open",
        "half-open flood",
        half_open,
        "handshake_timeout",
        "flood_dropped",
        "closed",
        limit=2000,
        disturbs=True,
    ),
)
