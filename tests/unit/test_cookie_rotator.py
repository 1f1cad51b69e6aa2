"""`distsec cookie rotate` against a machine in memory: who is told what, when, and who is missing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from distsec.beam.messages import LinkProof, LinkUnproven, Reply
from distsec.errors import NotAcknowledged, Unavailable, UsageError
from distsec.model.cluster import Carrier, NodeState
from distsec.model.cookies import CookiePhase, CookieRotation
from distsec.model.events import EventType
from distsec.model.names import NodeName
from distsec.supervisor import cookie_rotation
from tests.unit.fake_machine import FakeMachine, cluster_spec, node_spec
from tests.unit.test_supervisor import A, B, Cluster, until

FAR = "far@10.0.0.9"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cookie_rotation, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(cookie_rotation, "PROOF_SECONDS", 0.3)


@contextlib.asynccontextmanager
async def cluster_of(
    *names: str,
    carrier: Carrier = Carrier.DISTSEC,
    prepare: Callable[[FakeMachine], object] = lambda _: None,
    allowed: tuple[str, ...] = (),
) -> AsyncIterator[Cluster]:
    nodes = [node_spec(name) for name in names]
    names_allowed = (*(node.name for node in nodes), *map(NodeName.parse, allowed))
    cluster = Cluster(cluster_spec(*nodes, carrier=carrier, allowed_nodes=names_allowed))
    for node in cluster.machine.nodes.values():
        node.renewed = (LinkProof(B if node.name == A else A, "0a", 2_000_000_000, True),)
    prepare(cluster.machine)
    async with cluster.supervisor.running():
        await until(
            lambda: all(cluster.state(name) is NodeState.RUNNING for name in cluster.supervisor.nodes)
        )
        cluster.machine.order.clear()
        yield cluster


def kept(cluster: Cluster) -> CookieRotation:
    return cluster.machine.records.cookies.kept


@pytest.mark.asyncio
async def test_files_are_written_before_anybody_is_told_and_the_old_secret_goes_last() -> None:
    async with cluster_of("a", "b") as cluster:
        answer = await cluster.supervisor.cookies.rotate()
        order = cluster.machine.order
        assert [entry for entry in order if entry[0] != "told"] == [
            ("make_next",),
            ("save", "accepting"),
            ("cookies", A, "accepting"),
            ("cookies", B, "accepting"),
            ("save", "using"),
            ("cookies", A, "using"),
            ("cookies", B, "using"),
            ("save", "forgetting"),
            ("cookies", A, "forgetting"),
            ("cookies", B, "forgetting"),
            ("replace",),
            ("save", "idle"),
            ("drop_next",),
        ]
        for number, phase in enumerate(("accepting", "using", "forgetting"), 1):
            told = [order.index(("told", name, str(number))) for name in (A, B)]
            assert max(order.index(("cookies", name, phase)) for name in (A, B)) < min(told)
        assert (answer["acknowledged"], answer["links"], answer["phase"]) == ([A, B], 2, "idle")
        assert [
            (each["peers"][B].reveal(), "other_peers" in each and each["other_peers"][B].reveal())
            for each in cluster.fake(A).cookies
        ] == [
            (f"old {A} {B}".encode(), f"new {A} {B}".encode()),
            (f"new {A} {B}".encode(), f"old {A} {B}".encode()),
            (f"new {A} {B}".encode(), False),
        ]
        [event] = cluster.of_type(EventType.COOKIE_ROTATED)
        assert event.detail == "2 links proven, acknowledged by 2 nodes"


@pytest.mark.asyncio
async def test_who_is_silent_holds_it_up_and_the_next_command_goes_on() -> None:
    async with cluster_of("a", "b") as cluster:
        cluster.fake(B).answers = False
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.cookies.rotate()
        assert caught.value.missing == (B,)
        assert "b@127.0.0.1 has not acknowledged" in str(caught.value)
        assert "distsec cookie rotate" in caught.value.do
        assert kept(cluster).phase is CookiePhase.ACCEPTING
        assert [each["step"] for each in cluster.fake(A).cookies] == [1]
        cluster.fake(B).answers = True
        await cluster.supervisor.cookies.rotate()
        assert kept(cluster).phase is CookiePhase.IDLE
        assert [each["step"] for each in cluster.fake(A).cookies] == [1, 1, 2, 3]


@pytest.mark.asyncio
async def test_a_node_that_cannot_take_two_is_named_with_the_reason_and_it_can_be_given_up() -> None:
    async with cluster_of("a", "b") as cluster:
        cluster.fake(A).refuses_cookies = "cookies_unproven"
        with pytest.raises(NotAcknowledged, match=r"a@127\.0\.0\.1 cannot take two cookies"):
            await cluster.supervisor.cookies.rotate()
        cluster.fake(A).refuses_cookies = None
        answer = await cluster.supervisor.cookies.give_up()
        assert (answer["given_up"], kept(cluster).phase) == (True, CookiePhase.IDLE)
        assert "other_peers" not in cluster.fake(B).cookies[-1]
        assert cluster.fake(B).cookies[-1]["peers"][A].reveal().startswith(b"old")
        [event] = cluster.of_type(EventType.COOKIE_ROTATED)
        assert event.reason == "given_up"
        with pytest.raises(UsageError, match="nothing to give up"):
            await cluster.supervisor.cookies.give_up()


@pytest.mark.asyncio
async def test_given_up_is_given_up_though_a_node_does_not_hear_of_it() -> None:
    async with cluster_of("a", "b") as cluster:
        cluster.fake(B).answers = False
        with pytest.raises(NotAcknowledged):
            await cluster.supervisor.cookies.rotate()
        with pytest.raises(NotAcknowledged, match="given up, but b@127") as caught:
            await cluster.supervisor.cookies.give_up()
        assert "nobody has them" in caught.value.do
        assert kept(cluster).phase is CookiePhase.IDLE
        assert cluster.machine.order.index(("save", "idle")) < cluster.machine.order.index(("drop_next",))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("proofs", "said"),
    [
        ({"unproven": (LinkUnproven(B, "unreachable"),)}, f"link with {B} (unreachable) not proven"),
        ({"renewed": (LinkProof(B, "0a", 2_000_000_000, False),)}, f"link with {B} (old cookie) not proven"),
    ],
)
async def test_the_old_cookies_are_kept_until_every_link_is_proven_with_the_new_ones(
    proofs: dict[str, tuple[LinkProof | LinkUnproven, ...]], said: str
) -> None:
    async with cluster_of("a", "b") as cluster:
        before = cluster.fake(A).renewed
        for name, value in proofs.items():
            setattr(cluster.fake(A), name, value)
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.cookies.rotate()
        assert f"{A} {said}" in str(caught.value)
        assert kept(cluster).phase is CookiePhase.USING
        assert "other_peers" in cluster.fake(A).cookies[-1]
        with pytest.raises(UsageError, match="goes on with it"):
            await cluster.supervisor.cookies.give_up()
        cluster.fake(A).renewed, cluster.fake(A).unproven = before, ()
        await cluster.supervisor.cookies.rotate()
        assert kept(cluster).phase is CookiePhase.IDLE


@pytest.mark.asyncio
async def test_a_node_whose_agent_is_lost_has_proven_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster_of("a", "b") as cluster:
        node = cluster.fake(B)
        takes = node.take_cookies

        def takes_and_leaves(arguments: Mapping[str, Any]) -> Reply:
            if arguments["step"] == 2:
                asyncio.get_running_loop().call_soon(node.goodbye)
            return takes(arguments)

        monkeypatch.setattr(node, "take_cookies", takes_and_leaves)
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.cookies.rotate()
        assert (caught.value.missing, kept(cluster).phase) == ((B,), CookiePhase.USING)


@pytest.mark.asyncio
async def test_where_nodes_take_one_cookie_only_it_is_done_with_none_running() -> None:
    async with cluster_of("a", "b", carrier=Carrier.INET_TLS) as cluster:
        with pytest.raises(UsageError) as caught:
            await cluster.supervisor.cookies.rotate()
        assert "inet_tls" in str(caught.value) and "distsec stop --all" in caught.value.do
        assert kept(cluster) == CookieRotation(made=1_700_000_000)
        await cluster.supervisor.stop([A, B])
        cluster.machine.order.clear()
        answer = await cluster.supervisor.cookies.rotate()
        assert (answer["acknowledged"], kept(cluster).phase) == ([], CookiePhase.IDLE)
        assert ("cookies", A, "forgetting") in cluster.machine.order


@pytest.mark.asyncio
async def test_a_node_that_starts_in_the_middle_is_waited_for() -> None:
    async with cluster_of("a", "b") as cluster:
        await cluster.supervisor.stop([B])
        cluster.fake(B).says_hello = False
        starting = asyncio.create_task(cluster.supervisor.start([B]))
        await until(lambda: cluster.fake(B).process is not None)
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.cookies.rotate()
        assert caught.value.missing == (B,)
        cluster.fake(B).hello()
        await starting
        assert (await cluster.supervisor.cookies.rotate())["acknowledged"] == [A, B]


@pytest.mark.asyncio
async def test_one_that_something_else_starts_and_that_listens_is_waited_for_before_it_is_heard_of() -> None:
    external = node_spec("x", command=())
    cluster = Cluster(cluster_spec(external, carrier=Carrier.DISTSEC))
    async with cluster.supervisor.running():
        cluster.machine.records.busy_ports = {cluster.machine.ports[str(external.name)]}
        with pytest.raises(NotAcknowledged) as caught:
            await cluster.supervisor.cookies.rotate()
        assert caught.value.missing == (str(external.name),)
        cluster.machine.records.busy_ports = set()
        assert (await cluster.supervisor.cookies.rotate())["acknowledged"] == []


@pytest.mark.asyncio
async def test_names_that_are_run_elsewhere_are_named_before_anything_is_done() -> None:
    async with cluster_of("a", allowed=(FAR,)) as cluster:
        with pytest.raises(UsageError) as caught:
            await cluster.supervisor.cookies.rotate()
        assert FAR in str(caught.value) and "--elsewhere" in caught.value.do
        assert cluster.machine.order == []
        assert (await cluster.supervisor.cookies.rotate(elsewhere=True))["elsewhere"] == [FAR]


@pytest.mark.asyncio
async def test_one_rotation_at_a_time_and_its_status_says_who_is_waited_for() -> None:
    async with cluster_of("a", "b") as cluster:
        cluster.fake(B).answers = False
        rotating = asyncio.create_task(cluster.supervisor.cookies.rotate())
        await until(lambda: cluster.fake(A).cookies)
        status = await cluster.supervisor.cookies.status()
        assert (status["phase"], status["under_way"], status["waiting"]) == ("accepting", True, [A, B])
        with pytest.raises(Unavailable):
            await cluster.supervisor.cookies.rotate()
        with pytest.raises(NotAcknowledged):
            await rotating
        assert (await cluster.supervisor.cookies.status())["under_way"] is False


@pytest.mark.asyncio
@pytest.mark.parametrize("phase", CookiePhase)
async def test_a_rotation_that_was_left_is_told_of_and_not_gone_on_with(phase: CookiePhase) -> None:
    def begun(machine: FakeMachine) -> None:
        machine.records.cookies.kept = CookieRotation(phase, 2)

    async with cluster_of("a", prepare=begun) as cluster:
        told = f"not rotated yet (phase {phase}): `distsec cookie rotate` goes on" in cluster.log.getvalue()
        assert told == (phase is not CookiePhase.IDLE)
        assert kept(cluster) == CookieRotation(phase, 2)
        assert not cluster.fake(A).cookies


@pytest.mark.asyncio
async def test_in_a_rotation_a_change_of_the_policy_brings_both_cookies_first() -> None:
    def begun(machine: FakeMachine) -> None:
        machine.records.cookies.kept = CookieRotation(CookiePhase.USING, 2, made=1, next_made=2)

    async with cluster_of("a", "b", prepare=begun) as cluster:
        await cluster.supervisor.allow("c@127.0.0.1", None)
        for name in (A, B):
            told = cluster.fake(name).cookies
            assert told and all("other_peers" in each for each in told)
            assert [each["step"] for each in told] == [2] * len(told)
            assert all(
                cookie.reveal().startswith(b"new")
                for each in cluster.fake(name).told_cookies
                for cookie in each.values()
            )
