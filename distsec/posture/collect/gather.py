"""One look at a cluster, at this host, or at one listener: everything that `judge/` needs, collected."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from distsec.beam import privileges, proc
from distsec.beam.hosts import with_hosts
from distsec.beam.runtime import find_erl, roots
from distsec.beam.scrutiny import find_before_start
from distsec.config.load import load
from distsec.errors import ConfigError, DistsecError
from distsec.model.cluster import Carrier, ClusterSpec, NodeSpec
from distsec.model.text import escape
from distsec.pki.authority import serial_text
from distsec.pki.store import Store
from distsec.posture.collect import cluster, cookies, host, processes, releases
from distsec.posture.collect.host import Candidate
from distsec.posture.collect.look import look
from distsec.posture.collect.processes import Beam, Found
from distsec.posture.collect.reading import read
from distsec.posture.facts import (
    CookieFact,
    EpmdFact,
    Facts,
    FileFact,
    ListenerFact,
    ReleaseFact,
    Served,
    Source,
)

MAX_LOOKS: Final = 32
"""Listeners that are knocked at at the same time."""

ALL_LOOKS_SECONDS: Final = 60.0
"""After which no more are begun: whoever calls himself an emulator may listen on any number of ports."""


Ask = Callable[[], tuple[Mapping[str, Any] | None, str]]
"""The status of the orchestrator, or None and why there is none."""


def gather_configuration(
    path: Path, environment: Mapping[str, str], *, now: float, search: str, ask: Ask
) -> Facts:
    """The cluster of the configuration at `path`; where that is wrong, what is wrong with it. `search`: the
    PATH with which nodes are started."""
    try:
        spec = load(path, environment)
    except ConfigError as error:
        if os.path.lexists(path) and not os.access(path, os.R_OK):
            seen = gather_host(now=now, search=search)
            return replace(seen, unseen=(f"the configuration {path}: it is not yours to read", *seen.unseen))
        return Facts(now=now, configuration_problems=tuple(str(error).splitlines()))
    spec = _with_hosts(spec)
    status, problem = ask()
    return gather_cluster(spec, now=now, path=search, status=status, status_problem=problem)


def gather_cluster(
    spec: ClusterSpec,
    *,
    now: float,
    path: str,
    status: Mapping[str, Any] | None = None,
    status_problem: str | None = None,
) -> Facts:
    """The cluster of `spec`, and what all emulators of this host show of cookies. `path`: of the environment
    in which nodes are started; `status`: of its orchestrator, or why there is none."""
    state = cluster.describe(spec, now)
    found = processes.find()
    ours = {beam.pid: node for beam in found.beams if (node := _managed_node(beam, spec)) is not None}
    carried = [fact for beam in found.beams for fact in host.carried_cookies(beam)]
    listeners = asyncio.run(_cluster_listeners(spec, state, found, ours))
    vms = tuple(host.vm_fact(beam, managed=True) for beam in found.beams if beam.pid in ours)
    running = [host.release_fact(beam) for beam in found.beams if beam.pid in ours]
    return Facts(
        now=now,
        spec=spec,
        files=_once(state.files),
        authority=state.authority,
        certificates=tuple(state.certificates),
        revoked=state.revoked,
        cookies=(*state.cookies, *carried, *_of_wrappers(found)),
        options=tuple(state.options),
        vms=vms,
        epmds=_epmds(found),
        listeners=listeners,
        releases=_merged([*running, *_commanded(spec, path, frozenset(ours.values()))]),
        policies=tuple(state.policies),
        forbidden_flags=tuple(_forbidden(spec)),
        shared_uid=_shared_uid(spec, found, ours),
        unfit_users=tuple(_unfit_users(spec)),
        shared_users=tuple(_shared_users(spec)),
        links_unprotected=not links_protected() and any(node.user is not None for node in spec.nodes),
        status=status,
        status_problem=status_problem,
        damage=tuple(state.damage),
        unseen=(*state.unseen, *found.unseen),
        unlisted=tuple(state.unlisted),
    )


def gather_host(*, now: float, search: str) -> Facts:
    """Every emulator of this host, whoever runs it, and the `erl` of the PATH `search`."""
    found = processes.find()
    described = host.describe(found.beams, now)
    listeners = asyncio.run(_host_listeners(described.candidates, described.unseen))
    return Facts(
        now=now,
        files=_once(described.files),
        certificates=tuple(described.certificates),
        cookies=(*described.cookies, *_of_wrappers(found)),
        options=tuple(described.options),
        vms=tuple(host.vm_fact(beam, managed=False) for beam in found.beams),
        epmds=_epmds(found),
        listeners=listeners,
        releases=_merged([*map(host.release_fact, found.beams), *_installed(search)]),
        unseen=(*described.unseen, *found.unseen),
        elsewhere=(*described.elsewhere, *found.elsewhere),
    )


def gather_listener(address: str, port: int, *, now: float) -> Facts:
    """What one listener serves. `address` is an IP literal."""
    served = asyncio.run(look(address, port, expect=Carrier.DISTSEC))
    return Facts(now=now, listeners=(ListenerFact(f"{_where(address, port)}", address, port, served),))


# ---- listeners ---------------------------------------------------------------------------------------------


async def _cluster_listeners(
    spec: ClusterSpec, state: cluster.StateFacts, found: Found, ours: Mapping[int, str]
) -> tuple[ListenerFact, ...]:
    gate = asyncio.Semaphore(MAX_LOOKS)
    here = proc.all_listening(os.getpid())
    serials = {
        fact.holder: serial_text(fact.chain[0].serial_number) for fact in state.certificates if fact.chain
    }

    async def one(node: NodeSpec) -> list[ListenerFact]:
        name, port = str(node.name), state.ports.get(str(node.name))
        bound = sorted(address for address, number in here if number == port)
        runs = name in ours.values()
        if port is None or not bound:
            if not runs or port is None:
                return []
            missing = ListenerFact(name, node.address, port, None, wanted_address=node.address, missing=True)
            return [missing]
        stranger = None if runs else await asyncio.to_thread(_holder, port)
        async with gate:
            served = None if stranger else await look(bound[0], port, expect=spec.carrier)
        return [
            ListenerFact(
                holder=name,
                address=address,
                port=port,
                served=served,
                wanted_address=node.address,
                cookies_only=not spec.carrier.encrypted,
                serial=serials.get(name),
                stranger=stranger,
            )
            for address in bound
        ]

    looked = await asyncio.gather(*map(one, spec.nodes))
    return tuple(fact for facts in looked for fact in facts)


async def _host_listeners(candidates: Sequence[Candidate], unseen: list[str]) -> tuple[ListenerFact, ...]:
    gate = asyncio.Semaphore(MAX_LOOKS)
    loop = asyncio.get_running_loop()
    deadline, late = loop.time() + ALL_LOOKS_SECONDS, 0

    async def one(candidate: Candidate) -> ListenerFact | None:
        nonlocal late
        flags = candidate.beam.flags
        expect = Carrier.DISTSEC if flags.encrypted else Carrier.INET_TCP
        async with gate:
            if loop.time() > deadline:
                late += 1
                return None
            served = await look(candidate.address, candidate.port, expect=expect)
        if not candidate.certain and not _is_distribution(served, flags.encrypted):
            return None
        return ListenerFact(candidate.beam.label, candidate.address, candidate.port, served)

    found = await asyncio.gather(*map(one, candidates))
    if late:
        unseen.append(f"what {late} listeners serve: the others took {ALL_LOOKS_SECONDS:g} s")
    return tuple(fact for fact in found if fact is not None)


def _is_distribution(served: Served, encrypted: bool) -> bool:
    """Whether a listener that may be anything of the application's answers as the distribution would."""
    return served.plaintext is True or (encrypted and served.tls)


