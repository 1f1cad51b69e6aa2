"""That links are TLS 1.3 is read off the wire and asked of ssl itself, not of the options that ask for it."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.attacks.scene import VICTIM, Scene
from tests.attacks.wire import (
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    TLS_1_3,
    Tap,
    records,
    relay,
    server_hello,
)
from tests.releases import Otp
from tests.system.cluster import Cluster, free_ports
from tests.system.intruder import Intruder, tls

SUITES = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}

PAYLOAD = "what_the_nodes_say_to_each_other"

CONNECTIONS = """
[{Node, proplists:get_value(protocol, Facts),
  ssl:suite_to_str(proplists:get_value(selected_cipher_suite, Facts))}
 || {Node, Controller} <- lists:sort(erlang:system_info(dist_ctrl)),
    {links, Links} <- [process_info(Controller, links)], Owner <- Links, is_pid(Owner),
    {monitored_by, Pids} <- [process_info(Owner, monitored_by)], Pid <- Pids, is_pid(Pid),
    {dictionary, Dictionary} <- [process_info(Pid, dictionary)],
    proplists:get_value('$initial_call', Dictionary) =:= {ssl_gen_statem, init, 1},
    {ok, Facts} <- [ssl_gen_statem:connection_information(Pid, false)]]
"""
"""For each link what its TLS process says of itself, as ssl:connection_information/1 asks it."""


def assert_tells_nothing(tap: Tap, *secrets: str) -> None:
    """TLS 1.3, everything after the hellos is encrypted, and none of `secrets` is among the bytes."""
    hello = server_hello(bytes(tap.listener))
    assert hello.version == TLS_1_3
    assert hello.cipher_suite in SUITES
    for stream in (tap.dialler, tap.listener):
        (first, _), *rest = records(bytes(stream))
        assert first == HANDSHAKE
        assert {kind for kind, _ in rest} <= {CHANGE_CIPHER_SPEC, APPLICATION_DATA}
    for secret in secrets:
        assert secret.encode() not in tap.everything, secret


def secrets_of(scene: Scene) -> tuple[str, ...]:
    return (VICTIM, "b@127.0.0.1", "spiffe://", PAYLOAD, scene.pair_cookie("b"), scene.default_cookie())


def speak(node: Intruder, to: str) -> None:
    """Sends the payload there and has it sent back."""
    assert node.erl(f"rpc:call('{to}', erlang, list_to_atom, [\"{PAYLOAD}\"], 20000)") == PAYLOAD


def aim(node: Intruder, at: str, port: int) -> None:
    """From now on `node` looks for `at` on that port."""
    node.erl(f'os:putenv("DISTSEC_TEST_PEERS", "{at}={port}")')


def test_a_wiretap_of_a_link_that_comes_in_sees_tls_1_3_and_no_name(scene: Scene) -> None:
    friend = scene.intruder("b", leaf=scene.cluster.leaf("b"), cookie=scene.pair_cookie("b"))
    with relay(scene.port) as (port, taps):
        aim(friend, VICTIM, port)
        assert friend.connect(VICTIM)
        speak(friend, VICTIM)
        (tap,) = taps
        assert_tells_nothing(tap, *secrets_of(scene))
        friend.stop()
        scene.wait_alone("the end of the link")


def test_a_wiretap_of_a_link_that_goes_out_sees_tls_1_3_and_no_name(scene: Scene) -> None:
    (behind,) = free_ports(1)
    friend = scene.intruder("b", leaf=scene.cluster.leaf("b"), cookie=scene.pair_cookie("b"), listen=behind)
    with relay(behind, scene.listed_ports["b"]) as (_, taps):
        assert scene.dial("b", 1) == "[true]"
        speak(friend, VICTIM)
        (tap,) = taps
        assert_tells_nothing(tap, *secrets_of(scene))
        friend.stop()
        scene.wait_alone("the end of the link")


def test_a_wiretap_of_plain_distribution_sees_all_of_it(scene: Scene) -> None:
    """Without this the two tests above could pass because their wiretap is deaf."""
    (port,) = free_ports(1)
    listener = scene.intruder("x", leaf=None, cookie="shared", carrier="inet_tcp", listen=port)
    dialler = scene.intruder("y", leaf=None, cookie="shared", carrier="inet_tcp")
    with relay(port) as (through, taps):
        aim(dialler, listener.name, through)
        assert dialler.connect(listener.name)
        speak(dialler, listener.name)
        (tap,) = taps
        for seen in (listener.name, dialler.name, PAYLOAD):
            assert seen.encode() in tap.everything
        with pytest.raises(ValueError, match="no TLS record"):
            records(tap.everything)
        dialler.stop()


@pytest.fixture(scope="module")
def mesh(otp: Otp, beams: Path) -> Iterator[Cluster]:
    """Three managed nodes, each linked with the others."""
    with Cluster(otp, beams, ["a", "b", "c"]) as cluster:
        cluster.start()
        yield cluster


def test_three_nodes_form_a_cluster_over_tls_1_3(mesh: Cluster) -> None:
    for node in mesh.status()["nodes"]:
        others = [mesh.node(name) for name in mesh.names if mesh.node(name) != node["name"]]
        assert mesh.erl(node["name"], "lists:sort(nodes(connected))") == erlang_list(f"'{o}'" for o in others)
        said = {link["peer"]: link for link in node["links"]}
        assert {peer: link["identity"] for peer, link in said.items()} == {
            o: mesh.identity(o) for o in others
        }
        assert {link["tls_version"] for link in said.values()} == {"tlsv1.3"}
        assert mesh.erl(node["name"], CONNECTIONS) == erlang_list(
            f"{{'{other}','tlsv1.3',\"{said[other]['cipher']}\"}}" for other in others
        )


def erlang_list(elements: Iterable[str]) -> str:
    return f"[{','.join(elements)}]"


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_listed_certificate_is_served_tls_1_3_and_refused_tls_1_2(mesh: Cluster, name: str) -> None:
    leaf = mesh.leaf("b")
    with closing(tls(mesh.port(name), leaf)) as connection:
        assert connection.version() == "TLSv1.3"
        suite = connection.cipher()
        assert suite is not None
        assert suite[0] in SUITES.values()
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        tls(mesh.port(name), leaf, maximum=ssl.TLSVersion.TLSv1_2)
