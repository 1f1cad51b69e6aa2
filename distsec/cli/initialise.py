"""What `distsec init` does: a configuration, and all that its nodes need to be started. Prints nothing.

The configuration is checked as a whole before anything is made, and written last: when something is in the
way (a foreign state directory, a full disk), there is no file that refers to what is not there. Running it
again completes. Where only the CA's key is missing, which is on another host, the configuration is written:
it says for whom certificates are to be asked there.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distsec.beam.imports import Brought, import_authority
from distsec.beam.provision import ProvisionReport, provision
from distsec.config.edit import with_mode, with_nodes
from distsec.config.load import load, parse
from distsec.config.source import read_source
from distsec.config.template import render_template
from distsec.errors import (
    CaKeyUnavailable,
    CertificateRefused,
    DistsecError,
    PermissionRefused,
    StoreError,
    UsageError,
)
from distsec.model.cluster import ClusterSpec, Mode, NodeSpec
from distsec.model.names import NodeName, check_trust_domain
from distsec.model.secret import Secret
from distsec.pki import files, profile
from distsec.pki.acceptance import certificates_in
from distsec.pki.store import Store

CONFIG_FILE = "distsec.toml"
DEFAULT_NODES = ("poller@127.0.0.1", "agent@127.0.0.1", "sync@127.0.0.1")
DEFAULT_COMMAND = ("erl", "-noinput")
_FALLBACK_NAME = "distsec"
_MAX_NAME = 63  # model.names.check_trust_domain


@dataclass(frozen=True, slots=True)
class Initialised:
    """`config` is "made", "kept" or "extended"; `report` holds paths relative to the state directory.
    `lacking`: nodes whose certificate must be asked for where the CA's key is.
    """

    spec: ClusterSpec
    config: str
    report: ProvisionReport
    lacking: tuple[str, ...] = ()


def initialise(
    directory: Path,
    *,
    name: str | None,
    nodes: Sequence[str],
    mode: Mode | None,
    environment: Mapping[str, str],
    now: float,
    open_store: Callable[[ClusterSpec], Store] | None = None,
    seal: bool = False,
    trust: Brought | None = None,
    asking: bool = False,
) -> Initialised:
    """Makes in `directory` what is missing of a cluster. None and an empty `nodes` stand for "as it is, or
    the default".

    `now` is Unix seconds. `open_store` gives the state directory with what opens its sealed key (None: as it
    is); `seal`: the CA's key is to be sealed. `trust`: the certificate of a CA whose key is on another host;
    with it, or where certificates are to be asked for (`asking`), nodes without one are no error. Raises
    NameInvalid, UsageError, ConfigError, StoreError, PermissionRefused, PortInUse, CertificateRefused or
    CaKeyUnavailable.
    """
    lacking: list[str] = []

    def without(node: NodeSpec, error: DistsecError) -> None:
        if not isinstance(error, CaKeyUnavailable):
            raise error
        lacking.append(str(node.name))

    def complete(spec: ClusterSpec) -> ProvisionReport:
        store = open_store(spec) if open_store else Store(Path(spec.state_dir))
        if trust is not None:
            import_authority(spec, store, trust, None, _no_passphrase, now)
        elsewhere = trust is not None or asking
        return provision(spec, store, now, seal=seal, spoiled=without if elsewhere else None)

    if trust is not None and name is None and not os.path.lexists(directory / CONFIG_FILE):
        name = _cluster_of(trust)
    done = _initialise(directory, name, nodes, mode, environment, complete)
    return replace(done, lacking=tuple(lacking))


def _initialise(
    directory: Path,
    name: str | None,
    nodes: Sequence[str],
    mode: Mode | None,
    environment: Mapping[str, str],
    complete: Callable[[ClusterSpec], ProvisionReport],
) -> Initialised:
    names = tuple(dict.fromkeys(map(NodeName.parse, nodes)))
    path = directory.absolute() / CONFIG_FILE
    if os.path.lexists(path):
        return _extend(path, name, names, mode, environment, complete)
    text = render_template(
        check_trust_domain(name) if name is not None else default_name(directory),
        names or tuple(map(NodeName.parse, DEFAULT_NODES)),
        command=DEFAULT_COMMAND,
    )
    if mode is not None:
        text = with_mode(text, mode)
    spec = parse(text, path, environment)
    make_directory(path.parent)
    try:
        report = complete(spec)
    except CaKeyUnavailable:
        _write(path, text, replacing=False)  # the request to where the key is wants to be made with it
        raise
    if not _write(path, text, replacing=False):
        return _extend(path, name, names, mode, environment, complete)  # somebody else's init was faster
    return Initialised(spec, "made", report)


def _cluster_of(trust: Brought) -> str:
    """Whose CA it is, as its certificate says. Raises CertificateRefused, UsageError."""
    try:
        identities = profile.identities_of(certificates_in(trust.content)[0])
    except ValueError:
        raise CertificateRefused(
            "holds no certificate that can be read (PEM)", where=trust.where, do="is it the right file?"
        ) from None
    if len(identities) != 1 or "/" in identities[0].removeprefix("spiffe://"):
        raise UsageError(
            "does not say whose CA it is", where=trust.where, do="bring the CA's, or add --name CLUSTER"
        )
    return identities[0].removeprefix("spiffe://")


def _no_passphrase() -> Secret:
    raise AssertionError("unreachable: no key is brought")


def default_name(directory: Path) -> str:
    """A cluster name from the directory's: what is left of it that a SPIFFE trust domain may hold."""
    text = re.sub(r"[^a-z0-9._-]+", "-", directory.absolute().resolve().name.lower())
    return text.lstrip("._-")[:_MAX_NAME].rstrip("._-") or _FALLBACK_NAME


