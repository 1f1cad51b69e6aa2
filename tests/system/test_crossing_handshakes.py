"""Two handshakes of one name whose ends cross in net_kernel: what is left of them goes at once.

net_kernel gives the name to the later one while the emulator has the link of the earlier one up already
(net_kernel, accept_pending), and then knows neither: nobody owns the link that comes up then, net_kernel
cannot end it, and ssl keeps its process for 5 s (tls_sender, death_row). A denial has 4 s.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import pytest

from tests.attacks.claim import HIDDEN
from tests.attacks.scene import Scene
from tests.releases import OTPS, Otp
from tests.system.carrier_dialogue import INBOUND_GAPS, Dialler
from tests.system.intruder import string
from tests.system.of_module import of_module

PEER = "b@127.0.0.1"
SOURCE = Path(__file__).parents[2] / "erlang" / "src" / "distsec_handshake.erl"
BEFORE_NET_KERNEL_HAS_IT = "{node, _, Host} = dist_util:split_node(Node),\n"
HELD = """(fun Held() ->
    case persistent_term:get(test_held, false) of
        true -> receive after 1 -> Held() end;
        false -> ok
    end
end)(),
"""

otp = of_module(OTPS)


@pytest.fixture(scope="module")
def scene_of_module(otp: Otp, beams: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene(otp, beams, carrier="distsec") as scene:
        source = tmp_path_factory.mktemp("held") / SOURCE.name
        text = SOURCE.read_text()
        assert text.count(BEFORE_NET_KERNEL_HAS_IT) == 1
        source.write_text(text.replace(BEFORE_NET_KERNEL_HAS_IT, BEFORE_NET_KERNEL_HAS_IT + HELD))
        subprocess.run(["erlc", "-o", source.parent, source], check=True, capture_output=True)
        beam = string(str(source.with_suffix("")))
        loaded = scene.erl(f"true = code:unstick_mod(distsec_handshake), code:load_abs({beam})")
        assert loaded == "{module,distsec_handshake}"
        yield scene


@pytest.fixture
def scene(scene_of_module: Scene) -> Iterator[Scene]:
    scene_of_module.begin()
    with ExitStack() as stack:
        scene_of_module.test = stack
        yield scene_of_module


@contextmanager
def held(scene: Scene) -> Iterator[None]:
    scene.erl("persistent_term:put(test_held, true)")
    try:
        yield
    finally:
        scene.erl("persistent_term:put(test_held, false)")


def controllers(scene: Scene) -> str:
    return scene.erl("erlang:system_info(dist_ctrl)")


def assert_can_be_ended(scene: Scene) -> None:
    """At once, as an operator's command would take a good part of those 5 s."""
    done = scene.erl(f'element(1, distsec_command:run(disconnect, #{{peer => <<"{PEER}">>}}))')
    assert (done, controllers(scene)) == ("ok", "[]")
    scene.cluster.wait(lambda: scene.erl("distsec_links:all()") == "[]", "the watcher to have its nodedown")


def test_a_link_that_came_up_while_its_name_was_anothers_already_can_be_ended(scene: Scene) -> None:
    leaf, cookie = scene.cluster.leaf("b"), scene.pair_cookie("b")
    one, two, three = (Dialler(scene.port, leaf, PEER, cookie) for _ in range(3))
    with held(scene):
        assert [*one.steps()][-1] == "half a reply"
        scene.cluster.wait(lambda: controllers(scene) != "[]", "the first link in the emulator")
        steps = two.steps()  # the name is its, which ends the first
        assert [*islice(steps, INBOUND_GAPS.index("challenged") + 1)][-1] == "challenged"
        scene.cluster.wait(lambda: controllers(scene) == "[]", "the end of the first")
        waiting = three.steps()  # the name is its
        assert [*islice(waiting, INBOUND_GAPS.index("challenged") + 1)][-1] == "challenged"
        assert [*steps] == ["half a reply"]
        scene.cluster.wait(lambda: controllers(scene) != "[]", "the second link in the emulator")
    log = scene.cluster.log
    scene.cluster.wait(
        lambda: "was not allowed to send {nodeup" in log("a"), "net_kernel to take it from nobody"
    )
    assert_can_be_ended(scene)
    for each in (one, two, three):
        each.connection.close()


def test_a_link_that_net_kernel_does_not_know_is_ended_all_the_same(scene: Scene) -> None:
    """As with the stock carrier, whose handshakes nobody registers; here there is nothing but the link."""
    scene.erl(
        "Controller = spawn(fun() -> process_flag(trap_exit, true), "
        "receive {'EXIT', _, disconnect} -> ok end end), "
        f"erts_internal:new_connection('{PEER}'), erlang:setnode('{PEER}', Controller, {{{HIDDEN}, 4}})"
    )
    scene.cluster.wait_event("UnauthorizedAccess", severity="critical")
    assert_can_be_ended(scene)
