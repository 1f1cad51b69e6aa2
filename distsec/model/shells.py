"""Operators' shells: what each is called, who it is, and what may label it. Pure.

A shell has a certificate of its own with an identity that nobody had before and nobody gets again, and for
as long as it lasts one of a few node names: each name that links with a node stays there as an atom for good,
and a monitoring script may open a shell every minute.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from distsec.model.names import NodeName

_TOOL = re.compile(r"spiffe://[^/]+/shell/[^/]+/exec\.[0-9a-f]+")

HEAD = "distsec-shell-"
NAMES = 256
"""Different names of shells on a host, and so the most that are open at a time."""

ATTACH_SECONDS = 120
"""A shell that has not linked with its node so long after it was asked for is admitted no more."""

SESSION_SECONDS = 12 * 3600
"""How long its certificate is valid; then its link ends, as every link does whose certificate has expired."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who asked for a shell, as the kernel says it: the process became the shell's VM. `user`: the uid's
    name.
    """

    pid: int
    uid: int
    user: str

    def __str__(self) -> str:
        return f"{self.user} (uid {self.uid})"


def shell_name(number: int, host: str) -> NodeName:
    """The name of shell `number` (from 0) on a host."""
    return NodeName.parse(f"{HEAD}{number % NAMES}@{host}")


def shell_identity(cluster: str, name: NodeName, token: str) -> str:
    """`spiffe://<cluster>/shell/<host>/<name>.<token>`: of kind shell, so that no rule for command-line tools
    takes it; `token` is random hexadecimal, so that it is this shell's alone.
    """
    domain, _, path = name.identity(cluster).partition("/node/")
    return f"{domain}/shell/{path}.{token}"


def tool_pattern(host: str) -> str:
    """The names that an application's tool may make up on a host (`distsec exec`)."""
    return f"*@{host}"


def tool_identity(cluster: str, host: str, token: str) -> str:
    """Of one run of a tool: of the kind of shells, since it too is one operator's and is never had again."""
    return shell_identity(cluster, NodeName.parse(f"exec@{host}"), token)


def is_tool(identity: str | None) -> bool:
    """Whether that is the identity of a tool, of whichever cluster."""
    return identity is not None and _TOOL.fullmatch(identity) is not None


def is_shell(cluster: str, name: str, identity: str | None) -> bool:
    """Whether the peer of a link is a shell: by its certificate, which only this cluster's CA issues so;
    where links carry none, by its name.
    """
    if identity is not None:
        return identity.startswith(f"spiffe://{cluster}/shell/")
    return name.startswith(HEAD)


def shell_pattern(host: str) -> str:
    """All shells on a host: what metrics call each of them."""
    return f"{HEAD}*@{host}"


def shell_patterns(nodes: Iterable[NodeName]) -> tuple[str, ...]:
    """The labels of shells that can attach to any of these nodes: a shell is on its node's own host."""
    return tuple(dict.fromkeys(shell_pattern(node.host) for node in nodes))


def tool_patterns(nodes: Iterable[NodeName]) -> tuple[str, ...]:
    """The same of tools."""
    return tuple(dict.fromkeys(tool_pattern(node.host) for node in nodes))