def _extend(
    path: Path,
    name: str | None,
    names: Sequence[NodeName],
    mode: Mode | None,
    environment: Mapping[str, str],
    complete: Callable[[ClusterSpec], ProvisionReport],
) -> Initialised:
    """Keeps the configuration at `path`, but for nodes that it does not have yet."""
    spec = load(path, environment)
    if name is not None and name != spec.name:
        raise UsageError(
            f"this is cluster {spec.name!r}, and a cluster's name stays",
            where=str(path),
            do="leave --name out, or choose another directory",
        )
    if mode is not None and mode is not spec.mode:
        raise UsageError(f"the mode is {spec.mode}", where=str(path), do="change [security] mode in the file")
    missing = [node for node in names if spec.node(str(node)) is None]
    unlisted = [node for node in names if node not in spec.allowed_nodes]
    if not missing and not unlisted:
        return Initialised(spec, "kept", complete(spec))
    text = with_nodes(read_source(path), missing, unlisted, DEFAULT_COMMAND, str(path))
    spec = parse(text, path, environment)
    try:
        report = complete(spec)
    except CaKeyUnavailable:
        _write(path, text, replacing=True)
        raise
    _write(path, text, replacing=True)
    return Initialised(spec, "extended", report)


def make_directory(directory: Path) -> None:
    """Not private: what is secret is below the state directory, which is."""
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(directory, error) from error


def _write(path: Path, content: str, *, replacing: bool) -> bool:
    """Creates the configuration (0600), or replaces it and keeps its mode; through a symlink, where that
    leads.
    """
    real = path.resolve() if replacing else path
    try:
        directory = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not replacing:
                return files.create_new(directory, real.name, content.encode())
            found = real.stat()
            if found.st_uid != os.geteuid():
                what = f"belongs to uid {found.st_uid}, not to you"
                raise PermissionRefused(
                    what, where=str(real), do=f"run as that user (sudo -u '#{found.st_uid}' distsec …)"
                )
            files.replace(directory, real.name, content.encode(), stat.S_IMODE(found.st_mode))
            return True
        finally:
            os.close(directory)
    except OSError as error:
        raise _refused(real, error) from error


def _refused(path: Path, error: OSError) -> StoreError:
    reason = (os.strerror(error.errno) if error.errno else "unusable").lower()
    return StoreError(f"cannot be written: {reason}", where=str(path), do="see to it and run it again")
