"""How long each link lived on which certificate of its peer, as the nodes themselves saw it.

watch(cluster)
...
for (node, peer), lives in seen(cluster).items():
    assert all(life.overdue_ms < 0 for life in lives)
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.system.certificates import Leaf
from tests.system.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Life:
    """A link's time with one certificate of its peer. `not_after`: Unix seconds; the others in milliseconds,
    Unix time of the node.
    """

    serial: str
    not_after: int
    first_ms: int
    last_ms: int

    @property
    def overdue_ms(self) -> int:
        """For how long the link was up after that certificate had ended; below 0: it had not."""
        return self.last_ms - self.not_after * 1000


def watch(cluster: Cluster, *names: str) -> None:
    """From now on these nodes (default: all) take note of their links' certificates."""
    for name in names or cluster.names:
        cluster.wait_answering(name)
        cluster.erl(name, "distsec_test_proofs:start()")


def seen(cluster: Cluster, *names: str) -> dict[tuple[str, str], list[Life]]:
    """(node, peer) → the lives of that link, oldest first; names without the host."""
    found: dict[tuple[str, str], list[Life]] = {}
    for name in names or cluster.names:
        for peer, *fields in json.loads(json.loads(cluster.erl(name, "distsec_test_proofs:lives()"))):
            found.setdefault((name, peer.partition("@")[0]), []).append(Life(*fields))
    for lives in found.values():
        lives.sort(key=lambda life: life.first_ms)
    return found


def give(cluster: Cluster, name: str, leaf: Leaf) -> None:
    """Puts a pair into the node's directory, as something that is no part of distsec would."""
    directory = cluster.node_directory(name)
    (directory / "key.pem").write_bytes(leaf.key.read_bytes())
    (directory / "certificate.pem").write_bytes(leaf.certificate.read_bytes())


def command(cluster: Cluster, name: str, what: str, arguments: str = "#{}") -> str:
    """What the agent of that node answers to a command, as Erlang prints it."""
    return cluster.erl(name, f"distsec_command:run({what}, {arguments})", 30)
