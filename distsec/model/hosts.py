"""Other hosts of this cluster, as far as a document that they exported has told (docs/hosts.md). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from distsec.errors import NameInvalid
from distsec.model.names import NodeName

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class HostNode:
    """A node there. `anchor`: the CA that its certificate leads to, SHA-256 of its DER in lower-case hex."""

    name: NodeName
    address: str
    port: int
    anchor: str


@dataclass(frozen=True, slots=True)
class HostSpec:
    """What was imported last from one host. Keys are raw bytes in hex, and public.

    `signing_key` (Ed25519) is what makes it that host; the cookies of pairs with its nodes follow from
    `agreement_key` (X25519) and from `epochs`: how often nodes were re-keyed, as it counts them. `serial`
    rises with each document, `digest` is of the last. `trusts`: the CAs that its nodes trusted, as `anchor`.
    """

    name: str
    signing_key: str
    agreement_key: str
    serial: int
    issued_at: int
    digest: str
    nodes: tuple[HostNode, ...]
    epochs: tuple[tuple[str, int], ...] = ()
    trusts: tuple[str, ...] = ()

    def epoch(self, node: str) -> int:
        """How often that host has re-keyed `node`, one of its own or of ours."""
        return next((count for name, count in self.epochs if name == node), 0)


def check_host_name(text: str) -> str:
    """Returns `text` if a host may be called so, else raises NameInvalid."""
    if not _HOST.fullmatch(text) or text == "localhost":
        raise NameInvalid(
            f"{text[:80]!a} cannot be the name of a host",
            do="use 1 to 63 letters, digits, dots, hyphens and _ (and not localhost)",
        )
    return text
