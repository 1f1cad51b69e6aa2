"""Which certificates the managed nodes have. Each owns its directory, and may have put anything there.

So a file that is missing or cannot be understood says nothing, and keeps nobody from deciding on others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from distsec.errors import DistsecError
from distsec.model.cluster import Certificate
from distsec.supervisor.machine import Machine
from distsec.supervisor.node import ManagedNode


@dataclass(frozen=True, slots=True)
class Held:
    """By node: its certificate; and why it is unknown, with the serial that it was known to have before."""

    known: dict[str, Certificate] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)

    def serial(self, name: str) -> str | None:
        """The best that is known here, and never what somebody else says."""
        certificate = self.known.get(name)
        return certificate.serial if certificate is not None else self.before.get(name)


def held_certificates(machine: Machine, nodes: Iterable[ManagedNode]) -> Held:
    """The files, read anew. Blocks; for a thread."""
    held = Held()
    for node in nodes:
        try:
            certificate = machine.certificate(node.spec)
        except DistsecError as error:
            held.unknown[node.name] = str(error)
            if node.certificate is not None:
                held.before[node.name] = node.certificate.serial
            continue
        if certificate is None:
            continue
        given = machine.records.given(node.spec)
        if given and certificate.serial not in given:
            held.unknown[node.name] = "the certificate in its directory is none that it was given"
            if node.certificate is not None and node.certificate.serial in given:
                held.before[node.name] = node.certificate.serial
            continue
        held.known[node.name] = certificate
    return held
