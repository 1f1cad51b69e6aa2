"""Everything that a node needs before it starts: made if missing, and never replaced if it is a key.

`provision` completes the state directory (docs/state-files.md) for a configuration; it is what `distsec init`
does and what the daemon does first. `write_node_files` renders what follows from the configuration again,
before each start. A key, certificate or trust bundle that does not fit is an error that names the file:
replacing it silently would hide an attack or a mix-up, and lock running nodes out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from distsec.beam import node_pairs, render
from distsec.beam.overlay import load_overlay
from distsec.beam.ports import PORTS_FILE, allot_ports, distribution_ports
from distsec.core.wanted import Overlay, listed_names, wanted_policy
from distsec.errors import CaKeyUnavailable, ConfigError, DistsecError, StoreError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import authority as ca
from distsec.pki import cookies, hosts, pairs, signing, trust
from distsec.pki.authority import Authority
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store

__all__ = [
    "ProvisionReport",
    "agent_key",
    "cookie_peers",
    "default_cookie",
    "distribution_ports",
    "node_directory",
    "provision",
    "read_mark",
    "rekey",
    "write_cookie_file",
    "write_node_files",
    "write_policy_files",
]

MARK = "policy.mark"
AGENT_KEY_BYTES = 32  # of the port protocol's HMAC-SHA256 (docs/port-protocol.md)
_GENERATION = re.compile(rb"^  generation => (\d{1,18}),$", re.MULTILINE)
_MARK = re.compile(rb"distsec_mark 1 (\d{1,18})\n?")
_AGENT_KEY = re.compile(rb"[0-9a-f]{%d}\s*" % (2 * AGENT_KEY_BYTES))


Spoiled = Callable[[NodeSpec, DistsecError], object]


@dataclass(slots=True)
class ProvisionReport:
    """What `provision` made and what it kept: paths relative to the state directory, in the order it met
    them.
    """

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def note(self, relative: str, made: bool) -> None:
        (self.made if made else self.kept).append(relative)


def node_directory(name: NodeName | str) -> str:
    """Where a node's files are, relative to the state directory. A checked name is one path component."""
    return f"nodes/{NodeName.parse(str(name))}"


def provision(
    spec: ClusterSpec, store: Store, now: float, *, seal: bool = False, spoiled: Spoiled | None = None
) -> ProvisionReport:
    """Adds whatever is missing for every node of `spec`. `now` is Unix seconds; `seal`: a new CA's key is
    sealed. Where every node has its certificate, the CA's key is not needed. `spoiled`: hears of a node whose
    key or certificate cannot be used, in place of the error; everything else is provisioned.

    Raises ConfigError for what cannot be rendered (before anything is made), StoreError for files that do not
    fit, PortInUse where no port can be allotted, CaKeyUnavailable for a node that has no certificate yet.
    """
    for node in spec.nodes:
        _render_optfile(spec, store, node)
    report = ProvisionReport()
    with store.locked():
        keys = (signing.KEY_FILE, cookies.SECRET_FILE, hosts.KEY_FILE)
        ours = (ca.KEY_FILE, ca.SEALED_FILE, ca.CERTIFICATE_FILE, *keys)
        missing = [relative for relative in ours if not store.exists(relative)]
        authority = _issuing(spec, store, now, seal)
        signer = PolicySigner.create(store)
        cookies.create_secret(store)
        hosts.create_host_key(store)
        for relative in filter(store.exists, ours):
            report.note(relative, relative in missing)
        allotted = allot_ports(spec, store)
        if store.exists(PORTS_FILE):
            report.note(PORTS_FILE, bool(allotted))
        overlay = load_overlay(store)
        issued_at = max(int(now), overlay.issued_at)
        policy = wanted_policy(spec, overlay, distribution_ports(spec, store), issued_at)
        with _at_config(spec):
            document = render.policy_document(policy, signer.sign)
        lacking = [str(node.name) for node in spec.nodes if not _has_certificate(store, node, overlay)]
        if lacking and spoiled is None:
            authority.signing_for(lacking)
        for node in spec.nodes:
            if str(node.name) in overlay.condemned:
                continue  # its key is known to somebody else, and may be half replaced: see `rekey`
            _make_keys(spec, store, authority, node, now, report, spoiled)
            for relative, content in _derived(spec, store, signer, node, overlay, document).items():
                report.note(relative, store.create(relative, content))
    return report


