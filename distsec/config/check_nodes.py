"""What is wrong with `[[nodes]]` and `[[peers]]`: names, commands, environments. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from distsec.config.addresses import SAFE_BINDS, AddressInvalid, is_ipv6, parse_address
from distsec.config.defaults import listens_on
from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.schema import Distribution, Document, Node, Security, Table
from distsec.model.cluster import Carrier, RestartPolicy
from distsec.model.names import NodeName

_BEFORE_AFLAGS = re.compile(r"ERL_OTP\d+_FLAGS")
"""erlexec reads ERL_OTP<release>_FLAGS before ERL_AFLAGS, and of -epmd_module the first wins (measured, 25
to 29).
"""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GUARDED_FLAGS = (
    "-proto_dist",
    "-ssl_dist_optfile",
    "-ssl_dist_opt",
    "-setcookie",
    "-name",
    "-sname",
    "-epmd_module",
)
"""erl flags that distsec gives itself; a second one makes the guard in the node halt it."""

_GUARDED = frozenset(_GUARDED_FLAGS)

Placed = tuple[KeyPath, NodeName]


def check_nodes(document: Document, report: Report) -> None:
    nodes = [(index, node) for index, node in enumerate(document.nodes or ()) if node]
    for index, node in nodes:
        _check_required(("nodes", index), node, ("name",), report)
        _check_command(("nodes", index, "command"), node, report)
        _check_environment(("nodes", index, "environment"), node, report)
        _check_rest(("nodes", index), node, report)
    for index, peer in enumerate(document.peers or ()):
        if peer:
            _check_required(("peers", index), peer, ("name", "address", "port"), report)
    if not nodes:
        report.warn(
            ("nodes",), "none is given: nothing is started or guarded", "add a [[nodes]] table for each node"
        )
    _check_names(document, report)


def placed_names(document: Document) -> Iterator[Placed]:
    """Every node name in the file, with where it stands."""
    for key, tables in (("nodes", document.nodes), ("peers", document.peers)):
        for index, table in enumerate(tables or ()):
            if table and table.name:
                yield (key, index, "name"), table.name
    distribution = (document.security or Security()).distribution or Distribution()
    for index, name in enumerate(distribution.allowed_nodes or ()):
        if name:
            yield ("security", "distribution", "allowed_nodes", index), name


def _check_required(path: KeyPath, table: Table, keys: tuple[str, ...], report: Report) -> None:
    for key in keys:
        if not table.has(key):
            report.error(path, f"has no {key}", f"add {key} = …")


def _check_command(path: KeyPath, node: Node, report: Report) -> None:
    if node.command is None:
        return
    if not node.command:
        report.error(
            path,
            "is empty",
            'write a command such as ["erl", "-noinput"], or leave it out if something else starts it',
        )
    elif node.command[0] == "":
        report.error((*path, 0), "names no program", "write the program's name or path")
    for index, argument in enumerate(node.command):
        if argument in _GUARDED_FLAGS:
            report.warn(
                (*path, index),
                f"{argument} is given by distsec; the guard may halt a node that is given a second one",
                "remove it",
            )


def _check_environment(path: KeyPath, node: Node, report: Report) -> None:
    for name, value in (node.environment or {}).items():
        if name == "ERL_AFLAGS":
            report.error(
                (*path, name), "carries the guard and is set by distsec", "put your own flags into ERL_FLAGS"
            )
        elif _BEFORE_AFLAGS.fullmatch(name):
            report.error(
                (*path, name),
                "comes before the flags of the guard and could leave it out",
                "put your own flags into ERL_FLAGS",
            )
        elif not _VARIABLE.fullmatch(name):
            report.error((*path, name), "is no name of a variable", "use letters, digits and _")
        elif name in {"ERL_FLAGS", "ERL_ZFLAGS"} and value and not _GUARDED.isdisjoint(value.split()):
            flags = ", ".join(flag for flag in _GUARDED_FLAGS if flag in value.split())
            report.warn(
                (*path, name), f"holds {flags}, which distsec gives; the guard may halt the node", "remove it"
            )


def _check_rest(path: KeyPath, node: Node, report: Report) -> None:
    if node.user == "":
        report.error((*path, "user"), "is empty", "name a user, or remove it")
    if not node.has("command"):
        for key in ("restart", "restart_intensity", "restart_period_seconds", "working_directory"):
            if node.has(key):
                report.warn((*path, key), "has no effect without a command", "add a command, or remove it")
    if node.restart is RestartPolicy.NEVER and (
        node.has("restart_intensity") or node.has("restart_period_seconds")
    ):
        report.warn(
            (*path, "restart"), '"never" leaves restart_intensity and restart_period_seconds without effect'
        )


def _check_names(document: Document, report: Report) -> None:
    placed = list(placed_names(document))
    seen: dict[NodeName, KeyPath] = {}
    for path, name in placed:
        if name.ip:
            _check_host(path, name.ip, report)
        if path[0] in {"nodes", "peers"}:
            if name in seen:
                report.error(
                    path, f"{name} is already in [[{seen[name][0]}]]", "give each node a name of its own"
                )
            seen.setdefault(name, path)
    first = next((name for _, name in placed), None)
    for path, name in placed:
        if first and name.long is not first.long:
            report.error(
                path,
                f"{name} is a {_length(name)} name and {first} a {_length(first)} one: they never connect",
                "write every host with its domain or address, or every host without",
            )


def check_families(document: Document, carrier: Carrier, report: Report) -> None:
    """With OTP's carriers a node dials in the family that it listens in, and no other (`-proto_dist`)."""
    if carrier is Carrier.DISTSEC:
        return
    placed: list[tuple[KeyPath, NodeName, str]] = [
        (("nodes", index), node.name, listens_on(node))
        for index, node in enumerate(document.nodes or ())
        if node and node.name
    ]
    placed += [
        (("peers", index), peer.name, peer.address)
        for index, peer in enumerate(document.peers or ())
        if peer and peer.name and peer.address
    ]
    for path, name, address in placed:
        if name.ip and is_ipv6(name.ip) and not is_ipv6(address):
            report.error(
                (*path, "address"),
                f"{address} is IPv4, and the host in {name} is an IPv6 address: {carrier} could not dial it",
                f'write address = "{name.ip}", name the node after a host name, or use carrier = "distsec"',
            )
            return
    if placed:
        _, first, wanted = placed[0]
        for path, name, address in placed:
            if is_ipv6(address) is not is_ipv6(wanted):
                report.error(
                    (*path, "address"),
                    f"{name} is at {address} and {first} at {wanted}, which {carrier} does not connect",
                    'give all of them IPv4 or all of them IPv6 addresses, or use carrier = "distsec"',
                )


def _length(name: NodeName) -> str:
    return "long" if name.long else "short"


def _check_host(path: KeyPath, ip: str, report: Report) -> None:
    try:
        parse_address(ip)
    except AddressInvalid as error:
        report.error(path, f"no node can be reached at {ip}: {error.what}", SAFE_BINDS)
