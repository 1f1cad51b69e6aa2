"""Bringing your own: a node's certificate with its key, or the CA itself.

What is brought is judged first (`pki.acceptance`), refused with the reason, and then kept as if it had been
made here. Nothing is kept of a passphrase that a key came with. Blocks; time is Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from distsec.beam import node_pairs, proc, render
from distsec.beam.node import boot_id, read_run
from distsec.beam.overlay import load_overlay
from distsec.core.wanted import identity_of
from distsec.errors import (
    CertificateRefused,
    NotFound,
    PassphraseWrong,
    StoreError,
    UsageError,
)
from distsec.model.cluster import Carrier, ClusterSpec, NodeSpec
from distsec.model.identities import readable
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import acceptance, lineage, pairs, profile, trust
from distsec.pki import authority as ca
from distsec.pki.acceptance import Finding, Flaw
from distsec.pki.authority import key_pem_of, pem_of, same_public_key, serial_text
from distsec.pki.pairs import Pair
from distsec.pki.store import Store

Passphrase = Callable[[], Secret]
"""Asks for it, at the moment it is called. Raises CaKeyUnavailable where there is none."""


@dataclass(frozen=True, slots=True)
class Brought:
    """A file's content, and what it is called in errors."""

    content: bytes
    where: str


@dataclass(frozen=True, slots=True)
class Imported:
    """`before`: exactly that was there already. `reissued`: nodes whose certificate is made anew."""

    serial: str
    identity: str
    issuer: str
    not_after: int
    before: bool = False
    reissued: tuple[str, ...] = ()


# ---- a node's own ------------------------------------------------------------------------------------------


def import_node(
    spec: ClusterSpec,
    store: Store,
    name: str,
    certificate: Brought,
    key: Brought,
    passphrase: Passphrase,
    now: float,
) -> Imported:
    """Puts a pair in the place of the one that the managed node `name` has, on disk: who runs the node is to
    have it served.

    Raises NameInvalid, NotFound, UsageError, CertificateRefused, PassphraseWrong, CaKeyUnavailable,
    StoreError.
    """
    if not spec.carrier.encrypted:
        raise UsageError("this cluster has cookies only, and no certificates", where=spec.config_file)
    node = spec.node(str(NodeName.parse(name)))
    if node is None:
        raise NotFound(f"{name}: no such managed node", do="`distsec certs list` names them")
    chain = _certificates(certificate)
    private = read_key(key, passphrase)
    if not same_public_key(private.public_key(), chain[0].public_key()):
        raise CertificateRefused("does not belong to the key", where=certificate.where, do=_SAME)
    with store.locked():
        overlay = load_overlay(store)
        if str(node.name) in overlay.condemned:
            raise UsageError(
                f"{node.name} is being re-keyed", do="wait until `distsec status` says that it is"
            )
        pair = Pair(key_pem_of(private), _in_order(chain, trust.trusted_authorities(store)))
        finding = node_pairs.judge(spec, store, overlay, node, pair, now) or _host(spec, node, chain[0])
        if finding is not None:
            raise CertificateRefused(finding.what, where=certificate.where, do=_do(finding.flaw, node))
        directory = node_pairs.directory_of(node)
        pairs.complete_pair(store, directory)
        same = pairs.accepted_pair(store, directory) == pair
        if not same:
            store.ensure_directory(f"{directory}/log")
            pairs.install_pair(store, directory, pair)
    shown = identity_of(spec, node.name)
    return _imported(chain[0], readable(shown), before=same)


def read_key(key: Brought, passphrase: Passphrase) -> PrivateKeyTypes:
    """The private key in a PEM file, sealed with a passphrase or not. Raises CertificateRefused,
    PassphraseWrong, and what asking for the passphrase does.
    """
    try:
        found = serialization.load_pem_private_key(key.content, password=None)
    except TypeError:  # it is encrypted: the one thing that the library says so
        found = _opened(key, passphrase())
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateRefused(
            "holds no private key that can be read (PEM)", where=key.where, do="is it the right file?"
        ) from None
    if (wrong := acceptance.judge_key(found.public_key())) is not None:
        raise CertificateRefused(wrong.what, where=key.where, do="make an ECDSA P-256 key")
    return found


def _opened(key: Brought, passphrase: Secret) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(key.content, password=passphrase.reveal())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PassphraseWrong(
            "the key cannot be opened with this passphrase, or not at all", where=key.where, do="try again"
        ) from None