def write_node_files(spec: ClusterSpec, store: Store, node: NodeSpec, policy_document: bytes) -> None:
    """Renders `dist.conf`, `guard.term`, `cookie.term` and `policy.term` of `node` again, and raises
    `policy.mark`; keys stay as they are.

    Raises ConfigError for what cannot be rendered, StoreError; each file is then the old one or the new one.
    A node that is condemned is given nothing: whoever is in it would have its new cookies.
    """
    overlay = load_overlay(store)
    if str(node.name) in overlay.condemned:
        raise StoreError(f"{node.name} is condemned and has not been re-keyed yet", do="wait until it is")
    _write_derived(spec, store, node, overlay, policy_document)


def write_policy_files(
    spec: ClusterSpec, store: Store, node: NodeSpec, overlay: Overlay, policy_document: bytes
) -> None:
    """Policy and cookies only: what a living node was proven against (optfile, guard) stays as it is. One
    that is condemned is told no cookie. Raises StoreError.
    """
    store.write(f"{node_directory(node.name)}/policy.term", policy_document)
    write_cookie_file(spec, store, node, overlay)


def rekey(
    spec: ClusterSpec, store: Store, node: NodeSpec, overlay: Overlay, policy_document: bytes, now: float
) -> None:
    """Gives `node` a new key, certificate, agent key and mark, and renders the rest anew.

    Nothing of the node may live: what is written here it could read. May be repeated from the beginning,
    wherever it was interrupted. Raises ConfigError, StoreError.
    """
    directory = node_directory(node.name)
    store.ensure_directory(f"{directory}/log")
    authority = Authority.load(store, trust.issuing_directory(store))
    pair = pairs.Pair(*authority.issue(node.name, node.address, spec.certificate_days, now))
    pairs.install_pair(store, directory, pair)
    store.write(f"{directory}/{render.TRUST}", trust.trust_bundle(store))
    store.write(f"{directory}/agent.key", os.urandom(AGENT_KEY_BYTES).hex().encode() + b"\n")
    # Whoever was in it may have put the mark out of everybody's reach.
    store.write(f"{directory}/{MARK}", _mark(_generation_of(policy_document)))
    _write_derived(spec, store, node, overlay, policy_document)


def write_cookie_file(spec: ClusterSpec, store: Store, node: NodeSpec, overlay: Overlay) -> None:
    """The cookies as they are to be now; one that is condemned is told none. Raises StoreError."""
    name = str(node.name)
    if name not in overlay.condemned:
        with cookies.WRITING:
            content = _cookie_file(spec, store, name, overlay)
            store.write(f"{node_directory(name)}/cookie.term", content)


def default_cookie(store: Store, node: NodeName | str) -> Secret:
    """The node's cookie towards names that are not listed exactly, as it is now. Raises StoreError."""
    epochs = dict(load_overlay(store).epochs)
    return cookies.default_cookie(cookies.load_secret(store), str(node), epochs)


def read_mark(store: Store, node: NodeName | str) -> int | None:
    """The highest generation that the node has had in force, as it says itself; None: no such file.

    Raises StoreError where it cannot be understood.
    """
    relative = f"{node_directory(node)}/{MARK}"
    if not store.exists(relative):
        return None
    found = _MARK.fullmatch(store.read(relative))
    if found is None:
        raise StoreError(
            "does not say which generation of the policy the node had last",
            where=str(store.path(relative)),
            do="see who changed it, then remove it: it is made anew when the orchestrator starts",
        )
    return int(found[1])


def agent_key(store: Store, node: NodeName | str) -> Secret:
    """The key of the node's agent: 32 bytes. Raises StoreError if it is missing or damaged."""
    relative = f"{node_directory(node)}/agent.key"
    text = store.read(relative)
    if not _AGENT_KEY.fullmatch(text):
        raise StoreError(
            f"does not hold {AGENT_KEY_BYTES} bytes in hex",
            where=str(store.path(relative)),
            do="stop the node, remove the file and run `distsec init`",
        )
    return Secret(bytes.fromhex(text.decode()))


# ---- keys and certificates
# --------------------------------------------------------------------------------------


def _make_keys(
    spec: ClusterSpec,
    store: Store,
    authority: Authority,
    node: NodeSpec,
    now: float,
    report: ProvisionReport,
    spoiled: Spoiled | None,
) -> None:
    directory = node_directory(node.name)
    store.ensure_directory(f"{directory}/log")
    try:
        node_pairs.make(spec, store, authority, node, now, report.note)
    except (StoreError, CaKeyUnavailable) as error:
        if spoiled is None:
            raise
        spoiled(node, error)
    _complete_trust(store, f"{directory}/{render.TRUST}", report)
    agent = f"{directory}/agent.key"
    report.note(agent, store.create(agent, os.urandom(AGENT_KEY_BYTES).hex().encode() + b"\n"))
    agent_key(store, node.name)


