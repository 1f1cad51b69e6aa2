"""Distribution ports: `[[nodes]].port`, or one that was allotted once and is kept in `ports.json`.

A node's neighbours, here and on other hosts, dial the port that the policy names, so an allotted port never
changes by itself. Where it can no longer be used (another range, another node was given it) that is an error
which says so. It is none of those that the kernel gives to connections: one such would keep a node that was
down from listening, for as long as it lasts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pwd
import socket
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from distsec.beam import proc
from distsec.errors import ConfigError, PortInUse, Problem, StoreError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.text import escape
from distsec.pki.store import Store

PORTS_FILE = "ports.json"
_SCHEMA = 1

_OURS = range(20_000, 30_000)
"""Where ports are allotted: below those of connections (32768 to 60999, as Linux comes), and of NodePorts."""
_OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Of IPv6 as well: Documentation/networking/ip-sysctl.rst."""


def distribution_ports(spec: ClusterSpec, store: Store) -> Mapping[str, int]:
    """Name → port of every managed node and of every `[[peers]]`.

    Raises StoreError where a node has none yet (`allot_ports` comes first), ConfigError where its port cannot
    stay.
    """
    ports = _settled(spec, _load(store))
    for node in spec.nodes:
        if str(node.name) not in ports:
            raise StoreError(
                f"holds no port for {node.name}", where=str(store.path(PORTS_FILE)), do="run `distsec init`"
            )
    return ports | {str(peer.name): peer.port for peer in spec.peers}


def allot_ports(spec: ClusterSpec, store: Store) -> tuple[str, ...]:
    """Gives each node without a port one, and keeps it: the first of `listen_ports` that is free, or one
    from 20000 to 29999 that the kernel gives to no connection; where it gives them all, the system's choice.

    Returns the names of those that were given one. Raises PortInUse if all of the range is taken. Call it
    with the store locked.
    """
    kept = dict(_load(store))
    settled = _settled(spec, kept)
    missing = [node for node in spec.nodes if str(node.name) not in settled]
    taken = set(settled.values())
    if spec.metrics_listen and spec.metrics_listen[1]:
        taken.add(spec.metrics_listen[1])
    with contextlib.ExitStack() as bound:  # held until all are allotted, so that nobody gets the same twice
        for node in missing:
            # Nodes that are no longer configured keep theirs for as long as others can be had.
            listener = _first_free(spec, node, taken | set(kept.values())) or _first_free(spec, node, taken)
            if listener is None:
                raise _exhausted(spec, node)
            bound.enter_context(listener)
            kept[str(node.name)] = port = int(listener.getsockname()[1])
            taken.add(port)
    if missing:
        document = {"schema": _SCHEMA, "ports": dict(sorted(kept.items()))}
        store.write(PORTS_FILE, json.dumps(document, indent=1).encode() + b"\n")
    return tuple(str(node.name) for node in missing)


