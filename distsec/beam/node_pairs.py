"""The key and certificate of each node: issued, judged, and good when the node is started.

The pair that was *accepted* last (`pki.pairs`) is what a node is to have. What else is found in its directory
was put there by somebody: it is taken if it would do (`pki.acceptance`), and replaced by the accepted one if
not, so that one spoiled file costs nobody anything, least of all the other nodes.

Everything here blocks: for threads. Time is Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from distsec.beam.drops import DropFault
from distsec.beam.render import TRUST
from distsec.core.renewal import Life
from distsec.core.wanted import Overlay, identity_of
from distsec.errors import CaKeyUnavailable, CertificateUnusable, StoreError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.identities import readable
from distsec.model.secret import Secret
from distsec.pki import acceptance, pairs, profile, trust
from distsec.pki import authority as ca
from distsec.pki.acceptance import Finding, Flaw
from distsec.pki.authority import Authority, serial_text
from distsec.pki.keyring import KeyState
from distsec.pki.pairs import Pair
from distsec.pki.store import Store

DAY_SECONDS = 86400.0


Note = Callable[[str, bool], object]


@dataclass(frozen=True, slots=True)
class Restored:
    """What was found instead of the accepted pair, which is in its place again. `reason` is enumerated."""

    reason: str
    what: str


def directory_of(node: NodeSpec) -> str:
    return f"nodes/{node.name}"


def judge(
    spec: ClusterSpec, store: Store, overlay: Overlay, node: NodeSpec, pair: Pair, now: float
) -> Finding | None:
    """Why `pair` may not be the node's now; None: it may. Raises StoreError for the CA's own files."""
    identity = identity_of(spec, node.name)
    anchors = trust.trusted_authorities(store)
    found = pairs.judge_pair(pair, anchors, identity=identity, cluster=spec.name, now=now)
    if found is None and serial_of(pair) in overlay.revoked:
        return Finding(Flaw.REVOKED, f"is revoked (serial {serial_of(pair)})")
    if found is None and identity in overlay.revoked_identities:
        return Finding(Flaw.REVOKED, f"is of an identity that is revoked ({readable(identity)})")
    return found


def serial_of(pair: Pair) -> str:
    """Of the certificate of a pair that is whole."""
    return serial_text(x509.load_pem_x509_certificate(pair.certificate).serial_number)


def issue(spec: ClusterSpec, store: Store, node: NodeSpec, now: float, more_seconds: float = 0.0) -> Pair:
    """A new key and its certificate for `node`; nothing is installed. Raises CaKeyUnavailable, StoreError.

    `more_seconds`: by how much longer than configured it is to last (see core.renewal.Clock.behind).
    CertificateUnusable: a rule binds the node to a certificate that is none of this CA's.
    """
    if is_brought(spec, node):
        raise _unusable(node, "is none that is issued here", bring_it(spec, node))
    authority = Authority.load(store, trust.issuing_directory(store))
    days = spec.certificate_days + more_seconds / DAY_SECONDS
    return Pair(*authority.issue(node.name, node.address, days, now))


def life_of(store: Store, pair: Pair) -> Life:
    """When the certificate of `pair` begins and ends, and whether it is ours to renew."""
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    latest = trust.authority_certificate(store, trust.issuing_directory(store)).not_valid_after_utc
    return Life(
        serial_text(leaf.serial_number),
        leaf.not_valid_before_utc.timestamp(),
        leaf.not_valid_after_utc.timestamp(),
        latest.timestamp(),
        trust.signer_of(store, leaf) is not None and bool(profile.identities_of(leaf)),
    )


def is_brought(spec: ClusterSpec, node: NodeSpec) -> bool:
    """Whether a rule binds `node` to a certificate that somebody brings: ours would show another identity."""
    return identity_of(spec, node.name) != node.name.identity(spec.name)


def bring_it(spec: ClusterSpec, node: NodeSpec) -> str:
    """What to do about a node without such a certificate."""
    return (
        f"bring one for {readable(identity_of(spec, node.name))}:"
        f" `distsec certs import --node {node.name} --certificate FILE --key FILE`"
    )


def make(
    spec: ClusterSpec, store: Store, authority: Authority, node: NodeSpec, now: float, note: Note
) -> None:
    """What is missing of the pair of `node`; what is there is judged, and stays. Raises StoreError for a pair
    that does not do, CaKeyUnavailable. `note(path, made)` hears of each of the two files.
    """
    directory = directory_of(node)
    pairs.complete_pair(store, directory)
    key, certificate = f"{directory}/{pairs.KEY}", f"{directory}/{pairs.CERTIFICATE}"
    if is_brought(spec, node) and not store.exists(certificate):
        return  # it comes later, and the node does not start before
    if not store.exists(key) and store.exists(certificate):
        raise StoreError(
            "is missing, though its certificate is there",
            where=str(store.path(key)),
            do=f"restore it, or remove {pairs.CERTIFICATE} as well and run `distsec init` for a new pair",
        )
    note(key, store.create(key, ca.new_key_pem().reveal()) if not store.exists(key) else False)
    if not store.exists(certificate):
        note(certificate, _certify(spec, store, authority, node, key, certificate, now))
    else:
        note(certificate, False)
    _check_pair(spec, store, node, key, certificate, now)


def _certify(
    spec: ClusterSpec,
    store: Store,
    authority: Authority,
    node: NodeSpec,
    key: str,
    certificate: str,
    now: float,
) -> bool:
    ca.load_key(store, key)  # says which file is wrong
    try:
        pem = authority.certify(Secret(store.read(key)), node.name, node.address, spec.certificate_days, now)
    except ValueError:
        raise StoreError(
            "is no ECDSA key", where=str(store.path(key)), do="restore it from a backup"
        ) from None
    return store.create(certificate, pem)


def _check_pair(
    spec: ClusterSpec,
    store: Store,
    node: NodeSpec,
    key: str,
    certificate: str,
    now: float,
) -> None:
    """Raises StoreError unless the certificate is the node's, for its key, of a trusted CA, and valid."""
    leaf = ca.load_certificate(store, certificate)
    chain = acceptance.certificates_in(store.read(certificate))
    remove = "remove it and run `distsec init` for a new one (the key stays)"

    def refuse(what: str, do: str = remove) -> StoreError:
        return StoreError(what, where=str(store.path(certificate)), do=do)

    if not ca.same_public_key(ca.load_key(store, key).public_key(), leaf.public_key()):
        raise refuse(f"does not belong to {pairs.KEY} beside it", "restore both from the same backup")
    finding = acceptance.judge_leaf(
        chain,
        trust.trusted_authorities(store),
        identity=identity_of(spec, node.name),
        cluster=spec.name,
        now=now,
    )
    if finding is None:
        return
    if finding.flaw is acceptance.Flaw.NOT_YET_VALID:
        raise refuse(finding.what, "check this host's clock")
    unknown = finding.flaw is acceptance.Flaw.UNKNOWN_CA
    raise refuse("was not issued by the cluster's CA" if unknown else finding.what)


