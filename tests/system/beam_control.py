"""Evaluates Erlang in a node over a Unix socket (tests/system/beam/distsec_test_node.erl)."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

from tests.waiting import PATIENCE_SECONDS, wait_until

BEAM_SOURCES = Path(__file__).resolve().parent / "beam"


class EvalFailed(AssertionError):
    """The expressions raised in the node; the text is the exception with its stack."""


class Control:
    """One node's socket. Connects for each evaluation, so that a node may restart in between."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def arguments(beams: Path, path: Path) -> list[str]:
        """What to put on the command line of an `erl`."""
        return ["-pa", str(beams), "-run", "distsec_test_node", "start", str(path)]

    def ready(self) -> bool:
        """Whether the node answers."""
        try:
            return self.evaluate("ok", seconds=5.0) == "ok"
        except OSError:
            return False

    def evaluate_soon(self, expressions: str, seconds: float = PATIENCE_SECONDS) -> str:
        """As `evaluate`, by a node that has only just been started: it may be RUNNING, and linked, a moment
        before it listens here.
        """
        with wait_until(self._connected, f"a node to listen at {self.path}", seconds) as connection:
            return _ask(connection, expressions, seconds)

    def _connected(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(str(self.path))
            return connection
        connection.close()
        return None

    def evaluate(self, expressions: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The value as `~0tp` prints it. Raises EvalFailed where they raise, OSError if no node answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(self.path))
            return _ask(connection, expressions, seconds)


def _ask(connection: socket.socket, expressions: str, seconds: float) -> str:
    connection.settimeout(seconds)
    source = expressions.encode()
    connection.sendall(struct.pack(">I", len(source)) + source)
    (length,) = struct.unpack(">I", _read(connection, 4))
    answer = _read(connection, length)
    text = answer[1:].decode()
    if answer[:1] != b"o":
        raise EvalFailed(f"{expressions}\n{text}")
    return text


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the node closed the control socket")
        data += more
    return data