def _certificates(brought: Brought) -> tuple[x509.Certificate, ...]:
    try:
        return acceptance.certificates_in(brought.content)
    except ValueError:
        raise CertificateRefused(
            f"holds no certificates that can be read (PEM, {acceptance.MAX_CERTIFICATES} at most)",
            where=brought.where,
            do="put the certificate first, then those of the CAs above it",
        ) from None


def _in_order(chain: tuple[x509.Certificate, ...], anchors: tuple[x509.Certificate, ...]) -> bytes:
    """What the node is to show: its own, then each one's issuer, without the anchor and without strangers."""
    path = acceptance.path_to_anchor(chain[0], chain[1:], anchors) or chain
    return b"".join(pem_of(each) for each in path if each not in anchors)


def _host(spec: ClusterSpec, node: NodeSpec, leaf: x509.Certificate) -> Finding | None:
    """Stock OTP compares the host of the dialled name: with the DNS names (25), or also the addresses."""
    if spec.carrier is not Carrier.INET_TLS:
        return None
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        hosts = []
    if node.name.host in hosts:
        return None
    return Finding(
        Flaw.WRONG_IDENTITY, f"lacks the DNS name {node.name.host}, which the carrier inet_tls looks for"
    )


_SAME = "bring both from the same place"


def _do(flaw: Flaw, node: NodeSpec) -> str:
    return {
        Flaw.UNKNOWN_CA: "put the CAs above it into the same file, up to one that the nodes trust"
        " (`distsec certs export --ca` shows them)",
        Flaw.WRONG_IDENTITY: "have it issued for that identity, or bind the node to the one that it has: a"
        f' [[security.distribution.rules]] with names = ["{node.name}"]',
        Flaw.KEY_USAGE: "have it issued with keyUsage digitalSignature and extendedKeyUsage serverAuth and"
        " clientAuth",
        Flaw.NOT_YET_VALID: "check this host's clock",
        Flaw.KEY_MISMATCH: _SAME,
    }.get(flaw, "have it issued anew")


def _imported(certificate: x509.Certificate, identity: str, *, before: bool) -> Imported:
    return Imported(
        serial_text(certificate.serial_number),
        identity,
        certificate.issuer.rfc4514_string(),
        int(certificate.not_valid_after_utc.timestamp()),
        before,
    )


# ---- the CA ------------------------------------------------------------------------------------------------


def import_authority(
    spec: ClusterSpec,
    store: Store,
    certificate: Brought,
    key: Brought | None,
    passphrase: Passphrase,
    now: float,
    *,
    seal: bool = False,
    replace: bool = False,
) -> Imported:
    """Makes what is brought the cluster's CA: its certificate, then those above it up to a root. Without a
    key it is a CA whose key is elsewhere. Interrupted, it is run again.

    `replace`: in the place of the one that is there; no node may run then. Certificates of nodes that do not
    come from the new one are removed, for `provision` to make anew. Raises UsageError, CertificateRefused,
    PassphraseWrong, CaKeyUnavailable, StoreError; having changed nothing, but for the last.
    """
    chain = _certificates(certificate)
    _judge_authority(spec, chain, certificate.where, now)
    private = None if key is None else read_key(key, passphrase)
    if private is not None and not same_public_key(private.public_key(), chain[0].public_key()):
        raise CertificateRefused("does not belong to the key", where=certificate.where, do=_SAME)
    with store.locked():
        before = _present(store)
        if before is not None and before != chain[0]:
            _refuse_to_replace(spec, store, replace)
            store.create(f"{trust.OLD}/{trust.fingerprint(before)[:16]}.pem", pem_of(before))
        _write_authority(spec, store, chain, private, seal)
        reissued = tuple(_outdated(spec, store, now)) if before != chain[0] else ()
    shown = _imported(chain[0], f"spiffe://{spec.name}", before=before == chain[0])
    return Imported(shown.serial, shown.identity, shown.issuer, shown.not_after, shown.before, reissued)


