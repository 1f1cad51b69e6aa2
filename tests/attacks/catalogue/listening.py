"""Somebody who listens where a node dials, for as long as an attack goes on."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

from tests.attacks.catalogue import dialogue
from tests.attacks.catalogue.attack import Try


class Listening:
    """Takes whoever comes to `listener`, one after the other; `tries` are the attempts so far."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self.tries: list[Try] = []
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def take(self, accepted: socket.socket) -> Try:
        """Attacks whoever is at the other end."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # closed: the attack is over
                return
            accepted.settimeout(dialogue.SECONDS)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.tries.append(self.take(accepted))
