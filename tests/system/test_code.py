"""The agent's code in a node is what the node was started with, for as long as it runs."""

from __future__ import annotations

from collections.abc import Callable

from tests.releases import Otp
from tests.system.cluster import Cluster

_RELOAD = """
[begin
     {M, {error, sticky_directory}} = {M, c:l(M)},
     {error, sticky_directory} = code:load_file(M),
     {M, Binary, File} = code:get_object_code(M),
     {error, sticky_directory} = code:load_binary(M, File, Binary)
 end || M <- [distsec_dist, distsec_handshake, distsec_tls, distsec_policy, distsec_agent], _ <- [1, 2]],
ok
"""
_CONTROLLERS = "erlang:system_info(dist_ctrl)"


def test_no_module_of_the_agent_is_loaded_a_second_time_and_links_stay(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "b"])
    cluster.start()
    before = {node["name"]: node["links"] for node in cluster.status()["nodes"]}
    downs = cluster.events("NodeDown")
    controllers = cluster.erl("a", _CONTROLLERS)
    assert "b@127.0.0.1" in controllers
    assert cluster.erl("a", _RELOAD) == "ok"
    assert cluster.erl("a", "erpc:call('b@127.0.0.1', erlang, node, [])") == "'b@127.0.0.1'"
    assert cluster.erl("a", _CONTROLLERS) == controllers, "the very link; what follows may be told of later"
    assert {node["name"]: node["links"] for node in cluster.status()["nodes"]} == before
    assert cluster.events("NodeDown") == downs


def test_every_module_is_there_from_the_beginning(otp: Otp, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(otp, ["a"])
    cluster.start()
    assert (
        cluster.erl(
            "a",
            "ok = application:load(distsec), {ok, All} = application:get_key(distsec, modules), "
            "[M || M <- All, not erlang:module_loaded(M)]",
        )
        == "[]"
    )