def ready(spec: ClusterSpec, store: Store, overlay: Overlay, node: NodeSpec, now: float) -> Restored | None:
    """Sees to it that `node` can be started with what is in its directory; tells what it found spoiled there.

    An interrupted installation is finished; a pair that is not the accepted one is accepted or taken back;
    one that has ended is renewed, if the CA's key is there. Raises CertificateUnusable, saying why, where the
    node cannot be started with anything that is here; StoreError.
    """
    directory = directory_of(node)
    pairs.complete_pair(store, directory)
    spoiled = _clear_bundle(store, directory)
    try:
        pair = pairs.read_pair(store, directory)
        found = judge(spec, store, overlay, node, pair, now)
    except StoreError as error:
        pair, found = None, Finding(Flaw.UNREADABLE, error.what)
    if pair is None or (found is not None and found.flaw not in _GOES_ON):
        assert found is not None
        spoiled = Restored(str(found.flaw), found.what)
        pair = pairs.accepted_pair(store, directory)
        if pair is None:
            raise _unusable(node, found.what, _other_one(spec, store, node))
        found = judge(spec, store, overlay, node, pair, now)
        if found is not None and found.flaw not in _GOES_ON:
            what = f"{spoiled.what}; the one before it {found.what}"
            raise _unusable(node, what, _other_one(spec, store, node))
        pairs.restore_pair(store, directory)
    if found is not None and found.flaw in _RENEWABLE:
        _renew(spec, store, node, pair, found, now)
    elif pair != pairs.accepted_pair(store, directory):
        _accept(store, directory, pair)
    return spoiled


def _clear_bundle(store: Store, directory: str) -> Restored | None:
    """Writes the bundle anew where something that is no file keeps the node from reading it."""
    if not store.make_way(f"{directory}/{TRUST}"):
        return None
    store.write(f"{directory}/{TRUST}", trust.trust_bundle(store))
    return Restored(str(DropFault.UNSAFE_FILE), f"cannot be judged by the node: {TRUST} was no regular file")


def _accept(store: Store, directory: str, pair: Pair) -> None:
    whole = pairs.canonical_pair(pair.key.reveal(), pair.certificate)
    if whole == pair:
        pairs.accept_pair(store, directory, pair)
    elif isinstance(whole, Pair):
        pairs.install_pair(store, directory, whole)


_RENEWABLE = frozenset({Flaw.EXPIRED, Flaw.NOT_YET_VALID})
_GOES_ON = _RENEWABLE | {Flaw.REVOKED}
"""A revoked node starts, as it always did: it finds nobody that links with it until it is renewed."""


def _renew(spec: ClusterSpec, store: Store, node: NodeSpec, pair: Pair, found: Finding, now: float) -> None:
    if not life_of(store, pair).ours:
        what = f"{found.what}, and somebody else has issued it"
        raise _unusable(node, what, _other_one(spec, store, node))
    try:
        pairs.install_pair(store, directory_of(node), issue(spec, store, node, now))
    except CaKeyUnavailable as error:
        do = "" if _ca_key_elsewhere(store) else f"{error.do}, then `distsec start {node.name}`"
        what = f"{found.what}, and cannot be renewed: {error.what}"
        raise _unusable(node, what, do or _other_one(spec, store, node)) from None


def _unusable(node: NodeSpec, what: str, do: str) -> CertificateUnusable:
    return CertificateUnusable(f"the certificate {what}", where=str(node.name), do=do)


def _other_one(spec: ClusterSpec, store: Store, node: NodeSpec) -> str:
    """What to do about a node that cannot be started with the certificate that it has."""
    how = bring_it(spec, node) if is_brought(spec, node) else renew_it(store, node)
    return f"{how}, then `distsec start {node.name}`"


def renew_it(store: Store, node: NodeSpec) -> str:
    """What to do about a node that needs another certificate of the cluster's CA."""
    if not _ca_key_elsewhere(store):
        return f"run `distsec certs renew {node.name}`"
    return (
        f"ask for one where the CA's key is (docs/hosts.md): `distsec certs renew --offline {node.name}"
        " --out FILE` here, `distsec certs sign FILE --out ANSWER` there, and here again"
        " `distsec certs renew --offline --answer ANSWER`"
    )


def _ca_key_elsewhere(store: Store) -> bool:
    return ca.key_state(store, trust.issuing_directory(store)) is KeyState.ELSEWHERE
