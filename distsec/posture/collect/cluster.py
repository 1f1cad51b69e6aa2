"""Facts of a cluster's own files: the state directory as docs/state-files.md describes it.

Not through `pki.store`, which refuses what is not as it should be; here it is looked at and told.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from distsec.beam import render
from distsec.beam.erlang_text import Symbol
from distsec.core.wanted import FIRST_GENERATION
from distsec.errors import CaKeyUnreadable
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.pki.account import Account, find_account
from distsec.pki.sealed import read_sealed
from distsec.posture.collect import cookies, inventory, pem
from distsec.posture.collect.host import key_kind, read_optfile
from distsec.posture.collect.reading import Read, fact, parents, read, target
from distsec.posture.consult import ConsultError, consult
from distsec.posture.facts import (
    AuthorityFact,
    CertificateFact,
    CookieFact,
    FileFact,
    OptionsFact,
    PolicyFact,
    Role,
    Source,
    Unlisted,
)

_GENERATION: Final = re.compile(rb"^\s*generation => (\d{1,18}),$", re.MULTILINE)
_MARK: Final = re.compile(rb"distsec_mark 1 (\d{1,18})\n?")
_SIGNATURE: Final = re.compile(rb'\{signature, <<"([A-Za-z0-9+/=]{1,200})">>\}\.\n?')


@dataclass(slots=True)
class StateFacts:
    authority: AuthorityFact | None = None
    files: list[FileFact] = field(default_factory=list)
    certificates: list[CertificateFact] = field(default_factory=list)
    cookies: list[CookieFact] = field(default_factory=list)
    options: list[OptionsFact] = field(default_factory=list)
    policies: list[PolicyFact] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    damage: list[tuple[str, str, str]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    unlisted: list[Unlisted] = field(default_factory=list)


def describe(spec: ClusterSpec, now: float) -> StateFacts:
    """All that the state directory of `spec` tells. `now` is Unix seconds."""
    state = Path(spec.state_dir)
    found = StateFacts()
    trusted = frozenset({0, os.geteuid(), _owner(state)})
    found.files += parents(Path(spec.config_file), trusted)
    found.files += filter(None, [fact(Path(spec.config_file), Role.CONFIGURATION, trusted)])
    found.files += parents(state, trusted)
    if spec.ca_passphrase_file is not None:
        passphrase = Path(spec.ca_passphrase_file)
        found.files += [*filter(None, [target(passphrase, Role.CA_SECRET, trusted)])]
        found.files += parents(passphrase, trusted)
    root = fact(state, Role.PRIVATE, frozenset({_owner(state)}))
    if root is None:
        found.damage.append((str(state), "the state directory is missing", "run `distsec init`"))
        return found
    try:
        os.scandir(state).close()
    except OSError as error:
        found.unseen.append(f"the state directory {state}: {os.strerror(error.errno or 0).lower()}")
        return found
    stock = inventory.take(state, [str(node.name) for node in spec.nodes], root, accounts_of(spec))
    found.files += stock.files
    found.unlisted = stock.unlisted
    overlay = _overlay(found, state)
    found.revoked = frozenset(text for text in overlay.get("revoked", ()) if isinstance(text, str))
    found.ports = _ports(found, spec, state)
    if spec.carrier.encrypted:
        found.authority = _authority(state / "ca")
    key = _policy_key(found, state)
    _cookie_secret(found, state, now)
    for node in spec.nodes:
        _node(found, spec, node, state / "nodes" / str(node.name), overlay.get("generation"), key)
    return found


def accounts_of(spec: ClusterSpec) -> dict[str, Account]:
    """Name of a node → its user, of those that have one that there is."""
    found = {str(node.name): find_account(node.user) for node in spec.nodes if node.user is not None}
    return {name: account for name, account in found.items() if account is not None}


# ---- the authority -----------------------------------------------------------------------------------------


def _authority(directory: Path) -> AuthorityFact:
    path = directory / "certificate.pem"
    chain, problem, missing = pem.load(path)
    sealed = _there(directory / "key.sealed")
    sealed_for, sealed_problem = _sealed(directory / "key.sealed")
    _, coming_problem = _sealed(directory / "next/key.sealed")
    problems = ((directory / "key.sealed", sealed_problem), (directory / "next/key.sealed", coming_problem))
    plain = _there(directory / "key.pem")
    key, key_problem, _ = pem.load_public_half(directory / "key.pem") if plain else (None, None, True)
    return AuthorityFact(
        place=str(path),
        certificate=chain[0] if chain else None,
        problem="does not exist" if missing else problem,
        key=key,
        key_problem=key_problem,
        sealed=sealed,
        plain=plain,
        known=tuple(_known(directory)),
        damaged=tuple((str(file), problem) for file, problem in problems if problem is not None),
        sealed_for=sealed_for,
    )


def _sealed(path: Path) -> tuple[str | None, str | None]:
    """(fingerprint of the key that is sealed there, what is wrong with the file)."""
    content = read(path)
    if content.content is None:
        return None, None if content.missing or content.denied else content.problem
    try:
        return read_sealed(content.content, str(path)).public, None
    except CaKeyUnreadable as error:
        return None, error.what


def _known(directory: Path) -> Iterator[x509.Certificate]:
    """Whom a node may trust now: the root of the CA, and in a rotation that of its successor (pki.trust)."""
    names = ["ca"]
    content = read(directory / "rotation.json").content
    if content is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            names = [name for name in json.loads(content)["known"] if name in {"ca", "ca/next"}]
    for name in names:
        place = directory if name == "ca" else directory / "next"
        above, problem, missing = pem.load(place / "chain.pem")
        found = above if above else pem.load(place / "certificate.pem")[0][:1]
        yield from found[-1:] if missing or problem is None else ()


def _policy_key(found: StateFacts, state: Path) -> Ed25519PublicKey | None:
    content = read(state / "ca" / "policy.key").content
    if content is None:
        return None
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        return None
    return key.public_key() if isinstance(key, Ed25519PrivateKey) else None


def _cookie_secret(found: StateFacts, state: Path, now: float) -> None:
    path = state / "ca" / "cookie.secret"
    content = read(path)
    if content.content is not None:
        measured = cookies.measure(
            content.content.strip(),
            source=Source.STATE,
            holder="the cluster",
            place=str(path),
            age_seconds=max(0.0, now - content.modified),
            encrypted=True,
        )
        found.cookies.append(measured)


# ---- a node ------------------------------------------------------------------------------------------------


def _node(
    found: StateFacts,
    spec: ClusterSpec,
    node: NodeSpec,
    directory: Path,
    wanted: Any,
    key: Ed25519PublicKey | None,
) -> None:
    name = str(node.name)
    guard = _guard(found, directory)
    if spec.carrier.encrypted:
        pair = pem.pair(
            name, directory / render.CERTIFICATE, directory / render.KEY, directory / render.TRUST
        )
        ca = found.authority
        offline = ca is not None and not (ca.plain or ca.sealed)
        pair = replace(pair, node=node.name, address=node.address, managed=True, offline=offline)
        found.certificates.append(pair)
        options = read_optfile(name, directory / render.OPTFILE, release=None, managed=True)
        digest = guard.get(Symbol("optfile_sha256"))
        content = read(directory / render.OPTFILE).content
        altered = content is not None and digest != hashlib.sha256(content).hexdigest().encode()
        kind = key_kind(pair.chain[0]) if pair.chain else None
        found.options.append(replace(options, altered=altered, key_kind=kind))
    found.cookies += _cookies(found, name, directory / "cookie.term", spec.carrier.encrypted)
    found.policies.append(_policy(name, directory, wanted, key))


def _guard(found: StateFacts, directory: Path) -> dict[Any, Any]:
    return _tagged(found, directory / "guard.term", "distsec_guard")


def _cookies(found: StateFacts, name: str, path: Path, encrypted: bool) -> Iterator[CookieFact]:
    """The default cookie and those with peers, those of an earlier epoch included."""
    for cookie, place in _binaries(_tagged(found, path, "distsec_cookies"), str(path)):
        yield cookies.measure(cookie, source=Source.STATE, holder=name, place=place, encrypted=encrypted)


def _binaries(term: Any, place: str, depth: int = 0) -> Iterator[tuple[bytes, str]]:
    """Every binary that is a value in a map, with where it stands."""
    if depth > 8:
        return
    if isinstance(term, dict):
        for key, value in term.items():
            label = (
                key.name if isinstance(key, Symbol) else os.fsdecode(key) if isinstance(key, bytes) else "?"
            )
            if isinstance(value, bytes):
                yield value, f"{place} ({label})"
            else:
                yield from _binaries(value, f"{place} ({label})" if depth else place, depth + 1)


def _tagged(found: StateFacts, path: Path, tag: str) -> dict[Any, Any]:
    """The map of a file of one term, `{tag, #{…}}`; empty, and told as damage, where it is none."""
    content = read(path)
    if content.content is None:
        return {}
    try:
        match consult(content.content):
            case [(Symbol(name), dict(fields))] if name == tag:
                return fields
    except ConsultError:
        pass
    again = "restart the node, which has it written anew"
    found.damage.append((str(path), "cannot be understood", again))
    return {}


def _policy(name: str, directory: Path, wanted: Any, key: Ed25519PublicKey | None) -> PolicyFact:
    path = directory / "policy.term"
    content = read(path)
    if content.content is None:
        return PolicyFact(name, str(path), missing=True)
    generation = _GENERATION.search(content.content)
    return PolicyFact(
        node=name,
        place=str(path),
        missing=False,
        signed=None if key is None else _signed(content.content, key),
        generation=int(generation[1]) if generation else None,
        wanted=wanted if isinstance(wanted, int) else None,
        mark_problem=_mark(read(directory / "policy.mark")),
    )


def _signed(document: bytes, key: Ed25519PublicKey) -> bool:
    at = document.rstrip(b"\n").rfind(b"\n") + 1
    found = _SIGNATURE.fullmatch(document[at:])
    if found is None:
        return False
    try:
        key.verify(base64.b64decode(found[1], validate=True), document[:at])
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _mark(content: Read) -> str | None:
    if content.missing:
        return "is missing: the node takes no policy from its file"
    if content.content is not None and not _MARK.fullmatch(content.content):
        return "does not say which generation the node had in force"
    return None


# ---- JSON files --------------------------------------------------------------------------------------------


def _overlay(found: StateFacts, state: Path) -> dict[str, Any]:
    path = state / "policy.overlay"
    content = read(path)
    if content.content is None:
        return {"generation": FIRST_GENERATION} if content.missing else {}
    try:
        document = json.loads(content.content)
        if isinstance(document, dict) and isinstance(document["generation"], int):
            return document
    except (ValueError, KeyError, RecursionError):
        pass
    how = "restore it from a backup, or remove it and repeat your `distsec allow` and `distsec deny`"
    found.damage.append((str(path), "is damaged, so nobody can tell whom it denied", how))
    return {}


def _ports(found: StateFacts, spec: ClusterSpec, state: Path) -> dict[str, int]:
    """Name → port of every managed node that has one: given, or allotted once (beam.ports)."""
    given = {str(node.name): node.port for node in spec.nodes if node.port is not None}
    path = state / "ports.json"
    content = read(path)
    if content.content is None:
        return given
    try:
        kept = json.loads(content.content)["ports"]
        names = {str(node.name) for node in spec.nodes}
        return {name: port for name, port in kept.items() if name in names and type(port) is int} | given
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        how = "restore it from a backup, or stop the cluster, remove it and run `distsec init`"
        found.damage.append((str(path), "is damaged, so the nodes' ports are not known", how))
        return given


def _there(path: Path) -> bool:
    return os.path.lexists(path)


def _owner(state: Path) -> int:
    """Whose the state directory may be: its own owner's, if that is us or if we are root; else ours."""
    try:
        uid = state.stat().st_uid
    except OSError:
        return os.geteuid()
    return uid if os.geteuid() == 0 else os.geteuid()
