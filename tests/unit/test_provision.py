"""Provisioning: what is made, what is kept, what is refused, and that Erlang can use it."""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
from cryptography import x509

from distsec.beam import ports, proc, render
from distsec.beam.overlay import Overlay, save_overlay
from distsec.beam.ports import _listen, allot_ports, check_port_free, out_of_the_way
from distsec.beam.provision import (
    agent_key,
    distribution_ports,
    node_directory,
    provision,
    read_mark,
    rekey,
    write_node_files,
    write_policy_files,
)
from distsec.core.wanted import Taint, TaintStage, wanted_policy
from distsec.errors import CaKeyUnavailable, ConfigError, NameInvalid, PortInUse, StoreError
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec, PeerSpec
from distsec.model.names import NodeName
from distsec.pki import authority as ca
from distsec.pki import cookies
from distsec.pki.authority import Authority, certificate_of
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store
from tests.releases import Otp

NOW = float(int(time.time()))
A, B = (NodeName.parse(f"{head}@127.0.0.1") for head in "ab")
NODE_FILES = {
    "key.pem",
    "certificate.pem",
    "trust.pem",
    "agent.key",
    "dist.conf",
    "policy.term",
    "cookie.term",
    "guard.term",
    "policy.mark",
}


@pytest.fixture
def spec(tmp_path: Path) -> ClusterSpec:
    return ClusterSpec(
        name="demo",
        config_file=str(tmp_path / "distsec.toml"),
        state_dir=str(tmp_path / "state"),
        mode=Mode.PRODUCTION,
        carrier=Carrier.INET_TLS,
        allowed_nodes=(A, B),
        nodes=(NodeSpec(A, ("erl",)), NodeSpec(B, ("erl",))),
    )


