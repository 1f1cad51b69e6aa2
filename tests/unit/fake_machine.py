"""A machine in memory for the supervisor: nodes that say hello, agents that take policies, ports that answer.

What a test wants to go wrong is set on `FakeMachine` or on one of its `FakeNode`s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distsec.beam.flags import ForbiddenFlag
from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import (
    Command,
    Heartbeat,
    Lane,
    LinkProof,
    LinkUnproven,
    Message,
    Opened,
    Reply,
    Served,
    Snapshot,
)
from distsec.beam.messages import Listener as AgentListener
from distsec.beam.node import Exit
from distsec.beam.probe import ProbeResult
from distsec.beam.proc import Listener
from distsec.core.contacts import ContactBook
from distsec.core.renewal import Life
from distsec.core.rollback import Found
from distsec.core.rotation import Phase, Rotation
from distsec.core.wanted import Overlay, Recovered
from distsec.errors import DistsecError, StoreError
from distsec.model.cluster import Carrier, Certificate, ClusterSpec, Link, Mode, NodeSpec
from distsec.model.cookies import CookiePhase, CookieRotation, Cookies, CookieSet
from distsec.model.names import NodeName
from distsec.model.policy import Policy
from distsec.model.secret import Secret
from distsec.pki.crl import ListState, RevocationReason
from distsec.pki.issued import Issued
from distsec.pki.pairs import Pair
from distsec.supervisor.credentials import Place, Seen
from distsec.supervisor.echoes import EchoRecord
from distsec.supervisor.proof import Expected
from distsec.supervisor.succession import Held

OPTFILE = "0" * 64


def node_spec(name: str, **fields: Any) -> NodeSpec:
    return NodeSpec(NodeName.parse(f"{name}@127.0.0.1"), fields.pop("command", ("erl",)), **fields)


def cluster_spec(*nodes: NodeSpec, **fields: Any) -> ClusterSpec:
    given = {
        "name": "demo",
        "config_file": "/nowhere/distsec.toml",
        "state_dir": "/nowhere/state",
        "mode": Mode.PRODUCTION,
        "carrier": Carrier.INET_TLS,
        "allowed_nodes": tuple(node.name for node in nodes),
        "nodes": nodes,
        "acknowledge_deadline_seconds": 1.0,
        "start_deadline_seconds": 5.0,
        "stop_deadline_seconds": 0.4,
        **fields,
    }
    return ClusterSpec(**given)


class FakeProcess:
    def __init__(self, node: FakeNode, pid: int) -> None:
        self.node = node
        self.pid = pid
        self.start_time = pid * 10
        self.signals: list[signal.Signals] = []
        self.ended = asyncio.get_running_loop().create_future()
        self.abandoned = False

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    def contains(self, pid: int) -> bool:
        return pid in (self.pid, self.pid + 1) and not self.ended.done()

    def listeners(self) -> list[Listener]:
        return list(self.node.listeners)

    def signal_group(self, number: signal.Signals) -> bool:
        self.signals.append(number)
        fatal = number is signal.SIGKILL or (number is signal.SIGTERM and not self.node.ignores_term)
        if fatal and not self.ended.done():
            self.node.die(Exit(signal=number))
        return True

    async def abandon(self) -> None:
        self.abandoned = True


@dataclass
class FakeNode:
    """How one node behaves. The flags may be changed at any time."""

    machine: FakeMachine
    spec: NodeSpec
    says_hello: bool = True
    answers: bool = True  # False: connected and silent, as under SIGSTOP
    silent: bool = False  # True: it is dropped when nothing was heard of it; else it has said something
    refuses_policy: str | None = None
    ignores_stop: bool = False
    ignores_term: bool = False
    carrier: str = "inet_tls"
    halts_with: tuple[str, str] | None = None
    forbidden: ForbiddenFlag | None = None  # what a look at its emulator finds
    starts: int = 0
    process: FakeProcess | None = None
    digest: str | None = None
    generation: int = 0
    policies: list[dict[str, Any]] = field(default_factory=list)
    told_cookies: list[dict[str, Any]] = field(default_factory=list)
    links: tuple[Link, ...] = ()
    server: FakeServer | None = None
    launch: str = ""
    key: bytes = b""
    document: bytes = b""  # what it shows as the policy that is in force
    cookies: list[dict[str, Any]] = field(
        default_factory=list
    )  # the arguments of each `cookies` that it took
    refuses_cookies: str | None = None
    renewed: tuple[LinkProof, ...] = ()
    unproven: tuple[LinkUnproven, ...] = ()
    serves: str | None = None  # the serial that its port shows; None: that of its certificate
    serves_for_ever: bool = False  # whatever it has read
    reload_error: str | None = None
    asked_to_renew: list[dict[str, int]] = field(default_factory=list)
    bound: int = 0  # the port that its process was started with

    @property
    def name(self) -> str:
        return str(self.spec.name)

    @property
    def port(self) -> int:
        return self.machine.ports[self.name]

    @property
    def listeners(self) -> list[Listener]:
        return [Listener(self.process.pid, "127.0.0.1", self.bound)] if self.process else []

    def boot(self, document: bytes | None) -> FakeProcess:
        self.starts += 1
        self.bound = self.port
        self.machine.last_pid += 2
        self.process = FakeProcess(self, self.machine.last_pid)
        self.launch = f"{self.machine.last_pid:032x}"
        self.take(document)
        if self.halts_with is not None:
            self.machine.refused[self.name] = self.halts_with
            asyncio.get_running_loop().call_soon(self.die, Exit(code=78))
        elif self.says_hello:
            asyncio.get_running_loop().call_soon(self.hello)
        return self.process

    def look(self) -> ForbiddenFlag | None:
        return self.forbidden

    def end(self) -> None:
        pass

    def take_cookies(self, arguments: Mapping[str, Any]) -> Reply:
        if self.refuses_cookies:
            raise AgentCommandFailed("refused", reason=self.refuses_cookies)
        self.cookies.append(dict(arguments))
        self.machine.order.append(("told", self.name, str(arguments["step"])))
        return Reply(1, True, {"step": arguments["step"], "either": "other_default" in arguments})

    def reload(self) -> Reply:
        if self.reload_error is not None:
            raise AgentCommandFailed("no", reason=self.reload_error)
        life = self.machine.credentials.life(self.spec)
        if not self.serves_for_ever:
            self.serves = life.serial
        return Reply(1, True, {"served": Served(life.serial, int(life.not_after), ())})

    def take(self, document: bytes | None) -> None:
        if document is not None:
            policy = json.loads(document)
            self.policies.append(policy)
            self.generation, self.digest = policy["generation"], hashlib.sha256(document).hexdigest()

    def hello(self) -> None:
        if self.process is not None and self.server is not None:
            assert self.server.accept_peer(self.process.pid, 0)
            self.server.pid = self.process.pid
            self.server.on_message(self.name, Opened(self.launch))
            self.server.on_message(self.name, self.snapshot())

    def goodbye(self) -> None:
        if self.server is not None and self.server.pid is not None:
            self.server.pid = None
            self.server.on_lost(self.name, "closed")

    def die(self, how: Exit) -> None:
        if self.process is not None and not self.process.ended.done():
            self.goodbye()
            self.process.ended.set_result(how)
            self.process = None

    def snapshot(self) -> Snapshot:
        return Snapshot(
            node=self.name,
            os_pid=self.process.pid if self.process else 0,
            otp="27",
            launch=self.launch,
            started_ms=0,
            carrier=self.carrier,
            listeners=(AgentListener("127.0.0.1", self.bound),),
            optfile_digest=OPTFILE,
            policy_generation=self.generation,
            policy_digest=self.digest,
            links=self.links,
        )

    def heartbeat(self, **fields: Any) -> Heartbeat:
        given: dict[str, Any] = {
            "policy_generation": self.generation,
            "policy_digest": self.digest,
            "links": len(self.links),
            "sequence": dict.fromkeys(Lane, 0),
            "dropped": dict.fromkeys(Lane, 0),
            "refusals": {},
            "checks": {},
            "check_seconds": (),
            "check_micros_sum": 0,
        }
        return Heartbeat(**{**given, **fields})

    def says(self, message: Message) -> None:
        assert self.server is not None
        self.server.on_message(self.name, message)


class FakeServer:
    def __init__(
        self,
        node: FakeNode,
        accept_peer: Callable[[int, int], bool],
        on_message: Callable[[str, Message], None],
        on_lost: Callable[[str, str], None],
        on_refused: Callable[[str, str, str], None],
    ) -> None:
        self.node = node
        self.accept_peer = accept_peer
        self.on_message = on_message
        self.on_lost = on_lost
        self.on_refused = on_refused
        self.pid: int | None = None
        self.closed = False
        self.orphaned = False
        """Its process has ended, and another one holds its connection."""
        self.commands: list[Command] = []

    def present(self) -> bool:
        return self.pid is not None and not self.orphaned

    async def start(self) -> None:
        if (error := self.node.machine.open_errors.get(self.node.name)) is not None:
            raise error
        self.node.server = self

    async def mend(self) -> bool:
        return False

    async def close(self) -> None:
        self.closed = True
        self.node.server = None

    def drop(self, why: str) -> None:
        if self.node.silent or not why.startswith("nothing was heard of it"):
            self.node.goodbye()

    def rekey(self, key: Secret) -> None:
        self.node.key = key.reveal()
        self.node.goodbye()

    async def command(self, kind: Command, arguments: Mapping[str, Any], timeout: float) -> Reply:
        self.commands.append(kind)
        await asyncio.sleep(0)
        if self.pid is None:
            raise AgentCommandFailed("no agent", reason="lost")
        if not self.node.answers:
            await asyncio.sleep(timeout)
            raise AgentCommandFailed("no answer", reason="timeout")
        match kind:
            case Command.STATUS:
                return Reply(1, True, {"snapshot": self.node.snapshot()})
            case Command.POLICY:
                if self.node.refuses_policy:
                    raise AgentCommandFailed("refused", reason=self.node.refuses_policy)
                self.node.told_cookies.append(dict(arguments["cookies"]))
                self.node.take(arguments["document"])
                return Reply(1, True, {"generation": self.node.generation, "digest": self.node.digest})
            case Command.COOKIES:
                return self.node.take_cookies(arguments)
            case Command.RELOAD:
                return self.node.reload()
            case Command.RENEW:
                self.node.asked_to_renew.append(dict(arguments["peers"]))
                return Reply(1, True, {"renewed": self.node.renewed, "failed": self.node.unproven})
            case Command.DOCUMENT:
                return Reply(1, True, {"document": self.node.document})
            case Command.STOP:
                if not self.node.ignores_stop:
                    asyncio.get_running_loop().call_soon(self.node.die, Exit(code=0))
        return Reply(1, True, {})


class FakeSecrets:
    """Implements supervisor.records.Secrets; the cookies that it answers with begin with old or new."""

    def __init__(self, order: list[tuple[str, ...]]) -> None:
        self.order = order
        self.kept = CookieRotation(made=1_700_000_000)
        self.save_error: DistsecError | None = None

    def rotation(self) -> CookieRotation:
        return self.kept

    def make_next(self) -> None:
        self.order.append(("make_next",))

    def save(self, rotation: CookieRotation) -> None:
        if self.save_error is not None:
            raise self.save_error
        self.kept = rotation
        self.order.append(("save", str(rotation.phase)))

    def replace(self) -> None:
        self.order.append(("replace",))

    def drop_next(self) -> None:
        self.order.append(("drop_next",))

    def of(self, node: str, peers: list[str]) -> CookieSet:
        def cookies(secret: str) -> Cookies:
            return Cookies(
                Secret(f"{secret} {node}".encode()),
                {peer: Secret(" ".join([secret, *sorted([node, peer])]).encode()) for peer in peers},
            )

        old, new = cookies("old"), cookies("new")
        current, other = {
            CookiePhase.IDLE: (old, None),
            CookiePhase.ACCEPTING: (old, new),
            CookiePhase.USING: (new, old),
            CookiePhase.FORGETTING: (new, None),
        }[self.kept.phase]
        return CookieSet(self.kept.step, current, other)


class FakeRecords:
    """Implements supervisor.records.Records. `keys`: how often each node was re-keyed."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.keys: dict[str, int] = {}
        self.rekey_error: DistsecError | None = None
        self.rekey_may_end = threading.Event()
        self.rekey_may_end.set()
        self.evidence: tuple[Found, ...] = ()
        self.documents: dict[bytes, Recovered] = {}  # which our key has signed
        self.busy_ports: set[int] = set()
        self.book = ContactBook()
        self.load_error: DistsecError | None = None
        self.saved: list[bytes] = []
        self.reasons: dict[str, RevocationReason] = {}
        self.note_error: DistsecError | None = None
        self.listed: frozenset[str] = frozenset()
        self.lists: tuple[ListState, ...] = ()
        self.issued_elsewhere: tuple[Issued, ...] = ()
        self.given_serials: dict[str, frozenset[str]] = {}
        self.stopped: frozenset[str] = frozenset()
        self.went_back: tuple[str, ...] = ()
        self.cookies = FakeSecrets(machine.order)

    def write_cookies(self, spec: ClusterSpec, node: NodeSpec, overlay: Overlay) -> None:
        self.machine.order.append(("cookies", str(node.name), str(self.cookies.kept.phase)))

    def serial(self, node: NodeSpec) -> str:
        return f"{ord(str(node.name)[0]):02x}{self.keys.get(str(node.name), 0):02x}"

    def found(self, spec: ClusterSpec) -> tuple[Found, ...]:
        return self.evidence

    def holds(self, node: NodeSpec, document: bytes) -> bool:
        return self.machine.written.get(str(node.name)) == document

    def read_document(self, spec: ClusterSpec, document: bytes) -> Recovered:
        if document not in self.documents:
            raise StoreError("is not signed")
        return self.documents[document]

    def rekey(self, spec: ClusterSpec, node: NodeSpec, overlay: Overlay, document: bytes) -> None:
        name = str(node.name)
        assert self.machine.nodes[name].process is None, f"{name} lives, and could read its new key"
        if self.rekey_error is not None:
            raise self.rekey_error
        self.machine.order.append(("rekeying", name))
        assert self.rekey_may_end.wait(20)
        self.keys[name] = self.keys.get(name, 0) + 1
        self.machine.order.append(("rekey", name))

    def listened_on(self, address: str, port: int) -> bool:
        return port in self.busy_ports

    def authority_serials(self) -> frozenset[str]:
        return frozenset({"ca"})

    def note_revoked(self, serials: Collection[str], reason: RevocationReason, now: float) -> None:
        if self.note_error is not None:
            raise self.note_error
        self.reasons |= dict.fromkeys(serials, reason)

    def refresh_lists(self, serials: Collection[str], now: float) -> tuple[ListState, ...]:
        self.listed = frozenset(serials)
        return self.lists

    def issued(self, spec: ClusterSpec) -> tuple[Issued, ...]:
        return self.issued_elsewhere

    def given(self, node: NodeSpec) -> frozenset[str]:
        return self.given_serials.get(str(node.name), frozenset())

    def load_contacts(self) -> ContactBook:
        if self.load_error is not None:
            raise self.load_error
        return self.book

    def stops(self) -> frozenset[str]:
        return self.stopped

    def save_stops(self, names: Collection[str]) -> None:
        self.stopped = frozenset(names)
        self.machine.order.append(("stops", *sorted(names)))

    def rolled_back(self) -> tuple[str, ...]:
        return self.went_back

    def save_rolled_back(self, notes: Iterable[str]) -> None:
        if self.machine.save_error is not None:
            raise self.machine.save_error
        self.went_back = tuple(notes)
        self.machine.order.append(("went back", str(len(self.went_back))))

    def save_contacts(self, content: bytes) -> None:
        self.saved.append(content)


