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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from distsec.beam import render
from distsec.beam.overlay import load_overlay
from distsec.beam.ports import PORTS_FILE, allot_ports, distribution_ports
from distsec.core.wanted import Overlay, listed_names, wanted_policy
from distsec.errors import ConfigError, StoreError
from distsec.model.cluster import Carrier, ClusterSpec, NodeSpec
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.model.text import escape
from distsec.pki import authority as ca
from distsec.pki import cookies, profile, signing
from distsec.pki.authority import Authority
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store

__all__ = [
    "ProvisionReport",
    "agent_key",
    "cookies_for",
    "distribution_ports",
    "node_directory",
    "provision",
    "write_node_files",
]

AGENT_KEY_BYTES = 32  # of the port protocol's HMAC-SHA256 (docs/port-protocol.md)
_AGENT_KEY = re.compile(rb"[0-9a-f]{%d}\s*" % (2 * AGENT_KEY_BYTES))


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


def provision(spec: ClusterSpec, store: Store, now: float) -> ProvisionReport:
    """Adds whatever is missing for every node of `spec`. `now` is Unix seconds.

    Raises ConfigError for what cannot be rendered (before anything is made), StoreError for files that do not
    fit, PortInUse where no port can be allotted.
    """
    for node in spec.nodes:
        _render_optfile(spec, store, node)
    report = ProvisionReport()
    with store.locked():
        for relative in (ca.KEY_FILE, ca.CERTIFICATE_FILE, signing.KEY_FILE, cookies.SECRET_FILE):
            report.note(relative, not store.exists(relative))
        authority = Authority.create(store, spec.name, now)
        signer = PolicySigner.create(store)
        cookies.create_secret(store)
        allotted = allot_ports(spec, store)
        if store.exists(PORTS_FILE):
            report.note(PORTS_FILE, bool(allotted))
        policy = wanted_policy(spec, load_overlay(store), distribution_ports(spec, store), issued_at=int(now))
        with _at_config(spec):
            document = render.policy_document(policy, signer.sign)
        for node in spec.nodes:
            _make_keys(spec, store, authority, node, now, report)
            for relative, content in _derived(spec, store, signer, node, document).items():
                report.note(relative, store.create(relative, content))
    return report


def write_node_files(spec: ClusterSpec, store: Store, node: NodeSpec, policy_document: bytes) -> None:
    """Renders `dist.conf`, `guard.term`, `cookie.term` and `policy.term` of `node` again; keys stay as they
    are.

    Raises ConfigError for what cannot be rendered, StoreError; each file is then the old one or the new one.
    """
    signer = PolicySigner.load(store)
    for relative, content in _derived(spec, store, signer, node, policy_document).items():
        store.write(relative, content)


def cookies_for(
    spec: ClusterSpec, store: Store, node: NodeName | str, peers: Iterable[str]
) -> Mapping[str, Secret]:
    """The cookie that `node` has with each of `peers`, by name; without itself."""
    secret, name = cookies.load_secret(store), str(node)
    return {peer: cookies.pair_cookie(secret, name, peer) for peer in peers if peer != name}


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
    spec: ClusterSpec, store: Store, authority: Authority, node: NodeSpec, now: float, report: ProvisionReport
) -> None:
    directory = node_directory(node.name)
    store.ensure_directory(f"{directory}/log")
    key, certificate = f"{directory}/{render.KEY}", f"{directory}/{render.CERTIFICATE}"
    if not store.exists(key) and store.exists(certificate):
        raise StoreError(
            "is missing, though its certificate is there",
            where=str(store.path(key)),
            do=f"restore it, or remove {render.CERTIFICATE} as well and run `distsec init` for a new pair",
        )
    report.note(key, store.create(key, ca.new_key_pem().reveal()) if not store.exists(key) else False)
    if not store.exists(certificate):
        report.note(certificate, _certify(spec, store, authority, node, key, certificate, now))
    else:
        report.note(certificate, False)
    _check_pair(spec, store, authority, node, key, certificate, now)
    trust = f"{directory}/{render.TRUST}"
    report.note(trust, store.create(trust, authority.bundle_pem))
    if store.read(trust) != authority.bundle_pem:
        raise StoreError(
            "does not hold the cluster's CA and nothing else",
            where=str(store.path(trust)),
            do="see who changed it, then remove it and run `distsec init`",
        )
    agent = f"{directory}/agent.key"
    report.note(agent, store.create(agent, os.urandom(AGENT_KEY_BYTES).hex().encode() + b"\n"))
    agent_key(store, node.name)


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
    authority: Authority,
    node: NodeSpec,
    key: str,
    certificate: str,
    now: float,
) -> None:
    """Raises StoreError unless the certificate is the node's, for its key, by this CA, and valid at `now`."""
    leaf = ca.load_certificate(store, certificate)
    remove = "remove it and run `distsec init` for a new one (the key stays)"

    def refuse(what: str, do: str = remove) -> StoreError:
        return StoreError(what, where=str(store.path(certificate)), do=do)

    if not ca.same_public_key(ca.load_key(store, key).public_key(), leaf.public_key()):
        raise refuse(f"does not belong to {render.KEY} beside it", "restore both from the same backup")
    if not authority.issued(leaf):
        raise refuse("was not issued by the cluster's CA")
    identities, wanted = profile.identities_of(leaf), node.name.identity(spec.name)
    if identities != (wanted,):
        shown = escape(", ".join(identities)) or "nobody"
        raise refuse(f"is for {shown}, not for {wanted}")
    if leaf.not_valid_after_utc.timestamp() < now:
        raise refuse(f"has expired ({ca.date_of(leaf.not_valid_after_utc)})")
    if leaf.not_valid_before_utc.timestamp() > now:
        raise refuse(
            f"is not valid before {ca.date_of(leaf.not_valid_before_utc)}", "check this host's clock"
        )


# ---- what follows from the configuration
# ------------------------------------------------------------------------


def _derived(
    spec: ClusterSpec, store: Store, signer: PolicySigner, node: NodeSpec, policy_document: bytes
) -> Mapping[str, bytes]:
    """Path → content of the rendered files. The guard is the last: it holds the digest of the optfile."""
    directory, name = node_directory(node.name), str(node.name)
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
        )
    secret = cookies.load_secret(store)
    pairs = cookies_for(spec, store, name, _cookie_peers(spec, load_overlay(store)))
    files = {
        f"{directory}/policy.term": policy_document,
        f"{directory}/cookie.term": render.cookie_file(cookies.default_cookie(secret, name), pairs),
        f"{directory}/guard.term": guard,
    }
    return files if optfile is None else {f"{directory}/{render.OPTFILE}": optfile} | files


def _render_optfile(spec: ClusterSpec, store: Store, node: NodeSpec) -> bytes | None:
    """The node's `dist.conf`; None for a carrier without TLS."""
    with _at_config(spec):
        render.proto_dist(spec.carrier, node.address)
        if spec.carrier is Carrier.INET_TCP:
            return None
        return render.optfile(directory=str(store.path(node_directory(node.name))))


def _cookie_peers(spec: ClusterSpec, overlay: Overlay) -> list[str]:
    """A denied name is given no cookie: one more door that it finds closed."""
    return [name for name in listed_names(spec, overlay) if name not in overlay.deny]


@contextlib.contextmanager
def _at_config(spec: ClusterSpec) -> Iterator[None]:
    """Names the configuration file in a ConfigError of the renderer, which knows no file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.where or spec.config_file, error.problems) from error