def _has_certificate(store: Store, node: NodeSpec, overlay: Overlay) -> bool:
    directory = node_directory(node.name)
    names = (render.CERTIFICATE, pairs.NEXT)
    return str(node.name) in overlay.condemned or any(store.exists(f"{directory}/{name}") for name in names)


def _issuing(spec: ClusterSpec, store: Store, now: float, seal: bool) -> Authority:
    """The CA that signs now. In a rotation that may be the one in `ca/next/`, and at its end the files of the
    other may be half replaced: nobody looks at them.
    """
    directory = trust.issuing_directory(store)
    if directory == trust.CURRENT:
        return Authority.create(store, spec.name, now, seal=seal)
    authority = Authority.load(store, directory)
    authority.check(store, spec.name, now)
    return authority


def _complete_trust(store: Store, bundle: str, report: ProvisionReport) -> None:
    """What a rotation of the CA has not brought here yet is written now: each of its phases begins only when
    that locks nobody out (core.rotation).
    """
    wanted = trust.trust_bundle(store)
    report.note(bundle, store.create(bundle, wanted))
    found = store.read(bundle)
    if not trust.acceptable(store, found):
        raise StoreError(
            "does not hold the cluster's CA and nothing else",
            where=str(store.path(bundle)),
            do="see who changed it, then remove it and run `distsec init`",
        )
    if found != wanted:
        store.write(bundle, wanted)


# ---- what follows from the configuration
# ------------------------------------------------------------------------


def _derived(
    spec: ClusterSpec,
    store: Store,
    signer: PolicySigner,
    node: NodeSpec,
    overlay: Overlay,
    policy_document: bytes,
) -> Mapping[str, bytes]:
    """Path → content of the rendered files. The guard is the last: it holds the digest of the optfile, and
    says that there is a mark.
    """
    directory, name = node_directory(node.name), str(node.name)
    generation = _generation_of(policy_document)
    optfile = _render_optfile(spec, store, node)
    with _at_config(spec):
        guard = render.guard_file(
            cluster=spec.name,
            node=node.name,
            carrier=spec.carrier,
            directory=str(store.path(directory)),
            address=node.address,
            port=distribution_ports(spec, store)[name],
            policy_key=signer.public_raw,
            optfile=optfile,
            epmd=spec.epmd,
            floor=generation,
        )
    files = {
        f"{directory}/policy.term": policy_document,
        f"{directory}/cookie.term": _cookie_file(spec, store, name, overlay),
        f"{directory}/{MARK}": _mark(generation),
        f"{directory}/guard.term": guard,
    }
    return files if optfile is None else {f"{directory}/{render.OPTFILE}": optfile} | files


def _write_derived(
    spec: ClusterSpec, store: Store, node: NodeSpec, overlay: Overlay, policy_document: bytes
) -> None:
    signer, mark = PolicySigner.load(store), f"{node_directory(node.name)}/{MARK}"
    with cookies.WRITING:
        for relative, content in _derived(spec, store, signer, node, overlay, policy_document).items():
            if relative != mark or (read_mark(store, node.name) or 0) < _generation_of(policy_document):
                store.write(relative, content)  # a mark is only ever raised


def _cookie_file(spec: ClusterSpec, store: Store, name: str, overlay: Overlay) -> bytes:
    return render.cookie_file(
        cookies.cookie_set(store, name, cookie_peers(spec, overlay), dict(overlay.epochs), spec.hosts)
    )


def _generation_of(policy_document: bytes) -> int:
    """Of our own document, which no change of the overlay that comes in between makes another."""
    found = _GENERATION.search(policy_document)
    assert found is not None, "render.policy_document writes it so"
    return int(found[1])


def _mark(generation: int) -> bytes:
    return b"distsec_mark 1 %d\n" % generation


def _render_optfile(spec: ClusterSpec, store: Store, node: NodeSpec) -> bytes | None:
    """The node's `dist.conf`; None for a carrier without TLS."""
    with _at_config(spec):
        render.proto_dist(spec.carrier, node.address)
        if not spec.carrier.encrypted:
            return None
        return render.optfile(directory=str(store.path(node_directory(node.name))))


def cookie_peers(spec: ClusterSpec, overlay: Overlay) -> list[str]:
    """Whom a node has a cookie with. A denied name is given no cookie: one more door that it finds closed."""
    return [name for name in listed_names(spec, overlay) if name not in overlay.deny]


@contextlib.contextmanager
def _at_config(spec: ClusterSpec) -> Iterator[None]:
    """Names the configuration file in a ConfigError of the renderer, which knows no file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.where or spec.config_file, error.problems) from error
