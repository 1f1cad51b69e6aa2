"""One decision at every gate of the carrier: what is taken back between any two of them lets nobody in.

The peer is made by hand and stops between two gates, or in the middle of a frame, while the policy in the
node is changed under it; the orchestrator is held meanwhile, so that nobody but the gates can act. The gaps
in which nothing is sent are in erlang/test/distsec_handshake_tests.erl.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from distsec.control.client import ControlClient
from tests.attacks.scene import VICTIM, Scene
from tests.releases import OTPS, Otp
from tests.system.carrier_dialogue import INBOUND_GAPS, OUTBOUND_GAPS, Answerer, Dialler, ended
from tests.system.certificates import Leaf
from tests.system.of_module import of_module

PEER = "b@127.0.0.1"

CHANGES = {
    "its certificate is revoked": ("revoked", 'P#{revoked := [<<"{serial}">>]}'),
    "its name is denied": ("denied", 'P#{denied := [<<"b@127.0.0.1">>]}'),
    "it is taken from the list": (
        "not_allowed",
        'P#{peers := [X || #{name := N} = X <- maps:get(peers, P), N =/= <<"b@127.0.0.1">>]}',
    ),
    "it is not open yet": ("not_open", "P#{peers := [X#{phase := prepared} || X <- maps:get(peers, P)]}"),
    "its identity is another node's": (
        "name_not_in_certificate",
        "P#{peers := [case X of "
        '#{name := <<"b@127.0.0.1">>} -> X#{identity := <<"spiffe://demo/node/127.0.0.1/c">>}; '
        '#{name := <<"c@127.0.0.1">>} -> X#{identity := <<"spiffe://demo/node/127.0.0.1/b">>}; '
        "_ -> X end || X <- maps:get(peers, P)]}",
    ),
    "its certificate runs out": ("expired", "P#{issued_at := 1 bsl 40}"),
    "the policy is emptied": ("no_policy", "P#{peers := [], rules := []}"),
    "there is no policy any more": ("no_policy", "none"),
}
"""Title → what the next gate says, and the policy as Erlang makes it of the one in force, P."""

BEFORE_THE_NEXT_GATE = {
    "accepted": INBOUND_GAPS[:3],  # in TLS 1.3 a client is done before the server looks at its certificate
    "dialled": OUTBOUND_GAPS[:1],
    "verified": ("verified", "half a name", "half a challenge"),  # the first where the server is not done yet
    "half a name": ("half a name",),
    "half a challenge": ("half a challenge",),
    "challenged": ("half a reply",),
    "half a reply": ("half a reply",),
    "answered": ("half an ack",),
    "half an ack": ("half an ack",),
}
"""Gap → the last one that a peer may reach when it is taken back there: it is not answered any more."""

_CHANGE = """
M = #{policy := P} = persistent_term:get({distsec, policy}),
persistent_term:put(test_policy, M),
case CHANGED of
    none -> persistent_term:erase({distsec, policy});
    New -> persistent_term:put({distsec, policy}, M#{policy := New})
end
"""
_RESTORE = "persistent_term:put({distsec, policy}, persistent_term:get(test_policy))"
_PENDING = "length(distsec_attempts:all())"


otp = of_module(OTPS)


@pytest.fixture(scope="module")
def node(otp: Otp, beams: Path) -> Iterator[Scene]:
    with Scene(otp, beams, carrier="distsec") as scene:
        yield scene


@pytest.fixture(scope="module")
def leaf(node: Scene) -> Leaf:
    return node.cluster.leaf("b")


@pytest.fixture
def scene(node: Scene) -> Iterator[Scene]:
    node.begin()
    with ExitStack() as stack:
        node.test = stack
        yield node


@contextmanager
def held(scene: Scene) -> Iterator[None]:
    """The orchestrator neither sees a change nor pushes what was before."""
    scene.cluster.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        scene.cluster.signal(signal.SIGCONT)


@contextmanager
def changed(scene: Scene, policy: str, serial: str) -> Iterator[None]:
    scene.erl(_CHANGE.replace("CHANGED", policy.replace("{serial}", serial)))
    try:
        yield
    finally:
        scene.erl(_RESTORE)


def until_refused(steps: Iterator[str]) -> Iterator[str]:
    with suppress(OSError):
        yield from steps


def wait_pending(scene: Scene, count: int) -> None:
    scene.cluster.wait(lambda: scene.erl(_PENDING) == str(count), f"{count} attempts in the node")


def events(scene: Scene) -> list[dict[str, Any]]:
    """Every refusal of the journal, oldest first; unlike the log it leaves none out."""
    document = json.loads(scene.cluster.distsec("events", "--json").stdout)
    return [event for event in document["events"] if "reason" in event]


def dial(scene: Scene) -> None:
    """The node dials the peer, and nobody waits for what comes of it. Not before net_kernel is done with the
    dial before this one, which it may be a moment after that attempt is gone: it would not dial again.
    """
    left = f"ets:lookup(sys_dist, '{PEER}')"
    scene.cluster.wait(lambda: scene.erl(left) == "[]", "net_kernel to be done with the dial before")
    scene.erl(f"spawn(fun() -> net_kernel:connect_node('{PEER}') end)")


def deny(scene: Scene) -> None:
    """Not by the command: the handshake that waits has 7 s in all, of which its start may take some."""
    ControlClient(str(scene.cluster.state / "control.sock")).deny(PEER)


# ---- nobody takes anything back ---------------------------------------------------------------------------


def test_a_peer_whose_steps_are_all_right_is_let_in(scene: Scene, leaf: Leaf) -> None:
    """What follows refuses for what was changed, and for nothing else."""
    dialler = Dialler(scene.port, leaf, PEER, scene.pair_cookie("b"))
    assert tuple(dialler.steps()) == INBOUND_GAPS
    scene.cluster.wait(lambda: scene.erl("nodes(connected)") == f"['{PEER}']", "the link")
    dialler.connection.close()
    scene.wait_alone("its end")
    assert scene.nodeups() == f"['{PEER}']"


def test_a_peer_that_is_dialled_and_whose_steps_are_all_right_is_linked(scene: Scene, leaf: Leaf) -> None:
    answerer = Answerer(scene.listed_ports["b"], leaf, PEER, scene.pair_cookie("b"))
    answerer.listen()
    dial(scene)
    assert tuple(answerer.steps()) == OUTBOUND_GAPS
    answerer.close()
    scene.cluster.wait(lambda: scene.erl("nodes(connected)") == f"['{PEER}']", "the link")
    answerer.connection.close()
    scene.wait_alone("its end")
    assert scene.nodeups() == f"['{PEER}']"


# ---- something is taken back ------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", INBOUND_GAPS)
def test_what_is_taken_back_between_two_gates_keeps_a_peer_out(scene: Scene, leaf: Leaf, gap: str) -> None:
    cookie = scene.pair_cookie("b")
    expected = {}
    seen = len(events(scene))
    with held(scene):
        for reason, policy in CHANGES.values():
            dialler = Dialler(scene.port, leaf, PEER, cookie)
            with ExitStack() as change:
                for at in until_refused(dialler.steps()):
                    if at == gap:
                        wait_pending(scene, 1)
                        change.enter_context(changed(scene, policy, leaf.serial))
                assert ended(dialler.connection), "it was not refused"
                assert at in BEFORE_THE_NEXT_GATE[gap], "a gate let it pass"
                wait_pending(scene, 0)
            expected[dialler.address] = reason
    scene.settle()
    told = [event for event in events(scene)[seen:] if event.get("address") in expected]
    assert {event["address"]: event["reason"] for event in told} == expected
    assert len(told) == len(expected), "one event each"
    assert {(event["node"], event["direction"]) for event in told} == {(VICTIM, "in")}
    assert {event["identity"] for event in told} == {scene.cluster.identity("b")}
    assert sum(scene.refusals().values()) == len(expected)
    scene.expect_nothing_happened()


@pytest.mark.parametrize("gap", OUTBOUND_GAPS)
def test_what_is_taken_back_between_two_gates_keeps_a_peer_out_that_was_dialled(
    scene: Scene, leaf: Leaf, gap: str
) -> None:
    answerer = Answerer(scene.listed_ports["b"], leaf, PEER, scene.pair_cookie("b"))
    answerer.listen()
    expected = []
    seen = len(events(scene))
    with held(scene):
        for reason, policy in CHANGES.values():
            dial(scene)
            with ExitStack() as change:
                for at in until_refused(answerer.steps()):
                    if at == gap:
                        change.enter_context(changed(scene, policy, leaf.serial))
                assert ended(answerer.connection), "it was not refused"
                assert at in BEFORE_THE_NEXT_GATE[gap], "a gate let it pass"
                wait_pending(scene, 0)
            expected.append(reason)
    answerer.close()
    scene.settle()
    told = events(scene)[seen:]
    assert [event["reason"] for event in told] == expected
    assert {(event["node"], event["direction"]) for event in told} == {(VICTIM, "out")}
    assert {event["identity"] for event in told} == {scene.cluster.identity("b")}
    assert {event["peer"] for event in told} == {PEER}
    scene.expect_nothing_happened()


# ---- the operator takes it back ---------------------------------------------------------------------------


@pytest.fixture
def denied_in_the_end(scene: Scene) -> Iterator[None]:
    """Whatever the test denies is listed again for the next one."""
    yield
    scene.cluster.distsec("allow", PEER)


@pytest.mark.usefixtures("denied_in_the_end")
@pytest.mark.parametrize("gap", INBOUND_GAPS[1:])
def test_a_denial_ends_what_waits_between_two_gates(scene: Scene, leaf: Leaf, gap: str) -> None:
    """Acknowledged only when it is ended; the peer itself sends nothing more."""
    dialler = Dialler(scene.port, leaf, PEER, scene.pair_cookie("b"))
    for at in dialler.steps():
        if at == gap:
            wait_pending(scene, 1)
            break
    deny(scene)
    assert ended(dialler.connection)
    wait_pending(scene, 0)
    scene.settle()
    (told,) = [event for event in events(scene) if event.get("address") == dialler.address]
    assert (told["reason"], told["identity"]) == ("denied", scene.cluster.identity("b"))
    scene.expect_nothing_happened()


@pytest.mark.usefixtures("denied_in_the_end")
@pytest.mark.parametrize("gap", OUTBOUND_GAPS[1:])
def test_a_denial_ends_what_waits_between_two_gates_where_the_node_dialled(
    scene: Scene, leaf: Leaf, gap: str
) -> None:
    seen = len(events(scene))
    answerer = Answerer(scene.listed_ports["b"], leaf, PEER, scene.pair_cookie("b"))
    answerer.listen()
    dial(scene)
    for at in answerer.steps():
        if at == gap:
            break
    deny(scene)
    assert ended(answerer.connection)
    answerer.close()
    wait_pending(scene, 0)
    scene.settle()
    (told,) = events(scene)[seen:]
    assert (told["reason"], told["direction"], told["peer"]) == ("denied", "out", PEER)
    scene.expect_nothing_happened()


# ---- nobody takes anything back, and the peer goes --------------------------------------------------------


@pytest.mark.parametrize("gap", [*INBOUND_GAPS, "all"])
def test_an_attempt_that_is_broken_off_anywhere_leaves_one_event(scene: Scene, leaf: Leaf, gap: str) -> None:
    """By turns closed in order and reset, one after the other and four at a time under one name."""
    wrong = "never_the_cookie"
    seen = len(events(scene))
    addresses = [break_off(scene, leaf, wrong, gap, reset=bool(number % 2)) for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        work = [
            pool.submit(break_off, scene, leaf, wrong, gap, reset=bool(number % 2)) for number in range(20)
        ]
    addresses += [each.result() for each in work]
    # who goes at once has not been accepted yet
    scene.cluster.wait(lambda: sum(scene.refusals().values()) >= len(addresses), "all to be refused")
    wait_pending(scene, 0)
    scene.settle()
    told = events(scene)[seen:]
    assert len(told) == len(addresses)
    # who resets before it is accepted has no address any more
    missing = Counter(addresses) - Counter(event["address"] for event in told if "address" in event)
    assert not missing or gap == "accepted", missing
    assert {event["address"] for event in told if "address" in event} <= {*addresses}
    assert {event["direction"] for event in told} == {"in"}
    assert {event["reason"] for event in told} <= {"closed", "bad_cookie"}
    assert gap != "all" or "bad_cookie" in {event["reason"] for event in told}
    assert sum(scene.refusals().values()) == len(addresses)
    scene.expect_nothing_happened()


def break_off(scene: Scene, leaf: Leaf, cookie: str, gap: str, *, reset: bool) -> str:
    """Dials and goes at that gap, or where it is refused; from which address it did."""
    dialler = Dialler(scene.port, leaf, PEER, cookie)
    for at in until_refused(dialler.steps()):
        if at == gap:
            break
    else:
        ended(dialler.connection)
    if reset:
        with suppress(OSError):  # closed by ssl, after an alert
            dialler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dialler.connection.close()
    return dialler.address


def test_whom_the_application_does_not_allow_is_refused_with_that_reason(scene: Scene, leaf: Leaf) -> None:
    """net_kernel:allow/1 cannot be taken back, so this comes last."""
    scene.erl("net_kernel:allow(['z@198.51.100.1'])")
    dialler = Dialler(scene.port, leaf, PEER, scene.pair_cookie("b"))
    assert tuple(until_refused(dialler.steps())) == INBOUND_GAPS[:3]
    assert ended(dialler.connection)
    scene.expect("not_allowed", 1, peer=PEER)
    scene.expect_nothing_happened()
