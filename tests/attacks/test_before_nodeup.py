"""Real nodes that know every cookie and have a valid certificate, of a name that is not listed.

With stock OTP each of them would run code in the victim (tests/system/test_strangers.py). Here none gets as
far as a nodeup, whether it dials or is dialled, hidden or not, however often it tries.
"""

from __future__ import annotations

import pytest

from tests.attacks.claim import false_node
from tests.attacks.scene import VICTIM, Scene
from tests.system.certificates import TestAuthority

ATTEMPTS = 50
ATTACKS = 5
"""Rounds of every way to run code in another node, each of which dials again."""

EVIL = "spiffe://demo/node/127.0.0.1/evil"

VISIBILITY = pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "visible"])


def cookie_of(scene: Scene, name: str) -> str:
    """The default cookie for whom the victim has no other, the pair's own for a listed name."""
    return scene.pair_cookie(name) if name in scene.listed_ports else scene.default_cookie()


@VISIBILITY
@pytest.mark.parametrize("name", ["evil", "b"], ids=["default cookie", "a listed name and its cookie"])
def test_an_unlisted_certificate_is_refused_before_nodeup(scene: Scene, name: str, hidden: bool) -> None:
    leaf = scene.cluster.leaf("evil")
    evil = scene.intruder(name, leaf=leaf, cookie=cookie_of(scene, name), hidden=hidden)
    dialled = f"lists:usort([net_kernel:connect_node('{VICTIM}') || _ <- lists:seq(1, {ATTEMPTS})])"

    assert evil.erl(dialled, 60) == "[false]"

    scene.expect("not_allowed", ATTEMPTS)
    events = scene.last_events("not_allowed", ATTEMPTS)
    for event in events:
        assert event["type"] == "UnauthorizedAccess"
        assert (event["identity"], event["serial"]) == (EVIL, leaf.serial)
        assert event["address"].startswith("127.0.0.1:")
    assert len(events) == ATTEMPTS
    assert evil.links() == "[]"
    scene.expect_nothing_happened()


@VISIBILITY
def test_nothing_that_an_unlisted_node_sends_or_calls_runs(scene: Scene, hidden: bool) -> None:
    evil = scene.intruder(
        "evil", leaf=scene.cluster.leaf("evil"), cookie=scene.default_cookie(), hidden=hidden
    )
    scene.attack(evil, ATTACKS)
    scene.cluster.wait(scene.denied, "the first refusal in the log")
    scene.wait_told()
    assert set(scene.denied()) == {"not_allowed"}
    assert evil.links() == "[]"
    scene.expect_nothing_happened()


def test_the_same_attack_runs_code_where_certificate_and_cookie_are_listed(scene: Scene) -> None:
    """Without this the test above could pass because its attack never works."""
    friend = scene.intruder("b", leaf=scene.cluster.leaf("b"), cookie=scene.pair_cookie("b"))
    scene.attack(friend, 1)
    assert scene.harmed() != "no"
    assert scene.nodeups() == "['b@127.0.0.1']"
    friend.stop()
    scene.wait_alone("the end of the link")


@VISIBILITY
def test_an_impostor_at_a_listed_address_is_refused_by_the_node_that_dials(
    scene: Scene, hidden: bool
) -> None:
    leaf = scene.cluster.leaf("evil")
    impostor = scene.intruder(
        "b", leaf=leaf, cookie=scene.pair_cookie("b"), hidden=hidden, listen=scene.listed_ports["b"]
    )

    assert scene.dial("b", ATTEMPTS) == "[false]"

    scene.expect("not_allowed", ATTEMPTS, direction="out")
    for event in scene.last_events("not_allowed", ATTEMPTS):
        assert event["type"] == "UnauthorizedAccess"
        assert event["direction"] == "out"
        assert event["address"] == f"127.0.0.1:{scene.listed_ports['b']}"
        assert (event["identity"], event["serial"]) == (EVIL, leaf.serial)
    assert impostor.links() == "[]"
    scene.expect_nothing_happened()


def test_an_insider_at_anothers_address_is_refused_for_want_of_the_cookie(scene: Scene) -> None:
    """Its certificate is listed, so that only the cookie tells it from the node that was dialled."""
    leaf = scene.cluster.leaf("c")
    with false_node(scene.listed_ports["b"], leaf, "b@127.0.0.1"):
        assert scene.dial("b", 3) == "[false]"

    scene.expect("bad_cookie", 3, direction="out", peer="c@127.0.0.1")
    for event in scene.denials():
        assert event["event"] == "UnauthorizedAccess"
        assert event["peer"] == "b@127.0.0.1"
        assert event["identity"] == "spiffe://demo/node/127.0.0.1/c"
        assert event["serial"] == leaf.serial
        assert event["address"] == f"127.0.0.1:{scene.listed_ports['b']}"
    scene.expect_nothing_happened()


def test_a_server_of_a_foreign_ca_is_refused_when_dialled(scene: Scene) -> None:
    leaf = scene.cluster.leaf("b", authority=TestAuthority.foreign())
    scene.intruder("b", leaf=leaf, cookie=scene.pair_cookie("b"), listen=scene.listed_ports["b"])
    assert scene.dial("b", 3) == "[false]"
    scene.expect("unknown_ca", 3, direction="out")
    scene.expect_nothing_happened()


def test_a_server_of_tls_1_2_is_refused_when_dialled(scene: Scene) -> None:
    scene.intruder(
        "b",
        leaf=scene.cluster.leaf("b"),
        cookie=scene.pair_cookie("b"),
        listen=scene.listed_ports["b"],
        versions=("tlsv1.2",),
    )
    assert scene.dial("b", 3) == "[false]"
    scene.expect("protocol_version", 3, direction="out")
    scene.expect_nothing_happened()
