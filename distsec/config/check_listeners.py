"""Whether everything that listens can: ports, addresses of metrics, paths of Unix sockets. Pure."""

from __future__ import annotations

from collections import Counter

from distsec.config.addresses import is_loopback
from distsec.config.defaults import listens_on, metrics_listen
from distsec.config.lines import KeyPath
from distsec.config.report import Report, dotted
from distsec.config.schema import Distribution, Document, Security

LONGEST_SOCKET_PATH = 107
"""Bytes: sun_path holds 108 with its NUL (linux/un.h, UNIX_PATH_MAX)."""


def check_metrics(document: Document, report: Report) -> None:
    listen = metrics_listen(document)
    if listen and not is_loopback(listen[0]):
        report.warn(
            ("metrics", "listen"),
            f"metrics are served in cleartext and to anybody who reaches {listen[0]}",
            "use 127.0.0.1, or keep strangers away with a firewall",
        )


def check_socket_paths(document: Document, state_dir: str, report: Report) -> None:
    """The agent's and the control socket must fit into sun_path; `state_dir` is absolute."""
    sockets: list[tuple[KeyPath, str]] = [(("cluster", "state_dir"), f"{state_dir}/control.sock")] + [
        (("nodes", index, "name"), f"{state_dir}/nodes/{node.name}/agent.sock")
        for index, node in enumerate(document.nodes or ())
        if node and node.name
    ]
    for path, socket in sockets:
        size = len(socket.encode())
        if size > LONGEST_SOCKET_PATH:
            report.error(
                path,
                f"its socket's path would have {size} bytes, and Linux allows {LONGEST_SOCKET_PATH}",
                "set [cluster] state_dir to a shorter path, such as /var/lib/distsec, or shorten the name",
            )


def check_ports(document: Document, report: Report) -> None:
    taken: dict[tuple[str, int], str] = {}
    metrics = metrics_listen(document)
    if metrics and metrics[1]:
        taken[metrics] = "[metrics]"
    tables: list[tuple[KeyPath, str, int | None]] = [
        (("nodes", index, "port"), listens_on(node), node.port)
        for index, node in enumerate(document.nodes or ())
        if node
    ]
    tables += [
        (("peers", index, "port"), peer.address, peer.port)
        for index, peer in enumerate(document.peers or ())
        if peer and peer.address
    ]
    for path, address, port in tables:
        if port is None:
            continue
        here = dotted(path[:2])
        other = taken.setdefault((address, port), here)
        if other != here:
            what = f"port {port} at {address} is already taken by {other}"
            report.error(path, what, "give each a port of its own")
    _check_range(document, report)


def _check_range(document: Document, report: Report) -> None:
    distribution = (document.security or Security()).distribution or Distribution()
    if distribution.listen_ports is None:
        return
    first, last = distribution.listen_ports
    nodes = [node for node in document.nodes or () if node]
    fixed = Counter(node.port for node in nodes if node.port and first <= node.port <= last)
    free, needed = last - first + 1 - len(fixed), sum(1 for node in nodes if not node.has("port"))
    if needed > free:
        report.error(
            ("security", "distribution", "listen_ports"),
            f"{needed} nodes need a port from {first} to {last}, and only {free} are free",
            "widen the range, or give nodes a port of their own",
        )
