"""Watches from outside what the nodes of a test listen on, all the while, and what a stranger gets there."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distsec.beam import proc
from distsec.beam.probe import NAME_FRAME

PAUSE_SECONDS = 0.005
"""Between two looks, so that the nodes get some of the processor; a look takes about as long."""


MIN_LOOKS = 3
"""With fewer nothing was watched. What a look misses, a later one sees: listeners stay."""


ANSWER_SECONDS = 10.0
"""For a node to answer: whoever speaks plaintext says so, however busy the machine."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A listening socket of a node's process. `plaintext`: it answers a handshake without TLS."""

    node: str
    port: int
    plaintext: bool


@dataclass(slots=True)
class SocketWatch:
    """Of every process below `root` that was started for a node in `state`; ends with the `with` block."""

    root: int
    state: Path
    seen: set[Seen] = field(default_factory=set)
    looks: int = 0
    failure: Exception | None = None
    _known: set[tuple[int, int]] = field(default_factory=set)
    _end: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[SocketWatch]:
        thread = threading.Thread(target=self._run, name="socket watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join(30)
        if self.failure is not None:
            raise self.failure
        self._look()  # what came up since the last one, as slow as the machine may be
        assert self.looks >= MIN_LOOKS, f"only {self.looks} looks: the machine is too busy to see anything"

    def of(self, node: str) -> set[Seen]:
        """What was seen of a node, by its full name."""
        return {each for each in self.seen if each.node == node}

    def _run(self) -> None:
        try:
            while not self._end.wait(PAUSE_SECONDS):
                self._look()
                self.looks += 1
        except Exception as error:
            self.failure = error

    def _look(self) -> None:
        pids = [pid for pid in proc.tree(self.root) if pid != self.root]
        inherited = {listener.port for listener in proc.listening([self.root])}  # between fork and exec
        for listener in proc.listening(pids):  # all at once: a look must be short
            if listener.port not in inherited and (listener.pid, listener.port) not in self._known:
                self._known.add((listener.pid, listener.port))
                if (node := node_of(listener.pid, self.state)) is not None:
                    plaintext = speaks_plaintext(listener.address, listener.port)
                    self.seen.add(Seen(node, listener.port, plaintext))


def node_of(pid: int, state: Path) -> str | None:
    """The node whose log directory the environment of a process names, as that of every node does."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"):
            if entry.startswith(f"ERL_CRASH_DUMP={state}/nodes/"):
                return entry.removeprefix(f"ERL_CRASH_DUMP={state}/nodes/").partition("/")[0]
    return None


def speaks_plaintext(address: str, port: int) -> bool:
    """Whether the port answers the first frame of a distribution handshake with a status (dist_util)."""
    answer = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, port), ANSWER_SECONDS) as connection,
    ):
        connection.sendall(NAME_FRAME)
        while len(answer) < 3 and (more := connection.recv(3 - len(answer))):
            answer += more
    return answer[:1] == b"\0" and answer[2:] == b"s"  # {packet,2}, $s; a TLS alert begins with 21