class FakeCredentials:
    """Implements supervisor.credentials.Credentials. A pair is the serial of its certificate, and a renewal
    counts on from it. `drops`: what `look` finds, by node and place.
    """

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.renew_error: DistsecError | None = None
        self.lives: dict[str, Life] = {}
        self.of_serial: dict[str, Life] = {}
        self.drops: dict[tuple[str, Place], Seen] = {}
        self.spoiled: dict[str, list[tuple[str, str]]] = {}
        self.looks = 0
        self.ca = Life("ca", 0.0, 4_000_000_000.0)

    def life(self, node: NodeSpec) -> Life:
        known = Life(self.machine.records.serial(node), 1_000_000_000.0, 2_000_000_000.0, self.ca.not_after)
        return self.lives.get(str(node.name), known)

    def authority(self) -> Life:
        return self.ca

    def renew(self, spec: ClusterSpec, node: NodeSpec, now: float, more_seconds: float) -> Pair | None:
        if self.renew_error is not None:
            raise self.renew_error
        before = self.life(node)
        self.of_serial[before.serial] = before
        new = replace(
            before,
            serial=f"{int(before.serial, 16) + 0x10000:06x}",
            not_before=now,
            not_after=now + before.seconds + more_seconds,
        )
        self.of_serial[new.serial] = self.lives[str(node.name)] = new
        self.machine.order.append(("renew", str(node.name)))
        return self.pair(before.serial)

    def install(self, node: NodeSpec, pair: Pair) -> Pair | None:
        before = self.life(node)
        self.of_serial[before.serial] = before
        serial = pair.certificate.decode()
        self.lives[str(node.name)] = self.of_serial.get(serial, replace(before, serial=serial))
        self.machine.order.append(("install", str(node.name), serial))
        return self.pair(before.serial)

    @staticmethod
    def pair(serial: str) -> Pair:
        return Pair(Secret(b""), serial.encode())

    def ready(self, spec: ClusterSpec, overlay: Overlay, node: NodeSpec) -> None:
        pass

    def found_spoiled(self, node: NodeSpec) -> list[tuple[str, str]]:
        return self.spoiled.pop(str(node.name), [])

    def look(self, spec: ClusterSpec, overlay: Overlay, node: NodeSpec, place: Place, now: float) -> Seen:
        self.looks += 1
        return self.drops.get((str(node.name), place), Seen())

    def consume(self, node: NodeSpec, place: Place) -> None:
        self.drops.pop((str(node.name), place), None)
        self.machine.order.append(("consume", str(node.name), str(place)))

    def restore(self, node: NodeSpec) -> bool:
        self.drops.pop((str(node.name), Place.DIRECTORY), None)
        self.machine.order.append(("restore", str(node.name)))
        return True

    def places(self, node: NodeSpec) -> Mapping[Place, Path]:
        return {}


