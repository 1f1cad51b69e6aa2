"""What a rotation of the CA asks of nodes: silence, lies and half-done things are told of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import Reply, Served
from distsec.beam.witness import Witnessed
from distsec.core.rotation import Phase
from distsec.errors import CaKeyUnavailable, StoreError
from distsec.model.cluster import Carrier, Link, NodeSpec, NodeState
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki.pairs import Pair
from distsec.supervisor import ca_nodes
from distsec.supervisor.ca_nodes import CaNodes
from distsec.supervisor.succession import Held

OLD, NEW = "CN=distsec CA,O=demo", "CN=distsec CA 0b0b0b0b,O=demo"
A, B, SHELL = "a@127.0.0.1", "b@127.0.0.1", "distsec-shell-1@127.0.0.1"


def link(peer: str, *, issuer: str = NEW, serial: str = "0c", verdict: str = "allow") -> Link:
    return Link(peer, None, None, issuer, serial, 2**31, "out", False, None, None, 0, verdict, None)


@dataclass
class FakeNode:
    """A node that does what it is told, unless a test says otherwise."""

    name: str
    world: World
    trusted: tuple[str, ...] | None = None
    serial: str | None = None
    shows: str | None = None
    fault: AgentCommandFailed | None = None
    witnessed: Witnessed = field(default_factory=lambda: Witnessed(True, "handshake failure", "127.0.0.1:1"))
    refused_for: str | None = "unknown_ca"
    links: dict[str, Link] = field(default_factory=dict)
    reloads: int = 0

    def __post_init__(self) -> None:
        self.spec = NodeSpec(NodeName.parse(self.name), ("erl",))
        rules = SimpleNamespace(external=False)
        self.status = SimpleNamespace(agent=True, pid=7, state=NodeState.RUNNING, rules=rules)
        echoes = SimpleNamespace(refused_for=lambda address: self.refused_for)
        self.observed = SimpleNamespace(links=self.links, echoes=echoes)
        self.server = self

    async def command(self, kind: Any, arguments: Any, timeout: float) -> Reply:
        self.reloads += 1
        if self.fault is not None:
            raise self.fault
        held = self.world.held[self.name]
        served = Served(self.serial or held.serial, 2**31, self.trusted or self.world.trust)
        return Reply(1, True, {"served": served})

    async def served(self) -> Any:
        return SimpleNamespace(
            certificate=SimpleNamespace(serial=self.shows or self.world.held[self.name].serial)
        )

    async def shown(self, pair: Pair) -> Witnessed:
        return self.witnessed


class World:
    """Two nodes, and the files of a phase in which both are to have a leaf of the new CA."""

    def __init__(self) -> None:
        self.trust: tuple[str, ...] = ("aa", "bb")
        self.held = {name: Held("0c", "ca/next", ("ca", "ca/next")) for name in (A, B)}
        self.errors: dict[str, Exception] = {}
        self.reissued: list[str] = []
        self.outcome: str | None = None
        self.kept: list[str] = []
        self.nodes = {name: FakeNode(name, self) for name in (A, B)}
        self.spec = SimpleNamespace(acknowledge_deadline_seconds=0.1, carrier=Carrier.DISTSEC)
        self.machine = SimpleNamespace(succession=self, records=self, ports={A: 1, B: 2})
        overlay = SimpleNamespace(condemned=frozenset[str]())
        self.desk = SimpleNamespace(wanted=SimpleNamespace(overlay=overlay))
        self.listens = False

    # supervisor.succession.Succession

    def write_bundle(self, node: NodeSpec) -> None:
        if (error := self.errors.get(str(node.name))) is not None:
            raise error

    def hold(self, node: NodeSpec) -> Held:
        return self.held[str(node.name)]

    def keep_witness(self, node: NodeSpec) -> None:
        self.kept.append(str(node.name))

    def witness(self, node: NodeSpec, now: float) -> Pair:
        return Pair(Secret(b""), b"")

    def issuer(self) -> str:
        return NEW

    def listened_on(self, address: str, port: int) -> bool:
        return self.listens

    # supervisor.renewal.Renewal

    def now(self) -> float:
        return 0.0

    async def reissue(self, names: list[str], cause: str) -> dict[str, Any]:
        self.reissued += names
        for name in names:
            if self.outcome is None:
                self.held[name] = Held("0d", "ca/next", self.held[name].bundle)
        return {name: SimpleNamespace(error=self.outcome) for name in names}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def nodes(world: World, monkeypatch: pytest.MonkeyPatch) -> CaNodes:
    monkeypatch.setattr(ca_nodes, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(ca_nodes, "REFUSED_SECONDS", 0.05)
    succession = SimpleNamespace(
        write_bundle=world.write_bundle,
        held=world.hold,
        trusted=lambda: world.trust,
        keep_witness=world.keep_witness,
        witness=world.witness,
        issuer=world.issuer,
    )
    world.machine.succession = succession
    return CaNodes(world, world)  # type: ignore[arg-type]


def bring(nodes: CaNodes, phase: Phase = Phase.ACTIVATING) -> Any:
    return asyncio.run(nodes.bring(phase, [A, B]))


def test_nodes_that_have_what_the_phase_wants_are_confirmed(world: World, nodes: CaNodes) -> None:
    brought = bring(nodes)
    assert (brought.confirmed, dict(brought.missing)) == ({A, B}, {})
    assert brought.written == {A, B}
    assert not world.reissued
    assert not nodes.waiting


def test_who_is_waited_for_is_known_while_it_is_silent_and_nobody_afterwards(
    world: World, nodes: CaNodes
) -> None:
    asked, never = asyncio.Event(), asyncio.Event()
    world.spec.acknowledge_deadline_seconds = 60

    async def silence(*_: Any) -> Reply:
        asked.set()
        await never.wait()
        raise AssertionError

    async def look() -> None:
        world.nodes[B].command = silence  # type: ignore[method-assign]
        bringing = asyncio.create_task(nodes.bring(Phase.ACTIVATING, {A, B}))
        async with asyncio.timeout(5):
            await asked.wait()
            while nodes.waiting != {B}:
                await asyncio.sleep(0)
        bringing.cancel()
        await asyncio.gather(bringing, return_exceptions=True)
        assert nodes.waiting == set()

    asyncio.run(look())


def test_who_has_a_leaf_of_the_other_ca_is_given_one(world: World, nodes: CaNodes) -> None:
    world.held[B] = Held("0e", "ca", ("ca", "ca/next"))
    brought = bring(nodes)
    assert (brought.confirmed, world.reissued, world.kept) == ({A, B}, [B], [B])
    assert world.held[B].serial == "0d"


def test_a_leaf_that_cannot_be_issued_is_missing_and_not_written(world: World, nodes: CaNodes) -> None:
    world.held[B] = Held("0e", "ca", ("ca", "ca/next"))
    world.outcome = str(CaKeyUnavailable("the key is sealed", do="unseal it"))
    brought = bring(nodes)
    assert (brought.confirmed, brought.written) == ({A}, {A})
    assert dict(brought.missing) == {B: "the key is sealed; unseal it"}


def test_a_disk_that_takes_nothing_is_missing_and_not_written(world: World, nodes: CaNodes) -> None:
    world.errors[B] = StoreError("the disk is full")
    brought = bring(nodes)
    assert (brought.written, dict(brought.missing)) == ({A}, {B: "the disk is full"})


def test_a_condemned_node_is_given_nothing(world: World, nodes: CaNodes) -> None:
    world.desk.wanted.overlay.condemned = frozenset({B})
    brought = bring(nodes)
    assert brought.written == {A}
    assert brought.missing[B].startswith("it is being re-keyed")
    assert world.nodes[B].reloads == 0


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"trusted": ("aa",)}, "it trusts other CAs than its files say"),
        ({"trusted": ("aa", "bb", "cc")}, "it trusts other CAs than its files say"),
        ({"serial": "ff"}, "it has read serial ff, not 0c"),
        ({"shows": "ff"}, "its port serves ff, not 0c"),
        (
            {"fault": AgentCommandFailed("no key", reason="certificate_rejected")},
            "it has not read its files (certificate_rejected",
        ),
        ({"fault": AgentCommandFailed("late", reason="timeout")}, "it has not read its files (timeout"),
    ],
    ids=str,
)
def test_a_node_that_runs_with_something_else_is_missing_with_the_reason(
    world: World, nodes: CaNodes, lie: dict[str, Any], told: str
) -> None:
    for key, value in lie.items():
        setattr(world.nodes[B], key, value)
    brought = bring(nodes)
    assert brought.confirmed == {A}
    assert brought.missing[B].startswith(told)
    assert brought.written == {A, B}


def test_a_node_whose_agent_is_away_is_waited_for_and_then_named(world: World, nodes: CaNodes) -> None:
    world.nodes[B].status.agent = False
    assert bring(nodes).missing == {B: "its agent does not answer"}


def test_a_node_that_does_not_run_has_its_files_and_that_is_enough(world: World, nodes: CaNodes) -> None:
    status = world.nodes[B].status
    status.agent, status.pid, status.state = False, None, NodeState.STOPPED
    assert bring(nodes).confirmed == {A, B}
    status.rules.external, world.listens = True, True  # something holds the port of one that we do not start
    assert bring(nodes).confirmed == {A}


def test_what_a_node_served_before_both_cas_were_trusted_is_not_asked(world: World, nodes: CaNodes) -> None:
    world.held = {name: Held("0c", "ca", ("ca", "ca/next")) for name in (A, B)}
    world.nodes[B].shows = "ff"
    assert bring(nodes, Phase.PREPARING).confirmed == {A, B}


# ---- links -------------------------------------------------------------------------------------------------


@pytest.fixture
def proofs(world: World, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    asked: list[dict[str, str]] = []

    async def prove(cluster: Any, serials: dict[str, str]) -> dict[str, Any]:
        asked.append(dict(serials))
        if world.listens:
            world.nodes[A].links[B] = link(B)
        return {}

    monkeypatch.setattr(ca_nodes.link_proof, "prove", prove)
    return asked


def links(nodes: CaNodes, phase: Phase = Phase.ACTIVATING) -> dict[str, str]:
    return dict(asyncio.run(nodes.links(phase)))


def test_links_of_the_other_ca_are_proven_anew(world: World, nodes: CaNodes, proofs: list[Any]) -> None:
    world.nodes[A].links[B] = link(B, issuer=OLD, serial="0a")
    world.listens = True  # the proof succeeds
    assert links(nodes) == {}
    assert proofs == [{A: "0c", B: "0c"}]
    assert links(nodes) == {}
    assert len(proofs) == 1, "what is proven is not asked for again"


def test_a_link_that_stays_as_it_is_holds_its_node_up(
    world: World, nodes: CaNodes, proofs: list[Any]
) -> None:
    world.nodes[A].links[B] = link(B, issuer=OLD, serial="0a")
    assert links(nodes) == {A: f"links with {B} are still of the other CA"}


def test_a_link_that_is_no_link_is_not_asked_after(world: World, nodes: CaNodes, proofs: list[Any]) -> None:
    world.nodes[A].links["x@h"] = link("x@h", issuer=OLD, serial="0a", verdict="deny")
    assert links(nodes, Phase.ACTIVATED) == {}


def test_a_shell_of_the_old_ca_counts_only_when_that_is_to_go(
    world: World, nodes: CaNodes, proofs: list[Any]
) -> None:
    world.nodes[A].links[SHELL] = link(SHELL, issuer=OLD, serial="0a")
    assert links(nodes) == {}
    assert links(nodes, Phase.ACTIVATED) == {A: f"links with {SHELL} are still of the other CA"}


def test_stock_otp_goes_on_with_its_links_until_the_old_ca_is_to_go(
    world: World, nodes: CaNodes, proofs: list[Any]
) -> None:
    world.spec.carrier = Carrier.INET_TLS
    world.nodes[A].links[B] = link(B, issuer=OLD, serial="0a")
    assert links(nodes) == {}
    assert "--recycle" in links(nodes, Phase.ACTIVATED)[A]
    assert not proofs


# ---- the proof that the old CA is refused ------------------------------------------------------------------


def refused(nodes: CaNodes) -> dict[str, str]:
    return dict(asyncio.run(nodes.refused()))


def test_every_node_refuses_the_old_ca_and_says_why(world: World, nodes: CaNodes) -> None:
    assert refused(nodes) == {}


@pytest.mark.parametrize(
    ("seen", "reason", "told"),
    [
        (Witnessed(False, "it answered", "127.0.0.1:1"), None, "it does not refuse a certificate of the old"),
        (Witnessed(None, "connection refused"), None, "its port could not be asked (connection refused)"),
        (Witnessed(True, "handshake failure", "127.0.0.1:1"), None, "and has not told why"),
        (Witnessed(True, "handshake failure", "127.0.0.1:1"), "not_allowed", "as not_allowed"),
    ],
    ids=["admitted", "unreachable", "silent", "another reason"],
)
def test_a_node_that_does_not_refuse_it_for_that_is_named(
    world: World, nodes: CaNodes, seen: Witnessed, reason: str | None, told: str
) -> None:
    world.nodes[B].witnessed, world.nodes[B].refused_for = seen, reason
    found = refused(nodes)
    assert found.keys() == {B}
    assert told in found[B]


def test_a_node_that_does_not_run_refuses_nobody(world: World, nodes: CaNodes) -> None:
    status = world.nodes[B].status
    status.agent, status.pid, status.state = False, None, NodeState.STOPPED
    world.nodes[B].witnessed = Witnessed(None, "connection refused")
    assert refused(nodes) == {}
