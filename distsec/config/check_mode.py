"""Which mode and which carrier the cluster runs in, and what contradicts it. Pure.

production: mutual TLS on every link, or no start. hybrid: cookies where every node is on loopback, mutual TLS
for all as soon as one is not. development: cookies, loopback only. What is not said is production.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic_core import PydanticCustomError

from distsec.config.addresses import is_loopback
from distsec.config.defaults import listens_on
from distsec.config.fields import VerifyMode, one_of
from distsec.config.lines import KeyPath
from distsec.config.report import Report
from distsec.config.schema import Distribution, Document, Security
from distsec.model.cluster import Carrier, Mode
from distsec.model.names import NodeName

MODE_VARIABLES = ("DISTSEC_SECURITY_MODE", "SERVICERADAR_SECURITY_MODE")

_MODE: KeyPath = ("security", "mode")
_DISTRIBUTION: KeyPath = ("security", "distribution")


def check_mode(security: Security, environment: Mapping[str, str], report: Report) -> Mode:
    """The mode that file and environment agree on; production where neither says."""
    said: dict[str, Mode] = {}
    for variable in MODE_VARIABLES:
        try:
            mode = one_of(Mode)(environment.get(variable) or None)
        except PydanticCustomError as error:
            context = error.context or {}
            report.error((variable,), f"in the environment: {context['what']}", context["do"])
            continue
        if mode:
            said[variable] = mode
    if len(set(said.values())) > 1:
        first, second = MODE_VARIABLES
        report.error(
            (first,), f"says {said[first]}, and {second} says {said[second]}", "set one of them only"
        )
    for variable, mode in said.items():
        if security.mode and mode is not security.mode:
            report.error(
                _MODE,
                f"this file says {security.mode}, {variable} in the environment says {mode}",
                "make them agree",
            )
    return security.mode or next(iter(said.values()), Mode.PRODUCTION)


def check_carrier(document: Document, mode: Mode, report: Report) -> Carrier:
    """The carrier that follows from the mode and the addresses; reports whatever else is asked for."""
    distribution = (document.security or Security()).distribution or Distribution()
    beyond = list(_beyond_loopback(document))
    if mode is Mode.DEVELOPMENT:
        for path, address in beyond:
            report.error(
                path,
                f"development mode has no encryption, and {address} is not known to be on loopback",
                'use 127.0.0.1, or mode = "production"',
            )
    needed = beyond or not _has_nodes(document) or _asks_for_tls(distribution)
    if mode is Mode.PRODUCTION or (mode is Mode.HYBRID and needed):
        carrier = _with_tls(distribution)
    else:
        carrier = Carrier.INET_TCP
    _check_carrier_key(distribution, mode, carrier, report)
    _check_tls(distribution, mode, carrier, report)
    if carrier is Carrier.INET_TLS:
        report.warn(
            (*_DISTRIBUTION, "carrier"),
            "inet_tls binds no name to a certificate: an insider may relay, and claim unlisted names",
            'use "distsec" unless you need stock OTP alone',
        )
    if carrier is Carrier.INET_TCP:
        report.warn(_MODE, f"{mode} mode on loopback: links are neither encrypted nor bound to certificates")
    return carrier


def _asks_for_tls(distribution: Distribution) -> bool:
    """Hybrid on loopback may have TLS all the same."""
    chosen = distribution.carrier
    return (chosen is not None and chosen.encrypted) or distribution.enable_tls is True


def _with_tls(distribution: Distribution) -> Carrier:
    """The carrier that was chosen among those with TLS; of those the one that binds names is the default."""
    chosen = distribution.carrier
    return chosen if chosen is not None and chosen.encrypted else Carrier.DISTSEC


def _check_carrier_key(distribution: Distribution, mode: Mode, carrier: Carrier, report: Report) -> None:
    path = (*_DISTRIBUTION, "carrier")
    if distribution.carrier is None or distribution.carrier is carrier:
        return
    if carrier.encrypted:
        where = (
            "in production mode" if mode is Mode.PRODUCTION else "beyond loopback, or where TLS is asked for"
        )
        report.error(
            path,
            f'"{distribution.carrier}" has no encryption and is not used {where}',
            'use "distsec", or leave it out',
        )
    else:
        report.error(
            path,
            f'"{distribution.carrier}" contradicts {mode} mode',
            'leave it out, or use mode = "production"',
        )


def _check_tls(distribution: Distribution, mode: Mode, carrier: Carrier, report: Report) -> None:
    enable, verify = (*_DISTRIBUTION, "enable_tls"), (*_DISTRIBUTION, "verify_mode")
    if carrier.encrypted and distribution.enable_tls is False:
        report.error(enable, f"false contradicts {mode} mode: links would be cleartext", "remove it")
    if carrier is Carrier.INET_TCP and distribution.enable_tls is True:
        report.error(
            enable,
            f"true contradicts {mode} mode, which has cookies only",
            'remove it, or use mode = "production"',
        )
    if distribution.verify_mode is VerifyMode.VERIFY_NONE:
        what = "verify_none accepts any certificate, also an attacker's"
        if mode is Mode.DEVELOPMENT:
            report.warn(verify, f"{what}; development mode has no certificates to verify", "remove it")
        else:
            report.error(verify, what, 'use "verify_peer", or remove it')


def _has_nodes(document: Document) -> bool:
    return any(node and node.name for node in document.nodes or ())


def _beyond_loopback(document: Document) -> Iterator[tuple[KeyPath, str]]:
    """Each place that names a node which is, or may be, on another host, with its address."""
    known: set[NodeName | None] = set()
    for index, node in enumerate(document.nodes or ()):
        if node and node.name:
            known.add(node.name)
            if not is_loopback(listens_on(node)):
                yield ("nodes", index, "address" if node.address else "name"), listens_on(node)
    for index, peer in enumerate(document.peers or ()):
        if peer and peer.address:
            known.add(peer.name)
            if not is_loopback(peer.address):
                yield ("peers", index, "address"), peer.address
    security = document.security or Security()
    for index, name in enumerate((security.distribution or Distribution()).allowed_nodes or ()):
        if name and name not in known and not is_loopback(name.ip or name.host):
            yield (*_DISTRIBUTION, "allowed_nodes", index), name.host
