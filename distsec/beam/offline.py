"""New certificates for nodes whose CA's key is on another host: the request that goes there, and its answer.

The new key waits under `ca/pending/`, where its node cannot read it: one that is broken into before the
answer is back has not seen it. A request that is made again is for the same key, and an answer that is
installed again changes nothing, so whoever is interrupted begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from distsec.beam.overlay import load_overlay
from distsec.beam.provision import node_directory
from distsec.core.wanted import Overlay, identity_of
from distsec.errors import NameInvalid, NotFound, RequestRefused, StoreError, UsageError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import acceptance, pairs, profile, trust
from distsec.pki.authority import load_key, new_key_pem, pem_of, same_public_key, serial_text
from distsec.pki.requests import MAX_FILE_BYTES, MAX_REQUESTS, node_of, request_for
from distsec.pki.store import Store

PENDING = "ca/pending"

_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Installed:
    """`serial`: lower-case hex; `not_after`: Unix seconds; `before`: it was there already."""

    node: str
    serial: str
    not_after: int
    before: bool


def take_requests(spec: ClusterSpec, store: Store, names: Sequence[str]) -> bytes:
    """One file with a request for each of the nodes `names`, of keys that are made now or wait since the last
    time. Raises NameInvalid, NotFound, UsageError, StoreError.
    """
    if not spec.carrier.encrypted:
        raise UsageError("this cluster has cookies only, and no certificates", where=spec.config_file)
    nodes = [_node(spec, name) for name in dict.fromkeys(names)]
    with store.locked():
        overlay = load_overlay(store)
        for node in nodes:
            _refuse_condemned(overlay, node)
        return b"".join(
            request_for(_pending(store, node.name), node.name, node.address, spec.name) for node in nodes
        )


def install_answer(
    spec: ClusterSpec, store: Store, answer: bytes, where: str, now: float
) -> tuple[Installed, ...]:
    """Puts the certificates of the file `where` beside their keys, all of them or, if one is not good, none.

    Raises RequestRefused, StoreError. The nodes have to be told.
    """
    with store.locked():
        found = [_checked(spec, store, chain, where, now) for chain in _chains(answer, where)]
        installed = []
        for node, pair, chain in found:
            directory = node_directory(node.name)
            pairs.complete_pair(store, directory)
            if pair is not None:
                pairs.install_pair(store, directory, pair)
                store.remove(_pending_file(node.name))
            leaf = chain[0]
            end = int(leaf.not_valid_after_utc.timestamp())
            installed.append(
                Installed(str(node.name), serial_text(leaf.serial_number), end, before=pair is None)
            )
        return tuple(installed)


def _node(spec: ClusterSpec, name: str) -> NodeSpec:
    node = spec.node(str(NodeName.parse(name)))
    if node is None:
        managed = ", ".join(str(each.name) for each in spec.nodes[:20]) or "none"
        raise NotFound(f"{name}: no such managed node", do=f"the managed nodes are: {managed}")
    if identity_of(spec, node.name) != node.name.identity(spec.name):
        raise UsageError(
            f"{name} is known by a certificate of another kind (a rule says which), and the cluster's CA"
            " issues none such",
            do="bring its certificate with `distsec certs import`",
        )
    return node


def _refuse_condemned(overlay: Overlay, node: NodeSpec) -> None:
    if str(node.name) in overlay.condemned:
        raise StoreError(
            f"{node.name} is condemned and has not been re-keyed yet",
            do="that takes the CA's key itself: bring it here, or give its passphrase",
        )


def _pending_file(name: NodeName) -> str:
    return f"{PENDING}/{name}.key"


def _pending(store: Store, name: NodeName) -> Secret:
    relative = _pending_file(name)
    if not store.exists(relative):
        store.create(relative, new_key_pem().reveal())
    load_key(store, relative)  # says what is wrong with it
    return Secret(store.read(relative))


def _chains(answer: bytes, where: str) -> Iterator[tuple[x509.Certificate, ...]]:
    """Each leaf, with the CAs that come after it."""

    def refused(what: str) -> RequestRefused:
        return RequestRefused(what, where=where, do="bring the file that `distsec certs sign` wrote")

    blocks = answer.split(_BEGIN)[1:]
    if len(answer) > MAX_FILE_BYTES or not 0 < len(blocks) <= MAX_REQUESTS * acceptance.MAX_CHAIN:
        raise refused("holds no certificates, or more than that")
    chain: list[x509.Certificate] = []
    for block in blocks:
        try:
            (certificate,) = acceptance.certificates_in(_BEGIN + block)
            leaf = bool(profile.identities_of(certificate)) and not _is_ca(certificate)
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
            raise refused("holds a damaged certificate") from None
        if leaf and chain:
            yield tuple(chain)
            chain = []
        chain.append(certificate)
    yield tuple(chain)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _checked(
    spec: ClusterSpec, store: Store, chain: tuple[x509.Certificate, ...], where: str, now: float
) -> tuple[NodeSpec, pairs.Pair | None, tuple[x509.Certificate, ...]]:
    """The node that `chain` is for, and the new pair; None: it has that certificate already."""
    leaf, uris = chain[0], profile.identities_of(chain[0])

    def refused(what: str, do: str) -> RequestRefused:
        return RequestRefused(what, where=where, do=do)

    try:
        node = _node(spec, str(node_of(uris[0] if uris else "", spec.name)))
    except (NameInvalid, NotFound) as error:
        raise refused(f"has a certificate for nobody here: {error.what}", "is it of this cluster?") from None
    finding = acceptance.judge_leaf(
        chain,
        trust.trusted_authorities(store),
        identity=node.name.identity(spec.name),
        cluster=spec.name,
        now=now,
    )
    if finding is not None:
        again = f"have it signed anew, by the CA that is in ca/: `distsec certs renew --offline {node.name}`"
        raise refused(f"the certificate for {node.name} {finding.what}", again)
    overlay = load_overlay(store)
    _refuse_condemned(overlay, node)
    if serial_text(leaf.serial_number) in overlay.revoked:
        raise refused(f"the certificate for {node.name} is revoked", "ask for another")
    pem = b"".join(map(pem_of, chain))
    pending = _pending_file(node.name)
    if store.exists(pending):
        key = load_key(store, pending)
        if same_public_key(key.public_key(), leaf.public_key()):
            return node, pairs.Pair(Secret(store.read(pending)), pem), chain
    if _has(store, node, leaf):
        return node, None, chain
    raise refused(
        f"the certificate for {node.name} is for a key that was not asked for here, or not lately",
        f"ask anew: `distsec certs renew --offline {node.name} --out FILE`",
    )


def _has(store: Store, node: NodeSpec, leaf: x509.Certificate) -> bool:
    directory = node_directory(node.name)
    if not (store.exists(f"{directory}/{pairs.CERTIFICATE}") or store.exists(f"{directory}/{pairs.NEXT}")):
        return False
    pairs.complete_pair(store, directory)
    der = leaf.public_bytes(serialization.Encoding.DER)
    try:
        present = x509.load_pem_x509_certificate(store.read(f"{directory}/{pairs.CERTIFICATE}"))
    except ValueError:
        return False
    return present.public_bytes(serialization.Encoding.DER) == der
