"""Facts of emulators that distsec does not run: what they were given, and the files that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from distsec.beam.erlang_text import Symbol
from distsec.model.cookies import PLACEHOLDER
from distsec.posture.collect import cookies, emulator, pem, releases
from distsec.posture.collect.processes import EPMD_PORT, Beam, epmd_names
from distsec.posture.collect.reading import parents, read, sheltered, target
from distsec.posture.consult import ConsultError, consult, tls_terms
from distsec.posture.facts import (
    CertificateFact,
    CookieFact,
    FileFact,
    OptionsFact,
    ReleaseFact,
    Role,
    Source,
    VmFact,
)

MAX_CANDIDATES: Final = 8
"""Listeners of one emulator that are knocked at where nothing says which is the distribution's."""

_TWICE: Final = ("proto_dist", "ssl_dist_optfile", "epmd_module", "setcookie", "name", "sname")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A listener to knock at. `certain`: it is the distribution's, whatever it answers."""

    beam: Beam
    address: str
    port: int
    certain: bool


@dataclass(slots=True)
class HostFacts:
    files: list[FileFact] = field(default_factory=list)
    certificates: list[CertificateFact] = field(default_factory=list)
    cookies: list[CookieFact] = field(default_factory=list)
    options: list[OptionsFact] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    elsewhere: list[tuple[str, int]] = field(default_factory=list)


def carried_cookies(beam: Beam) -> Iterator[CookieFact]:
    """The cookies in its arguments and environment: those that others may read there. What stands in a
    cookie's place under our guard is none.
    """
    encrypted = beam.flags.encrypted
    guarded = beam.flags.first("epmd_module") == "distsec_epmd"
    for cookie in beam.cookies:
        if guarded and cookie == PLACEHOLDER.encode():
            continue
        yield cookies.measure(
            cookie,
            source=Source.ARGUMENTS,
            holder=beam.label,
            place=f"/proc/{beam.pid}/cmdline",
            encrypted=encrypted,
        )
    for variable, cookie in cookies.in_environment(beam.environ or b""):
        if guarded and cookie == PLACEHOLDER.encode():
            continue
        yield cookies.measure(
            cookie, source=Source.ENVIRONMENT, holder=beam.label, place=variable, encrypted=encrypted
        )


def vm_fact(beam: Beam, *, managed: bool) -> VmFact:
    release, _ = version_of(beam)
    return VmFact(
        pid=beam.pid,
        uid=beam.uid,
        holder=beam.label,
        node=beam.flags.node,
        managed=managed,
        carrier=beam.flags.carrier if beam.flags.distributed else None,
        release=release,
        twice=tuple(flag for flag in _TWICE if beam.flags.count(flag) > 1 and not _same_name(flag, beam)),
    )


def _same_name(flag: str, beam: Beam) -> bool:
    """Start scripts of releases give the node's name too, and may not go without."""
    return flag in {"name", "sname"} and len(set(beam.flags.words(flag))) == 1


def version_of(beam: Beam) -> tuple[int | None, str | None]:
    root = beam.flags.first("root")
    return releases.of_root(beam.path(root)) if root else (None, None)


def release_fact(beam: Beam) -> ReleaseFact:
    release, version = version_of(beam)
    return ReleaseFact(
        users=(beam.label,),
        root=beam.flags.first("root") or "",
        release=release,
        version=version,
        on_carrier=beam.flags.carrier == "distsec",
    )


def describe(beams: Sequence[Beam], now: float) -> HostFacts:
    """The facts of emulators with a node name; the others have no distribution to look at."""
    found = HostFacts()
    names = {port: epmd_names(port) for port in {_epmd_port(beam) for beam in beams if beam.here}}
    for beam in beams:
        found.cookies += carried_cookies(beam)
        if beam.flags.node is None:
            continue
        found.cookies += _file_cookie(beam, found, now)
        for text in beam.flags.configurations:
            _add_file(found, beam, _configuration_path(beam, text), Role.SHARED)
        if beam.flags.encrypted:
            _options(beam, found)
        elif idle := [flag for flag in ("ssl_dist_optfile", "ssl_dist_opt") if beam.flags.count(flag)]:
            found.options.append(OptionsFact(beam.label, f"/proc/{beam.pid}/cmdline", plaintext=tuple(idle)))
        if beam.flags.distributed:
            found.candidates += _candidates(beam, names.get(_epmd_port(beam), {}))
            if not beam.here and beam.listeners:
                found.elsewhere.append((beam.label, beam.pid))
    return found


# ---- cookies -----------------------------------------------------------------------------------------------


def _file_cookie(beam: Beam, found: HostFacts, now: float) -> Iterator[CookieFact]:
    """Its cookie file, if that is where its cookie is from (auth:init_cookie/0)."""
    flags = beam.flags
    if flags.count("setcookie") or flags.count("nocookie") or (home := flags.first("home")) is None:
        return
    places = [f"{home}/.erlang.cookie"]
    configuration = beam.variable("XDG_CONFIG_HOME") or f"{home}/.config"
    places.append(f"{configuration}/erlang/.erlang.cookie")  # since OTP 25 (auth:read_cookie/0)
    for place in places:
        path = beam.path(place)
        content = read(path)
        if content.missing:
            continue
        _add_file(found, beam, path, Role.SECRET)
        if content.content is None:
            found.unseen.append(f"the cookie of {beam.label}, {place}: {content.problem}")
            return
        yield cookies.measure(
            content.content.strip(),
            source=Source.FILE,
            holder=beam.label,
            place=str(path),
            age_seconds=max(0.0, now - content.modified),
            encrypted=flags.encrypted,
        )
        return


