"""What `distsec init` writes, and the demo."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from distsec.config.template import render_template
from distsec.errors import NameInvalid
from distsec.model.cluster import Carrier, ClusterSpec, Mode, OnExit
from distsec.model.names import NodeName

Parse = Callable[..., ClusterSpec]

NODES = [NodeName.parse(f"{head}@127.0.0.1") for head in ("poller", "agent", "sync")]
DEMO = Path(__file__).parents[3] / "config" / "demo" / "distsec.toml"


def test_what_init_writes_loads_without_a_problem_or_a_warning(spec: Parse) -> None:
    cluster = spec(render_template("demo", NODES))
    assert (cluster.name, cluster.mode, cluster.carrier) == ("demo", Mode.PRODUCTION, Carrier.DISTSEC)
    assert [node.name for node in cluster.nodes] == NODES == list(cluster.allowed_nodes)
    assert cluster.nodes[0].command == ("erl", "-noinput")
    assert (cluster.warnings, cluster.not_enforced) == ((), ())


def test_every_option_in_its_comments_loads_too(spec: Parse) -> None:
    text = re.sub(r"^#(?=[\[a-z])", "", render_template("demo", NODES), flags=re.MULTILINE)
    cluster = spec(text)
    assert cluster.listen_ports == (9100, 9155)
    assert len(cluster.rules) == len(cluster.peers) == 1
    assert cluster.nodes[0].environment == {"LANG": "C.UTF-8"}
    assert cluster.ca_passphrase_file == "/etc/distsec/ca.passphrase"


def test_the_options_in_its_comments_are_the_defaults(spec: Parse) -> None:
    plain = spec(render_template("demo", NODES))
    text = render_template("demo", NODES)
    for option in re.findall(r"^#([a-z_]+ = .*)$", text, flags=re.MULTILINE):
        key = option.split(" = ")[0]
        if key in {
            "listen_ports",
            "names",
            "kind",
            "name",
            "address",
            "port",
            "user",
            "working_directory",
            "otp_libraries",
            "passphrase_file",
            "renew_before_seconds",  # chosen from each certificate's life
            "renew_jitter_seconds",
            "environment",
        }:
            continue
        assert spec(text.replace(f"#{option}", option)) == plain, option


def test_nodes_at_ipv6_addresses_load_and_listen_there(spec: Parse) -> None:
    nodes = [NodeName.parse("a@::1"), NodeName.parse("b@2001:db8::7")]
    cluster = spec(render_template("demo", nodes))
    assert [(node.name, node.address) for node in cluster.nodes] == [
        (nodes[0], "::1"),
        (nodes[1], "2001:db8::7"),
    ]
    assert cluster.warnings == ()


def test_an_empty_cluster_loads_and_says_that_nobody_is_admitted(spec: Parse) -> None:
    assert any("no node is admitted" in warning for warning in spec(render_template("demo", [])).warnings)


def test_it_is_eighty_columns_wide() -> None:
    assert max(map(len, render_template("demo", NODES).splitlines())) <= 80


def test_what_it_is_given_is_what_it_says(spec: Parse) -> None:
    command = ['a "b" \\ ${HOME} é \x7f\n', "c"]
    text = render_template("x", NODES[:1], command=command, on_exit=OnExit.STOP, metrics_listen="127.0.0.1:0")
    cluster = spec(text)
    assert cluster.nodes[0].command == tuple(command)
    assert (cluster.on_exit, cluster.metrics_listen) == (OnExit.STOP, ("127.0.0.1", 0))


def test_a_cluster_cannot_be_named_just_anything() -> None:
    with pytest.raises(NameInvalid):
        render_template('demo"\n[x]', NODES)


def test_the_demo_loads_without_a_problem_or_a_warning(spec: Parse) -> None:
    cluster = spec(DEMO.read_text())
    assert [str(node.name) for node in cluster.nodes] == [
        "poller@127.0.0.1",
        "agent@127.0.0.1",
        "sync@127.0.0.1",
    ]
    assert (cluster.mode, cluster.on_exit) == (Mode.PRODUCTION, OnExit.STOP)
    assert (cluster.warnings, cluster.not_enforced) == ((), ())