def check_port_free(address: str, port: int) -> None:
    """Raises PortInUse, with the process that holds it where that can be seen, if nobody could listen there
    now.
    """
    where = f"{address}:{port}"
    try:
        _listen(address, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            do = f"end that process, or give the node another port in [[nodes]] or {PORTS_FILE}"
            raise PortInUse(f"the port is in use{_held_by(address, port)}", where=where, do=do) from None
        raise _unusable(where, error) from error


def _held_by(address: str, port: int) -> str:
    """By whom, as far as it can be seen: another user's process cannot, its user can."""
    if (holder := proc.holder(port)) is not None:
        return f" by process {holder.pid} ({escape(holder.name)})"
    if (uid := proc.listening_uid(address, port)) is None:
        return ""
    with contextlib.suppress(KeyError):
        return f" by a process of {escape(pwd.getpwuid(uid).pw_name)} (uid {uid})"
    return f" by a process of uid {uid}"


def _first_free(spec: ClusterSpec, node: NodeSpec, taken: set[int]) -> socket.socket | None:
    """A listener on the node's address at a port that nobody has; None if the whole range is taken."""
    for port in _candidates(spec, node):
        if port in taken:
            continue
        try:
            listener = _listen(node.address, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise _unusable(f"{node.address}:{port}", error) from error
        if listener.getsockname()[1] not in taken:
            return listener
        listener.close()
    return None


def _candidates(spec: ClusterSpec, node: NodeSpec) -> Iterable[int]:
    """Ports to try; 0 (the system chooses) a few times, since it may choose one that another node is kept
    for.
    """
    if spec.listen_ports is None:
        return chain(out_of_the_way(_of_connections(), f"{spec.state_dir}\0{node.name}"), (0,) * 64)
    first, last = spec.listen_ports
    return range(first, last + 1)


def out_of_the_way(of_connections: range, seed: str) -> Iterable[int]:
    """Ports from 20000 to 29999 that no connection is given. Each seed, which is a node, has a first one of
    its own, so that two clusters of a host, neither of which runs, are hardly given the same.
    """
    ours = [port for port in _OURS if port not in of_connections]
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) % max(1, len(ours))
    return ours[start:] + ours[:start]


def _of_connections() -> range:
    """Which the kernel gives to connections that ask for none; all of them if it does not say."""
    try:
        first, last = map(int, _OF_CONNECTIONS.read_text("ascii").split())
    except (OSError, ValueError):
        return range(1, 65_536)
    return range(first, last + 1)


def _listen(address: str, port: int) -> socket.socket:
    """Listens as Erlang does, with SO_REUSEADDR; a port that is bound and no more could be bound again."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def _settled(spec: ClusterSpec, kept: Mapping[str, int]) -> dict[str, int]:
    """The ports of managed nodes that are given or kept. Raises ConfigError where a kept one cannot stay."""
    given = {node.port: str(node.name) for node in spec.nodes if node.port is not None}
    ports = {name: port for port, name in given.items()}
    ports |= {str(node.name): node.port for node in spec.nodes if node.port is not None}
    for node in spec.nodes:
        name, port = str(node.name), kept.get(str(node.name))
        if node.port is not None or port is None:
            continue
        if port in given:
            raise _moved(
                spec, "nodes.port", f"{name} was allotted port {port}, which {given[port]} is given now"
            )
        if spec.listen_ports and not spec.listen_ports[0] <= port <= spec.listen_ports[1]:
            first, last = spec.listen_ports
            what = f"{name} was allotted port {port}, which is not from {first} to {last}"
            raise _moved(spec, "security.distribution.listen_ports", what)
        ports[name] = port
    return ports


def _moved(spec: ClusterSpec, key: str, what: str) -> ConfigError:
    path = Path(spec.state_dir) / PORTS_FILE
    do = f"change it back, or stop the cluster, take the name out of {path} and run `distsec init`"
    return ConfigError(spec.config_file, [Problem(key, 0, what, do)])


def _load(store: Store) -> Mapping[str, int]:
    if not store.exists(PORTS_FILE):
        return {}
    try:
        document = json.loads(store.read(PORTS_FILE))
        if document["schema"] != _SCHEMA:
            raise ValueError("schema")
        ports = dict(document["ports"])
        if not all(type(port) is int and 0 < port < 65_536 for port in ports.values()):
            raise ValueError("port")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(
            "is damaged",
            where=str(store.path(PORTS_FILE)),
            do="restore it from a backup, or stop the cluster, remove it and run `distsec init`",
        ) from error
    return ports


def _unusable(where: str, error: OSError) -> PortInUse:
    reason = {
        errno.EADDRNOTAVAIL: "this host has no such address",
        errno.EACCES: "ports below 1024 are for root",
    }.get(error.errno or 0, (os.strerror(error.errno) if error.errno else "unusable").lower())
    return PortInUse(f"cannot be listened on: {reason}", where=where, do="change the node's address or port")


def _exhausted(spec: ClusterSpec, node: NodeSpec) -> PortInUse:
    first, last = spec.listen_ports or (0, 0)
    return PortInUse(
        f"no port from {first} to {last} is free for {node.name}"
        if last
        else f"no port is free for {node.name}",
        where=node.address,
        do="widen [security.distribution] listen_ports, or give the node a port of its own",
    )