class FakeSuccession:
    """Implements supervisor.succession.Succession: there is one CA, and nobody rotates it."""

    def rotation(self) -> Rotation:
        return Rotation()

    def since(self) -> int | None:
        return None

    def save(self, phase: Phase, now: float) -> None:
        raise NotImplementedError

    def create(self, cluster: str, now: float) -> None:
        raise NotImplementedError

    def retire(self) -> None:
        raise NotImplementedError

    def discard(self) -> None:
        raise NotImplementedError

    def authorities(self) -> list[dict[str, Any]]:
        return []

    def trusted(self) -> tuple[str, ...]:
        return ()

    def write_bundle(self, node: NodeSpec) -> None:
        raise NotImplementedError

    def held(self, node: NodeSpec) -> Held:
        raise NotImplementedError

    def issue(self, spec: ClusterSpec, node: NodeSpec, now: float) -> Pair:
        raise NotImplementedError

    def keep_witness(self, node: NodeSpec) -> None:
        raise NotImplementedError

    def witness(self, node: NodeSpec, now: float) -> Pair:
        raise NotImplementedError

    def tidy(self) -> None:
        pass

    def issuer(self) -> str:
        return "CN=demo"


class FakeFoundlings:
    """Implements supervisor.foundlings.Foundlings. `occupants`: nodes whose port a VM of theirs has already;
    `flagged`: processes that were started with a node's environment.
    """

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.occupants: dict[str, int] = {}
        self.flagged: set[int] = set()
        self.moved: dict[str, str] = {}

    def take(self, node: NodeSpec, pid: int, start_time: int) -> FakeProcess:
        self.machine.order.append(("take", str(node.name), str(pid)))
        return self.machine.watch(pid, start_time)

    def occupant(self, node: NodeSpec, port: int) -> int | None:
        return self.occupants.get(str(node.name))

    def below(self, node: NodeSpec, pid: int) -> int | None:
        return pid if pid in self.flagged else None

    def moved_from(self, node: NodeSpec) -> str | None:
        return self.moved.pop(str(node.name), None)


