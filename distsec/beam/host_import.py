"""Whether a document that another host exported is taken, and what it changes: `distsec import`.

Everything is decided before anything is written, so that the operator can be shown it first. Blocks; time is
Unix seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cryptography import x509

from distsec.beam.host_document import ExportedNode, HostDocument, read_host_document
from distsec.beam.host_export import pair_of
from distsec.beam.overlay import load_overlay
from distsec.config.addresses import is_everywhere, is_ipv6, is_loopback
from distsec.core.wanted import Overlay, known_identities
from distsec.errors import ImportRefused, NotFound, StoreError
from distsec.model.cluster import Carrier, ClusterSpec
from distsec.model.hosts import HostNode, HostSpec
from distsec.model.identities import readable
from distsec.model.text import escape
from distsec.pki import acceptance, hosts, trust
from distsec.pki.authority import serial_text
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store

FUTURE_SECONDS = 3600.0
"""By which clocks of two hosts may differ. A document from further ahead would make all later ones old."""

OLD_SECONDS = 7 * 86400.0
"""From which age on the operator is told how old it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import would do; `hosts`: all of them afterwards. `lines`: what changes, for people."""

    host: HostSpec
    hosts: tuple[HostSpec, ...]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    before: bool = False  # that very document was imported already


def plan_import(
    spec: ClusterSpec,
    store: Store,
    content: bytes,
    where: str,
    now: float,
    here: Sequence[str] | None,
) -> Plan:
    """`spec`: the configuration alone, without imported hosts; `here`: the addresses of this host, None where
    they are not known. Raises ImportRefused with what keeps the document from being taken, StoreError.
    """
    document = read_host_document(content, where)
    known, overlay = hosts.load_hosts(store), load_overlay(store)
    judge = _Judge(spec, store, overlay, document, where, now)
    judge.cluster()
    before = judge.history(known)
    judge.names(known)
    host = judge.host(here)
    old = {str(node.name): node for node in before.nodes} if before else {}
    new = {str(node.name): node for node in host.nodes}
    moved = [n for n in new if n in old and _place(new[n]) != _place(old[n])]
    return Plan(
        host=host,
        hosts=(*(each for each in known if each.signing_key != host.signing_key), host),
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        moved=tuple(moved),
        lines=tuple(_lines(before, old, new, host)),
        warnings=tuple(_warnings(spec, overlay, host, now)),
        before=before == host,
    )


def plan_forget(store: Store, name: str) -> Plan:
    """As if nothing had been imported from the host `name`. Raises NotFound, StoreError."""
    known = hosts.load_hosts(store)
    host = next((each for each in known if each.name == name), None)
    if host is None:
        names = ", ".join(each.name for each in known[:20]) or "none"
        raise NotFound(f"{escape(name, 80)}: no such host", do=f"the hosts that were imported: {names}")
    return Plan(
        host=host,
        hosts=tuple(each for each in known if each is not host),
        removed=tuple(str(node.name) for node in host.nodes),
        lines=tuple(f"- {node.name}" for node in host.nodes),
    )


@dataclass(frozen=True, slots=True)
class _Judge:
    spec: ClusterSpec
    store: Store
    overlay: Overlay
    document: HostDocument
    where: str
    now: float

    def refused(self, what: str, do: str = "") -> ImportRefused:
        return ImportRefused(what, where=self.where, do=do)

    def cluster(self) -> None:
        document, spec = self.document, self.spec
        if not spec.carrier.encrypted:
            raise self.refused(
                f"hosts are linked over mutual TLS alone, and this one is in {spec.mode} mode",
                'set [security] mode = "production"',
            )
        if document.cluster != spec.name:
            raise self.refused(
                f"is of the cluster {document.cluster}, not of {spec.name}", "is it the right file?"
            )
        if document.signing_key == PolicySigner.create(self.store).public_raw:
            raise self.refused("is this host's own", "import it on the other hosts")
        if document.issued_at > self.now + FUTURE_SECONDS:
            ahead = document.issued_at - self.now
            raise self.refused(f"is from {ahead:.0f} s ahead of now", "set the clocks of both hosts right")

    def history(self, known: Sequence[HostSpec]) -> HostSpec | None:
        """What was imported from that host last."""
        document = self.document
        key = document.signing_key.hex()
        same = next((each for each in known if each.signing_key == key), None)
        called = next((each for each in known if each.name == document.host), None)
        if called is not None and called is not same:
            raise self.refused(
                f"is of another host than the {document.host} that was imported here (its key is another)",
                f"if that host was set up anew: `distsec import --forget {document.host}`; if there are two:"
                " `distsec export --host NAME` gives one another name",
            )
        if same is None:
            return None
        if document.serial < same.serial:
            raise self.refused(
                f"is older than the one that was imported from {same.name} last"
                f" (serial {document.serial}, not above {same.serial})",
                "export there again",
            )
        if document.serial == same.serial and document.digest != same.digest:
            raise self.refused(
                f"has the serial number of another document of {same.name}, {same.serial}",
                "see whether two orchestrators have that host's state; export there again",
            )
        return same

    def names(self, known: Sequence[HostSpec]) -> None:
        key = self.document.signing_key.hex()
        taken = {str(n.name): each for each in known if each.signing_key != key for n in each.nodes}
        for node in self.document.nodes:
            name = str(node.name)
            if self.spec.node(name) is not None:
                raise self.refused(f"{name} is managed here", "give one of the two another name")
            if (other := taken.get(name)) is not None:
                raise self.refused(
                    f"{name} is of the host {other.name}, as was imported from there",
                    f"if it has moved, import a newer document of {other.name} first, or"
                    f" `distsec import --forget {other.name}`",
                )

    def host(self, here: Sequence[str] | None) -> HostSpec:
        document = self.document
        try:
            hosts.create_host_key(self.store).shared_with(document.agreement_key)
        except ValueError:
            raise self.refused("has a key that has nothing in common with any other") from None
        anchors = trust.trusted_authorities(self.store)
        self._trusts_us(anchors)
        names = (*self.spec.allowed_nodes, *(node.name for node in document.nodes))
        identities = known_identities(replace(self.spec, allowed_nodes=names), self.overlay)
        for node in document.nodes:
            self._address(node, here)
            self._identity(node, identities[str(node.name)])
        return HostSpec(
            name=document.host,
            signing_key=document.signing_key.hex(),
            agreement_key=document.agreement_key.hex(),
            serial=document.serial,
            issued_at=document.issued_at,
            digest=document.digest,
            nodes=tuple(
                HostNode(node.name, node.address, node.port, self._anchor(node, anchors))
                for node in document.nodes
            ),
            epochs=document.epochs,
            trusts=tuple(map(trust.fingerprint, document.authorities)),
        )

    def _trusts_us(self, anchors: Sequence[x509.Certificate]) -> None:
        """Each CA that a node here has its certificate of must be one that the nodes there trust."""
        theirs = set(map(trust.fingerprint, self.document.authorities))
        ours = set(map(trust.fingerprint, anchors))
        used = set(own_anchors(self.spec, self.store, anchors)) or ours
        if not theirs & ours or not used <= theirs:
            raise self.refused(
                f"is of a host that trusts another CA than the one of {self.spec.name} here",
                "have one CA for all hosts: `distsec init --trust`, or `distsec certs rotate-ca` on both; see"
                " docs/hosts.md",
            )

    def _anchor(self, node: ExportedNode, anchors: Sequence[x509.Certificate]) -> str:
        """The CA here that `node` is of. Raises ImportRefused unless its certificate is good."""
        finding = acceptance.judge_leaf(
            node.chain, anchors, identity=node.identity, cluster=self.spec.name, now=self.now
        )
        if finding is not None:
            raise self.refused(
                f"the certificate of {node.name} {finding.what}",
                "export there again, when the node has a certificate of this cluster's CA",
            )
        serial = serial_text(node.chain[0].serial_number)
        if serial in self.overlay.revoked or node.identity in self.overlay.revoked_identities:
            raise self.refused(
                f"the certificate of {node.name} is revoked here",
                f"renew it there (`distsec certs renew {node.name}`) and export again",
            )
        path = acceptance.path_to_anchor(node.chain[0], node.chain[1:], anchors)
        assert path is not None, "judge_leaf found it"
        return trust.fingerprint(path[-1])

    def _identity(self, node: ExportedNode, wanted: str) -> None:
        """`wanted`: by which the policy here would know it: a rule's, that of an `allow`, or its own."""
        if wanted != node.identity:
            raise self.refused(
                f"{node.name} is known there by {escape(readable(node.identity), 200)}, and here by"
                f" {readable(wanted)}",
                "have the same [[security.distribution.rules]] on both hosts",
            )

    def _address(self, node: ExportedNode, here: Sequence[str] | None) -> None:
        if is_loopback(node.address) or is_everywhere(node.address):
            raise self.refused(f"{node.name} is at {node.address}, which is no address of another host")
        six = is_ipv6(node.address)
        if here is not None and not any(is_ipv6(each) is six for each in here if _leads_out(each)):
            family = "IPv6" if six else "IPv4"
            raise self.refused(
                f"{node.name} is at {node.address}, and this host has no {family} address to reach it from",
                f"give this host an {family} address, or that node another",
            )