def _judge_authority(spec: ClusterSpec, chain: tuple[x509.Certificate, ...], where: str, now: float) -> None:
    def refused(what: str, do: str = "bring a CA that may") -> CertificateRefused:
        return CertificateRefused(what, where=where, do=do)

    try:
        for below, each in enumerate(chain):
            why = acceptance.judge_authority(each, datetime.fromtimestamp(now, UTC), spec.name, below=below)
            if why is not None:
                raise refused(f"certificate {below + 1} is of a CA that {why}")
            above = chain[below + 1] if below + 1 < len(chain) else None
            if above is not None and not acceptance.signed(above, each):
                raise refused(
                    f"certificate {below + 2} is not who issued certificate {below + 1}",
                    "put the CA first, then each one's issuer, up to a root",
                )
            if above is not None and above.not_valid_after_utc < each.not_valid_after_utc:
                raise refused(
                    f"certificate {below + 1} outlives certificate {below + 2}, its issuer: so would nodes'",
                    "have it issued for no longer than its issuer lasts",
                )
        domains = profile.identities_of(chain[0])
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise refused("has extensions that cannot be read", "is it the right file?") from None
    if not lineage.is_root(chain[-1]):
        raise refused(
            "does not lead to a root, which alone OTP takes for an anchor",
            "put the certificates of the CAs above it into the same file, up to a root",
        )
    if (wrong := acceptance.judge_key(chain[0].public_key())) is not None:
        raise refused(wrong.what)
    if domains and domains != (f"spiffe://{spec.name}",):
        raise refused(f"is the CA of {domains[0][:200]!a}, not of spiffe://{spec.name}")


def _present(store: Store) -> x509.Certificate | None:
    if not store.exists(ca.CERTIFICATE_FILE):
        return None
    try:
        return ca.load_certificate(store, ca.CERTIFICATE_FILE)
    except StoreError:
        return None  # garbage is nothing to keep


def _refuse_to_replace(spec: ClusterSpec, store: Store, replace: bool) -> None:
    where = str(store.path(ca.CERTIFICATE_FILE))
    if trust.standing(store).rotating:
        raise UsageError(
            "the CA is being rotated", where=where, do="`distsec certs rotate-ca status` says what comes next"
        )
    if not replace:
        raise UsageError(
            "there is a CA already",
            where=where,
            do="stop every node and the orchestrator and add --replace; `distsec certs rotate-ca` brings a"
            " new one under nodes that run",
        )
    living = [str(node.name) for node in spec.nodes if _lives(store, node)]
    if living:
        raise UsageError(
            f"{', '.join(living[:5])}: runs, and would trust the old CA alone",
            do="`distsec stop --all`, and stop the orchestrator",
        )


def _lives(store: Store, node: NodeSpec) -> bool:
    """Whether its process is there, as far as its record tells."""
    relative = f"{node_pairs.directory_of(node)}/run.json"
    if not store.exists(relative):
        return False
    run = read_run(store.read(relative))
    return run.boot_id == boot_id() and proc.start_time(run.pid) == run.start_time


def _write_authority(
    spec: ClusterSpec,
    store: Store,
    chain: tuple[x509.Certificate, ...],
    private: PrivateKeyTypes | None,
    seal: bool,
) -> None:
    """The certificate comes last: whoever was interrupted has a CA that does not fit its key, and is told."""
    directory = trust.CURRENT
    sealed = None
    if private is not None and seal:
        sealed = store.keyring.seal(key_pem_of(private))
    if _present(store) != chain[0]:
        for relative in (ca.KEY_FILE, ca.SEALED_FILE):
            store.wipe(relative)  # whoever has it could still issue for those who trust the old one
    if sealed is not None:
        store.write(ca.SEALED_FILE, sealed)
        store.wipe(ca.KEY_FILE)
    elif private is not None:
        store.write(ca.KEY_FILE, key_pem_of(private).reveal())
        store.remove(ca.SEALED_FILE)
    store.write(f"{directory}/{lineage.IMPORTED}", lineage.record(spec.name))
    if len(chain) > 1:
        store.write(f"{directory}/{lineage.CHAIN}", b"".join(map(pem_of, chain[1:])))
    else:
        store.remove(f"{directory}/{lineage.CHAIN}")
    store.write(ca.CERTIFICATE_FILE, pem_of(chain[0]))


def _outdated(spec: ClusterSpec, store: Store, now: float) -> Iterator[str]:
    """Takes away the bundles, and the certificates that nobody trusts any more; whose those were."""
    overlay = load_overlay(store)
    for node in spec.nodes:
        directory = node_pairs.directory_of(node)
        store.remove(f"{directory}/{render.TRUST}")
        if not store.exists(f"{directory}/{render.CERTIFICATE}"):
            continue
        try:
            pair = pairs.read_pair(store, directory)
            if node_pairs.judge(spec, store, overlay, node, pair, now) is None:
                continue
        except StoreError:
            pass  # it is of no use either
        for relative in (f"{directory}/{render.CERTIFICATE}", f"{pairs.ACCEPTED}/{node.name}.pem"):
            store.remove(relative)
        yield str(node.name)
