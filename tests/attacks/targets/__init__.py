"""What is attacked, each behind the same interface (catalogue.attack.Target and Witness below).

guarded   a managed node, with either of distsec's carriers
plain     a node with stock TLS distribution, as OTP's guide sets it up
rabbit    RabbitMQ, as its documentation sets up TLS between its nodes
remote    any node at all, by its address: what an operator runs against a cluster of his own
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from tests.attacks.catalogue.attack import Target


class Witness(Target, Protocol):
    """A target that can be asked what it saw."""

    def begin(self) -> None:
        """From here on everything is counted anew."""

    def nodeups(self) -> int | None:
        """Every nodeup, hidden ones too, since `begin`; None where the victim cannot be asked."""

    def evidence(self) -> Counter[str] | None:
        """What the operator was told of refusals since `begin`, by reason; None where nobody can be asked."""

    def close(self) -> None:
        """Ends whatever it started."""
