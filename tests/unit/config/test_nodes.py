"""Nodes, peers, ports, addresses, the allowlist and the CLI rules, each and together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distsec.errors import Problem
from distsec.model.cluster import ClusterSpec

Parse = Callable[..., ClusterSpec]
Problems = Callable[..., list[Problem]]
Only = Callable[..., Problem]

NODE = '[[nodes]]\nname = "a@127.0.0.1"\n'
HOST6 = '[[nodes]]\nname = "a@h.example"\n'


def distribution(text: str) -> str:
    return f"[security.distribution]\n{text}\n"


def warned(cluster: ClusterSpec, text: str) -> bool:
    return any(text in warning for warning in cluster.warnings)


# ---- names


@pytest.mark.parametrize("name", ["nohost", "a b@h", "a@h/../x", "a@", "", "x@h_h", "é@h"])
def test_a_bad_node_name_is_refused_wherever_it_stands(only: Only, name: str) -> None:
    assert only(f'[[nodes]]\nname = "{name}"').key == "nodes[0].name"
    assert only(distribution(f'allowed_nodes = ["{name}"]')).key == "security.distribution.allowed_nodes[0]"
    assert only(f'[[peers]]\nname = "{name}"\naddress = "127.0.0.1"\nport = 9100').key == "peers[0].name"


def test_two_nodes_of_one_name_are_refused(only: Only) -> None:
    problem = only(NODE + NODE)
    assert (problem.key, problem.line) == ("nodes[1].name", 4)


def test_a_node_that_is_also_a_peer_is_refused(only: Only) -> None:
    problem = only(NODE + '[[peers]]\nname = "a@127.0.0.1"\naddress = "127.0.0.1"\nport = 9100')
    assert (problem.key, problem.what) == ("peers[0].name", "a@127.0.0.1 is already in [[nodes]]")


@pytest.mark.parametrize(
    "text",
    [
        '[[nodes]]\nname = "a@host"\n[[nodes]]\nname = "b@host.example"',
        distribution('allowed_nodes = ["a@host", "b@10.0.0.1"]'),
        NODE + '[[peers]]\nname = "b@other"\naddress = "10.0.0.1"\nport = 9100',
    ],
)
def test_short_and_long_names_in_one_cluster_are_refused(only: Only, text: str) -> None:
    assert "they never connect" in only(text).what


def test_a_short_name_may_be_used_throughout(spec: Parse) -> None:
    assert spec('[[nodes]]\nname = "a@host"\n' + distribution('allowed_nodes = ["a@host"]')).warnings == ()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('[[nodes]]\nname = "a@::1"', "::1"),
        (HOST6 + 'address = "::1"', "::1"),
        (HOST6 + 'address = "2001:db8:0::1"', "2001:db8::1"),
        ('[[nodes]]\nname = "a@::1"\naddress = "2001:db8::1"', "2001:db8::1"),
    ],
)
def test_a_node_may_be_at_an_ipv6_address(spec: Parse, text: str, address: str) -> None:
    assert spec(text).nodes[0].address == address


def test_ipv6_is_taken_wherever_a_name_or_an_address_is(spec: Parse) -> None:
    cluster = spec(
        distribution('allowed_nodes = ["a@2001:db8::1"]')
        + '[[security.distribution.rules]]\nnames = ["cli-*@::1"]\n'
        + '[[peers]]\nname = "a@2001:db8::1"\nport = 9100\naddress = "2001:db8::1"'
    )
    assert cluster.peers[0].address == cluster.allowed_nodes[0].host == "2001:db8::1"
    assert cluster.rules[0].names == ("cli-*@::1",)


FAMILIES = (
    ('[[nodes]]\nname = "a@::1"\naddress = "127.0.0.1"', "nodes[0].address"),
    ('[[nodes]]\nname = "a@::1"\n[[nodes]]\nname = "b@127.0.0.1"', "nodes[1].address"),
    (HOST6 + 'address = "::1"\n[[nodes]]\nname = "b@h.example"', "nodes[1].address"),
    (HOST6 + '[[peers]]\nname = "b@o.example"\nport = 9100\naddress = "::1"', "peers[0].address"),
)


@pytest.mark.parametrize(("text", "key"), FAMILIES)
@pytest.mark.parametrize("how", ['mode = "development"', 'distribution.carrier = "inet_tls"'])
def test_stock_carriers_do_not_mix_ipv4_and_ipv6(only: Only, how: str, text: str, key: str) -> None:
    problem = only(f"[security]\n{how}\n{text}")
    assert problem.key == key
    assert "::1" in problem.what and "distsec" in problem.do


@pytest.mark.parametrize("text", [text for text, _ in FAMILIES])
def test_the_carrier_distsec_mixes_them(spec: Parse, text: str) -> None:
    assert spec(text).carrier == "distsec"


@pytest.mark.parametrize("address", ["fe80::1", "fe80::1%eth0", "::1%lo"])
def test_an_address_that_needs_a_zone_is_refused(only: Only, address: str) -> None:
    assert "zone" in only(NODE + f'address = "{address}"').what


@pytest.mark.parametrize("table", ["nodes", "peers"])
def test_a_table_without_a_name_is_refused(problems: Problems, table: str) -> None:
    assert problems(f"[[{table}]]\nport = 9100")[0].what == "has no name"


def test_a_peer_needs_an_address_and_a_port(problems: Problems) -> None:
    whats = [problem.what for problem in problems('[[peers]]\nname = "b@10.0.0.2"')]
    assert whats == ["has no address", "has no port"]


# ---- addresses and ports


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "*", "0", "::ffff:0.0.0.0"])
def test_a_node_that_would_listen_everywhere_is_refused_with_the_safe_ways(only: Only, address: str) -> None:
    problem = only(NODE + f'address = "{address}"')
    assert (problem.key, problem.line) == ("nodes[0].address", 3)
    assert "would listen on every interface" in problem.what
    assert "127.0.0.1" in problem.do and "VPN" in problem.do


def test_a_node_that_is_named_after_all_interfaces_is_refused(only: Only) -> None:
    assert "every interface" in only('[[nodes]]\nname = "a@0.0.0.0"').what


@pytest.mark.parametrize(
    "address", ["host.example", "224.0.0.1", "255.255.255.255", "127.1", "", "1.2.3.4:5"]
)
def test_a_node_listens_on_the_ip_address_of_one_host(only: Only, address: str) -> None:
    assert only(NODE + f'address = "{address}"').key == "nodes[0].address"


@pytest.mark.parametrize(
    ("name", "given", "address"),
    [
        ("a@192.0.2.1", "", "192.0.2.1"),
        ("a@h.example", "", "127.0.0.1"),
        ("a@h.example", 'address = "192.0.2.1"', "192.0.2.1"),
        ("a@h.example", 'address = "localhost"', "127.0.0.1"),
    ],
)
def test_a_node_listens_where_it_is_named_after_and_else_on_loopback(
    spec: Parse, name: str, given: str, address: str
) -> None:
    assert spec(f'[[nodes]]\nname = "{name}"\n{given}').nodes[0].address == address


@pytest.mark.parametrize("port", ["0", "80", "1023", "65536", "-1", '"9100"', "true", "9100.0"])
def test_a_port_is_a_number_that_needs_no_privilege(only: Only, port: str) -> None:
    problem = only(NODE + f"port = {port}")
    assert (problem.key, problem.line) == ("nodes[0].port", 3)
    assert problem.what == "must be a whole number from 1024 to 65535"


def test_a_port_outside_the_range_that_others_are_allotted_from_is_fine(spec: Parse) -> None:
    assert spec(distribution("listen_ports = [9100, 9155]") + NODE + "port = 20000").nodes[0].port == 20000


def test_two_nodes_on_one_port_are_refused(only: Only) -> None:
    problem = only(NODE + 'port = 9100\n[[nodes]]\nname = "b@127.0.0.1"\nport = 9100')
    assert (problem.key, problem.line) == ("nodes[1].port", 6)
    assert problem.what == "port 9100 at 127.0.0.1 is already taken by nodes[0]"


def test_one_port_at_two_addresses_is_fine(spec: Parse) -> None:
    assert spec(NODE + 'port = 9100\n[[nodes]]\nname = "b@127.0.0.2"\nport = 9100')


def test_a_node_on_the_port_of_the_metrics_is_refused(only: Only) -> None:
    assert "taken by [metrics]" in only(NODE + "port = 9911").what


@pytest.mark.parametrize(
    "ports",
    [
        "[9155, 9100]",
        "[9100]",
        "[]",
        "[9100, 9101, 9102]",
        "[80, 90]",
        "[9100, 70000]",
        '["9100", "9101"]',
        "9100",
    ],
)
def test_a_port_range_is_two_ports_in_order(only: Only, ports: str) -> None:
    assert only(distribution(f"listen_ports = {ports}")).key == "security.distribution.listen_ports"


def test_a_port_range_that_is_too_small_for_the_nodes_is_refused(spec: Parse, only: Only) -> None:
    nodes = "".join(f'[[nodes]]\nname = "n{index}@127.0.0.1"\n' for index in range(3))
    assert spec(distribution("listen_ports = [9100, 9102]") + nodes)
    assert (
        "3 nodes need a port from 9100 to 9101, and only 2 are free"
        in only(distribution("listen_ports = [9100, 9101]") + nodes).what
    )
    assert (
        "only 2 are free"
        in only(
            distribution("listen_ports = [9100, 9102]")
            + nodes
            + '[[nodes]]\nname = "f@127.0.0.1"\nport = 9101'
        ).what
    )


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ('"127.0.0.1:9000"', ("127.0.0.1", 9000)),
        ('"localhost:0"', ("127.0.0.1", 0)),
        ('"[::1]:80"', ("::1", 80)),
        ("false", None),
        ('""', None),
    ],
)
def test_the_metrics_listen_where_they_are_told(spec: Parse, listen: str, expected: object) -> None:
    assert spec(f"[metrics]\nlisten = {listen}").metrics_listen == expected


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9911", "[::]:9911", ":9911", "*:9911", "[]:9911", "[::ffff:0.0.0.0]:1"]
)
def test_metrics_for_everybody_are_refused_with_the_safe_ways(only: Only, listen: str) -> None:
    problem = only(f'[metrics]\nlisten = "{listen}"')
    assert (problem.key, problem.line) == ("metrics.listen", 2)
    assert "would listen on every interface" in problem.what
    assert "127.0.0.1" in problem.do


@pytest.mark.parametrize(
    "listen", ["127.0.0.1", "::1:9911", "127.0.0.1:70000", "127.0.0.1:x", "[127.0.0.1]:1", "host:1"]
)
def test_metrics_need_an_address_and_a_port(only: Only, listen: str) -> None:
    assert only(f'[metrics]\nlisten = "{listen}"').key == "metrics.listen"


def test_metrics_beyond_loopback_are_named(spec: Parse) -> None:
    assert warned(
        spec('[metrics]\nlisten = "192.0.2.1:9911"'),
        "line 2: metrics.listen: metrics are served in cleartext",
    )


def test_a_socket_path_that_linux_does_not_take_is_refused(only: Only, spec: Parse) -> None:
    node = "/nodes/a@127.0.0.1/agent.sock"
    fits = "/" + "d" * (107 - len(node) - 1)
    assert spec(f'[cluster]\nstate_dir = "{fits}"\n' + NODE)
    problem = only(f'[cluster]\nstate_dir = "{fits}d"\n' + NODE)
    assert (problem.key, problem.line) == ("nodes[0].name", 4)
    assert "would have 108 bytes, and Linux allows 107" in problem.what
    assert "/var/lib/distsec" in problem.do


def test_a_socket_path_is_measured_in_bytes_from_the_place_of_the_file(
    problems: Problems, spec: Parse
) -> None:
    assert problems('[cluster]\nstate_dir = "' + "é" * 40 + '"\n' + NODE)
    deep = Path("/" + "/".join(["deep"] * 20)) / "distsec.toml"
    with pytest.raises(Exception, match="Linux allows 107"):
        spec(NODE, path=deep)


# ---- commands and environments


def test_a_command_is_a_list_that_is_not_empty(only: Only) -> None:
    assert only(NODE + "command = []").what == "is empty"
    assert only(NODE + 'command = "erl -noinput"').what == "must be a list"
    assert only(NODE + 'command = [""]').what == "names no program"
    assert only(NODE + 'command = ["erl", 1]').key == "nodes[0].command[1]"
    assert "NUL" in only(NODE + 'command = ["erl", "a\\u0000b"]').what


def test_a_node_without_a_command_is_started_by_something_else(spec: Parse) -> None:
    cluster = spec(NODE + 'restart = "always"')
    assert cluster.nodes[0].command == ()
    assert warned(cluster, "line 3: nodes[0].restart: has no effect without a command")
    given = spec(NODE + 'environment = { A = "1" }')  # `distsec env` hands it on
    assert not warned(given, "has no effect without a command")


@pytest.mark.parametrize("flag", ["-proto_dist", "-ssl_dist_optfile", "-setcookie", "-name", "-sname"])
def test_a_flag_that_the_guard_will_not_stand_is_named(spec: Parse, flag: str) -> None:
    assert warned(spec(NODE + f'command = ["erl", "{flag}", "x"]'), f"line 3: nodes[0].command[1]: {flag}")
    assert warned(
        spec(NODE + f'command = ["erl"]\nenvironment = {{ERL_ZFLAGS = "+P 1 {flag} x"}}'), f"holds {flag}"
    )


def test_erl_aflags_is_not_the_operators(only: Only) -> None:
    problem = only(NODE + 'command = ["erl"]\n[nodes.environment]\nA = "1"\nERL_AFLAGS = "-s x"')
    assert (problem.key, problem.line) == ("nodes[0].environment.ERL_AFLAGS", 6)
    assert "ERL_FLAGS" in problem.do


@pytest.mark.parametrize("name", ["A B", "", "A=B", "1A", "A\\u0000", "é", "A-B"])
def test_a_variable_that_a_shell_could_not_set_is_refused(only: Only, name: str) -> None:
    assert (
        only(NODE + f'command = ["erl"]\nenvironment = {{"{name}" = "x"}}').what == "is no name of a variable"
    )


@pytest.mark.parametrize("value", ["1", "true", '"a\\u0000b"'])
def test_a_variable_holds_text(only: Only, value: str) -> None:
    assert only(NODE + f'command = ["erl"]\nenvironment = {{A = {value}}}').key == "nodes[0].environment.A"


def test_a_user_is_taken_and_enforced(spec: Parse) -> None:
    cluster = spec(NODE + 'command = ["erl"]\nuser = "beam"')
    assert cluster.nodes[0].user == "beam"
    assert cluster.not_enforced == ()


# ---- admission


@pytest.mark.parametrize("text", ["", distribution("allowed_nodes = []")])
def test_an_empty_allowlist_is_named(spec: Parse, text: str) -> None:
    assert warned(spec(text), "allowed_nodes: is empty: no node is admitted")


def test_a_node_that_may_link_with_nobody_is_named(spec: Parse) -> None:
    cluster = spec(distribution('allowed_nodes = ["b@127.0.0.1"]') + NODE)
    assert warned(cluster, "line 4: nodes[0].name: a@127.0.0.1 is not in allowed_nodes")


def test_a_name_that_nobody_can_dial_is_named(spec: Parse) -> None:
    cluster = spec(distribution('allowed_nodes = ["a@127.0.0.1", "b@127.0.0.1"]') + NODE)
    assert warned(cluster, "admitted but never dialled, for want of an address and port: b@127.0.0.1;")


def test_a_name_that_is_listed_twice_is_named_and_taken_once(spec: Parse) -> None:
    cluster = spec(distribution('allowed_nodes = ["a@127.0.0.1", "a@127.0.0.1"]') + NODE)
    assert len(cluster.allowed_nodes) == 1
    assert warned(cluster, "a@127.0.0.1 is listed twice")


def rule(text: str) -> str:
    return f"[[security.distribution.rules]]\n{text}"


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ('names = ["cli-*@h"]\nkind = "web"', "kind", "'web' is not known here"),
        ('names = ["cli-*@*"]', "names[0]", "has a * in the host part"),
        ('names = ["cli-*@h*.example"]', "names[0]", "has a * in the host part"),
        ('names = ["*"]', "names[0]", "can match no node name"),
        ('names = ["-*@h"]', "names[0]", "can match no node name"),
        ('names = ["a?@h"]', "names[0]", "can match no node name"),
        ("names = []", "names", "is empty"),
        ('kind = "cli"', "", "has no names"),
        ('names = ["cli-*@h"]\nidentity = "*"', "identity", "is no SPIFFE ID"),
        ('names = ["cli-*@h"]\nidentity = "spiffe://*"', "identity", "is no SPIFFE ID"),
        ('names = ["cli-*@h"]\nidentity = "spiffe://distsec/a*b"', "identity", "is no SPIFFE ID"),
        ('names = ["cli-*@h"]\nidentity = "CN=x"', "identity", "is no SPIFFE ID"),
        ('names = ["cli-*@h"]\nidentity = "spiffe://other/cli/*"', "identity", "is not of this cluster"),
    ],
)
def test_a_rule_that_is_wrong_or_too_wide_is_refused(only: Only, text: str, key: str, what: str) -> None:
    problem = only(rule(text))
    assert problem.key == "security.distribution.rules[0]" + (f".{key}" if key else "")
    assert what in problem.what


def test_a_rule_that_matches_every_name_is_named(spec: Parse) -> None:
    assert warned(
        spec(rule('names = ["cli-*@h", "*@h"]')), "rules[0].names[1]: *@h matches every name on that host"
    )
    assert not warned(spec(rule('names = ["cli-*@h"]')), "matches every name")


@pytest.mark.parametrize(
    "identity", ["spiffe://distsec/*", "spiffe://distsec/node/*", "spiffe://distsec/node/h/*"]
)
def test_a_rule_that_lets_nodes_in_as_tools_is_named(spec: Parse, identity: str) -> None:
    assert warned(spec(rule(f'names = ["cli-*@h"]\nidentity = "{identity}"')), "lets nodes of the cluster in")


def test_a_rule_is_of_kind_cli_by_default(spec: Parse) -> None:
    (found,) = spec(rule('names = ["cli-*@h"]')).rules
    assert (found.names, found.identity) == (("cli-*@h",), None)


def test_a_port_range_that_is_the_wrong_way_round_is_told_as_that(only: Only) -> None:
    problem = only(distribution("listen_ports = [9155, 9100]"))
    assert (problem.what, problem.do) == (
        "the first port, 9155, is above the last, 9100",
        "write [9100, 9155]",
    )


def test_metrics_are_not_switched_on_without_an_address(only: Only) -> None:
    assert only("[metrics]\nlisten = true").what == "must be an address:port, or false"


def test_a_file_without_nodes_is_named(spec: Parse) -> None:
    assert warned(spec(""), "nodes: none is given")
    assert not warned(spec(NODE), "none is given")


def test_an_empty_user_is_refused(only: Only) -> None:
    assert only(NODE + 'command = ["erl"]\nuser = ""').key == "nodes[0].user"


def test_restart_limits_of_a_node_that_is_never_restarted_are_named(spec: Parse) -> None:
    text = NODE + 'command = ["erl"]\nrestart = "never"\n'
    assert warned(spec(text + "restart_intensity = 3"), "line 4: nodes[0].restart: ")
    assert not warned(spec(text), "nodes[0].restart")


def test_a_text_has_a_bound(spec: Parse, only: Only) -> None:
    command = NODE + 'command = ["erl", "{}"]'
    assert spec(command.format("x" * 4096))
    assert only(command.format("x" * 4097)).what == "is longer than 4096 characters"


def test_refuses_a_variable_that_erlexec_reads_before_the_flags_of_the_guard(only: Only) -> None:
    problem = only(NODE + 'command = ["erl"]\n[nodes.environment]\nERL_OTP25_FLAGS = "-epmd_module erl_epmd"')
    assert problem.key.endswith("ERL_OTP25_FLAGS") and "ERL_FLAGS" in problem.do
