"""`bind`, `confirm_network`, `--bind` and `--confirm-network`: what is listened on, and what takes a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsec.config.binding import Network, check_here
from distsec.config.interfaces import addresses_here, is_here
from distsec.config.load import parse
from distsec.errors import AddressUnavailable, ConfigError, Problem
from distsec.model.cluster import ClusterSpec

PATH = Path("/etc/distsec/distsec.toml")
NODES = '[[nodes]]\nname = "a@h.example"\n[[nodes]]\nname = "b@127.0.0.1"\naddress = "127.0.0.1"\n'
TAILNET = ("100.101.102.103", "fd7a:115c:a1e0::1")


def asked() -> tuple[str, ...]:
    return TAILNET


def unasked() -> tuple[str, ...]:
    raise AssertionError("Tailscale is asked only where it is named")


def loaded(
    distribution: str = "", *, nodes: str = NODES, network: Network | None = None, rest: str = ""
) -> ClusterSpec:
    text = f"{rest}\n[security.distribution]\n{distribution}\n{nodes}"
    return parse(text, PATH, {}, network or Network(tailnet=unasked, here=lambda address: True))


def problem(distribution: str = "", **how: object) -> Problem:
    with pytest.raises(ConfigError) as caught:
        loaded(distribution, **how)  # type: ignore[arg-type]
    (found,) = caught.value.problems
    return found


def addresses(spec: ClusterSpec) -> list[str]:
    return [node.address for node in spec.nodes]


def tailnet(*here: str) -> Network:
    return Network(tailnet=asked, here=lambda address: address in here)


# ---- where nodes listen


def test_without_a_word_everything_is_on_loopback() -> None:
    spec = loaded()
    assert addresses(spec) == ["127.0.0.1", "127.0.0.1"]
    assert spec.metrics_listen == ("127.0.0.1", 9911)


@pytest.mark.parametrize("address", ["192.168.1.5", "10.0.0.5", "fd00::5"])
def test_bind_is_where_nodes_listen_that_have_no_address_of_their_own(address: str) -> None:
    assert addresses(loaded(f'bind = "{address}"')) == [address, "127.0.0.1"]


def test_the_command_line_comes_before_the_file() -> None:
    network = Network(bind="10.0.0.6", tailnet=unasked)
    assert addresses(loaded('bind = "10.0.0.5"', network=network)) == ["10.0.0.6", "127.0.0.1"]


def test_an_address_beyond_loopback_needs_mutual_tls() -> None:
    found = problem('bind = "10.0.0.5"', rest='[security]\nmode = "development"')
    assert "development mode has no encryption" in found.what


DEVELOPMENT = '[security]\nmode = "development"'


def test_what_is_wrong_with_an_address_is_told_of_whoever_gave_it() -> None:
    nodes = '[[nodes]]\nname = "a@h.example"\n[[nodes]]\nname = "b@h.example"\n'
    by_word = Network(bind="10.0.0.5", tailnet=unasked)
    found = problem(rest=DEVELOPMENT, nodes=nodes, network=by_word)
    assert (found.key, found.line) == ("--bind", 0)
    assert "development mode has no encryption, and 10.0.0.5" in found.what
    found = problem('bind = "10.0.0.5"', rest=DEVELOPMENT, nodes=nodes)
    assert (found.key, found.line) == ("security.distribution.bind", 4)
    own = '[[nodes]]\nname = "a@h.example"\naddress = "10.0.0.7"\n'
    assert problem(rest=DEVELOPMENT, nodes=own, network=by_word).key == "nodes[0].address"


def test_a_bind_that_a_nodes_name_does_not_go_with_is_told_of_the_bind() -> None:
    six = '[[nodes]]\nname = "a@fd00::9"\n'
    found = problem('carrier = "inet_tls"', nodes=six, network=Network(bind="10.0.0.5", tailnet=unasked))
    assert found.key == "--bind"
    assert "10.0.0.5 is IPv4" in found.what


def test_bind_comes_before_the_address_in_a_nodes_name_and_that_is_said() -> None:
    spec = loaded('bind = "10.0.0.5"', nodes='[[nodes]]\nname = "a@127.0.0.1"\n')
    assert addresses(spec) == ["10.0.0.5"]
    assert any("a@127.0.0.1 is named after 127.0.0.1" in warning for warning in spec.warnings)


@pytest.mark.parametrize("bind", ["everywhere", "*", "224.0.0.1", "fe80::1", "10.0.0.5:9100", ""])
def test_what_is_no_address_is_refused_where_it_stands(bind: str) -> None:
    assert problem(f'bind = "{bind}"').key == "security.distribution.bind"
    assert problem(network=Network(bind=bind, tailnet=unasked)).key == "--bind"


# ---- every interface


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_every_interface_takes_a_confirmation_and_the_error_names_the_safe_ways(address: str) -> None:
    for found in (
        problem(f'bind = "{address}"'),
        problem(network=Network(bind=address, tailnet=unasked)),
        problem(nodes=f'[[nodes]]\nname = "a@h.example"\naddress = "{address}"\n'),
    ):
        assert "would listen on every interface" in found.what
        for safe in ("127.0.0.1", "VPN", "tailscale", "--confirm-network", "confirm_network = true"):
            assert safe in found.do


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_every_interface_is_listened_on_when_it_was_confirmed_and_that_is_said(address: str) -> None:
    by_file = loaded(f'bind = "{address}"\nconfirm_network = true')
    by_word = loaded(network=Network(bind=address, confirmed=True, tailnet=unasked))
    for spec in (by_file, by_word):
        assert addresses(spec) == [address, "127.0.0.1"]
        assert any("listens on every interface" in warning for warning in spec.warnings)


def test_a_confirmation_confirms_nothing_that_is_not_asked_for() -> None:
    assert addresses(loaded("confirm_network = true")) == ["127.0.0.1", "127.0.0.1"]


def test_a_public_address_is_said_unless_it_was_confirmed() -> None:
    def warned(spec: ClusterSpec) -> bool:
        return any("8.8.4.4 is a public address" in warning for warning in spec.warnings)

    assert warned(loaded('bind = "8.8.4.4"'))
    assert not warned(loaded('bind = "8.8.4.4"\nconfirm_network = true'))
    assert not any("public address" in warning for warning in loaded('bind = "10.0.0.5"').warnings)


# ---- metrics


@pytest.mark.parametrize("listen", ["0.0.0.0:9911", "[::]:9911"])
def test_metrics_on_every_interface_take_a_confirmation_of_their_own(listen: str) -> None:
    metrics = f'[metrics]\nlisten = "{listen}"\n'
    found = problem("confirm_network = true", rest=metrics)
    assert found.key == "metrics.listen"
    assert "metrics ask for no password" in found.what and "127.0.0.1" in found.do
    by_file = loaded(rest=metrics + "confirm_network = true\n")
    by_word = loaded(rest=metrics, network=Network(confirmed=True, tailnet=unasked))
    for spec in (by_file, by_word):
        assert spec.metrics_listen is not None and spec.metrics_listen[1] == 9911
        assert any("metrics are served in cleartext" in warning for warning in spec.warnings)


def test_bind_says_nothing_of_the_metrics() -> None:
    assert loaded('bind = "10.0.0.5"').metrics_listen == ("127.0.0.1", 9911)


def test_metrics_may_be_served_in_the_tailnet() -> None:
    spec = loaded(rest='[metrics]\nlisten = "tailscale:9911"\n', network=tailnet(*TAILNET))
    assert spec.metrics_listen == ("100.101.102.103", 9911)


# ---- the tailnet


def test_tailscale_is_the_ipv4_address_in_the_tailnet_and_needs_no_confirmation() -> None:
    spec = loaded('bind = "tailscale"', network=tailnet(*TAILNET))
    assert addresses(spec) == ["100.101.102.103", "127.0.0.1"]
    assert not any("interface" in warning or "public" in warning for warning in spec.warnings)


def test_a_tailnet_without_ipv4_has_ipv6() -> None:
    assert addresses(loaded('bind = "tailscale"', network=tailnet(TAILNET[1])))[0] == TAILNET[1]


def test_a_node_that_is_named_after_one_of_the_tailnets_addresses_has_that_one() -> None:
    nodes = f'[[nodes]]\nname = "a@{TAILNET[1]}"\n[[nodes]]\nname = "b@{TAILNET[0]}"\n'
    spec = loaded('bind = "tailscale"', nodes=nodes, network=tailnet(*TAILNET))
    assert addresses(spec) == [TAILNET[1], TAILNET[0]]


def test_an_address_of_the_tailnet_that_is_on_no_interface_is_refused() -> None:
    with pytest.raises(AddressUnavailable, match="is on no interface of this host") as caught:
        loaded('bind = "tailscale"', network=tailnet())
    assert "userspace-networking" in caught.value.do


def test_tailscale_is_asked_once() -> None:
    count = []

    def ask() -> tuple[str, ...]:
        count.append(1)
        return TAILNET

    nodes = '[[nodes]]\nname = "a@h.example"\n[[nodes]]\nname = "b@h.example"\n'
    network = Network(bind="tailscale", tailnet=ask, here=lambda address: True)
    loaded(nodes=nodes, rest='[metrics]\nlisten = "tailscale:1"\n', network=network)
    assert len(count) == 1


# ---- this host


def test_what_is_to_be_listened_on_must_be_on_an_interface_of_this_host() -> None:
    spec = loaded('bind = "10.255.254.253"')
    with pytest.raises(AddressUnavailable) as caught:
        check_here(spec)
    assert caught.value.exit_code == 71
    assert "a@h.example is to listen on 10.255.254.253, which is on no interface" in caught.value.what
    metrics = loaded(rest='[metrics]\nlisten = "10.255.254.253:1"\n')
    with pytest.raises(AddressUnavailable, match=r"\[metrics\] listen is to listen on 10\.255"):
        check_here(metrics)
    check_here(loaded())
    network = Network(bind="10.255.254.253", tailnet=unasked)
    for spec, where in ((loaded(network=network), "--bind"), (loaded('bind = "10.255.254.252"'), str(PATH))):
        with pytest.raises(AddressUnavailable) as caught:
            check_here(spec, network)
        assert caught.value.where == where


def test_this_host_knows_its_addresses() -> None:
    here = addresses_here()
    assert here is not None
    assert "127.0.0.1" in here
    for address in here:
        if not address.startswith("fe80:"):
            assert is_here(address)
    assert is_here("127.9.9.9")
    assert not is_here("192.0.2.254")


def test_an_address_is_bound_to_find_out_where_netlink_is_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsec.config.interfaces.addresses_here", lambda: None)
    assert is_here("127.0.0.1")
    assert not is_here("192.0.2.254")
    assert not is_here("2001:db8::254")