# ---- TLS options and what they name ------------------------------------------------------------------------


def _options(beam: Beam, found: HostFacts) -> None:
    flags = beam.flags
    release, _ = version_of(beam)
    if flags.optfile is None:
        roles = flags.inline_options
        options = OptionsFact(beam.label, "-ssl_dist_opt", roles["server"], roles["client"], release=release)
    else:
        path = beam.path(flags.optfile)
        ignored = ("-ssl_dist_opt",) if flags.count("ssl_dist_opt") else ()
        options = read_optfile(beam.label, path, release=release, ignored=ignored)
        _add_file(found, beam, path, Role.SHARED)
        found.files += parents(path, _trusted(beam))
    pairs = dict.fromkeys((_files_of(options.server), _files_of(options.client)))
    kinds = []
    for certificate, key, trust in pairs:
        if certificate is None:
            continue
        paths = [
            None if text is None else beam.path(text) for text in (certificate, key or certificate, trust)
        ]
        assert paths[0] is not None
        pair = pem.pair(beam.label, paths[0], paths[1], paths[2])
        found.certificates.append(pair)
        kinds += [key_kind(pair.chain[0])] if pair.chain else []
        for named, role in zip(paths, (Role.SHARED, Role.SECRET, Role.SHARED), strict=True):
            if named is not None and not (role is Role.SHARED and named == paths[1]):
                _add_file(found, beam, named, role)
                found.files += parents(named, _trusted(beam))
    found.options.append(replace(options, key_kind=kinds[0] if kinds else None))


def read_optfile(
    holder: str, path: Path, *, release: int | None, managed: bool = False, ignored: tuple[str, ...] = ()
) -> OptionsFact:
    """The options in an `ssl_dist_optfile`. One that is not there, or is none, is a fact too."""

    def made(**how: Any) -> OptionsFact:
        return OptionsFact(holder, str(path), release=release, managed=managed, ignored=ignored, **how)

    content = read(path)
    if content.content is None:
        return made(missing=content.missing, problem=content.problem)
    try:
        terms = consult(content.content)
    except ConsultError as error:
        return made(problem=str(error))
    if len(terms) != 1 or not isinstance(terms[0], list):
        return made(problem="holds another thing than one list")
    roles: dict[str, dict[str, Any]] = {"server": {}, "client": {}}
    for entry in terms[0]:
        match entry:
            case (Symbol(name), list(options)) if name in roles:
                roles[name] |= _as_mapping(options)
            case _:
                return made(problem="holds another thing than [{server, […]}, {client, […]}]")
    return made(server=roles["server"], client=roles["client"])


def _as_mapping(options: list[Any]) -> dict[str, Any]:
    """The first of each name counts on OTP 25 and the last on 27 and later; the last is taken."""
    found: dict[str, Any] = {}
    for option in options:
        match option:
            case (Symbol(name), value):
                found[name] = tls_terms(value)
            case Symbol(name):
                found[name] = True
    return found


def key_kind(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "EC"
    return (
        "RSA"
        if isinstance(key, rsa.RSAPublicKey)
        else "DSA"
        if isinstance(key, dsa.DSAPublicKey)
        else "other"
    )


def _files_of(options: Any) -> tuple[str | None, str | None, str | None]:
    return (_path(options, "certfile"), _path(options, "keyfile"), _path(options, "cacertfile"))


def _path(options: Any, name: str) -> str | None:
    value = options.get(name)
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return value if isinstance(value, str) and value else None


# ---- files and listeners -----------------------------------------------------------------------------------


def _configuration_path(beam: Beam, text: str) -> Path:
    return beam.path(text if text.endswith(".config") else f"{text}.config")


def _add_file(found: HostFacts, beam: Beam, path: Path, role: Role) -> None:
    """The file itself, and where a symlink leads: the package manager's own are symlinks often."""
    status = target(path, role, _trusted(beam))
    if status is not None:
        found.files.append(replace(status, sheltered=sheltered(Path(status.path))))


def _trusted(beam: Beam) -> frozenset[int]:
    return frozenset({0, *(() if beam.uid is None else (beam.uid,))})


def _epmd_port(beam: Beam) -> int:
    text = beam.variable("ERL_EPMD_PORT") or ""
    return int(text) if text.isdecimal() and 0 < len(text) < 6 else EPMD_PORT


def _candidates(beam: Beam, names: dict[str, int]) -> Iterator[Candidate]:
    """Its distribution port: by its flags, else by epmd, else any of its listeners may be it."""
    if not beam.here or not beam.listeners:
        return
    low, high = _kernel(beam, "inet_dist_listen_min"), _kernel(beam, "inet_dist_listen_max")
    within: list[tuple[str, int]] = []
    if isinstance(low, int):
        high = high if isinstance(high, int) else low
        within = [(address, port) for address, port in beam.listeners if low <= port <= high]
    port = names.get((beam.flags.node or "").partition("@")[0])
    named = [each for each in beam.listeners if each[1] == port]
    certain = tuple(within or named)
    for address, number in (certain or beam.listeners)[:MAX_CANDIDATES]:
        yield Candidate(beam, address, number, certain=bool(certain))


def _kernel(beam: Beam, key: str) -> Any:
    value = beam.flags.kernel(key)
    for text in () if value is not None else beam.flags.configurations:
        content = read(_configuration_path(beam, text)).content
        value = emulator.kernel_of(content, key) if content is not None else None
        if value is not None:
            break
    return value