@pytest.fixture
def store(spec: ClusterSpec) -> Store:
    return Store(Path(spec.state_dir))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def free_ports(count: int) -> list[int]:
    """Consecutive ports that are free now: for a range. Each of the processes that run tests has its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    for first in range(20_000 + worker * 1_000, 21_000 + worker * 1_000, count):
        try:
            for port in range(first, first + count):
                check_port_free("127.0.0.1", port)
        except PortInUse:
            continue
        return list(range(first, first + count))
    raise AssertionError("no free ports")


def with_nodes(spec: ClusterSpec, count: int, metrics_port: int = 0) -> ClusterSpec:
    many = tuple(NodeSpec(NodeName.parse(f"n{number}@127.0.0.1"), ("erl",)) for number in range(count))
    return replace(spec, nodes=many, metrics_listen=("127.0.0.1", metrics_port))


def listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1)
    return listener


def test_everything_of_the_state_directory_is_made(spec: ClusterSpec, store: Store) -> None:
    report = provision(spec, store, NOW)
    expected = {"ca/key.pem", "ca/certificate.pem", "ca/policy.key", "ca/cookie.secret", "ports.json"}
    expected |= {"ca/host.key"}
    expected |= {f"nodes/{node}/{name}" for node in (A, B) for name in NODE_FILES}
    assert set(report.made) == expected
    assert report.kept == []
    assert set(contents(store.root)) == expected | {"lock"}
    assert (store.root / "nodes/a@127.0.0.1/log").is_dir()
    for path in store.root.rglob("*"):
        assert path.lstat().st_mode & 0o077 == 0, path


def test_a_second_run_changes_no_byte_and_says_that_all_was_kept(spec: ClusterSpec, store: Store) -> None:
    first = provision(spec, store, NOW)
    before = contents(store.root)
    second = provision(spec, store, NOW + 3600)
    assert contents(store.root) == before
    assert (second.made, set(second.kept)) == ([], set(first.made))


@pytest.mark.parametrize("name", sorted(NODE_FILES))
def test_what_is_missing_is_added_and_nothing_else_is_touched(
    spec: ClusterSpec, store: Store, name: str
) -> None:
    provision(spec, store, NOW)
    before = contents(store.root)
    missing = {name, "certificate.pem"} if name == "key.pem" else {name}
    for each in missing:
        (store.root / "nodes/a@127.0.0.1" / each).unlink()
    report = provision(spec, store, NOW)
    assert set(report.made) == {f"nodes/a@127.0.0.1/{each}" for each in missing}
    after = contents(store.root)
    assert set(after) == set(before)
    assert {path for path in after if after[path] != before[path]} <= set(report.made)


def test_a_certificate_that_was_removed_is_issued_again_for_the_same_key(
    spec: ClusterSpec, store: Store
) -> None:
    provision(spec, store, NOW)
    path = store.root / "nodes/a@127.0.0.1/certificate.pem"
    old = certificate_of(path.read_bytes())
    path.unlink()
    provision(replace(spec, certificate_days=10), store, NOW)
    new = certificate_of(path.read_bytes())
    assert new.serial != old.serial
    assert new.identity == old.identity == "spiffe://demo/node/127.0.0.1/a"
    assert new.not_after == int(NOW) + 10 * 86_400


def test_a_new_node_gets_its_files_and_the_others_keep_theirs(spec: ClusterSpec, store: Store) -> None:
    provision(spec, store, NOW)
    before = contents(store.root)
    c = NodeName.parse("c@127.0.0.1")
    larger = replace(spec, nodes=(*spec.nodes, NodeSpec(c, ("erl",))), allowed_nodes=(A, B, c))
    report = provision(larger, store, NOW)
    assert set(report.made) == {"ports.json"} | {f"nodes/{c}/{name}" for name in NODE_FILES}
    after = contents(store.root)
    assert {path for path in before if after[path] != before[path]} == {"ports.json"}
    assert distribution_ports(larger, store).items() >= distribution_ports(spec, store).items()


def test_nothing_is_made_while_another_command_is_at_it(
    spec: ClusterSpec, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "locked", partialmethod(Store.locked, wait_seconds=0.0))
    with store.locked(), pytest.raises(StoreError, match="another distsec is changing this state directory"):
        provision(spec, store, NOW)
    assert set(contents(store.root)) == {"lock"}


def test_development_mode_has_no_optfile(spec: ClusterSpec, store: Store) -> None:
    provision(replace(spec, mode=Mode.DEVELOPMENT, carrier=Carrier.INET_TCP), store, NOW)
    names = {path.name for path in (store.root / "nodes/a@127.0.0.1").iterdir() if path.is_file()}
    assert names == NODE_FILES - {"dist.conf"}


# ---- what does not fit
# ------------------------------------------------------------------------------------------


def swap_certificates(store: Store, spec: ClusterSpec) -> None:
    store.write("nodes/a@127.0.0.1/certificate.pem", store.read("nodes/b@127.0.0.1/certificate.pem"))


def swap_pairs(store: Store, spec: ClusterSpec) -> None:
    swap_certificates(store, spec)
    store.write("nodes/a@127.0.0.1/key.pem", store.read("nodes/b@127.0.0.1/key.pem"))


def foreign_ca(store: Store, spec: ClusterSpec) -> None:
    other = Authority.create(Store(store.root.parent / "other"), "demo", NOW)
    key, certificate = other.issue(A, "127.0.0.1", 365, NOW)
    store.write("nodes/a@127.0.0.1/key.pem", key.reveal())
    store.write("nodes/a@127.0.0.1/certificate.pem", certificate)


def expired(store: Store, spec: ClusterSpec) -> None:
    key, certificate = Authority.load(store).issue(A, "127.0.0.1", 1, NOW - 2 * 86_400)
    store.write("nodes/a@127.0.0.1/key.pem", key.reveal())
    store.write("nodes/a@127.0.0.1/certificate.pem", certificate)


def from_the_future(store: Store, spec: ClusterSpec) -> None:
    key, certificate = Authority.load(store).issue(A, "127.0.0.1", 1, NOW + 86_400)
    store.write("nodes/a@127.0.0.1/key.pem", key.reveal())
    store.write("nodes/a@127.0.0.1/certificate.pem", certificate)


def wider_trust(store: Store, spec: ClusterSpec) -> None:
    other = Authority.create(Store(store.root.parent / "other"), "demo", NOW)
    store.write("nodes/a@127.0.0.1/trust.pem", store.read("nodes/a@127.0.0.1/trust.pem") + other.bundle_pem)


def lost_key(store: Store, spec: ClusterSpec) -> None:
    (store.root / "nodes/a@127.0.0.1/key.pem").unlink()


def garbage_certificate(store: Store, spec: ClusterSpec) -> None:
    store.write("nodes/a@127.0.0.1/certificate.pem", b"garbage")


def garbage_agent_key(store: Store, spec: ClusterSpec) -> None:
    store.write("nodes/a@127.0.0.1/agent.key", b"short")


def open_key(store: Store, spec: ClusterSpec) -> None:
    (store.root / "nodes/a@127.0.0.1/key.pem").chmod(0o644)


Upset = Callable[[Store, ClusterSpec], None]


@pytest.mark.parametrize(
    ("upset", "message"),
    [
        (swap_certificates, r"certificate\.pem: does not belong to key\.pem beside it"),
        (
            swap_pairs,
            r"certificate\.pem: is for spiffe://demo/node/127\.0\.0\.1/b, not for spiffe://demo/.*/a;",
        ),
        (foreign_ca, r"certificate\.pem: was not issued by the cluster's CA"),
        (expired, r"certificate\.pem: has expired \(.* UTC\); remove it and run `distsec init`"),
        (from_the_future, r"certificate\.pem: is not valid before .*; check this host's clock"),
        (wider_trust, r"trust\.pem: does not hold the cluster's CA and nothing else"),
        (lost_key, r"key\.pem: is missing, though its certificate is there"),
        (garbage_certificate, r"certificate\.pem: is no certificate"),
        (garbage_agent_key, r"agent\.key: does not hold 32 bytes in hex"),
        (open_key, r"key\.pem: can be reached by other users .* chmod u=rw,go= "),
    ],
)
def test_what_does_not_fit_is_named_and_not_replaced(
    spec: ClusterSpec, store: Store, upset: Upset, message: str
) -> None:
    provision(spec, store, NOW)
    upset(store, spec)
    before = contents(store.root)
    with pytest.raises(StoreError, match=rf"nodes/a@127\.0\.0\.1/{message}") as caught:
        provision(spec, store, NOW)
    assert "\n" not in str(caught.value)
    assert contents(store.root) == before


def test_what_cannot_be_rendered_is_refused_before_anything_is_made(
    tmp_path: Path, spec: ClusterSpec
) -> None:
    store = Store(tmp_path / "st\udce9te")
    with pytest.raises(ConfigError, match=r"distsec\.toml: cluster\.state_dir: .* is not UTF-8"):
        provision(spec, store, NOW)
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a@..", "../../x@host", "a/b@host", "a@b/../c", "a\0@host", "é@host", "a@h_x", "@"]
)
def test_a_name_that_spiffe_or_the_file_system_cannot_carry_has_no_directory(name: str) -> None:
    with pytest.raises(NameInvalid):
        node_directory(name)


# ---- ports
# ----------------------------------------------------------------------------------------------------------


def test_ports_are_the_first_free_ones_of_the_range_and_stay(spec: ClusterSpec, store: Store) -> None:
    first, second, third = free_ports(3)
    ranged = replace(spec, listen_ports=(first, third))
    with listening(first):
        assert allot_ports(ranged, store) == (str(A), str(B))
    assert distribution_ports(ranged, store) == {str(A): second, str(B): third}
    assert allot_ports(ranged, store) == ()
    with listening(second):  # in use, perhaps by the node itself: what was allotted stays
        assert allot_ports(ranged, store) == ()
    assert distribution_ports(ranged, store) == {str(A): second, str(B): third}


def test_a_range_without_a_free_port_is_an_error_and_nothing_is_kept(spec: ClusterSpec, store: Store) -> None:
    first, second = free_ports(2)
    with (
        listening(first),
        pytest.raises(
            PortInUse, match=rf"no port from {first} to {second} is free for b@127\.0\.0\.1; widen"
        ),
    ):
        allot_ports(replace(spec, listen_ports=(first, second)), store)
    assert not store.exists("ports.json")


def test_ports_that_are_given_are_taken_and_not_allotted_again(spec: ClusterSpec, store: Store) -> None:
    first, second, third = free_ports(3)
    given = replace(
        spec,
        listen_ports=(first, third),
        metrics_listen=("127.0.0.1", second),
        nodes=(NodeSpec(A, ("erl",)), NodeSpec(B, ("erl",), port=first)),
        peers=(PeerSpec(NodeName.parse("x@192.0.2.1"), "192.0.2.1", 9100),),
    )
    assert allot_ports(given, store) == (str(A),)
    assert distribution_ports(given, store) == {str(A): third, str(B): first, "x@192.0.2.1": 9100}


@pytest.mark.parametrize("metrics_port", [0, 9911])
def test_without_a_range_each_node_has_a_port_that_no_connection_is_given(
    spec: ClusterSpec, store: Store, metrics_port: int
) -> None:
    larger = with_nodes(spec, 20, metrics_port)
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    allot_ports(larger, store)
    found = set(distribution_ports(larger, store).values())
    assert len(found) == 20
    assert not [port for port in found if first <= port <= last]


@pytest.mark.parametrize("said", ["1024 65535\n", "", "many\n", None])
def test_where_connections_are_given_every_port_the_system_chooses_different_ones(
    spec: ClusterSpec, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    file = tmp_path / "range"
    if said is not None:
        file.write_text(said)
    monkeypatch.setattr(ports, "_OF_CONNECTIONS", file)
    chosen = []

    def listen(address: str, port: int) -> socket.socket:
        chosen.append(port)
        return _listen(address, port)

    monkeypatch.setattr(ports, "_listen", listen)
    allot_ports(with_nodes(spec, 5), store)
    assert set(chosen) == {0}
    assert len(set(distribution_ports(with_nodes(spec, 5), store).values())) == 5


def test_ports_out_of_the_way_are_all_there_are_in_an_order_of_each_nodes_own() -> None:
    usual = [*out_of_the_way(range(32_768, 61_000), "a")]
    assert sorted(usual) == [*range(20_000, 30_000)]
    assert usual == [*out_of_the_way(range(32_768, 61_000), "a")]
    assert usual[0] != next(iter(out_of_the_way(range(32_768, 61_000), "b")))
    assert sorted(out_of_the_way(range(20_010, 65_536), "a")) == [*range(20_000, 20_010)]
    assert [*out_of_the_way(range(1_024, 65_536), "a")] == []


def test_a_port_out_of_the_way_that_somebody_has_is_left_to_them(spec: ClusterSpec, store: Store) -> None:
    allot_ports(spec, store)
    first = distribution_ports(spec, store)
    (store.root / "ports.json").unlink()
    with listening(first[str(A)]):
        allot_ports(spec, store)
    again = distribution_ports(spec, store)
    assert again[str(A)] != first[str(A)]
    assert again[str(B)] == first[str(B)]


def test_a_node_that_is_gone_keeps_its_port_while_others_can_be_had(spec: ClusterSpec, store: Store) -> None:
    first, second, third = free_ports(3)
    ranged = replace(spec, listen_ports=(first, third))
    allot_ports(ranged, store)
    c, d = (NodeName.parse(f"{head}@127.0.0.1") for head in "cd")
    others = replace(ranged, nodes=(NodeSpec(A, ("erl",)), NodeSpec(c, ("erl",)), NodeSpec(d, ("erl",))))
    allot_ports(others, store)
    assert distribution_ports(others, store) == {str(A): first, str(c): third, str(d): second}


def test_an_allotted_port_that_cannot_stay_is_an_error_with_both_ways_out(
    spec: ClusterSpec, store: Store
) -> None:
    allot_ports(spec, store)
    taken = distribution_ports(spec, store)[str(A)]
    given = replace(spec, nodes=(NodeSpec(A, ("erl",)), NodeSpec(B, ("erl",), port=taken)))
    with pytest.raises(
        ConfigError, match=rf"nodes\.port: {A} was allotted port {taken}, which {B} is given now"
    ):
        distribution_ports(given, store)
    with pytest.raises(ConfigError, match=r"listen_ports: .* is not from 1 to 2; change it back, or stop"):
        provision(replace(spec, listen_ports=(1, 2)), store, NOW)


def test_without_an_allotted_port_there_is_an_error_and_no_guess(spec: ClusterSpec, store: Store) -> None:
    with pytest.raises(
        StoreError, match=r"ports\.json: holds no port for a@127\.0\.0\.1; run `distsec init`"
    ):
        distribution_ports(spec, store)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema":2,"ports":{}}', b'{"schema":1,"ports":{"a":0}}'])
def test_a_damaged_ports_file_is_an_error(spec: ClusterSpec, store: Store, content: bytes) -> None:
    store.write("ports.json", content)
    with pytest.raises(StoreError, match=r"ports\.json: is damaged"):
        distribution_ports(spec, store)


def test_a_port_in_use_names_the_process_that_holds_it() -> None:
    (port,) = free_ports(1)
    check_port_free("127.0.0.1", port)
    holder = subprocess.Popen(
        [
            "python3",
            "-c",
            f"import socket; s = socket.create_server(('127.0.0.1', {port})); print(1, flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        with pytest.raises(
            PortInUse, match=rf"127\.0\.0\.1:{port}: the port is in use by process {holder.pid} \("
        ):
            check_port_free("127.0.0.1", port)
    finally:
        holder.communicate(b"\n")
    check_port_free("127.0.0.1", port)


def test_of_a_holder_that_cannot_be_seen_the_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "holder", lambda port: None)  # as it is without any capability
    me = pwd.getpwuid(os.geteuid()).pw_name
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.create_server((address, 0)) as held:
            port = held.getsockname()[1]
            with pytest.raises(PortInUse, match=rf"in use by a process of {me} \(uid {os.geteuid()}\); end"):
                check_port_free("127.0.0.1", port)
            assert proc.listening_uid("127.0.0.2", port) == (os.geteuid() if address == "0.0.0.0" else None)


def test_a_port_that_is_being_allotted_is_seen_by_others() -> None:
    with _listen("127.0.0.1", 0) as held, pytest.raises(PortInUse):
        check_port_free("127.0.0.1", held.getsockname()[1])


def test_an_address_that_is_not_of_this_host_is_said(spec: ClusterSpec, store: Store) -> None:
    with pytest.raises(
        PortInUse, match=r"192\.0\.2\.1:9100: cannot be listened on: this host has no such address"
    ):
        check_port_free("192.0.2.1", 9100)


# ---- what is rendered
# -----------------------------------------------------------------------------------------------


def test_node_files_are_rendered_again_and_keys_stay(spec: ClusterSpec, store: Store) -> None:
    provision(spec, store, NOW)
    before = contents(store.root)
    write_node_files(spec, store, spec.nodes[0], document(spec, store, 1, issued_at=7))
    after = contents(store.root)
    assert {path for path in after if after[path] != before[path]} == {"nodes/a@127.0.0.1/policy.term"}
    (store.root / "nodes/a@127.0.0.1/guard.term").unlink()
    store.write("nodes/a@127.0.0.1/dist.conf", b"changed")
    write_node_files(spec, store, spec.nodes[0], before["nodes/a@127.0.0.1/policy.term"])
    assert contents(store.root) == before


def document(spec: ClusterSpec, store: Store, generation: int, issued_at: int = 0) -> bytes:
    """A policy of that generation, signed."""
    policy = wanted_policy(spec, Overlay(generation=generation), distribution_ports(spec, store), issued_at)
    return render.policy_document(policy, PolicySigner.load(store).sign)


def test_a_start_raises_the_mark_and_the_floor_and_nothing_lowers_them(
    spec: ClusterSpec, store: Store
) -> None:
    provision(spec, store, NOW)
    node = spec.nodes[0]
    assert read_mark(store, node.name) == 1
    write_node_files(spec, store, node, document(spec, store, 7))
    assert read_mark(store, node.name) == 7
    assert b"floor => 7" in store.read(f"{node_directory(node.name)}/guard.term")
    write_node_files(spec, store, node, document(spec, store, 5))
    assert read_mark(store, node.name) == 7
    provision(spec, store, NOW)
    assert read_mark(store, node.name) == 7


def test_a_lost_mark_is_made_anew_at_what_was_saved_last(spec: ClusterSpec, store: Store) -> None:
    provision(spec, store, NOW)
    save_overlay(store, Overlay(generation=9))
    (store.root / "nodes/a@127.0.0.1/policy.mark").unlink()
    provision(spec, store, NOW)
    assert read_mark(store, "a@127.0.0.1") == 9


@pytest.mark.parametrize(
    "content", [b"", b"distsec_mark 2 7\n", b"distsec_mark 1 x\n", b"distsec_mark 1 " + b"9" * 30]
)
def test_a_mark_that_says_nothing_stops_the_start_and_is_named(
    spec: ClusterSpec, store: Store, content: bytes
) -> None:
    provision(spec, store, NOW)
    store.write("nodes/a@127.0.0.1/policy.mark", content)
    with pytest.raises(StoreError, match=r"policy\.mark: does not say which generation"):
        write_node_files(spec, store, spec.nodes[0], document(spec, store, 2))


# ---- re-keying ---------------------------------------------------------------------------------------------

CONDEMNED = Overlay(generation=4).condemning(
    str(A), [Taint(str(A), TaintStage.CONDEMNED, 0, True, str(A))], ["0a"]
)


def test_re_keying_replaces_every_secret_of_a_node_and_touches_no_other(
    spec: ClusterSpec, store: Store
) -> None:
    provision(spec, store, NOW)
    before = contents(store.root)
    save_overlay(store, CONDEMNED)
    rekey(spec, store, spec.nodes[0], CONDEMNED, document(spec, store, 5), NOW)
    after = contents(store.root)
    changed = {path for path in after if after[path] != before.get(path)} - {"policy.overlay"}
    names = (
        "key.pem",
        "certificate.pem",
        "agent.key",
        "cookie.term",
        "policy.term",
        "policy.mark",
        "guard.term",
    )
    # A key that is known to somebody must not be gone back to; its certificate must stay known.
    accepted, given = "ca/pairs/a@127.0.0.1.pem", "ca/pairs/a@127.0.0.1.serials"
    assert changed == {f"nodes/a@127.0.0.1/{name}" for name in names} | {accepted, given}
    secrets = re.compile(rb"[dp][0-9a-f]{64}")
    cookie = "nodes/a@127.0.0.1/cookie.term"
    assert not set(secrets.findall(before[cookie])) & set(secrets.findall(after[cookie]))
    save_overlay(store, Overlay(generation=5))
    provision(spec, store, NOW)  # key, certificate and CA fit each other


def test_without_the_cas_key_a_re_keying_changes_nothing_and_says_what_is_missing(
    spec: ClusterSpec, store: Store
) -> None:
    provision(spec, store, NOW)
    (store.root / ca.KEY_FILE).unlink()
    save_overlay(store, CONDEMNED)
    before = contents(store.root)
    with pytest.raises(CaKeyUnavailable, match=r"no certificate for a@127\.0\.0\.1: the CA's key is not on"):
        rekey(spec, store, spec.nodes[0], CONDEMNED, document(spec, store, 5), NOW)
    assert contents(store.root) == before


def test_nodes_that_have_their_certificates_need_no_ca_key_and_a_new_one_does(
    spec: ClusterSpec, store: Store
) -> None:
    provision(spec, store, NOW)
    (store.root / ca.KEY_FILE).unlink()
    assert provision(spec, store, NOW).made == []
    new = replace(spec, nodes=(*spec.nodes, NodeSpec(NodeName.parse("c@127.0.0.1"), ("erl",))))
    with pytest.raises(CaKeyUnavailable, match=r"no certificate for c@127\.0\.0\.1"):
        provision(new, store, NOW)
    assert not store.exists("nodes/c@127.0.0.1")


@pytest.mark.parametrize("written", range(10))
def test_a_re_keying_that_is_interrupted_anywhere_keeps_nobody_from_starting_and_is_repeated(
    spec: ClusterSpec, store: Store, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    provision(spec, store, NOW)
    old = store.read("nodes/a@127.0.0.1/certificate.pem")
    save_overlay(store, CONDEMNED)
    real, count = Store.write, 0

    def failing(self: Store, relative: str, content: bytes) -> None:
        nonlocal count
        if count == written:
            raise StoreError("killed here")
        count += 1
        real(self, relative, content)

    with monkeypatch.context() as patched, pytest.raises(StoreError, match="killed here"):
        patched.setattr(Store, "write", failing)
        rekey(spec, store, spec.nodes[0], CONDEMNED, document(spec, store, 5), NOW)
    provision(spec, store, NOW)  # what the next orchestrator does first
    with pytest.raises(StoreError, match="condemned and has not been re-keyed"):
        write_node_files(spec, store, spec.nodes[0], document(spec, store, 5))
    rekey(spec, store, spec.nodes[0], CONDEMNED, document(spec, store, 5), NOW)
    save_overlay(store, Overlay(generation=5))
    provision(spec, store, NOW)
    assert store.read("nodes/a@127.0.0.1/certificate.pem") != old


def test_a_condemned_node_is_told_the_policy_and_no_cookie(spec: ClusterSpec, store: Store) -> None:
    provision(spec, store, NOW)
    before = store.read("nodes/a@127.0.0.1/cookie.term")
    theirs = store.read("nodes/b@127.0.0.1/cookie.term")
    for node in spec.nodes:
        write_policy_files(spec, store, node, CONDEMNED, b"policy")
    assert store.read("nodes/a@127.0.0.1/cookie.term") == before
    assert store.read("nodes/b@127.0.0.1/cookie.term") != theirs
    assert store.read("nodes/a@127.0.0.1/policy.term") == b"policy"


def test_each_node_has_its_own_default_cookie_and_one_with_each_peer(spec: ClusterSpec, store: Store) -> None:
    provision(spec, store, NOW)
    secret = cookies.load_secret(store)
    pair = cookies.pair_cookie(secret, str(A), str(B), {}).reveal()
    for node, other in ((A, B), (B, A)):
        text = store.read(f"{node_directory(node)}/cookie.term")
        assert re.findall(rb"<<\"([dp][0-9a-f]{64})\">>", text) == [
            cookies.default_cookie(secret, str(node), {}).reveal(),
            pair,
        ]
        told = cookies.cookie_set(store, str(node), [str(A), str(B)], {})
        assert {name: each.reveal() for name, each in told.current.peers.items()} == {str(other): pair}
        assert told.other is None
        assert secret.reveal().hex().encode() not in text


def test_a_denied_peer_is_given_no_cookie(spec: ClusterSpec, store: Store) -> None:
    provision(spec, store, NOW)
    save_overlay(store, Overlay().denying(str(B)))
    write_node_files(spec, store, spec.nodes[0], document(spec, store, 2))
    assert str(B).encode() not in store.read("nodes/a@127.0.0.1/cookie.term")


def test_agent_keys_are_32_bytes_and_each_nodes_own(spec: ClusterSpec, store: Store) -> None:
    provision(spec, store, NOW)
    keys = [agent_key(store, node).reveal() for node in (A, B)]
    assert [len(key) for key in keys] == [32, 32]
    assert keys[0] != keys[1]


# ---- a real BEAM
# ----------------------------------------------------------------------------------------------------

HANDSHAKE = r"""
{ok, _} = application:ensure_all_started(ssl),
Options = fun(Node) ->
    [{certfile, Dir ++ Node ++ "/certificate.pem"}, {keyfile, Dir ++ Node ++ "/key.pem"},
     {cacertfile, Dir ++ Node ++ "/trust.pem"}, {verify, verify_peer}, {versions, ['tlsv1.3']}]
