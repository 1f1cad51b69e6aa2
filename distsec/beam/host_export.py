"""What this host says of itself to others: `distsec export` (beam.host_document has the form). Blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from distsec.beam import node_pairs
from distsec.beam.host_document import MAX_EPOCHS, ExportedNode, HostDocument, sign_with
from distsec.beam.overlay import load_overlay
from distsec.beam.ports import distribution_ports
from distsec.config.addresses import is_everywhere, is_loopback
from distsec.core.wanted import Overlay, identity_of
from distsec.errors import StoreError, UsageError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.hosts import check_host_name
from distsec.pki import hosts, pairs, trust
from distsec.pki.acceptance import certificates_in
from distsec.pki.pairs import Pair
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store


def export(
    spec: ClusterSpec, store: Store, host: str, now: float, address: str | None = None
) -> tuple[HostDocument, bytes]:
    """The document of this host, called `host`, and the file. `address`: of nodes that listen everywhere.

    Nodes that are denied here are left out. Raises UsageError where others could not reach a node,
    NameInvalid, StoreError for a node without a certificate that is good now.
    """
    check_host_name(host)
    if not spec.carrier.encrypted:
        raise UsageError(
            f"there is nothing to export in {spec.mode} mode: its links stay on loopback",
            where=spec.config_file,
            do='set [security] mode = "production" for a cluster of several hosts',
        )
    with store.locked():
        overlay, signer = load_overlay(store), PolicySigner.create(store)
        chosen = [node for node in spec.nodes if str(node.name) not in overlay.deny]
        if not chosen:
            raise UsageError("no node here is one that others may link with", where=spec.config_file)
        ports = distribution_ports(spec, store)
        placed = [dataclasses.replace(node, address=_reached(node, address)) for node in chosen]
        known = {node.name: _pair(spec, store, overlay, node, now) for node in chosen}
        document = HostDocument(
            cluster=spec.name,
            host=host,
            serial=hosts.next_serial(store, now),
            issued_at=int(now),
            signing_key=signer.public_raw,
            agreement_key=hosts.create_host_key(store).public_raw,
            authorities=trust.trusted_authorities(store),
            nodes=tuple(
                ExportedNode(
                    node.name,
                    node.address,
                    ports[str(node.name)],
                    identity_of(spec, node.name),
                    certificates_in(known[node.name].certificate),
                )
                for node in placed
            ),
            epochs=tuple(_epochs(overlay)),
        )
    message = document.message()
    by_node = {str(node.name): sign_with(known[node.name].key, message) for node in chosen}
    return document, document.written(signer.sign(message), by_node)


def _reached(node: NodeSpec, address: str | None) -> str:
    if is_everywhere(node.address):
        if address is None:
            raise UsageError(
                f"{node.name} listens on every interface, and others must be told one address",
                do="add --address IP, the one at which they reach this host",
            )
        return address
    if is_loopback(node.address):
        raise UsageError(
            f"{node.name} listens on {node.address}, which nobody on another host reaches",
            do="give it an address of this host in the configuration: [security.distribution] bind, or"
            " `address` in its [[nodes]] table (`distsec run --bind` holds for that run); then export again",
        )
    return node.address


def _pair(spec: ClusterSpec, store: Store, overlay: Overlay, node: NodeSpec, now: float) -> Pair:
    """The node's key and certificate, as they were accepted: not as the node may have left them."""
    directory = node_pairs.directory_of(node)
    try:
        pair = pair_of(store, node)
    except StoreError as error:
        raise StoreError(
            f"{node.name} has no certificate yet ({error.what})",
            where=str(store.path(directory)),
            do="`distsec init`, or where the CA's key is elsewhere `distsec certs renew --offline`",
        ) from None
    finding = node_pairs.judge(spec, store, overlay, node, pair, now)
    if finding is not None:
        raise StoreError(
            f"the certificate of {node.name} {finding.what}",
            where=str(store.path(directory)),
            do=node_pairs.renew_it(store, node),
        )
    return pair


def pair_of(store: Store, node: NodeSpec) -> Pair:
    """What was accepted for `node` last; what is in its directory where it was never started. Raises
    StoreError.
    """
    directory = node_pairs.directory_of(node)
    return pairs.accepted_pair(store, directory) or pairs.read_pair(store, directory)


def _epochs(overlay: Overlay) -> Iterator[tuple[str, int]]:
    counted = [(name, count) for name, count in overlay.epochs if count]
    if len(counted) > MAX_EPOCHS:
        raise UsageError(f"more than {MAX_EPOCHS} nodes were re-keyed: no document holds that")
    yield from counted
