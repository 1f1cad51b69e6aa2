"""From a document that has passed every check to the frozen values that the program works with. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

from distsec.config.defaults import absolute, cluster_name, listens_on, metrics_listen, state_dir
from distsec.config.fields import RuleKind
from distsec.config.report import Report
from distsec.config.rules import identity_of, kind_of
from distsec.config.schema import (
    CertificateAuthority,
    Certificates,
    Cluster,
    Distribution,
    Document,
    Logging,
    Node,
    Peer,
    Rule,
    Security,
    Table,
)
from distsec.model.cluster import (
    Carrier,
    CliRuleSpec,
    ClusterSpec,
    IdentitySpec,
    Mode,
    NodeSpec,
    PeerSpec,
)
from distsec.model.names import NodeName


def build(document: Document, config_file: str, mode: Mode, carrier: Carrier, report: Report) -> ClusterSpec:
    """The spec; `document` has no problems (so that nothing in it is None but what was not given)."""
    cluster, directory = document.cluster or Cluster(), str(PurePath(config_file).parent)
    distribution = (document.security or Security()).distribution or Distribution()
    optional = _given(
        cluster,
        "on_exit",
        "start_deadline_seconds",
        "stop_deadline_seconds",
        "acknowledge_deadline_seconds",
        "start_parallel",
    )
    if distribution.connect:
        optional["connect"] = str(distribution.connect)
    if distribution.epmd:
        optional["epmd"] = distribution.epmd
    if (document.logging or Logging()).max_bytes:
        optional["log_max_bytes"] = (document.logging or Logging()).max_bytes
    authority = (document.certificates or Certificates()).ca or CertificateAuthority()
    if authority.passphrase_file:
        optional["ca_passphrase_file"] = absolute(authority.passphrase_file, directory)
    certificates = document.certificates or Certificates()
    optional |= _given(certificates, "renew_before_seconds", "renew_jitter_seconds", "recycle_links")
    if certificates.days:
        optional["certificate_days"] = float(certificates.days)
    elif certificates.lifetime_seconds:
        optional["certificate_days"] = certificates.lifetime_seconds / 86_400
    return ClusterSpec(
        name=cluster_name(document),
        config_file=config_file,
        state_dir=state_dir(document, directory),
        mode=mode,
        carrier=carrier,
        allowed_nodes=tuple(dict.fromkeys(name for name in distribution.allowed_nodes or () if name)),
        nodes=tuple(_node(node, directory) for node in document.nodes or () if node),
        peers=tuple(_peer(peer) for peer in document.peers or () if peer),
        rules=tuple(_rule(rule) for rule in _rules(distribution, RuleKind.CLI)),
        identities=tuple(_identities(distribution)),
        foreign_trust_domains=tuple(name for name in distribution.foreign_trust_domains or () if name),
        listen_ports=distribution.listen_ports,
        metrics_listen=metrics_listen(document),
        not_enforced=report.unbuilt(),
        warnings=report.warnings(),
        **optional,
    )


def _node(node: Node, directory: str) -> NodeSpec:
    assert node.name is not None
    optional = _given(node, "restart", "restart_intensity", "restart_period_seconds", "user")
    if node.working_directory:
        optional["working_directory"] = absolute(node.working_directory, directory)
    if node.otp_libraries:
        optional["otp_libraries"] = absolute(node.otp_libraries, directory)
    environment = {name: value for name, value in (node.environment or {}).items() if value is not None}
    return NodeSpec(
        name=node.name,
        command=tuple(argument for argument in node.command or () if argument is not None),
        port=node.port,
        address=listens_on(node),
        environment=MappingProxyType(environment),
        **optional,
    )


def _peer(peer: Peer) -> PeerSpec:
    assert peer.name is not None and peer.address is not None and peer.port is not None
    return PeerSpec(peer.name, peer.address, peer.port)


def _rule(rule: Rule) -> CliRuleSpec:
    return CliRuleSpec(
        names=tuple(name for name in rule.names or () if name),
        identity=identity_of(rule),
        nodes=tuple(str(name) for name in rule.nodes or () if name),
        **_given(rule, "max_live"),
    )


def _identities(distribution: Distribution) -> Iterator[IdentitySpec]:
    for rule in _rules(distribution, RuleKind.NODE):
        if identity := identity_of(rule):
            yield from (IdentitySpec(NodeName.parse(name), identity) for name in rule.names or () if name)


def _rules(distribution: Distribution, kind: RuleKind) -> Iterator[Rule]:
    return (rule for rule in distribution.rules or () if rule and kind_of(rule) is kind)


def _given(table: Table, *keys: str) -> dict[str, Any]:
    """Those keys that the file gives, so that what it does not give has the default of the value class."""
    return {key: getattr(table, key) for key in keys if getattr(table, key) is not None}
