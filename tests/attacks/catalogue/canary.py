"""How execution is observed: the attack tries to have the victim call back, and here is where the call
arrives.

No access to the victim is needed for it, so it is the same on one's own cluster and on anybody else's.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self


class Canary:
    """Listens for calls of the victim's; each attempt of an attack looks whether one came."""

    def __init__(self, host: str) -> None:
        """`host`: an address of this host that the victim can reach."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]

    def fileno(self) -> int:
        return self._listener.fileno()

    def heard(self, seconds: float = 0.0) -> int:
        """How often the victim called since this was asked last; waits as long for a first call."""
        calls = 0
        while True:
            self._listener.settimeout(0.0 if calls else seconds)
            try:
                connection, _ = self._listener.accept()
            except (TimeoutError, BlockingIOError):
                return calls
            except OSError:  # called, and gone again
                pass
            else:
                connection.close()
            calls += 1

    def close(self) -> None:
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
