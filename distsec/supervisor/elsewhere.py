"""Listed nodes that some other orchestrator runs, and what is known of them from what their hosts exported.

A node of a host that was imported has its cookies by the keys of both hosts, so a rotation here leaves it
alone; and the host's last document tells whether its nodes trust a new CA, and have certificates of it. Of
any other listed name nothing is known, and whoever gives a command must say that it was seen to. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from distsec.core.rotation import Command
from distsec.core.wanted import Overlay, listed_names
from distsec.model.cluster import ClusterSpec
from distsec.model.hosts import HostNode, HostSpec


def run_elsewhere(spec: ClusterSpec, overlay: Overlay, managed: Collection[str]) -> list[str]:
    """Every listed name that is none of those `managed` here, and not denied."""
    names = listed_names(spec, overlay)
    return [name for name in names if name not in managed and name not in overlay.deny]


def of_no_host(spec: ClusterSpec, overlay: Overlay, managed: Collection[str]) -> list[str]:
    """Those of which no document was imported."""
    return _unless(spec, run_elsewhere(spec, overlay, managed), lambda host, node: True)


def not_ready(spec: ClusterSpec, names: Iterable[str], command: Command, coming: str | None) -> list[str]:
    """Those of `names` that `command` would lock out, or of which that is not known. `coming`: the CA that
    takes the other's place (SHA-256 of its anchor, in hex).

    Before nodes here show certificates of it those elsewhere must trust it; before the old one is dropped
    they must have certificates of it.
    """
    match command:
        case Command.ACTIVATE:
            return _unless(spec, names, lambda host, node: coming in host.trusts)
        case Command.PRUNE:
            return _unless(spec, names, lambda host, node: node.anchor == coming)
    return []


def _unless(spec: ClusterSpec, names: Iterable[str], fine: Callable[[HostSpec, HostNode], bool]) -> list[str]:
    known = {str(node.name) for host in spec.hosts for node in host.nodes if fine(host, node)}
    return [name for name in names if name not in known]
