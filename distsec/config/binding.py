"""Which addresses are listened on: `bind`, `tailscale`, and what takes a confirmation.

Loopback needs nothing. An address that is written out is meant; it must be this host's (`check_here`). Every
interface (0.0.0.0, ::) is an error without a confirmation, which names the safe ways. `tailscale` stands for
the address in the tailnet, which others reach over WireGuard alone, and needs none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distsec.config.addresses import (
    SAFE_BINDS,
    AddressInvalid,
    is_everywhere,
    is_ipv6,
    is_loopback,
    listening_address,
)
from distsec.config.interfaces import addresses_here, is_here
from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.schema import Distribution, Document, Metrics, Node, Security
from distsec.config.tailscale import ask_tailscale
from distsec.errors import AddressUnavailable
from distsec.model.cluster import ClusterSpec

TAILSCALE = "tailscale"
_MOST_SHOWN = 8
_BIND: KeyPath = ("security", "distribution", "bind")


@dataclass(frozen=True, slots=True)
class Network:
    """What is said on the command line (`distsec run --bind`, `--confirm-network`), and whom to ask.

    `tailnet`: the addresses that Tailscale says this host has, raises AddressUnavailable; `here`: whether
    an address is on an interface of this host.
    """

    bind: str | None = None
    confirmed: bool = False
    tailnet: Callable[[], tuple[str, ...]] = ask_tailscale
    here: Callable[[str], bool] = is_here


def settle(document: Document, network: Network, report: Report) -> Document:
    """`document` with an address in place of every `bind` and `tailscale`. What listens on every interface
    without a confirmation is reported. Raises AddressUnavailable where Tailscale gives no address.
    """
    distribution = (document.security or Security()).distribution or Distribution()
    path = ("--bind",) if network.bind is not None else _BIND
    bind = _checked(network.bind, report) if network.bind is not None else distribution.bind
    tailnet = _Tailnet(network)
    if bind is not None:
        given = enumerate(document.nodes or ())
        nodes = [_bound(node, bind, tailnet, report, index, path) for index, node in given]
        document = document.model_copy(update={"nodes": nodes})
    metrics = document.metrics
    if metrics is not None and isinstance(metrics.listen, tuple) and metrics.listen[0] == TAILSCALE:
        listen = (tailnet.address(None), metrics.listen[1])
        document = document.model_copy(update={"metrics": metrics.model_copy(update={"listen": listen})})
    confirmed = network.confirmed or distribution.confirm_network is True
    if bind is not None and bind != TAILSCALE:
        _check(path, bind, confirmed, report)
    else:
        path = ()
    for index, node in enumerate(document.nodes or ()):
        if node and node.address and not (path and node.address == bind):
            _check(("nodes", index, "address"), node.address, confirmed, report)
    _check_metrics(document.metrics or Metrics(), network, report)
    return document


def check_here(spec: ClusterSpec, network: Network | None = None) -> None:
    """Raises AddressUnavailable, with the addresses that there are, unless everything that is to be listened
    on is on an interface of this host.
    """
    network = network or Network()
    bound = network.bind and network.bind != TAILSCALE and listening_address(network.bind)
    listening = {node.address: f"{node.name}" for node in spec.nodes}
    if spec.metrics_listen is not None:
        listening.setdefault(spec.metrics_listen[0], "[metrics] listen")
    for address, who in listening.items():
        if not (is_loopback(address) or is_everywhere(address) or network.here(address)):
            raise AddressUnavailable(
                f"{who} is to listen on {address}, which is on no interface of this host{_those_here()}",
                where="--bind" if address == bound else spec.config_file,
                do="use one of this host's addresses",
            )


class _Tailnet:
    """Asked once, and not before it is needed."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._addresses: tuple[str, ...] | None = None

    def address(self, wanted: str | None) -> str:
        """The one that is `wanted`, else one of its family, else IPv4."""
        if self._addresses is None:
            told = self._network.tailnet()
            self._addresses = tuple(filter(self._network.here, told))
            if not self._addresses:
                raise AddressUnavailable(
                    f"{', '.join(told)} of the tailnet is on no interface of this host",
                    where=TAILSCALE,
                    do="run tailscaled with an interface of its own (not with --tun=userspace-networking)",
                )
        found = self._addresses
        if wanted in found:
            return str(wanted)
        family = [each for each in found if wanted is not None and is_ipv6(each) is is_ipv6(wanted)]
        return (family or found)[0]


def _checked(bind: str, report: Report) -> str | None:
    if bind == TAILSCALE:
        return bind
    try:
        return listening_address(bind)
    except AddressInvalid as error:
        report.error(("--bind",), error.what, error.do)
        return None


def _bound(
    node: Node | None, bind: str, tailnet: _Tailnet, report: Report, index: int, path: KeyPath
) -> Node | None:
    if node is None or node.has("address"):
        return node
    report.came_from(("nodes", index, "address"), path)
    named = node.name.ip if node.name else None
    address = tailnet.address(named) if bind == TAILSCALE else bind
    if named is not None and is_loopback(named) and not is_loopback(address):
        report.warn(
            ("nodes", index, "name"),
            f"{node.name} is named after {named}, and listens on {address}: a host that has a node of that"
            " name too could not tell the two apart",
            f"call it {node.name.head if node.name else ''}@{address}, or after a host name",
        )
    return node.model_copy(update={"address": address})


def _check(path: KeyPath, address: str, confirmed: bool, report: Report) -> None:
    if is_everywhere(address):
        if not confirmed:
            report.error(path, f"{address} would listen on every interface", SAFE_BINDS)
        else:
            report.warn(path, f"{address} listens on every interface: whoever reaches this host may knock")
    elif not confirmed and ipaddress.ip_address(address).is_global:
        report.warn(
            path,
            f"{address} is a public address: anybody may knock, where no firewall keeps them out",
            "use a private or VPN address; or confirm_network = true, if that is meant",
        )


def _check_metrics(metrics: Metrics, network: Network, report: Report) -> None:
    confirmed = network.confirmed or metrics.confirm_network is True
    if isinstance(metrics.listen, tuple) and is_everywhere(metrics.listen[0]) and not confirmed:
        report.error(
            ("metrics", "listen"),
            f"{metrics.listen[0]} would listen on every interface, and metrics ask for no password",
            SAFE_BINDS,
        )


def _those_here() -> str:
    found = [each for each in addresses_here() or () if not is_loopback(each) and not _of_one_link(each)]
    return f" (it has {', '.join(_some(found))})" if found else ""


def _some(found: list[str]) -> Iterator[str]:
    yield from found[:_MOST_SHOWN]
    if len(found) > _MOST_SHOWN:
        yield f"{len(found) - _MOST_SHOWN} more"


def _of_one_link(address: str) -> bool:
    return ipaddress.ip_address(address).is_link_local
