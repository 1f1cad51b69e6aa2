"""`{packet,4}` without I/O: bytes in pieces of any size become frames, each copied once or twice, never more.

Source: gen_tcp's option {packet,4}: a 4-byte big-endian length before each packet.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from distsec.errors import ProtocolError

HEADER_BYTES: Final = 4

_header = Struct(">I")
_read_header = _header.unpack_from


def frame(payload: bytes) -> bytes:
    """`payload` with its length before it."""
    return _header.pack(len(payload)) + payload


class Frames:
    """Collects what is received. `limit` is the longest payload that is taken, in bytes; it may be changed.

    At most one unfinished frame is held, besides what the last `feed` brought.
    """

    __slots__ = ("_at", "_chunk", "_end", "_partial", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._chunk = b""  # whole frames are cut from here,
        self._at = 0  # beginning here,
        self._end = 0  # up to here, once `peek` has found one
        self._partial = bytearray()  # the beginning of a frame whose end has not come; then `_chunk` is empty

    def feed(self, received: bytes) -> None:
        """Adds what was received."""
        if self._partial:
            self._partial += (
                received  # amortised: a frame that comes byte by byte is not copied for each of them
            )
        elif self._at < len(self._chunk):
            self._chunk = self._chunk[self._at :] + received
            self._at = 0
        else:
            self._chunk = received
            self._at = 0

    def peek(self) -> bytes | None:
        """The next payload, which stays until `take`; None: not whole yet. Raises ProtocolError: too long."""
        if self._partial:
            if self._missing(self._partial, 0) > 0:
                return None
            self._chunk, self._at = bytes(self._partial), 0
            self._partial = bytearray()
        chunk, at = self._chunk, self._at
        if self._missing(chunk, at) > 0:
            self._partial += chunk[at:]
            self._chunk, self._at = b"", 0
            return None
        self._end = at + HEADER_BYTES + _read_header(chunk, at)[0]
        return chunk[at + HEADER_BYTES : self._end]

    def take(self) -> None:
        """Goes on behind the payload that `peek` returned last."""
        self._at = self._end

    @property
    def held(self) -> int:
        """Bytes received and not taken."""
        return len(self._partial) + len(self._chunk) - self._at

    @property
    def pending(self) -> bool:
        """Whether `peek` has something to say now: a payload, or an error."""
        buffer, at = (self._partial, 0) if self._partial else (self._chunk, self._at)
        try:
            return self._missing(buffer, at) <= 0
        except ProtocolError:
            return True

    def _missing(self, buffer: bytes | bytearray, at: int) -> int:
        """How many bytes the frame at `at` still lacks, as far as is known."""
        have = len(buffer) - at
        if have < HEADER_BYTES:
            return HEADER_BYTES - have
        length: int = _read_header(buffer, at)[0]
        if length > self.limit:
            raise ProtocolError(
                f"a frame of {length} bytes, {self.limit} are taken", reason="frame_too_large"
            )
        return HEADER_BYTES + length - have