class FakeUsers:
    """Implements supervisor.node_users.Users: every node runs as whoever runs the tests."""

    async def settle(self, node: NodeSpec, note: Callable[..., None]) -> None:
        return None

    def entrust(self, node: NodeSpec) -> bool:
        return False


class FakeMachine:
    """Implements supervisor.machine.Machine. `order` is what happened to files and processes, in order."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.overlay = Overlay()
        self.overlays: list[Overlay] = []
        self.written: dict[str, bytes] = {}  # node → its policy file
        self.order: list[tuple[str, ...]] = []
        self.records = FakeRecords(self)
        self.credentials = FakeCredentials(self)
        self.succession = FakeSuccession()
        self.users = FakeUsers()
        self.foundlings = FakeFoundlings(self)
        self.nodes: dict[str, FakeNode] = {}
        self.refused: dict[str, tuple[str, str]] = {}
        self.leftover: dict[str, bool] = {}  # nodes with a process of an earlier orchestrator
        self.unfit: dict[str, DistsecError] = {}  # nodes that there is nothing to start with
        self.start_error: DistsecError | None = None
        self.held: dict[str, DistsecError] = {}  # nodes whose port somebody holds
        self.save_error: DistsecError | None = None
        self.write_error: DistsecError | None = None
        self.open_errors: dict[str, DistsecError] = {}  # nodes whose agent socket cannot be had
        self.last_pid = 100
        self.echoes: dict[tuple[str, str], EchoRecord] = {}
        self.probed = ProbeResult(
            "127.0.0.1", 1, tls=True, version="TLSv1.3", requires_client_certificate=True, tls12_refused=True
        )
        self.use(spec)

    def use(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.ports: dict[str, int] = {
            str(node.name): node.port or 9100 + n for n, node in enumerate(spec.nodes)
        }
        for node in spec.nodes:
            self.nodes.setdefault(str(node.name), FakeNode(self, node)).spec = node

    def load_overlay(self) -> Overlay:
        return self.overlay

    def save_overlay(self, overlay: Overlay) -> None:
        if self.save_error is not None:
            raise self.save_error
        self.overlay = overlay
        self.overlays.append(overlay)
        self.order.append(("save", str(overlay.generation)))

    def document(self, policy: Policy) -> bytes:
        return json.dumps(
            {
                "generation": policy.generation,
                "peers": {peer.name: str(peer.phase) for peer in policy.peers},
                "identities": [peer.identity for peer in policy.peers],
                "denied": sorted(policy.denied),
            }
        ).encode()

    def moment(self) -> tuple[str, int]:
        return "0-0", self.last_pid * 10 + 5  # later than the start of all that was started so far

    def agent_key(self, node: NodeSpec) -> Secret:
        return Secret(b"key of generation %d" % self.records.keys.get(str(node.name), 0))

    def start_time(self, pid: int) -> int | None:
        alive = any(
            node.process and pid in (node.process.pid, node.process.pid + 1) for node in self.nodes.values()
        )
        return pid * 10 if alive else None

    async def adopt(self, node: NodeSpec) -> FakeProcess | None:
        fake = self.nodes[str(node.name)]
        return fake.boot(None) if self.leftover.get(str(node.name)) else None

    async def start(self, node: NodeSpec, document: bytes) -> FakeProcess:
        await asyncio.sleep(0)
        if self.start_error is not None:
            raise self.start_error
        if str(node.name) in self.held:
            raise self.held[str(node.name)]
        self.order.append(("start", str(node.name)))
        self.refused.pop(str(node.name), None)
        return self.nodes[str(node.name)].boot(document)

    def boot_watch(self, node: NodeSpec, pid: int) -> FakeNode:
        return self.nodes[str(node.name)]

    def watch(self, pid: int, start_time: int) -> FakeProcess:
        return next(n.process for n in self.nodes.values() if n.process and n.process.pid == pid)

    def server(self, node: NodeSpec, *callbacks: Any) -> FakeServer:
        return FakeServer(self.nodes[str(node.name)], *callbacks)

    def expected(self, node: NodeSpec, policy_digest: str) -> Expected:
        port = node.port or self.ports[str(node.name)]
        return Expected("inet_tls", node.address, port, OPTFILE, policy_digest)

    async def probe(self, node: NodeSpec, opened: Callable[[str], object]) -> ProbeResult:
        opened("127.0.0.1:40001")
        await asyncio.sleep(0)
        return self.probed

    async def served(self, node: NodeSpec, opened: Callable[[str], object]) -> ProbeResult:
        opened("127.0.0.1:40002")
        await asyncio.sleep(0)
        shown, serves = self.certificate(node), self.nodes[str(node.name)].serves
        if shown is not None and serves is not None:
            shown = replace(shown, serial=serves)
        return replace(self.probed, certificate=shown)

    def take_refusal(self, node: NodeSpec, since: int | None) -> tuple[str, str] | None:
        return self.refused.pop(str(node.name), None)

    def forget(self, node: NodeSpec) -> None:
        self.order.append(("forget", str(node.name)))

    def write_policy(self, node: NodeSpec, overlay: Overlay, document: bytes) -> None:
        if self.write_error is not None:
            raise self.write_error
        self.order.append(("write", str(node.name), str(json.loads(document)["generation"])))
        self.written[str(node.name)] = document

    def cookies(self, node: NodeSpec, overlay: Overlay) -> CookieSet | None:
        if str(node.name) in overlay.condemned:
            return None
        return self.records.cookies.of(
            str(node.name), [name for name in self.nodes if name != str(node.name)]
        )

    def certificate(self, node: NodeSpec) -> Certificate | None:
        life = self.credentials.life(node)
        return Certificate(node.name.identity("demo"), life.serial, "CN=demo", int(life.not_after))

    def outside(self, node: NodeSpec) -> dict[str, Any]:
        return {"env": {"ERL_AFLAGS": "-x"}, "files": {}}

    async def ready_epmd(self, node: NodeSpec) -> None:
        pass

    async def check_runtime(self, node: NodeSpec) -> None:
        if str(node.name) in self.unfit:
            raise self.unfit[str(node.name)]

    async def preflight(self, node: NodeSpec) -> None:
        await self.check_runtime(node)
        if str(node.name) in self.held:
            raise self.held[str(node.name)]

    def rotate(self, node: NodeSpec) -> None:
        pass

    def load_echoes(self, node: NodeSpec, launch: str) -> EchoRecord:
        return self.echoes.get((str(node.name), launch), EchoRecord())

    def save_echoes(self, node: NodeSpec, launch: str, record: EchoRecord) -> None:
        self.echoes[str(node.name), launch] = record
