"""The agent inside a node: what may go wrong around it costs neither the guard nor the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.releases import Otp
from tests.system.cluster import Cluster

APPLICATION_TLS = """
    {{ok, _}} = application:ensure_all_started(ssl),
    Options = [{{certfile, "{directory}/certificate.pem"}}, {{keyfile, "{directory}/key.pem"}}],
    {{ok, Listen}} = ssl:listen(0, Options),
    {{ok, {{_, Port}}}} = ssl:sockname(Listen),
    {{_, Ref}} = spawn_monitor(fun() ->
        {{ok, Socket}} = ssl:transport_accept(Listen), {{error, _}} = ssl:handshake(Socket, 5000) end),
    {{ok, Client}} = gen_tcp:connect({{127, 0, 0, 1}}, Port, []),
    ok = gen_tcp:send(Client, "garbage, garbage, garbage"),
    receive {{'DOWN', Ref, process, _, normal}} -> distsec_ring:sequence(refusals) end
"""

KNOCKS = 2
"""Of one proof, at a node that is well (distsec/beam/probe.py)."""


@contextmanager
def pair(otp: Otp, make_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    cluster = make_cluster(otp, ["a", "b"])
    cluster.start()
    yield cluster


def launch(cluster: Cluster) -> str:
    return cluster.erl("a", "distsec_guard:launch()")


def refused(cluster: Cluster) -> str:
    """How many refusals a has counted."""
    return cluster.erl("a", "distsec_ring:sequence(refusals)")


def test_the_guard_and_the_agent_are_back_after_the_vm_boots_again_in_place(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    """init:restart/0, as mix releases with configuration providers do: two boots in one process."""
    with pair(otp, make_cluster) as cluster:
        pid, before = cluster.pid("a"), launch(cluster).strip('<">')

        def launches() -> set[str]:
            return {event["launch"] for event in cluster.events("AgentConnected", node=cluster.node("a"))}

        assert launches() == {before}
        cluster.erl_at_its_end("a", "init:restart()")
        cluster.wait(lambda: len(launches()) > 1, "the hello of a second boot")
        cluster.wait_meshed()
        assert cluster.status_of("a")["pid"] == pid
        assert len(launches()) == 2
        stranger = cluster.intruder(leaf=cluster.leaf("evil"), cookie=cluster.cookie("b"))
        assert not stranger.connect(cluster.node("a"))
        cluster.wait_event("UnauthorizedAccess", node=cluster.node("a"), reason="not_allowed")
        assert not cluster.events("UnauthorizedAccess", severity="critical")


def test_a_process_of_the_agent_that_dies_costs_no_event_and_no_link(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    refusals = "[distsec_report:refusal(in, closed, #{}) || _ <- lists:seq(1, 100)], ok"
    with pair(otp, make_cluster) as cluster:
        links = cluster.links()
        counted = {"node": cluster.node("a"), "direction": "in", "reason": "closed"}
        for number, victim in enumerate(
            ["distsec_agent", "distsec_watch", "distsec_connect", "distsec_sup"], 1
        ):
            cluster.erl("a", f"P = whereis({victim}), exit(P, kill), {refusals}")
            cluster.wait(
                lambda: cluster.metric("distsec_security_refusals_total", **counted) == 100 * number,  # noqa: B023 - called at once
                f"100 refusals while {victim} was dead are counted",
            )
            cluster.wait(
                lambda: cluster.erl("a", f"is_pid(whereis({victim}))") == "true",  # noqa: B023 - called at once
                f"{victim} is started again",
            )
            cluster.wait(lambda: cluster.status()["healthy"], "the cluster is well again")
            cluster.wait(lambda: cluster.links() == links, f"{links} in the status again")
        assert not cluster.events("NodeDown")
        assert not cluster.events("UnauthorizedAccess", severity="critical")


def test_an_application_s_own_tls_errors_are_not_taken_for_the_distribution_s(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    with pair(otp, make_cluster) as cluster:
        directory = cluster.node_directory("a")
        # It is told that its knocks were refused before the node has counted them.
        cluster.wait(lambda: int(refused(cluster)) >= KNOCKS, "the refusals of the orchestrator's proof")
        before = refused(cluster)
        assert cluster.erl("a", APPLICATION_TLS.format(directory=directory)) == before


def test_a_name_that_no_listed_node_has_costs_nothing_however_strange_it_is(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    """On OTP 25 and 27 the resolver runs inside net_kernel: what fails there takes the whole node down."""
    with pair(otp, make_cluster) as cluster:
        pid = cluster.pid("a")
        for name in ('"x@" ++ [322]', '"x@127.0.0.1"', '[322 | "@127.0.0.1"]', '"x"', '"@"', '"b@127.0.0.2"'):
            assert cluster.erl("a", f"net_kernel:connect_node(list_to_atom({name}))") == "false", name
        assert cluster.pid("a") == pid
        assert cluster.links() == {("a", "b"), ("b", "a")}
        assert not cluster.events("NodeDown")
