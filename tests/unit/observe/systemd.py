"""What stands for systemd in tests: a socket for sd_notify, or for the journal, and what came to it."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from struct import Struct
from types import TracebackType

from tests.waiting import wait_until

_length = Struct("<Q")


class Datagrams:
    """A datagram socket at `path`, for a block; what came is kept in `words`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def read(self) -> list[bytes]:
        """All that came so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.words.append(self._socket.recv(1 << 20))
        return self.words

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


class Systemd(Datagrams):
    """The other end of NOTIFY_SOCKET."""

    def lines(self, name: str) -> list[str]:
        """The values that were assigned to `name` so far, in order."""
        every = [line for word in self.read() for line in word.decode().split("\n")]
        return [line.partition("=")[2] for line in every if line.partition("=")[0] == name]

    def wait(self, line: str, seconds: float = 30.0, times: int = 1) -> None:
        """Until `line` has been said that often."""
        name, _, value = line.partition("=")
        wait_until(lambda: self.lines(name).count(value) >= times, f"{line} ({self.words})", seconds)

    def wait_status(self, part: str, seconds: float = 30.0) -> str:
        """The first STATUS that holds `part`."""
        return wait_until(
            lambda: next((text for text in self.lines("STATUS") if part in text), ""),
            f"STATUS {part}",
            seconds,
        )


def fields_of(datagram: bytes) -> dict[str, str]:
    """An entry of the journal, as journald reads it (systemd, "Native Journal Protocol")."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = _length.unpack_from(rest)
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        found[name.decode()] = value.decode()
        datagram = rest
    return found
