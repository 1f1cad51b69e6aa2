"""The supervisor against a machine in memory: real lifecycle, real rollouts, no process and no socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from distsec.beam.flags import ForbiddenFlag
from distsec.beam.messages import EventKind, Lane, LaneEvent
from distsec.beam.node import Exit
from distsec.beam.probe import ProbeResult
from distsec.control.service import Orchestrator
from distsec.core import node_arrows
from distsec.core import node_status as life
from distsec.errors import (
    CommandFailed,
    ConfigError,
    DistsecError,
    EpmdUnavailable,
    GuardNotInForce,
    NotAcknowledged,
    NotFound,
    PortInUse,
    Problem,
    RuntimeMissing,
    StoreError,
    UsageError,
)
from distsec.model.cluster import ClusterSpec, Link, NodeState, RestartPolicy
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.policy import Direction, Reason
from distsec.observe.bus import Bus
from distsec.observe.log import make_logger
from distsec.observe.metrics import Metrics
from distsec.supervisor import Supervisor
from tests.unit.fake_machine import FakeMachine, FakeNode, cluster_spec, node_spec
from tests.unit.fake_place import FakePlace
from tests.unit.later import later
from tests.waiting import PATIENCE_SECONDS

A, B, C = (f"{name}@127.0.0.1" for name in "abc")


class Cluster:
    """A supervisor, its machine, and what it published."""

    def __init__(self, spec: ClusterSpec, machine: FakeMachine | None = None) -> None:
        self.machine = machine or FakeMachine(spec)
        self.bus = Bus()
        self.metrics = Metrics()
        self.events: list[SecurityEvent] = []
        self.bus.subscribe(self.events.append)
        self.bus.subscribe(self.metrics.event)
        self.next_spec: ClusterSpec | Exception = spec
        self.completed: Callable[[ClusterSpec], object] = lambda new: None  # in a thread
        self.log = io.StringIO()
        self.supervisor = Supervisor(
            spec,
            self.machine,
            self.bus,
            self.metrics,
            make_logger(self.log),
            reread=self._reread,
            complete=lambda new: self.completed(new),
            place=FakePlace(),
        )

    def _reread(self) -> ClusterSpec:
        if isinstance(self.next_spec, Exception):
            raise self.next_spec
        return self.next_spec

    def fake(self, name: str) -> FakeNode:
        return self.machine.nodes[name]

    def state(self, name: str) -> NodeState:
        return self.supervisor.nodes[name].status.state

    async def states(self, **wanted: NodeState) -> None:
        for head, state in wanted.items():
            await until(lambda head=head, state=state: self.state(f"{head}@127.0.0.1") is state)  # type: ignore[misc]

    def status(self, name: str) -> dict[str, Any]:
        nodes = self.supervisor.status()["nodes"]
        found: dict[str, Any] = next(node for node in nodes if node["name"] == name)
        return found

    def of_type(self, kind: EventType, **fields: Any) -> list[SecurityEvent]:
        return [
            event
            for event in self.events
            if event.type is kind and all(getattr(event, key) == value for key, value in fields.items())
        ]


async def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(
    *names: str, machine: Callable[[FakeMachine], object] = lambda machine: None, **fields: Any
) -> AsyncIterator[Cluster]:
    """A cluster whose nodes are `names`; `machine` prepares the machine before the start."""
    spec = cluster_spec(*(node_spec(name) for name in names or ("a", "b", "c")), **fields)
    cluster = Cluster(spec)
    machine(cluster.machine)
    async with cluster.supervisor.running():
        yield cluster


@contextlib.asynccontextmanager
async def up(*names: str, **fields: Any) -> AsyncIterator[Cluster]:
    async with running(*names, **fields) as cluster:
        await until(
            lambda: all(cluster.state(name) is NodeState.RUNNING for name in cluster.supervisor.nodes)
        )
        yield cluster


def link(peer: str, verdict: str = "allow") -> Link:
    return Link(
        peer, "127.0.0.1:5", None, None, None, None, "in", True, "tlsv1.3", "X", 1, verdict,
        None if verdict == "allow" else Reason.UNLISTED_LINK,
    )  # fmt: skip


def refusal(sequence: int, reason: Reason, address: str | None) -> LaneEvent:
    return LaneEvent(
        Lane.REFUSALS,
        sequence,
        EventKind.REFUSAL,
        0,
        launch="x",
        direction=Direction.IN,
        reason=reason,
        address=address,
    )


def _it_is_an_orchestrator(supervisor: Supervisor) -> Orchestrator:
    return supervisor  # mypy checks that the protocol is implemented


# ---- starting ------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_starts_all_nodes_and_reports_them_as_the_design_says() -> None:
    async with up() as cluster:
        status = cluster.supervisor.status()
        assert status["schema"] == 1
        assert (status["cluster"], status["mode"], status["carrier"]) == ("demo", "production", "inet_tls")
        assert status["healthy"] is True
        node = cluster.status(A)
        assert (node["state"], node["agent"], node["otp"], node["support"]) == (
            "RUNNING",
            "connected",
            "27",
            "proven",
        )
        assert node["pid"] == cluster.fake(A).process.pid  # type: ignore[union-attr]
        assert node["certificate"] == {
            "identity": "spiffe://demo/node/127.0.0.1/a",
            "serial": "6100",
            "issuer": "CN=demo",
            "not_after": 2_000_000_000,
            "revoked": False,
        }
        assert b'distsec_agent_connected{node="a@127.0.0.1"} 1.0' in cluster.metrics.render()


@pytest.mark.asyncio
async def test_starts_only_so_many_at_a_time() -> None:
    async with running("a", "b", "c", start_parallel=1, machine=_silent("a")) as cluster:
        await until(lambda: cluster.fake(A).starts == 1)
        assert (cluster.fake(B).starts, cluster.fake(C).starts) == (0, 0)
        cluster.fake(A).hello()
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING, c=NodeState.RUNNING)


def _silent(*heads: str) -> Callable[[FakeMachine], None]:
    def prepare(machine: FakeMachine) -> None:
        for head in heads:
            machine.nodes[f"{head}@127.0.0.1"].says_hello = False

    return prepare


HELD = PortInUse("the port is in use", where="127.0.0.1:9100", do="end that process")


@pytest.mark.parametrize(
    "held", [HELD, EpmdUnavailable("epmd does not start"), StoreError("full")], ids=["port", "epmd", "disk"]
)
@pytest.mark.asyncio
async def test_what_may_pass_keeps_its_own_node_down_until_it_has_and_no_other(held: DistsecError) -> None:
    async with running("a", "b", machine=lambda machine: machine.held.update({A: held})) as cluster:
        await cluster.states(a=NodeState.BACKOFF, b=NodeState.RUNNING)
        node = cluster.status(A)
        assert (node["reason"], node["detail"]) == ("start_failed", str(held))
        assert cluster.supervisor.status()["healthy"] is False
        assert cluster.supervisor.status()["violation"] is False
        [told] = cluster.of_type(EventType.NODE_STATE_CHANGED, node=A, severity=Severity.WARNING)[:1]
        assert (told.reason, told.detail) == ("start_failed", f"BACKOFF: {held}")
        assert cluster.fake(A).starts == 0
        cluster.machine.held.clear()
        await cluster.states(a=NodeState.RUNNING)
        assert cluster.fake(A).starts == 1


@pytest.mark.asyncio
async def test_metrics_that_nobody_can_ask_for_are_degraded() -> None:
    async with up("a") as cluster:
        assert (cluster.supervisor.status()["healthy"], cluster.status(A)["state"]) == (True, "RUNNING")
        cluster.metrics.unserved = "the port is taken"
        status = cluster.supervisor.status()
        assert (status["healthy"], status["metrics_problem"]) == (False, "the port is taken")


@pytest.mark.asyncio
async def test_a_start_that_was_asked_for_says_at_once_that_the_port_is_held() -> None:
    async with up("a") as cluster:
        await cluster.supervisor.stop([A])
        cluster.machine.held[A] = HELD
        for ask in (cluster.supervisor.start, cluster.supervisor.restart):
            with pytest.raises(
                CommandFailed, match=r"BACKOFF \(start_failed: .*the port is in use"
            ) as caught:
                await ask([A])
            assert "tried again by itself" in caught.value.do
        await cluster.supervisor.stop([A])
        assert cluster.state(A) is NodeState.STOPPED


@pytest.mark.asyncio
async def test_what_kept_a_node_down_is_told_although_it_is_tried_again_by_the_time_the_others_are_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with up("a", "b", start_deadline_seconds=3600.0) as cluster:
        await cluster.supervisor.stop([A, B])
        cluster.machine.held[A] = HELD
        cluster.fake(A).says_hello = cluster.fake(B).says_hello = False
        start = asyncio.create_task(cluster.supervisor.start([A, B]))
        await cluster.states(a=NodeState.BACKOFF, b=NodeState.STARTING)
        await until(lambda: cluster.fake(B).process is not None)
        del cluster.machine.held[A]
        later(monkeypatch, 600.0)
        await cluster.states(a=NodeState.STARTING)
        cluster.fake(B).hello()
        with pytest.raises(CommandFailed, match=r"BACKOFF \(start_failed: .*the port is in use") as caught:
            await start
        assert "tried again by itself" in caught.value.do


@pytest.mark.asyncio
async def test_a_node_that_nothing_can_start_is_fatal_and_the_others_run() -> None:
    async with running(
        "a", "b", machine=lambda machine: machine.unfit.update({A: RuntimeMissing("OTP 24")})
    ) as cluster:
        await cluster.states(a=NodeState.FATAL, b=NodeState.RUNNING)
        assert (cluster.status(A)["reason"], cluster.status(A)["detail"]) == ("start_failed", "OTP 24")
        assert cluster.fake(A).starts == 0
        assert cluster.of_type(EventType.NODE_STATE_CHANGED, node=A, severity=Severity.CRITICAL)


@pytest.mark.asyncio
async def test_nothing_is_started_where_nothing_ever_could_be() -> None:
    made: list[FakeMachine] = []

    def broken(machine: FakeMachine) -> None:
        machine.unfit.update({A: RuntimeMissing("no erl"), B: RuntimeMissing("no erl")})
        made.append(machine)

    with pytest.raises(BaseExceptionGroup) as caught:
        async with running("a", "b", machine=broken) as cluster:
            assert cluster is None, "unreachable"
    assert caught.group_contains(RuntimeMissing)
    assert [node.starts for node in made[0].nodes.values()] == [0, 0]


@pytest.mark.asyncio
async def test_an_orchestrator_with_nodes_to_watch_begins_though_none_can_be_started() -> None:
    def broken(machine: FakeMachine) -> None:
        machine.unfit.update({A: RuntimeMissing("no erl")})
        machine.leftover[B] = True

    async with running("a", "b", machine=broken) as cluster:
        await cluster.states(a=NodeState.FATAL, b=NodeState.RUNNING)


@pytest.mark.asyncio
async def test_another_carrier_than_was_written_is_fatal_and_a_violation() -> None:
    def plain(machine: FakeMachine) -> None:
        machine.nodes[A].carrier = "inet_tcp"

    async with running("a", "b", machine=plain) as cluster:
        await cluster.states(a=NodeState.FATAL, b=NodeState.RUNNING)
        node = cluster.status(A)
        assert node["reason"] == "carrier_not_in_force"
        assert "inet_tcp" in node["detail"]
        assert cluster.supervisor.status()["violation"] is True
        assert b'distsec_carrier_not_in_force{node="a@127.0.0.1"} 1.0' in cluster.metrics.render()
        assert b'distsec_carrier_not_in_force{node="b@127.0.0.1"} 0.0' in cluster.metrics.render()
        assert cluster.fake(A).starts == 1
        with pytest.raises(CommandFailed, match="carrier_not_in_force"):
            await cluster.supervisor.start([A])


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (ProbeResult("x", 1, plaintext_distribution=True), "plaintext"),
        (
            ProbeResult("x", 1, tls=True, version="TLSv1.3", requires_client_certificate=False),
            "without a certificate",
        ),
        (
            ProbeResult(
                "x", 1, tls=True, version="TLSv1.3", requires_client_certificate=True, tls12_refused=False
            ),
            "TLS 1.2",
        ),
    ],
)
@pytest.mark.asyncio
async def test_what_the_probe_finds_wrong_is_fatal(seen: ProbeResult, text: str) -> None:
    def leaky(machine: FakeMachine) -> None:
        machine.probed = seen

    async with running("a", machine=leaky) as cluster:
        await cluster.states(a=NodeState.FATAL)
        assert text in cluster.status(A)["detail"]


@pytest.mark.asyncio
async def test_no_hello_in_time_is_fatal_and_says_so() -> None:
    async with running("a", start_deadline_seconds=0.2, machine=_silent("a")) as cluster:
        await cluster.states(a=NodeState.FATAL)
        assert cluster.status(A)["reason"] == "carrier_not_in_force"
        assert "no hello" in cluster.status(A)["detail"]


@pytest.mark.asyncio
async def test_a_node_that_halted_itself_is_fatal_with_its_own_words_and_not_started_again() -> None:
    def halting(machine: FakeMachine) -> None:
        machine.nodes[A].halts_with = ("proto_dist", "-proto_dist twice")

    async with running("a", machine=halting) as cluster:
        await cluster.states(a=NodeState.FATAL)
        assert cluster.status(A)["reason"] == "carrier_not_in_force"
        assert cluster.status(A)["detail"] == "proto_dist: -proto_dist twice"
        assert cluster.fake(A).starts == 1


@pytest.mark.asyncio
async def test_a_node_with_a_forbidden_flag_is_not_started_and_the_others_are() -> None:
    def forbidden(machine: FakeMachine) -> None:
        machine.start_error = GuardNotInForce("-setcookie in the command")

    async with running("a", machine=forbidden) as cluster:
        await cluster.states(a=NodeState.FATAL)
        assert cluster.status(A)["reason"] == "carrier_not_in_force"
        assert "-setcookie in the command" in cluster.status(A)["detail"]
        assert cluster.fake(A).starts == 0
        assert cluster.supervisor.status()["violation"] is True


@pytest.mark.asyncio
async def test_a_forbidden_flag_that_only_the_emulator_shows_is_killed_at_once_and_fatal() -> None:
    def wrapped(machine: FakeMachine) -> None:
        machine.nodes[A].says_hello = False

    async with running("a", machine=wrapped) as cluster:
        await until(lambda: cluster.fake(A).process is not None)
        process = cluster.fake(A).process
        cluster.fake(A).forbidden = ForbiddenFlag("-proto_dist", "the flags of the emulator", "no")
        await cluster.states(a=NodeState.FATAL)
        assert process is not None
        assert process.signals == [signal.SIGKILL]
        assert cluster.status(A)["reason"] == "carrier_not_in_force"
        assert "-proto_dist in the flags of the emulator" in cluster.status(A)["detail"]
        assert cluster.fake(A).starts == 1


@pytest.mark.asyncio
async def test_a_command_that_is_missing_is_fatal_and_the_others_run() -> None:
    async with running("a", machine=lambda m: setattr(m, "start_error", RuntimeMissing("no erl"))) as cluster:
        await cluster.states(a=NodeState.FATAL)
        assert cluster.status(A)["reason"] == "start_failed"


# ---- dying, stopping, adopting -------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_node_that_dies_is_started_again_and_one_that_flaps_is_fatal() -> None:
    spec = cluster_spec(node_spec("a", restart_intensity=1), node_spec("b"))
    cluster = Cluster(spec)
    async with cluster.supervisor.running():
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        cluster.fake(A).die(Exit(code=1))
        await until(lambda: cluster.fake(A).starts == 2)
        await cluster.states(a=NodeState.RUNNING)
        cluster.fake(A).die(Exit(signal=9))
        await cluster.states(a=NodeState.FATAL)
        assert cluster.status(A)["reason"] == "flapping"
        assert cluster.state(B) is NodeState.RUNNING


@pytest.mark.asyncio
async def test_stops_through_the_agent_then_by_term_then_by_kill() -> None:
    async with up("a", "b", "c") as cluster:
        cluster.fake(B).ignores_stop = True
        cluster.fake(C).ignores_stop = cluster.fake(C).ignores_term = True
        processes = [cluster.fake(name).process for name in (A, B, C)]
        await cluster.supervisor.stop([A, B, C])
        signals = [
            [number for number in process.signals if number is not signal.SIGCONT]
            for process in processes
            if process
        ]
        assert signals == [[], [signal.SIGTERM], [signal.SIGTERM, signal.SIGKILL]]
        assert [cluster.state(name) for name in (A, B, C)] == [NodeState.STOPPED] * 3
        assert cluster.supervisor.status()["healthy"] is True  # they were told to


@pytest.mark.asyncio
async def test_a_restart_is_a_new_process_and_returns_when_it_runs() -> None:
    async with up("a") as cluster:
        await cluster.supervisor.restart([A])
        assert (cluster.state(A), cluster.fake(A).starts) == (NodeState.RUNNING, 2)


@pytest.mark.asyncio
async def test_leaves_the_nodes_running_when_it_ends() -> None:
    async with up("a") as cluster:
        process = cluster.fake(A).process
        server = cluster.fake(A).server
    assert process is not None and process.abandoned and not process.signals
    assert server is not None and server.closed


@pytest.mark.asyncio
async def test_adopts_what_runs_proves_it_again_and_brings_its_policy_up_to_date() -> None:
    async with running("a", machine=lambda machine: machine.leftover.update({A: True})) as cluster:
        await cluster.states(a=NodeState.RUNNING)
        fake = cluster.fake(A)
        assert ("start", A) not in cluster.machine.order
        assert fake.generation == cluster.machine.overlay.generation == 2


@pytest.mark.asyncio
async def test_a_foreign_process_is_no_agent_and_later_only_the_same_process_is() -> None:
    async with running("a", machine=_silent("a")) as cluster:
        await until(lambda: cluster.fake(A).process is not None and cluster.supervisor.nodes[A].process)
        node, fake = cluster.supervisor.nodes[A], cluster.fake(A)
        assert fake.process is not None
        child = fake.process.pid + 1
        assert not node.acceptance.accept_peer(1, 0)
        assert node.acceptance.accept_peer(child, 0)
        fake.hello()
        assert node.acceptance.accept_peer(fake.process.pid, 0)
        assert not node.acceptance.accept_peer(child, 0)


@pytest.mark.asyncio
async def test_an_external_node_is_taken_when_it_says_hello_and_stopped_when_it_is_gone() -> None:
    spec = cluster_spec(node_spec("a", command=()))
    cluster = Cluster(spec)
    async with cluster.supervisor.running():
        with pytest.raises(UsageError):
            await cluster.supervisor.start([A])
        assert cluster.state(A) is NodeState.STOPPED
        cluster.fake(A).boot(None)
        await cluster.states(a=NodeState.RUNNING)
        cluster.fake(A).die(Exit())
        await cluster.states(a=NodeState.STOPPED)
        assert cluster.fake(A).starts == 1
        await until(lambda: cluster.supervisor.nodes[A].process is None)
        cluster.fake(A).boot(None)
        await cluster.states(a=NodeState.RUNNING)


@pytest.mark.asyncio
async def test_what_is_below_an_external_vm_is_managed_and_is_not_its_agent() -> None:
    cluster = Cluster(cluster_spec(node_spec("a", command=())))
    async with cluster.supervisor.running():
        process = cluster.fake(A).boot(None)
        await cluster.states(a=NodeState.RUNNING)
        node = cluster.supervisor.nodes[A]
        assert cluster.supervisor.is_managed(process.pid + 1)
        assert not node.acceptance.accept_peer(process.pid + 1, os.geteuid())
        assert node.acceptance.accept_peer(process.pid, os.geteuid())


@pytest.mark.asyncio
async def test_an_external_vm_that_halted_itself_is_told_once_and_its_successor_is_taken() -> None:
    cluster = Cluster(cluster_spec(node_spec("a", command=())))
    cluster.machine.refused[A] = ("proto_dist", "-proto_dist twice")
    async with cluster.supervisor.running():
        for _ in range(3):
            cluster.supervisor.nodes[A].tick()
        node = cluster.status(A)
        assert (node["state"], node["reason"]) == ("STOPPED", "carrier_not_in_force")
        assert node["detail"] == "proto_dist: -proto_dist twice"
        [told] = cluster.of_type(EventType.NODE_STATE_CHANGED, reason="carrier_not_in_force")
        assert told.detail == "STOPPED: proto_dist: -proto_dist twice"
        cluster.fake(A).boot(None)
        await cluster.states(a=NodeState.RUNNING)


@pytest.mark.asyncio
async def test_a_lost_agent_is_degraded_not_dead_and_proven_again_when_it_is_back() -> None:
    async with up("a") as cluster:
        cluster.fake(A).goodbye()
        assert cluster.state(A) is NodeState.RUNNING
        assert cluster.status(A)["agent"] == "lost"
        assert cluster.supervisor.status()["healthy"] is False
        cluster.fake(A).hello()
        await until(lambda: cluster.supervisor.status()["healthy"])
        assert cluster.fake(A).starts == 1


@pytest.mark.asyncio
async def test_an_agent_that_is_silent_is_lost_and_taken_again_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distsec.supervisor.supervisor.TICK_SECONDS", 3600.0)  # it is this test that ticks
    async with up("a", "b") as cluster:
        monkeypatch.setattr("distsec.core.node_silence.SILENT_SECONDS", 0.3)
        node = cluster.supervisor.nodes[A]
        cluster.fake(A).silent = cluster.fake(B).silent = True

        def silent() -> bool:
            cluster.fake(B).says(cluster.fake(B).heartbeat())
            for each in cluster.supervisor.nodes.values():
                each.tick()
            return not node.status.agent

        await until(silent)
        assert (cluster.state(A), cluster.status(A)["agent"]) == (NodeState.RUNNING, "lost")
        assert cluster.supervisor.nodes[B].status.agent
        assert cluster.of_type(EventType.AGENT_LOST, node=A)
        cluster.fake(A).hello()
        await until(lambda: cluster.supervisor.status()["healthy"])
        assert cluster.fake(A).starts == 1


# ---- policy --------------------------------------------------------------------------------------

NEW = "new@10.0.0.9"


@pytest.mark.asyncio
async def test_an_allow_is_prepared_everywhere_before_it_is_open_anywhere() -> None:
    async with up("a", "b") as cluster:
        before = cluster.machine.overlay.generation
        answer = await cluster.supervisor.allow(NEW, None)
        assert answer["acknowledged"] == [A, B]
        assert answer["generation"] == before + 2
        for name in (A, B):
            phases = [policy["peers"].get(NEW) for policy in cluster.fake(name).policies]
            assert phases == [None, "prepared", "open"]
        assert [entry.name for entry in cluster.machine.overlay.allow] == [NEW]


@pytest.mark.asyncio
async def test_an_allow_that_one_node_misses_is_rolled_back_and_names_it() -> None:
    async with up("a", "b") as cluster:
        cluster.fake(B).answers = False
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.allow(NEW, None)
        assert caught.value.missing == (B,)
        assert cluster.fake(A).policies[-1]["peers"].get(NEW) is None
        assert "open" not in {policy["peers"].get(NEW) for policy in cluster.fake(A).policies}
        assert cluster.machine.overlay.allow == ()
        cluster.fake(B).answers = True
        answer = await cluster.supervisor.allow(NEW, None)
        assert answer["acknowledged"] == [A, B]


@pytest.mark.asyncio
async def test_a_node_whose_agent_is_lost_keeps_an_allow_from_opening() -> None:
    async with up("a", "b") as cluster:
        cluster.fake(B).goodbye()
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.allow(NEW, None)
        assert caught.value.missing == (B,)


@pytest.mark.asyncio
async def test_a_denial_is_on_the_disk_before_anybody_is_told() -> None:
    async with up("a", "b") as cluster:
        cluster.machine.order.clear()
        told: list[tuple[str, ...]] = []
        take = FakeNode.take

        class Told(FakeNode):
            def take(self, document: bytes | None) -> None:
                told.extend(cluster.machine.order)
                take(self, document)

        for name in (A, B):
            cluster.fake(name).__class__ = Told
        answer = await cluster.supervisor.deny(C if C in cluster.machine.nodes else B, False)
        assert answer["missing"] == []
        generation = str(answer["generation"])
        assert next(step for step in told if step[0] == "save") == ("save", generation)
        assert {("write", A, generation), ("write", B, generation)} <= set(told)
        assert cluster.machine.overlay.deny == {B}


@pytest.mark.asyncio
async def test_a_denial_that_is_not_acknowledged_stays_and_says_by_whom() -> None:
    async with up("a", "b") as cluster:
        cluster.fake(B).answers = False
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.deny(A, False)
        assert caught.value.missing == (B,)
        assert cluster.machine.overlay.deny == {A}
        assert cluster.fake(A).policies[-1]["denied"] == [A]


@pytest.mark.asyncio
async def test_what_an_operator_allowed_or_denied_is_on_record_with_how_it_ended() -> None:
    async with up("a", "b") as cluster:
        await cluster.supervisor.deny(A, False)
        cluster.fake(B).answers = False
        with pytest.raises(NotAcknowledged):
            await cluster.supervisor.allow(A, None)
        told = [event for event in cluster.events if event.type is EventType.POLICY_CHANGED]
        assert [(event.peer, event.result) for event in told] == [(A, "deny"), (A, "allow")]
        assert "generation" in str(told[0].detail)
        assert "rolled back" in str(told[1].detail)


@pytest.mark.asyncio
async def test_an_identity_that_would_lock_a_managed_node_out_is_refused() -> None:
    async with up("a", "b") as cluster:
        policies = len(cluster.fake(B).policies)
        with pytest.raises(UsageError, match="managed here"):
            await cluster.supervisor.allow(A, "spiffe://demo/node/127.0.0.1/evil")
        assert len(cluster.fake(B).policies) == policies


@pytest.mark.asyncio
async def test_a_foreign_trust_domain_names_nobody_unless_the_configuration_says_so() -> None:
    foreign = "spiffe://other.example/node/x"
    async with up("a") as cluster:
        with pytest.raises(UsageError, match="foreign_trust_domains"):
            await cluster.supervisor.allow("x@10.0.0.9", foreign)
        assert foreign not in str(cluster.fake(A).policies)
    async with up("a", foreign_trust_domains=("other.example",)) as cluster:
        await cluster.supervisor.allow("x@10.0.0.9", foreign)
        assert foreign in str(cluster.fake(A).policies[-1])


@pytest.mark.asyncio
async def test_the_record_names_a_subject_as_people_write_it() -> None:
    async with up("a") as cluster:
        await cluster.supervisor.allow("x@10.0.0.9", "dn:2.5.4.10:4578616d706c65,2.5.4.3:6e6577")
        (told,) = [event for event in cluster.events if event.type is EventType.POLICY_CHANGED]
        assert told.identity == "dn:CN=new,O=Example"


@pytest.mark.asyncio
async def test_a_denial_that_cannot_be_saved_changes_nothing() -> None:
    async with up("a") as cluster:
        cluster.machine.save_error = StoreError("the disk is full")
        policies = len(cluster.fake(A).policies)
        with pytest.raises(StoreError):
            await cluster.supervisor.deny(A, False)
        assert len(cluster.fake(A).policies) == policies


@pytest.mark.asyncio
async def test_denying_a_name_that_nobody_knows_is_told_as_that() -> None:
    async with up("a") as cluster:
        with pytest.raises(NotFound):
            await cluster.supervisor.deny("typo@127.0.0.1", False)


@pytest.mark.asyncio
async def test_a_node_with_another_policy_is_sent_the_wanted_one_at_its_next_heartbeat() -> None:
    async with up("a") as cluster:
        fake = cluster.fake(A)
        wanted = fake.digest
        fake.digest, fake.generation = "f" * 64, 1
        for _ in range(5):
            fake.says(fake.heartbeat())
        await until(lambda: fake.digest == wanted)
        assert len(fake.policies) == 2  # once at its start, once now: not once a heartbeat


# ---- what agents say -----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_unlisted_link_is_shown_as_a_violation_until_it_is_down() -> None:
    async with up("a") as cluster:
        evil = link("evil@127.0.0.1", "deny")
        cluster.fake(A).says(LaneEvent(Lane.CRITICAL, 1, EventKind.VIOLATION, 0, launch="x", link=evil))
        status = cluster.supervisor.status()
        assert (status["violation"], status["healthy"]) == (True, False)
        assert status["nodes"][0]["links"][0]["reason"] == "unlisted_link"
        assert cluster.of_type(EventType.UNAUTHORIZED_ACCESS, peer="evil@127.0.0.1")
        cluster.fake(A).says(LaneEvent(Lane.CRITICAL, 2, EventKind.LINK_DOWN, 0, launch="x", link=evil))
        assert cluster.supervisor.status()["violation"] is False


@pytest.mark.asyncio
async def test_refusals_are_counted_for_status_as_the_agent_counts_them() -> None:
    async with up("a") as cluster:
        fake = cluster.fake(A)
        fake.says(fake.heartbeat(refusals={(Direction.IN, Reason.NOT_ALLOWED): 3}))
        entry = {"node": A, "direction": "in", "reason": "not_allowed", "count": 3}
        assert cluster.supervisor.status()["refusals"] == [entry]
        fake.die(Exit(code=1))
        await until(lambda: fake.starts == 2 and cluster.state(A) is NodeState.RUNNING)
        fake.says(fake.heartbeat(refusals={(Direction.IN, Reason.NOT_ALLOWED): 2}))
        assert cluster.supervisor.status()["refusals"] == [{**entry, "count": 5}]


@pytest.mark.asyncio
async def test_the_refusal_of_its_own_probe_is_nobodys_alarm_and_a_strangers_is() -> None:
    async with up("a") as cluster:
        fake = cluster.fake(A)
        fake.says(refusal(1, Reason.CERTIFICATE_REQUIRED, "127.0.0.1:40001"))  # FakeMachine.probe
        assert not cluster.of_type(EventType.CERTIFICATE_VALIDATION_FAILED)
        fake.says(refusal(2, Reason.CERTIFICATE_REQUIRED, "127.0.0.1:40001"))
        fake.says(refusal(3, Reason.CERTIFICATE_REQUIRED, "127.0.0.1:40009"))
        assert len(cluster.of_type(EventType.CERTIFICATE_VALIDATION_FAILED)) == 2
        fake.says(fake.heartbeat(refusals={(Direction.IN, Reason.CERTIFICATE_REQUIRED): 3}))
        assert [entry["count"] for entry in cluster.supervisor.status()["refusals"]] == [2]


@pytest.mark.asyncio
async def test_events_that_were_lost_are_said_to_be() -> None:
    async with up("a") as cluster:
        fake = cluster.fake(A)
        fake.says(fake.heartbeat(dropped={Lane.CRITICAL: 0, Lane.REFUSALS: 7}))
        fake.says(fake.heartbeat(dropped={Lane.CRITICAL: 0, Lane.REFUSALS: 7}))
        assert len(cluster.of_type(EventType.EVENTS_DROPPED, reason="refusals")) == 1


@pytest.mark.asyncio
async def test_what_a_node_says_is_escaped_in_status() -> None:
    async with up("a") as cluster:
        fake = cluster.fake(A)
        fake.halts_with = ("x", "\x1b[31mred\u202e")
        fake.die(Exit(code=78))
        await cluster.states(a=NodeState.FATAL)
        assert "\x1b" not in cluster.status(A)["detail"]
        assert "\u202e" not in cluster.status(A)["detail"]


@pytest.mark.asyncio
async def test_an_agents_word_that_the_guard_changed_ends_the_node() -> None:
    async with up("a") as cluster:
        event = LaneEvent(Lane.CRITICAL, 1, EventKind.GUARD, 0, launch="x", detail="handler removed")
        cluster.fake(A).says(event)
        await cluster.states(a=NodeState.FATAL)
        assert cluster.status(A)["reason"] == "carrier_not_in_force"


# ---- reload --------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_reload_adds_removes_and_restarts_what_changed() -> None:
    async with up("a", "b", "c") as cluster:
        old = cluster.supervisor.spec
        new = replace(
            old,
            nodes=(old.nodes[0], replace(old.nodes[1], command=("erl", "-x")), node_spec("d")),
            allowed_nodes=(*old.allowed_nodes[:2], node_spec("d").name),
        )
        cluster.next_spec = new
        answer = await cluster.supervisor.reload()
        assert (answer["added"], answer["removed"], answer["restarted"]) == (["d@127.0.0.1"], [C], [B])
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING, d=NodeState.RUNNING)
        assert [cluster.fake(name).starts for name in (A, B)] == [1, 2]
        assert C not in cluster.supervisor.nodes and cluster.fake(C).process is None
        assert set(cluster.fake(A).policies[-1]["peers"]) == {A, B, "d@127.0.0.1"}
        assert cluster.of_type(EventType.CONFIGURATION_RELOADED, result="allow")


@pytest.mark.asyncio
async def test_a_reload_leaves_an_external_vm_alone_which_is_proven_against_what_it_was_started_with() -> (
    None
):
    cluster = Cluster(cluster_spec(node_spec("a", command=()), node_spec("b")))
    async with cluster.supervisor.running():
        process = cluster.fake(A).boot(None)
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING)
        old = cluster.supervisor.spec
        cluster.next_spec = replace(old, nodes=(replace(old.nodes[0], port=9999), old.nodes[1]))
        answer = await cluster.supervisor.reload()
        assert answer["restarted"] == []
        assert "node is started anew" in cluster.log.getvalue()
        cluster.fake(A).goodbye()
        await cluster.states(a=NodeState.STOPPED)
        cluster.fake(A).hello()
        await cluster.states(a=NodeState.RUNNING)
        assert process.signals == [] and cluster.fake(A).bound != 9999
        cluster.fake(A).die(Exit())
        await until(lambda: cluster.supervisor.nodes[A].process is None)
        cluster.fake(A).boot(None)
        await cluster.states(a=NodeState.RUNNING)
        assert cluster.fake(A).bound == 9999


@pytest.mark.asyncio
async def test_a_reload_closes_at_once_and_opens_when_all_know() -> None:
    async with up("a", "b") as cluster:
        old = cluster.supervisor.spec
        other = node_spec("other").name
        cluster.next_spec = replace(old, allowed_nodes=(old.allowed_nodes[0], other))
        cluster.fake(B).answers = False
        answer = await cluster.supervisor.reload()
        assert answer["missing"] == [B]
        assert cluster.fake(A).policies[-1]["peers"] == {A: "open", str(other): "prepared"}
        cluster.fake(B).answers = True
        cluster.fake(B).says(cluster.fake(B).heartbeat())
        await until(lambda: cluster.fake(A).policies[-1]["peers"].get(str(other)) == "open")


@pytest.mark.parametrize(
    "broken",
    [
        lambda spec: ConfigError("distsec.toml", [Problem("x", 1, "wrong")]),
        lambda spec: replace(spec, name="other"),
        lambda spec: replace(spec, state_dir="/elsewhere"),
        lambda spec: replace(spec, metrics_listen=("127.0.0.1", 1)),
    ],
)
@pytest.mark.asyncio
async def test_a_configuration_that_cannot_be_taken_changes_nothing(
    broken: Callable[[ClusterSpec], Any],
) -> None:
    async with up("a") as cluster:
        before, policies = cluster.supervisor.spec, len(cluster.fake(A).policies)
        cluster.next_spec = broken(before)
        with pytest.raises(ConfigError):
            await cluster.supervisor.reload()
        assert cluster.supervisor.spec is before
        assert cluster.machine.spec is before
        assert (cluster.fake(A).starts, len(cluster.fake(A).policies)) == (1, policies)
        assert cluster.of_type(EventType.CONFIGURATION_RELOADED, result="deny", reason="rejected")


@pytest.mark.asyncio
async def test_a_reload_whose_new_node_has_no_port_changes_nothing() -> None:
    async with up("a") as cluster:
        before = cluster.supervisor.spec
        cluster.next_spec = replace(before, nodes=(*before.nodes, node_spec("d")))
        cluster.machine.held["d@127.0.0.1"] = HELD
        with pytest.raises(PortInUse):
            await cluster.supervisor.reload()
        assert cluster.machine.spec is before
        assert list(cluster.supervisor.nodes) == [A]


@pytest.mark.asyncio
async def test_a_restart_policy_is_taken_over_without_a_restart() -> None:
    async with up("a") as cluster:
        old = cluster.supervisor.spec
        cluster.next_spec = replace(old, nodes=(replace(old.nodes[0], restart=RestartPolicy.NEVER),))
        await cluster.supervisor.reload()
        assert cluster.fake(A).starts == 1
        cluster.fake(A).die(Exit(code=1))
        await cluster.states(a=NodeState.STOPPED)


@pytest.mark.asyncio
async def test_the_end_stops_all_nodes_where_that_is_wanted() -> None:
    async with up("a", "b") as cluster:
        await cluster.supervisor.stop_all()
        assert {cluster.state(name) for name in (A, B)} == {NodeState.STOPPED}


@pytest.mark.asyncio
async def test_what_the_probes_of_an_earlier_orchestrator_caused_is_not_counted_by_the_next() -> None:
    async with up("a") as cluster:
        cluster.fake(A).says(refusal(1, Reason.CERTIFICATE_REQUIRED, "127.0.0.1:40001"))
        machine, launch = cluster.machine, cluster.fake(A).launch
    assert machine.load_echoes(node_spec("a"), launch).absorbed == {"certificate_required": 1}


@pytest.mark.asyncio
async def test_a_stop_and_start_while_a_node_waits_for_its_turn_uses_up_no_turn() -> None:
    async with running("a", "b", "c", start_parallel=1, machine=_silent("a")) as cluster:
        await until(lambda: cluster.fake(A).starts == 1)
        for _ in range(3):
            cluster.supervisor.nodes[B].feed(life.StopRequested())
            cluster.supervisor.nodes[B].feed(life.StartRequested())
        cluster.fake(A).hello()
        await cluster.states(a=NodeState.RUNNING, b=NodeState.RUNNING, c=NodeState.RUNNING)
        assert cluster.fake(B).starts == 1
        assert cluster.supervisor.starts._value == 1


@pytest.mark.asyncio
async def test_a_back_off_that_ends_after_the_orchestrator_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_arrows, "backoff_seconds", lambda before, chance: 600.0)
    async with up("a") as cluster:
        cluster.fake(A).die(Exit(code=1))
        await cluster.states(a=NodeState.BACKOFF)
    await asyncio.sleep(0)
    node = cluster.supervisor.nodes[A]
    node.feed(life.StartRequested())
    await asyncio.sleep(0)
    assert cluster.fake(A).starts == 1