def own_anchors(spec: ClusterSpec, store: Store, anchors: Sequence[x509.Certificate]) -> Iterator[str]:
    """Fingerprints of the CAs that the nodes here have their certificates of. Raises StoreError."""
    for node in spec.nodes:
        try:
            chain = acceptance.certificates_in(pair_of(store, node).certificate)
        except (StoreError, ValueError):
            continue  # it has none yet
        path = acceptance.path_to_anchor(chain[0], chain[1:], anchors)
        if path is not None:
            yield trust.fingerprint(path[-1])


def _leads_out(address: str) -> bool:
    """Whether a host that has it may reach others beyond one link."""
    return not (is_loopback(address) or ipaddress.ip_address(address).is_link_local)


def _place(node: HostNode) -> tuple[str, int]:
    return node.address, node.port


def _at(node: HostNode) -> str:
    return f"[{node.address}]:{node.port}" if is_ipv6(node.address) else f"{node.address}:{node.port}"


def _lines(
    before: HostSpec | None, old: dict[str, HostNode], new: dict[str, HostNode], host: HostSpec
) -> Iterator[str]:
    for name in old:
        if name not in new:
            yield f"- {name}  {_at(old[name])}"
    for name, node in new.items():
        if name not in old:
            yield f"+ {name}  {_at(node)}"
        elif _place(old[name]) != _place(node):
            yield f"~ {name}  {_at(old[name])} -> {_at(node)}"
        elif old[name].anchor != node.anchor:
            yield f"~ {name}  has a certificate of another CA of this cluster"
    if before is not None and before.agreement_key != host.agreement_key:
        yield "~ cookies: the host has a new key"
    if before is not None and before.epochs != host.epochs:
        yield "~ cookies: nodes were re-keyed"
    if before is not None and set(before.trusts) != set(host.trusts):
        yield "~ the CAs that are trusted there"


def _warnings(spec: ClusterSpec, overlay: Overlay, host: HostSpec, now: float) -> Iterator[str]:
    denied = sorted(str(node.name) for node in host.nodes if str(node.name) in overlay.deny)
    if denied:
        yield f"denied here, and stays so: {', '.join(denied)}; `distsec allow` lets it in"
    if now - host.issued_at > OLD_SECONDS:
        yield f"the document is {(now - host.issued_at) / 86400:.0f} days old"
    if spec.nodes and all(is_loopback(node.address) for node in spec.nodes):
        yield (
            "every node here listens on loopback, where other hosts cannot dial it:"
            " [security.distribution] bind, or `distsec run --bind`"
        )
    elsewhere = {str(peer.name) for peer in spec.peers}
    for node in host.nodes:
        if str(node.name) in elsewhere:
            yield f"{node.name} has a [[peers]] table here, whose address and port count"
    if spec.carrier is not Carrier.DISTSEC and spec.nodes:
        six = is_ipv6(spec.nodes[0].address)
        if any(is_ipv6(node.address) is not six for node in host.nodes):
            yield f"{spec.carrier} links nodes of one address family alone, and these are of two"
