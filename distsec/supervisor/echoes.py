"""The refusals that our own probes cause, so that no operator is alarmed by the orchestrator's own knock.

A probe that shows no certificate is refused by the node like anybody else's. Its refusal is told apart by the probe's
local `address:port`; stock OTP names no address for one that fails in TLS, so there each probe pays for at most one
refusal of the kind that probes cause. A stranger refused in the same seconds is thus still counted: of n refusals,
one a probe is taken off, never more. Time is an argument: seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from distsec.model.policy import Direction, Reason

REMEMBERED_SECONDS = 10.0
"""The node reports a refusal within a second or so; its agent may be slow, or sending an old backlog first."""

OF_A_PROBE = (
    Reason.CERTIFICATE_REQUIRED,
    Reason.PROTOCOL_VERSION,
    Reason.HANDSHAKE_FAILED,
    Reason.CLOSED,
    Reason.MALFORMED,
)
"""What a peer is refused for that shows no certificate, speaks TLS 1.2, or breaks off; most likely first."""

MAX_REMEMBERED = 64

Counts = Mapping[tuple[Direction, Reason], int]


@dataclass(frozen=True, slots=True)
class _Probe:
    address: str
    until: float


class Echoes:
    """Of one node."""

    def __init__(self) -> None:
        self._probes: list[_Probe] = []
        self._absorbed: Counter[tuple[Direction, Reason]] = Counter()

    def expect(self, address: str, now: float) -> None:
        """A probe connects from `address` ("127.0.0.1:40112")."""
        self._forget(now)
        self._probes = [*self._probes[-MAX_REMEMBERED + 1 :], _Probe(address, now + REMEMBERED_SECONDS)]

    def absorbs(self, direction: str | None, reason: str | None, address: str | None, now: float) -> bool:
        """Whether that refusal is the echo of a probe; each connection of a probe has one."""
        self._forget(now)
        if direction != Direction.IN or reason not in OF_A_PROBE:
            return False
        for probe in self._probes:
            if address is None or probe.address == address:
                self._probes.remove(probe)
                self._absorbed[Direction.IN, Reason(reason)] += 1
                return True
        return False

    def taken_off(self, counts: Counts, now: float) -> dict[tuple[Direction, Reason], int]:
        """An agent's exact counts without the echoes: those absorbed, and those that are still to be reported.

        The latter for as long as they are expected only, so that no stranger stays uncounted.
        """
        self._forget(now)
        left = {key: max(0, whole - self._absorbed[key]) for key, whole in counts.items()}
        pending = len(self._probes)
        for reason in OF_A_PROBE:
            taken = min(pending, left.get((Direction.IN, reason), 0))
            if taken:
                left[Direction.IN, reason] -= taken
                pending -= taken
        return {key: count for key, count in left.items() if count}

    def forget_launch(self) -> None:
        """The node's VM is another one: its counts began at 0 again."""
        self._absorbed.clear()

    def _forget(self, now: float) -> None:
        self._probes = [probe for probe in self._probes if probe.until > now]