def _holder(port: int) -> str:
    """Who holds a node's port while its node does not run."""
    process = proc.holder(port)
    return (
        "a process of another user"
        if process is None
        else f"process {process.pid} ({escape(process.name, 40)})"
    )


# ---- who is who --------------------------------------------------------------------------------------------


def _with_hosts(spec: ClusterSpec) -> ClusterSpec:
    """With what was imported of other hosts. Where that is not ours to read nothing is said of peers."""
    try:
        state = Path(spec.state_dir)
        return with_hosts(spec, Store(state)) if state.exists() else spec
    except (DistsecError, OSError):
        return replace(spec, peers=())


def _managed_node(beam: Beam, spec: ClusterSpec) -> str | None:
    """The node of this cluster that the emulator is (docs/port-protocol.md: `-distsec_dir`). In a container
    there may be another cluster in a directory of the same name.
    """
    directory = beam.flags.first("distsec_dir") or ""
    name = directory.removeprefix(f"{spec.state_dir}/nodes/")
    if name == directory or spec.node(name) is None or proc.finds_same(beam.pid, Path(directory)) is False:
        return None
    return name


def _shared_uid(spec: ClusterSpec, found: Found, ours: Mapping[int, str]) -> int | None:
    """The uid that nodes share with the orchestrator and with each other. Where none runs: that of the state
    directory, which they will have, since nodes run as the orchestrator's own user."""
    uids = {beam.uid for beam in found.beams if beam.pid in ours}
    if not uids and all(node.user is not None for node in spec.nodes):
        return None
    try:
        owner = Path(spec.state_dir).stat().st_uid
    except OSError:
        return None
    return owner if not uids or owner in uids else None


