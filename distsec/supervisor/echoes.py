"""The refusals that our own probes cause, so that no operator is alarmed by the orchestrator's own knock.

A probe is a stranger on purpose: it shows no certificate, and the node refuses it like anybody else, with no
exception in the carrier that somebody else could claim. Its refusal is told apart by the probe's local
`address:port`, which the carrier distsec names in every refusal. Stock OTP does not always name it; such a
refusal of the kind that probes cause is paid for by a credit, of which each connection of a probe brings one.
So a stranger who is refused in the same seconds is still counted. Time is an argument: seconds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from distsec.model.policy import Direction, Reason

REMEMBERED_SECONDS = 10.0
"""The node reports a refusal within a second or so; its agent may be slow, or sending an old
backlog first.
"""

OF_A_PROBE = (
    Reason.CERTIFICATE_REQUIRED,
    Reason.PROTOCOL_VERSION,
    Reason.HANDSHAKE_FAILED,
    Reason.CLOSED,
    Reason.MALFORMED,
    Reason.HANDSHAKE_TIMEOUT,
    Reason.FLOOD_DROPPED,
)
"""What a peer is refused for that shows no certificate, speaks TLS 1.2, or breaks off; most likely first."""

MAX_REMEMBERED = 64
"""Connections that are expected, and refusals that were absorbed, the latest of them."""

Counts = Mapping[tuple[Direction, Reason], int]


@dataclass(frozen=True, slots=True)
class EchoRecord:
    """What the next orchestrator must know of a launch. `absorbed`: reason → how many refusals were taken
    off; `expected`: our ends of connections whose refusal was not seen yet; `sequences`: numbers of refusals
    that were absorbed, which the node tells again if the acknowledgement was still to be sent.
    """

    absorbed: Mapping[str, int] = field(default_factory=dict)
    expected: tuple[str, ...] = ()
    sequences: tuple[int, ...] = ()


class Echoes:
    """Of one node. `addressed`: its refusals all name their address, so that one without is nobody's echo."""

    def __init__(self) -> None:
        self.addressed = False
        self._addresses: dict[
            str, float
        ] = {}  # of connections whose own refusal was not seen yet; until when
        self._proofs: dict[str, tuple[float, str | None]] = {}  # until when, and what it was refused for
        self._credits: list[float] = []  # until when each is good
        self._absorbed: Counter[tuple[Direction, Reason]] = Counter()
        self._sequences: deque[int] = deque(maxlen=MAX_REMEMBERED)

    def expect(self, address: str, now: float) -> None:
        """A probe connects from `address` ("127.0.0.1:40112")."""
        self._forget(now)
        if len(self._credits) < MAX_REMEMBERED:
            self._addresses[address] = now + REMEMBERED_SECONDS
            self._credits.append(now + REMEMBERED_SECONDS)

    def expect_proof(self, address: str, now: float) -> None:
        """From `address` we show a certificate that is to be refused; `refused_for` tells what for."""
        self._forget(now)
        self._proofs[address] = now + REMEMBERED_SECONDS, None

    def refused_for(self, address: str) -> str | None:
        """The reason that the node gave; None: none yet."""
        return self._proofs.get(address, (0.0, None))[1]

    def absorbs(
        self, sequence: int, direction: str | None, reason: str | None, address: str | None, now: float
    ) -> bool:
        """Whether that refusal is the echo of a probe. An address is good for one, and so is a credit; one
        that was absorbed before is told for the second time, and counts no more.
        """
        if sequence in self._sequences:
            return True
        if not self._is_echo(direction, reason, address, now):
            return False
        self._sequences.append(sequence)
        return True

    def _is_echo(self, direction: str | None, reason: str | None, address: str | None, now: float) -> bool:
        self._forget(now)
        proof = self._proofs.get(address or "")
        if direction == Direction.IN and reason is not None and proof is not None and proof[1] is None:
            self._proofs[address or ""] = proof[0], reason
            self._absorbed[Direction.IN, Reason(reason)] += 1
            return True
        if direction != Direction.IN or reason not in OF_A_PROBE:
            return False
        if address is None and (self.addressed or not self._credits):
            return False
        if address is not None and self._addresses.pop(address, None) is None:
            return False
        # One that names its address uses up a credit too; without any left, another refusal has used its own.
        del self._credits[:1]
        self._absorbed[Direction.IN, Reason(reason)] += 1
        return True

    def taken_off(self, counts: Counts, now: float) -> dict[tuple[Direction, Reason], int]:
        """An agent's exact counts without the echoes: those absorbed, and those that are still to come.

        The latter under each reason that they may have, since what is shown of a count never decreases; and
        for as long as they are expected only, so that no stranger stays uncounted.
        """
        self._forget(now)
        proofs = sum(why is None for _, why in self._proofs.values())
        pending = {(Direction.IN, reason): len(self._credits) for reason in OF_A_PROBE}
        left = {
            (direction, reason): whole
            - self._absorbed[direction, reason]
            - pending.get((direction, reason), 0)
            - (proofs if direction == Direction.IN else 0)
            for (direction, reason), whole in counts.items()
        }
        return {key: count for key, count in left.items() if count > 0}

    def record(self, now: float) -> EchoRecord:
        """What `begin_launch` takes."""
        self._forget(now)
        absorbed = {str(reason): count for (_, reason), count in self._absorbed.items()}
        # Of refusals that named no address nobody knows whose they were: as many are still to come as there
        # are credits.
        expected = tuple(self._addresses)[len(self._addresses) - len(self._credits) :]
        return EchoRecord(absorbed, expected, tuple(self._sequences))

    def begin_launch(self, before: EchoRecord, now: float) -> None:
        """The node's VM is another one, whose counts began at 0; `before` is an earlier orchestrator's.

        One that was killed between its knock and the node's report of it leaves the report to us.
        """
        self._absorbed = Counter(
            {(Direction.IN, Reason(reason)): count for reason, count in before.absorbed.items()}
        )
        self._sequences = deque(before.sequences, maxlen=MAX_REMEMBERED)
        for address in before.expected[:MAX_REMEMBERED]:
            self.expect(address, now)

    def _forget(self, now: float) -> None:
        self._addresses = {address: until for address, until in self._addresses.items() if until > now}
        self._credits = [until for until in self._credits if until > now]
        self._proofs = {address: kept for address, kept in self._proofs.items() if kept[0] > now}
