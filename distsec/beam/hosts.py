"""The configuration together with what was imported of other hosts: what the program works with.

Imported nodes are listed and have an address, as if `[[peers]]` and `allowed_nodes` named them; `deny` keeps
one out as ever. What `[[peers]]` says of the same name counts before what the other host says of itself
(behind an address translation it may not know where it is reached).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distsec.config.binding import Network, check_here
from distsec.config.load import load
from distsec.errors import ConfigError, Problem
from distsec.model.cluster import ClusterSpec, PeerSpec
from distsec.pki.hosts import load_hosts
from distsec.pki.store import Store


def with_hosts(spec: ClusterSpec, store: Store) -> ClusterSpec:
    """`spec` with the nodes of all hosts that were imported. Raises StoreError; ConfigError where one of them
    is managed here: whose it is must be decided first.
    """
    hosts = load_hosts(store)
    managed = {node.name for node in spec.nodes}
    for host in hosts:
        for node in host.nodes:
            if node.name in managed:
                what = f"{node.name} is managed here, and was imported from {host.name}"
                do = f"rename it, or `distsec import --forget {host.name}`"
                raise ConfigError(spec.config_file, [Problem("nodes", 0, what, do)])
    given = {peer.name for peer in spec.peers}
    nodes = [node for host in hosts for node in host.nodes]
    peers = (PeerSpec(node.name, node.address, node.port) for node in nodes if node.name not in given)
    return replace(
        spec,
        hosts=hosts,
        peers=(*spec.peers, *peers),
        allowed_nodes=tuple(dict.fromkeys([*spec.allowed_nodes, *(node.name for node in nodes)])),
    )


def load_cluster(path: Path, environment: Mapping[str, str], network: Network | None = None) -> ClusterSpec:
    """What is to run on this host: the configuration at `path`, with the hosts that were imported.

    Raises ConfigError, StoreError; AddressUnavailable where something is to listen on an address that is not
    on this host.
    """
    asked = network or Network()
    spec = load(path, environment, asked)
    check_here(spec, asked)
    state = Path(spec.state_dir)
    return with_hosts(spec, Store(state)) if state.exists() else spec