def _unfit_users(spec: ClusterSpec) -> Iterable[tuple[str, str, str]]:
    try:
        state = Path(spec.state_dir).stat()
    except OSError:
        return
    for node in spec.nodes:
        if (unfit := privileges.unfit(node, state.st_uid, state.st_gid)) is not None:
            yield str(node.name), *unfit


def _shared_users(spec: ClusterSpec) -> Iterable[tuple[str, str]]:
    accounts = cluster.accounts_of(spec)
    for line in privileges.shared(accounts):
        yield line.partition(" ")[0], line
    users = {account.name for account in accounts.values()}
    for name, account in accounts.items():
        if others := [each for each in privileges.others_in_group(account) if each not in users]:
            yield name, f"{', '.join(others[:5])} can read the key of {name}: of the group of {account.name}"


def links_protected() -> bool:
    """Whether nobody links files that are not his (proc(5)); what cannot be read is taken to be as usual."""
    return read(Path("/proc/sys/fs/protected_hardlinks")).content != b"0\n"


def _of_wrappers(found: Found) -> list[CookieFact]:
    """Scripts and shells that carry a cookie in their arguments for the emulator that they start."""
    return [
        cookies.measure(cookie, source=Source.ARGUMENTS, holder=label, place="its arguments")
        for label, carried in found.wrappers
        for cookie in carried
    ]


def _epmds(found: Found) -> tuple[EpmdFact, ...]:
    return tuple(EpmdFact(*each) for each in sorted(found.epmds))


def _forbidden(spec: ClusterSpec) -> Iterable[tuple[str, str]]:
    """(node, what) of flags in commands that the orchestrator will not start."""
    for node in spec.nodes:
        if node.command:
            flag = find_before_start(str(node.name), node.command, node.environment, _directory(spec, node))
            if flag is not None:
                yield str(node.name), str(flag)


def _directory(spec: ClusterSpec, node: NodeSpec) -> Path:
    """Where a node's command is started (supervisor.machine)."""
    own = Path(spec.state_dir, "nodes", str(node.name))
    return Path(node.working_directory or (own if node.user is not None else Path(spec.config_file).parent))


# ---- releases ----------------------------------------------------------------------------------------------


def _commanded(spec: ClusterSpec, path: str, running: frozenset[str]) -> Iterable[ReleaseFact]:
    """The OTP that a node's command would start, where that can be known without starting it."""
    for node in spec.nodes:
        if not node.command or str(node.name) in running:
            continue
        environment = {"PATH": path} | dict(node.environment)
        try:
            erl = find_erl(node.command, environment, _directory(spec, node))
        except DistsecError:
            continue  # the start says so
        for root in roots(erl) if erl is not None else ():
            release, version = releases.of_root(root)
            if release is not None:
                yield ReleaseFact(
                    (str(node.name),), str(root), release, version, on_carrier=spec.carrier is Carrier.DISTSEC
                )
                break


def _installed(search: str) -> Iterable[ReleaseFact]:
    """The OTP of the `erl` that whoever types it gets."""
    found = shutil.which("erl", path=search)
    for root in roots(Path(found)) if found is not None else ():
        release, version = releases.of_root(root)
        if release is not None:
            yield ReleaseFact(("erl on the PATH",), str(root), release, version)
            break


def _merged(found: Iterable[ReleaseFact]) -> tuple[ReleaseFact, ...]:
    """One for each version, with all its users."""
    by_version: dict[tuple[int | None, str | None], ReleaseFact] = {}
    for fact in found:
        key = (fact.release, fact.version)
        known = by_version.get(key)
        if known is not None:
            users = tuple(dict.fromkeys((*known.users, *fact.users)))
            fact = replace(known, users=users, on_carrier=known.on_carrier and fact.on_carrier)
        by_version[key] = fact
    return tuple(by_version.values())


def _once(files: Iterable[FileFact]) -> tuple[FileFact, ...]:
    """Each path once; of one that was met twice the first, but a secret is a secret."""
    by_path: dict[str, FileFact] = {}
    for fact in files:
        known = by_path.get(fact.path)
        if known is None or (fact.role.value == "secret" and known.role.value == "shared"):
            by_path[fact.path] = fact
    return tuple(by_path.values())


def _where(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
