"""What a reload has to do: the difference between the configuration in force and the one that was
read. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from distsec.errors import Problem
from distsec.model.cluster import ClusterSpec, NodeSpec

_FIXED = {
    "name": "cluster.name",
    "state_dir": "cluster.state_dir",
    "mode": "security.mode",
    "carrier": "security.distribution.carrier",
    "epmd": "security.distribution.epmd",
    "metrics_listen": "metrics.listen",
    "ca_file": "security.distribution.ca_file",
}
"""Field → key of what cannot change while nodes run: their certificates, files and links were made
with it.
"""

_OF_THE_POLICY = (
    *("allowed_nodes", "rules", "peers", "connect", "identities", "foreign_trust_domains"),
    "hosts",  # the cookies, which are brought with the policy
)
"""What the policy is made of, beside where the nodes are."""

_RESTARTING = ("command", "port", "address", "environment", "working_directory", "user", "otp_libraries")
"""What a running node was started with. The other fields of a NodeSpec take effect at once."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Names in file order. `refused`: why the new configuration cannot be taken while this
    orchestrator runs. `restarted`: never a node that something else starts, for nobody here could start it
    again.
    """

    refused: tuple[Problem, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    newly_allowed: frozenset[str] = frozenset()
    policy_changed: bool = False


def difference(old: ClusterSpec, new: ClusterSpec) -> Difference:
    """What leads from `old` to `new`."""
    refused = tuple(
        Problem(key, 0, "cannot change while the orchestrator runs", "restart it for that")
        for field, key in _FIXED.items()
        if getattr(old, field) != getattr(new, field)
    )
    before = {str(node.name): node for node in old.nodes}
    after = {str(node.name): node for node in new.nodes}
    both = [name for name in after if name in before]
    moved = [name for name in both if _dialled(before[name]) != _dialled(after[name])]
    return Difference(
        refused=refused,
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        restarted=tuple(
            name for name in both if before[name].command and restarts(before[name], after[name])
        ),
        newly_allowed=frozenset(map(str, new.allowed_nodes)) - frozenset(map(str, old.allowed_nodes)),
        policy_changed=bool(moved)
        or before.keys() != after.keys()
        or any(getattr(old, field) != getattr(new, field) for field in _OF_THE_POLICY),
    )


def restarts(old: NodeSpec, new: NodeSpec) -> bool:
    """Whether what a node was started with differs."""
    return any(getattr(old, field) != getattr(new, field) for field in _RESTARTING)


def _dialled(node: NodeSpec) -> tuple[str, int | None]:
    return node.address, node.port
