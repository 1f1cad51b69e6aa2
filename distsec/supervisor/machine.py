"""What the supervisor needs of the machine, as an interface, and the real one: files, processes, sockets,
probes.

Nothing here decides anything. The tests of the supervisor put a machine of their own in its place.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from distsec.beam import aflags, proc, provision, render, session
from distsec.beam.agent import ebin_directory
from distsec.beam.epmd import ensure_epmd, epmd_port
from distsec.beam.flags import ForbiddenFlag
from distsec.beam.link import AgentServer
from distsec.beam.logs import OutputLog
from distsec.beam.messages import Command, Message, Reply
from distsec.beam.node import NodeProcess, boot_id, leftovers, node_environment, read_run
from distsec.beam.overlay import load_overlay, save_overlay
from distsec.beam.ports import check_port_free
from distsec.beam.probe import ProbeResult, look_at_certificate, probe
from distsec.beam.protocol import Argument
from distsec.beam.runtime import check_runtime, find_erl, find_libraries
from distsec.beam.scrutiny import BootWatch, find_before_start
from distsec.beam.witness import Witnessed, show_certificate
from distsec.core.wanted import Overlay
from distsec.errors import GuardNotInForce, StoreError
from distsec.model.cluster import Certificate, ClusterSpec, Epmd, NodeSpec
from distsec.model.cookies import CookieSet
from distsec.model.policy import Policy
from distsec.model.secret import Secret
from distsec.pki import cookies
from distsec.pki.account import acting_as
from distsec.pki.authority import certificate_of
from distsec.pki.forms import AGENT_SOCKET
from distsec.pki.pairs import Pair
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store
from distsec.supervisor import boot, echo_file
from distsec.supervisor.credentials import Credentials, StateCredentials
from distsec.supervisor.echoes import EchoRecord
from distsec.supervisor.external import ExternalProcess, Process
from distsec.supervisor.foundlings import Foundlings, StateFoundlings
from distsec.supervisor.guard_refusal import take_refusal
from distsec.supervisor.node_users import NodeUsers, Users
from distsec.supervisor.proof import Expected
from distsec.supervisor.records import Records, StateRecords
from distsec.supervisor.succession import StateSuccession, Succession

PROBE_SECONDS = 4.0
SERVED_SECONDS = 3.0
LEFTOVER_GRACE_SECONDS = 3.0


class Server(Protocol):
    """See beam.link.AgentServer."""

    @property
    def pid(self) -> int | None: ...
    def present(self) -> bool: ...
    async def start(self) -> None: ...
    async def mend(self) -> bool: ...
    async def close(self) -> None: ...
    def drop(self, why: str) -> None: ...
    def rekey(self, key: Secret) -> None: ...
    async def command(
        self,
        kind: Command,
        arguments: Mapping[str, Argument],
        timeout: float,  # noqa: ASYNC109 - as AgentServer has it
    ) -> Reply: ...


class Machine(Protocol):
    """Everything beyond memory. `use` comes first, and again after a reload. All raise DistsecError."""

    records: Records
    credentials: Credentials
    succession: Succession
    foundlings: Foundlings

    @property
    def users(self) -> Users: ...
    @property
    def ports(self) -> Mapping[str, int]: ...
    def use(self, spec: ClusterSpec) -> None: ...
    def load_overlay(self) -> Overlay: ...
    def save_overlay(self, overlay: Overlay) -> None: ...
    def document(self, policy: Policy) -> bytes: ...
    def start_time(self, pid: int) -> int | None: ...
    def moment(self) -> tuple[str, int]: ...
    async def adopt(self, node: NodeSpec) -> Process | None: ...
    async def start(self, node: NodeSpec, document: bytes) -> Process: ...
    def boot_watch(self, node: NodeSpec, pid: int) -> boot.BootWatch: ...
    def watch(self, pid: int, start_time: int) -> Process: ...
    def server(
        self,
        node: NodeSpec,
        accept_peer: Callable[[int, int], bool],
        on_message: Callable[[str, Message], None],
        on_lost: Callable[[str, str], None],
        on_refused: Callable[[str, str, str], None],
    ) -> Server: ...
    def expected(self, node: NodeSpec, policy_digest: str) -> Expected: ...
    async def probe(self, node: NodeSpec, opened: Callable[[str], object]) -> ProbeResult: ...
    async def served(self, node: NodeSpec, opened: Callable[[str], object]) -> ProbeResult: ...
    async def show_certificate(
        self, node: NodeSpec, pair: Pair, opened: Callable[[str], object]
    ) -> Witnessed: ...
    def take_refusal(self, node: NodeSpec, since: int | None) -> tuple[str, str] | None: ...
    def forget(self, node: NodeSpec) -> None: ...
    def write_policy(self, node: NodeSpec, overlay: Overlay, document: bytes) -> None: ...
    def cookies(self, node: NodeSpec, overlay: Overlay) -> CookieSet | None: ...
    def certificate(self, node: NodeSpec) -> Certificate | None: ...
    def agent_key(self, node: NodeSpec) -> Secret: ...
    def outside(self, node: NodeSpec) -> dict[str, Any]: ...
    async def check_runtime(self, node: NodeSpec) -> None: ...
    async def preflight(self, node: NodeSpec) -> None: ...
    async def ready_epmd(self, node: NodeSpec) -> None: ...
    def rotate(self, node: NodeSpec) -> None: ...
    def load_echoes(self, node: NodeSpec, launch: str) -> EchoRecord: ...
    def save_echoes(self, node: NodeSpec, launch: str, record: EchoRecord) -> None: ...


class LocalMachine:
    """This host. `base`: the orchestrator's own environment, of which a node gets PATH, LANG and TZ."""

    def __init__(self, spec: ClusterSpec, store: Store, base: Mapping[str, str]) -> None:
        self.store = store
        self._base = base
        self.users: NodeUsers = NodeUsers(store)
        self._signer = PolicySigner.load(store)
        self.records: Records = StateRecords(store, self._signer)
        self.credentials: Credentials = StateCredentials(store)
        self.succession: Succession = StateSuccession(store)
        self.foundlings: Foundlings = StateFoundlings(store)
        self.use(spec)

    def use(self, spec: ClusterSpec) -> None:
        self.users.use(spec)
        self.ports: Mapping[str, int] = provision.distribution_ports(spec, self.store)
        self.spec = spec

    def load_overlay(self) -> Overlay:
        return load_overlay(self.store)

    def save_overlay(self, overlay: Overlay) -> None:
        # Not under store.locked(): a denial must not wait for whoever holds that lock, and nobody else writes
        # this file while the orchestrator runs (daemon.only_one).
        save_overlay(self.store, overlay)

    def document(self, policy: Policy) -> bytes:
        return render.policy_document(policy, self._signer.sign)

    def start_time(self, pid: int) -> int | None:
        return proc.start_time(pid)

    def moment(self) -> tuple[str, int]:
        """Now, as start times of processes are told: which boot of the kernel, and clock ticks since then."""
        return boot_id(), session.ticks_now()

    async def adopt(self, node: NodeSpec) -> Process | None:
        """The node's process of an earlier orchestrator. None: not there any more; what it left is ended."""
        relative = f"{self._directory(node)}/run.json"
        try:
            run = read_run(self.store.read(relative)) if self.store.exists(relative) else None
        except StoreError:
            # The node may have written it itself. What of it lives is found by its log, and ended.
            run = None
        log, account = self._log(node), self.users.of(node)
        if run is not None and (process := NodeProcess.adopt(run, log, account)) is not None:
            return process
        if (found := await self.foundlings.adopt(node, log, run)) is not None:
            return found
        left = await asyncio.to_thread(leftovers, run, log, account)
        if left and (staying := await session.end(left, LEFTOVER_GRACE_SECONDS)):
            pids = ", ".join(str(member.pid) for member in staying)
            raise StoreError(f"processes of an earlier start cannot be ended: {pids}", where=str(node.name))
        self.forget(node)
        return None

    async def start(self, node: NodeSpec, document: bytes) -> Process:
        """Renders the node's files anew and starts its command. Raises GuardNotInForce where its flags forbid
        that."""
        directory, account = self._working_directory(node), self.users.of(node)

        def look() -> ForbiddenFlag | None:
            with acting_as(account):
                return find_before_start(str(node.name), node.command, node.environment, directory)

        found = await asyncio.to_thread(look)
        if found is not None:
            raise GuardNotInForce(str(found))
        await asyncio.to_thread(self._prepare, node, document)
        await asyncio.to_thread(check_port_free, node.address, self.ports[str(node.name)])
        await self.ready_epmd(node)
        relative = f"{self._directory(node)}/run.json"
        self.foundlings.begin(node)
        return NodeProcess.start(
            node.command,
            environment=self._environment(node),
            working_directory=directory,
            log=self._log(node),
            started_at=time.time(),
            record=lambda content: self.store.write(relative, content),
            account=account,
        )

    def _prepare(self, node: NodeSpec, document: bytes) -> None:
        self.users.entrust(node)
        self.store.discard(f"{self._directory(node)}/guard.refused")
        self.credentials.ready(self.spec, self.load_overlay(), node)
        provision.write_node_files(self.spec, self.store, node, document)

    def boot_watch(self, node: NodeSpec, pid: int) -> boot.BootWatch:
        return BootWatch(str(node.name), pid, aflags.flag_words(**self._flags(node)))

    def watch(self, pid: int, start_time: int) -> Process:
        return ExternalProcess(pid, start_time)

    def server(
        self,
        node: NodeSpec,
        accept_peer: Callable[[int, int], bool],
        on_message: Callable[[str, Message], None],
        on_lost: Callable[[str, str], None],
        on_refused: Callable[[str, str, str], None],
    ) -> Server:
        key = provision.agent_key(self.store, node.name)
        path, account = self._path(node, AGENT_SOCKET), self.users.of(node)
        gid = None if account is None else account.gid
        return AgentServer(str(node.name), path, key, accept_peer, on_message, on_lost, on_refused, gid=gid)

    def expected(self, node: NodeSpec, policy_digest: str) -> Expected:
        optfile = f"{self._directory(node)}/{render.OPTFILE}"
        digest = None
        if self.spec.carrier.encrypted:
            digest = hashlib.sha256(self.store.read(optfile)).hexdigest()
        return Expected(
            proto_dist=render.proto_dist(self.spec.carrier, node.address),
            address=node.address,
            port=node.port or self.ports[str(node.name)],
            optfile_digest=digest,
            policy_digest=policy_digest,
        )

    async def probe(self, node: NodeSpec, opened: Callable[[str], object]) -> ProbeResult:
        return await probe(
            _reachable(node.address),
            node.port or self.ports[str(node.name)],
            PROBE_SECONDS,
            expect=self.spec.carrier,
            opened=opened,
        )

    async def served(self, node: NodeSpec, opened: Callable[[str], object]) -> ProbeResult:
        """Which certificate the port of `node` shows."""
        port = node.port or self.ports[str(node.name)]
        return await look_at_certificate(_reachable(node.address), port, SERVED_SECONDS, opened=opened)

    async def show_certificate(
        self, node: NodeSpec, pair: Pair, opened: Callable[[str], object]
    ) -> Witnessed:
        """See beam.witness."""
        port = node.port or self.ports[str(node.name)]
        return await show_certificate(_reachable(node.address), port, pair, PROBE_SECONDS, opened=opened)

    def take_refusal(self, node: NodeSpec, since: int | None) -> tuple[str, str] | None:
        """See guard_refusal.take_refusal."""
        with acting_as(self.users.of(node)):  # its own file
            return take_refusal(self._path(node, "guard.refused"), since)

    def forget(self, node: NodeSpec) -> None:
        self.store.discard(f"{self._directory(node)}/run.json")
        self.foundlings.forget(node)

    def write_policy(self, node: NodeSpec, overlay: Overlay, document: bytes) -> None:
        """See provision.write_policy_files."""
        provision.write_policy_files(self.spec, self.store, node, overlay, document)

    def cookies(self, node: NodeSpec, overlay: Overlay) -> CookieSet | None:
        """Of `node` with everybody who is listed and not denied; None: it is condemned, and told none."""
        if str(node.name) in overlay.condemned:
            return None
        peers = provision.cookie_peers(self.spec, overlay)
        return cookies.cookie_set(self.store, str(node.name), peers, dict(overlay.epochs), self.spec.hosts)

    def agent_key(self, node: NodeSpec) -> Secret:
        return provision.agent_key(self.store, node.name)

    def certificate(self, node: NodeSpec) -> Certificate | None:
        if not self.spec.carrier.encrypted:
            return None
        relative = f"{self._directory(node)}/{render.CERTIFICATE}"
        try:
            return certificate_of(self.store.read(relative))
        except ValueError:
            raise StoreError(
                "is no certificate (PEM)",
                where=str(self.store.path(relative)),
                do=f"stop {node.name}, remove that file, run `distsec init`, and start it",
            ) from None

    def _environment(self, node: NodeSpec) -> Mapping[str, str]:
        own, account = pwd.getpwuid(os.geteuid()), self.users.of(node)
        return node_environment(
            self._base,
            user=own.pw_name if account is None else account.name,
            home=self.users.home(node) or own.pw_dir,
            erl_aflags=aflags.erl_aflags(**self._flags(node)),
            log_directory=self._path(node, ".").resolve() / "log",
            extra=node.environment,
        )

    def _flags(self, node: NodeSpec) -> aflags.FlagFields:
        return {
            "node": node.name,
            "carrier": self.spec.carrier,
            "directory": str(self._path(node, ".").resolve()),
            "ebin": str(ebin_directory()),
            "address": node.address,
            "port": self.ports[str(node.name)],
            "epmd": self.spec.epmd,
            "libraries": find_libraries(Path(node.otp_libraries)) if node.otp_libraries else (),
        }

    def outside(self, node: NodeSpec) -> dict[str, Any]:
        """What something else needs to start it: {"env": {…}, "files": {…}}; paths are absolute."""
        tls = self.spec.carrier.encrypted
        named = {
            "certificate": render.CERTIFICATE if tls else None,
            "key": render.KEY if tls else None,
            "trust_bundle": render.TRUST if tls else None,
            "optfile": render.OPTFILE if tls else None,
            "policy": "policy.term",
            "cookie": "cookie.term",
        }
        environment = self._environment(node)
        given = ("ERL_EPMD_ADDRESS", *node.environment, "ERL_AFLAGS")
        return {
            "env": {name: environment[name] for name in given},
            "files": {key: str(self._path(node, name)) if name else None for key, name in named.items()},
        }

    async def check_runtime(self, node: NodeSpec) -> None:
        """There is a program, and an OTP release that will do, to start it with. Raises RuntimeMissing."""
        environment, directory = self._environment(node), self._working_directory(node)
        await asyncio.to_thread(check_runtime, node.command, environment, directory, self.users.of(node))

    async def preflight(self, node: NodeSpec) -> None:
        """What would keep `node` from starting now: that, its port, its epmd. Raises DistsecError."""
        await self.check_runtime(node)
        await asyncio.to_thread(check_port_free, node.address, self.ports[str(node.name)])
        await self.ready_epmd(node)

    async def ready_epmd(self, node: NodeSpec) -> None:
        """There is an epmd for `node` to register with, on loopback alone; nothing where it does not."""
        if self.spec.epmd is Epmd.LOOPBACK:
            environment, account = self._environment(node), self.users.of(node)
            with acting_as(account):
                directory = self._working_directory(node)
                erl = find_erl(node.command, environment, directory) if node.command else None
            await ensure_epmd(epmd_port(environment), erl, environment, account)

    def _working_directory(self, node: NodeSpec) -> Path:
        default = Path(self.spec.config_file).parent
        return Path(node.working_directory or (self._path(node, ".") if self.users.of(node) else default))

    def rotate(self, node: NodeSpec) -> None:
        """Blocks; for a thread."""
        self._log(node).rotate()

    def load_echoes(self, node: NodeSpec, launch: str) -> EchoRecord:
        """See echo_file.load."""
        return echo_file.load(self.store, self._directory(node), launch)

    def save_echoes(self, node: NodeSpec, launch: str, record: EchoRecord) -> None:
        """See echo_file.save."""
        echo_file.save(self.store, self._directory(node), launch, record)

    def _directory(self, node: NodeSpec) -> str:
        return provision.node_directory(node.name)

    def _path(self, node: NodeSpec, name: str) -> Path:
        return self.store.path(self._directory(node)) / name

    def _log(self, node: NodeSpec) -> OutputLog:
        return OutputLog(self._path(node, "log") / "output.log", self.spec.log_max_bytes)


def _reachable(address: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared, not bound
