"""The word to systemd, as sd_notify(3) and sd_watchdog_enabled(3) have it: one datagram for each.

Never raises and never waits: the nodes matter more than the word. Where systemd does not ask, nothing is
said. *When* something is said is decided by `supervisor.readiness` and `daemon`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

from distsec.model.text import escape

MAX_STATUS = 400
"""Characters of a STATUS= line; `systemctl status` shows it in one."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """`address`: of the socket ("@…" is an abstract one), "" for none. `watchdog_seconds`: the limit that
    systemd has set, None for none. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        address: str = "",
        watchdog_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._pulsed_at = -float("inf")

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Notifier:
        """What `environment` says, whose variables are removed: nothing that is started may speak for us."""
        given = {name: environment.pop(name, "") for name in _VARIABLES}
        address = given["NOTIFY_SOCKET"]
        ours = given["WATCHDOG_PID"] in {"", str(os.getpid())}
        seconds = None
        if ours and given["WATCHDOG_USEC"].isdecimal() and int(given["WATCHDOG_USEC"]) > 0:
            seconds = int(given["WATCHDOG_USEC"]) / 1e6
        return cls(address if address.startswith(("/", "@")) else "", seconds)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def send(self, *lines: str) -> bool:
        """One datagram with these assignments; False where it was not taken (a queue that is full)."""
        if not self._address:
            return True
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifier,
        ):
            notifier.sendto("\n".join(lines).encode(), self._address)
            return True
        return False

    def pulse(self) -> None:
        """WATCHDOG=1, at a third of the limit; called once a second or so by the loop that is watched."""
        if self.watchdog_seconds is None:
            return
        now = self._clock()
        # Half a second early: a caller that comes once a second would otherwise miss the moment by one.
        if now - self._pulsed_at >= self.watchdog_seconds / 3 - 0.5 and self.send("WATCHDOG=1"):
            self._pulsed_at = now


def status_line(text: str) -> str:
    """`STATUS=…`, one line, escaped and bounded."""
    return "STATUS=" + escape(" ".join(text.split()), MAX_STATUS)


def extend_line(seconds: float) -> str:
    """EXTEND_TIMEOUT_USEC: the start or stop may take this much longer from now."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


def reloading_line() -> str:
    """RELOADING=1 with the moment, which `Type=notify-reload` compares (CLOCK_MONOTONIC)."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
