"""Modes and carriers (what runs without TLS, and what is refused for asking for it)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distsec.errors import Problem
from distsec.model.cluster import Carrier, ClusterSpec, Mode

Parse = Callable[..., ClusterSpec]
Problems = Callable[..., list[Problem]]
Only = Callable[..., Problem]


def cluster(
    mode: str | None, distribution: str = "", address: str = "127.0.0.1", allowed: str = "a@h.example"
) -> str:
    said = f'mode = "{mode}"' if mode else ""
    return f"""\
[security]
{said}
[security.distribution]
allowed_nodes = ["a@h.example", "{allowed}"]
{distribution}
[[nodes]]
name = "a@h.example"
address = "{address}"
"""


BEYOND = "192.0.2.1"


@pytest.mark.parametrize(
    ("mode", "address", "carrier"),
    [
        (None, "127.0.0.1", Carrier.DISTSEC),
        ("production", "127.0.0.1", Carrier.DISTSEC),
        ("production", BEYOND, Carrier.DISTSEC),
        ("hybrid", "127.0.0.1", Carrier.INET_TCP),
        ("hybrid", "127.9.9.9", Carrier.INET_TCP),
        ("hybrid", BEYOND, Carrier.DISTSEC),
        ("development", "127.0.0.1", Carrier.INET_TCP),
    ],
)
def test_the_carrier_follows_from_mode_and_addresses(
    spec: Parse, mode: str | None, address: str, carrier: Carrier
) -> None:
    assert spec(cluster(mode, address=address)).carrier is carrier


@pytest.mark.parametrize("allowed", ["b@192.0.2.7", "b@other.example"])
def test_hybrid_uses_tls_as_soon_as_a_peer_is_not_known_to_be_on_loopback(spec: Parse, allowed: str) -> None:
    assert spec(cluster("hybrid", allowed=allowed)).carrier is Carrier.DISTSEC


def test_hybrid_uses_tls_for_a_peer_table_beyond_loopback(spec: Parse) -> None:
    peer = '[[peers]]\nname = "b@o.example"\naddress = "{}"\nport = 9100'
    assert spec(cluster("hybrid") + peer.format("127.0.0.2")).carrier is Carrier.INET_TCP
    assert spec(cluster("hybrid") + peer.format("192.0.2.2")).carrier is Carrier.DISTSEC


def test_hybrid_without_nodes_uses_tls(spec: Parse) -> None:
    assert spec('[security]\nmode = "hybrid"').carrier is Carrier.DISTSEC


@pytest.mark.parametrize(
    ("asked", "carrier"),
    [
        ('carrier = "distsec"', Carrier.DISTSEC),
        ('carrier = "inet_tls"', Carrier.INET_TLS),
        ("enable_tls = true", Carrier.DISTSEC),
        ('enable_tls = true\ncarrier = "inet_tls"', Carrier.INET_TLS),
    ],
)
def test_hybrid_on_loopback_may_ask_for_tls(spec: Parse, asked: str, carrier: Carrier) -> None:
    assert spec(cluster("hybrid", asked)).carrier is carrier


@pytest.mark.parametrize("mode", ["production", "hybrid"])
def test_stock_otp_may_be_chosen_and_what_it_lacks_is_said(spec: Parse, mode: str) -> None:
    chosen = spec(cluster(mode, 'carrier = "inet_tls"', BEYOND))
    assert chosen.carrier is Carrier.INET_TLS
    assert any("binds no name to a certificate" in warning for warning in chosen.warnings)
    assert not any("binds no name" in warning for warning in spec(cluster(mode, "", BEYOND)).warnings)


def test_says_that_links_without_tls_are_unprotected(spec: Parse) -> None:
    for mode in ("hybrid", "development"):
        assert any("neither encrypted" in warning for warning in spec(cluster(mode)).warnings)
    assert not any("neither encrypted" in warning for warning in spec(cluster("production")).warnings)


@pytest.mark.parametrize(
    ("mode", "distribution", "address", "key"),
    [
        ("production", "enable_tls = false", "127.0.0.1", "enable_tls"),
        (None, "enable_tls = false", "127.0.0.1", "enable_tls"),
        ("hybrid", "enable_tls = false", BEYOND, "enable_tls"),
        ("development", "enable_tls = true", "127.0.0.1", "enable_tls"),
        ("production", 'verify_mode = "verify_none"', "127.0.0.1", "verify_mode"),
        ("hybrid", 'verify_mode = "verify_none"', "127.0.0.1", "verify_mode"),
        ("production", 'verify_mode = "verify_some"', "127.0.0.1", "verify_mode"),
        ("production", 'carrier = "inet_tcp"', "127.0.0.1", "carrier"),
        ("hybrid", 'carrier = "inet_tcp"', BEYOND, "carrier"),
        ("development", 'carrier = "inet_tls"', "127.0.0.1", "carrier"),
        ("production", 'carrier = "inet6_tls"', "127.0.0.1", "carrier"),
        ("production", 'carrier = "Distsec"', "127.0.0.1", "carrier"),
        ("development", 'carrier = "distsec"', "127.0.0.1", "carrier"),
    ],
)
def test_refuses_what_contradicts_the_mode(
    only: Only, mode: str | None, distribution: str, address: str, key: str
) -> None:
    problem = only(cluster(mode, distribution, address))
    assert (problem.key, problem.line) == (f"security.distribution.{key}", 5)
    assert problem.do


def test_who_asks_for_no_encryption_is_told_which_carrier_to_use(only: Only) -> None:
    problem = only(cluster("production", 'carrier = "inet_tcp"'))
    assert problem.do == 'use "distsec", or leave it out'


@pytest.mark.parametrize(
    ("mode", "distribution"),
    [
        ("production", 'enable_tls = true\nverify_mode = "verify_peer"\ncarrier = "distsec"'),
        ("production", 'enable_tls = true\nverify_mode = "verify_peer"\ncarrier = "inet_tls"'),
        ("hybrid", 'enable_tls = false\ncarrier = "inet_tcp"'),
        ("development", 'enable_tls = false\ncarrier = "inet_tcp"\nverify_mode = "verify_none"'),
    ],
)
def test_takes_what_agrees_with_the_mode(spec: Parse, mode: str, distribution: str) -> None:
    assert spec(cluster(mode, distribution)).mode == mode


def test_development_keeps_every_node_on_loopback(problems: Problems) -> None:
    text = cluster("development", address=BEYOND, allowed="b@192.0.2.7") + (
        '[[peers]]\nname = "c@h.example"\naddress = "192.0.2.9"\nport = 9100\n[[nodes]]\nname = "d@192.0.2.3"'
    )
    found = problems(text)
    assert [problem.key for problem in found] == [
        "security.distribution.allowed_nodes[1]",
        "nodes[0].address",
        "peers[0].address",
        "nodes[1].name",
    ]
    assert all("development mode has no encryption" in problem.what for problem in found)


@pytest.mark.parametrize("mode", ["Production", "prod", "", "none", "${X}"])
def test_an_unknown_mode_is_refused(only: Only, mode: str) -> None:
    assert only(cluster(None) + "", {"DISTSEC_SECURITY_MODE": mode or "-"}).key == "DISTSEC_SECURITY_MODE"
    assert only(f'[security]\nmode = "{mode}"').key == "security.mode"


@pytest.mark.parametrize("variable", ["DISTSEC_SECURITY_MODE", "SERVICERADAR_SECURITY_MODE"])
def test_the_environment_says_the_mode_where_the_file_does_not(spec: Parse, variable: str) -> None:
    assert spec(cluster(None), {variable: "development"}).mode is Mode.DEVELOPMENT
    assert spec(cluster("hybrid"), {variable: "hybrid"}).mode is Mode.HYBRID
    assert spec(cluster(None), {variable: ""}).mode is Mode.PRODUCTION


@pytest.mark.parametrize("variable", ["DISTSEC_SECURITY_MODE", "SERVICERADAR_SECURITY_MODE"])
@pytest.mark.parametrize(("file", "said"), [("production", "development"), ("development", "production")])
def test_file_and_environment_that_disagree_are_refused(
    only: Only, variable: str, file: str, said: str
) -> None:
    problem = only(cluster(file), {variable: said})
    assert (problem.key, problem.line) == ("security.mode", 2)
    assert problem.what == f"this file says {file}, {variable} in the environment says {said}"


def test_two_variables_that_disagree_are_refused(only: Only) -> None:
    problem = only(
        cluster(None), {"DISTSEC_SECURITY_MODE": "hybrid", "SERVICERADAR_SECURITY_MODE": "production"}
    )
    assert problem.what == "says hybrid, and SERVICERADAR_SECURITY_MODE says production"


def test_a_verification_that_is_switched_off_is_named_in_development_too(spec: Parse) -> None:
    warnings = spec(cluster("development", 'verify_mode = "verify_none"')).warnings
    assert any(
        "line 5: security.distribution.verify_mode: verify_none accepts" in warning for warning in warnings
    )