end,
{ok, Listen} = ssl:listen(0, [{ip, {127,0,0,1}}, {fail_if_no_peer_cert, true} | Options(Server)]),
{ok, {_, Port}} = ssl:sockname(Listen),
spawn(fun Accept() -> {ok, S} = ssl:transport_accept(Listen), ssl:handshake(S), Accept() end),
Try = fun(Name) ->
    Connected = ssl:connect({127,0,0,1}, Port, [{server_name_indication, Name} | Options(Client)], 5000),
    element(1, Connected)
end,
io:format("~p ~p~n", [Try("127.0.0.1"), Try("127.0.0.2")]),
[io:format("~p~n", [file:consult(Dir ++ Client ++ "/" ++ File)])
 || File <- ["guard.term", "cookie.term", "dist.conf"]],
halt().
"""


def test_erlang_takes_the_certificates_for_their_host_and_reads_the_files(
    spec: ClusterSpec, store: Store, otp: Otp
) -> None:
    """OTP 25 looks for an IP-literal host among the DNS names, 27 and later among the IP addresses."""
    provision(spec, store, NOW)
    setting = f'Dir = "{store.root}/nodes/", Server = "{A}", Client = "{B}",'
    done = subprocess.run(
        [otp.erl, "-noinput", "-eval", setting + HANDSHAKE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok", "error", "{"))]
    assert lines[0] == "ok error", done.stdout + done.stderr
    assert [line.startswith("{ok,[") for line in lines[1:]] == [True] * 3


def test_the_leaf_of_a_node_is_the_profile_of_its_address(spec: ClusterSpec, store: Store) -> None:
    provision(replace(spec, nodes=(NodeSpec(A, ("erl",), address="127.0.0.9"),)), store, NOW)
    leaf = ca.load_certificate(store, "nodes/a@127.0.0.1/certificate.pem")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "127.0.0.9"]
