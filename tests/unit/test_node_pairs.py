"""A node can be started with what is in its directory, whatever somebody has put there, or says why not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distsec.beam import node_pairs
from distsec.beam.drops import INCOMING
from distsec.beam.provision import provision
from distsec.core.wanted import Overlay
from distsec.errors import CaKeyUnavailable, CertificateUnusable, DistsecError, StoreError
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec
from distsec.model.names import NodeName
from distsec.pki import ledger, pairs
from distsec.pki.authority import Authority
from distsec.pki.pairs import Pair
from distsec.pki.store import Store
from distsec.supervisor.credentials import INTERRUPTED, Place, Seen, StateCredentials

NOW = float(int(time.time()))
DAY = 86400.0
A, B = (NodeName.parse(f"{head}@127.0.0.1") for head in "ab")
DIRECTORY = f"nodes/{A}"


@pytest.fixture
def spec(tmp_path: Path) -> ClusterSpec:
    return ClusterSpec(
        name="demo",
        config_file=str(tmp_path / "distsec.toml"),
        state_dir=str(tmp_path / "state"),
        mode=Mode.PRODUCTION,
        carrier=Carrier.DISTSEC,
        allowed_nodes=(A, B),
        nodes=(NodeSpec(A, ("erl",)), NodeSpec(B, ("erl",))),
    )


@pytest.fixture
def store(spec: ClusterSpec) -> Store:
    made = Store(Path(spec.state_dir))
    provision(spec, made, NOW)
    return made


@pytest.fixture
def node(spec: ClusterSpec) -> NodeSpec:
    return spec.nodes[0]


def issued(store: Store, name: NodeName = A, days: float = 1, now: float = NOW) -> Pair:
    return Pair(*Authority.load(store).issue(name, "127.0.0.1", days, now))


def put(store: Store, pair: Pair, directory: str = DIRECTORY) -> None:
    """As somebody else does it, who knows nothing of what is accepted."""
    store.write(f"{directory}/key.pem", pair.key.reveal())
    store.write(f"{directory}/certificate.pem", pair.certificate)


def ready(spec: ClusterSpec, store: Store, now: float = NOW, overlay: Overlay | None = None) -> object:
    return node_pairs.ready(spec, store, overlay or Overlay(), spec.nodes[0], now)


# ---- at a start -------------------------------------------------------------------------------------------


def test_the_first_pair_is_accepted_as_it_is(spec: ClusterSpec, store: Store) -> None:
    before = pairs.read_pair(store, DIRECTORY)
    assert ready(spec, store) is None
    assert pairs.accepted_pair(store, DIRECTORY) == pairs.read_pair(store, DIRECTORY) == before


def test_a_good_pair_that_was_put_there_meanwhile_is_accepted(spec: ClusterSpec, store: Store) -> None:
    ready(spec, store)
    new = issued(store)
    put(store, new)
    assert ready(spec, store) is None
    assert pairs.accepted_pair(store, DIRECTORY) == new


def test_an_installation_that_was_interrupted_is_finished(spec: ClusterSpec, store: Store) -> None:
    ready(spec, store)
    new = issued(store)
    ledger.note_certificate(store, DIRECTORY, new.certificate)  # as install_pair does first
    store.write(f"{DIRECTORY}/next.pem", new.key.reveal() + new.certificate)
    assert ready(spec, store) is None
    assert pairs.read_pair(store, DIRECTORY) == new


def test_a_directory_in_the_place_of_the_bundle_is_moved_aside_and_told(
    spec: ClusterSpec, store: Store
) -> None:
    ready(spec, store)
    bundle = store.read(f"{DIRECTORY}/trust.pem")
    store.remove(f"{DIRECTORY}/trust.pem")
    store.ensure_directory(f"{DIRECTORY}/trust.pem/x")
    found = ready(spec, store)
    assert isinstance(found, node_pairs.Restored)
    assert (found.reason, "trust.pem" in found.what) == ("unsafe_file", True)
    assert store.read(f"{DIRECTORY}/trust.pem") == bundle
    assert ready(spec, store) is None


def garbage(store: Store) -> None:
    store.write(f"{DIRECTORY}/certificate.pem", b"garbage")


def missing(store: Store) -> None:
    store.remove(f"{DIRECTORY}/key.pem")


def of_another_node(store: Store) -> None:
    put(store, issued(store, B))


def for_another_key(store: Store) -> None:
    store.write(f"{DIRECTORY}/key.pem", issued(store).key.reveal())


def foreign(store: Store) -> None:
    other = Authority.create(Store(store.root.parent / "other"), "demo", NOW)
    put(store, Pair(*other.issue(A, "127.0.0.1", 1, NOW)))


def symbolic_link(store: Store) -> None:
    path = store.path(f"{DIRECTORY}/certificate.pem")
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def open_key(store: Store) -> None:
    store.path(f"{DIRECTORY}/key.pem").chmod(0o644)


SPOILED: dict[Callable[[Store], None], str] = {
    garbage: "unreadable",
    missing: "unreadable",
    of_another_node: "wrong_identity",
    for_another_key: "key_mismatch",
    foreign: "unknown_ca",
    symbolic_link: "unreadable",
    open_key: "unreadable",
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_pair_is_replaced_by_the_accepted_one_and_told_of(
    spec: ClusterSpec, store: Store, spoil: Callable[[Store], None]
) -> None:
    ready(spec, store)
    good = pairs.read_pair(store, DIRECTORY)
    spoil(store)
    found = ready(spec, store)
    assert isinstance(found, node_pairs.Restored)
    assert found.reason == SPOILED[spoil]
    assert pairs.read_pair(store, DIRECTORY) == good


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_without_an_accepted_pair_the_node_alone_is_refused(
    spec: ClusterSpec, store: Store, spoil: Callable[[Store], None]
) -> None:
    spoil(store)
    with pytest.raises(CertificateUnusable, match=rf"{A}: the certificate .*`distsec certs renew {A}`"):
        ready(spec, store)
    refused: dict[str, DistsecError] = {}
    provision(spec, store, NOW, spoiled=lambda node, error: refused.setdefault(str(node.name), error))
    assert set(refused) <= {str(A)}
    assert node_pairs.ready(spec, store, Overlay(), spec.nodes[1], NOW) is None


def expired(store: Store) -> None:
    put(store, issued(store, days=1, now=NOW - 2 * DAY))


def garbage(store: Store) -> None:
    store.write(f"{DIRECTORY}/certificate.pem", b"no certificate\n")


HERE = rf"run `distsec certs renew {A}`, then `distsec start {A}`$"
THERE = (
    rf"ask for one where the CA's key is \(docs/hosts\.md\): `distsec certs renew --offline {A} --out FILE`"
    rf" here, .*`distsec certs sign .* there, .*`distsec certs renew --offline --answer ANSWER`,"
    rf" then `distsec start {A}`$"
)


@pytest.mark.parametrize(
    ("spoil", "key_here", "do"),
    [(garbage, True, HERE), (garbage, False, THERE), (expired, False, THERE)],
    ids=["key here", "key elsewhere", "key elsewhere, expired"],
)
def test_what_is_to_be_done_is_what_works_where_it_is_read(
    spec: ClusterSpec, store: Store, spoil: Callable[[Store], None], key_here: bool, do: str
) -> None:
    spoil(store)
    if not key_here:
        store.remove("ca/key.pem")
    with pytest.raises(CertificateUnusable) as caught:
        ready(spec, store)
    assert re.search(do, caught.value.do), caught.value.do


def test_one_that_has_expired_is_renewed_at_the_start(spec: ClusterSpec, store: Store) -> None:
    put(store, issued(store, days=1, now=NOW - 2 * DAY))
    assert ready(spec, store) is None
    life = StateCredentials(store).life(spec.nodes[0])
    assert life.not_after == NOW + 365 * DAY


def test_one_that_has_expired_without_the_cas_key_says_both(spec: ClusterSpec, store: Store) -> None:
    put(store, issued(store, days=1, now=NOW - 2 * DAY))
    store.remove("ca/key.pem")
    with pytest.raises(CertificateUnusable, match=r"has expired .* and cannot be renewed: .*the CA's key"):
        ready(spec, store)


def test_a_revoked_node_starts_though_nobody_will_link_with_it(spec: ClusterSpec, store: Store) -> None:
    serial = node_pairs.serial_of(pairs.read_pair(store, DIRECTORY))
    assert ready(spec, store, overlay=Overlay(revoked=frozenset({serial}))) is None


def test_a_revoked_pair_that_is_put_in_place_of_a_good_one_is_still_what_the_operator_sees_to(
    spec: ClusterSpec, store: Store, node: NodeSpec
) -> None:
    ready(spec, store)
    new = issued(store)
    put(store, new)
    overlay = Overlay(revoked=frozenset({node_pairs.serial_of(new)}))
    seen = StateCredentials(store).look(spec, overlay, node, Place.DIRECTORY, NOW)
    assert (seen.reason, seen.pair) == ("revoked", None)


def test_a_key_in_another_form_is_kept_as_pkcs8(spec: ClusterSpec, store: Store) -> None:
    from cryptography.hazmat.primitives import serialization

    new = issued(store)
    key = serialization.load_pem_private_key(new.key.reveal(), None)
    old_form = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    assert b"BEGIN EC PRIVATE KEY" in old_form
    store.write(f"{DIRECTORY}/key.pem", old_form)
    store.write(f"{DIRECTORY}/certificate.pem", b"# a comment\n" + new.certificate)
    assert ready(spec, store) is None
    assert pairs.read_pair(store, DIRECTORY) == new


def test_what_is_provisioned_for_the_others_does_not_wait_for_a_spoiled_node(
    spec: ClusterSpec, store: Store
) -> None:
    garbage(store)
    store.remove(f"nodes/{B}/dist.conf")
    with pytest.raises(StoreError):
        provision(spec, store, NOW)
    refused: list[str] = []
    provision(spec, store, NOW, spoiled=lambda node, error: refused.append(str(node.name)))
    assert refused == [str(A)]
    assert store.exists(f"nodes/{B}/dist.conf")


# ---- while the orchestrator runs --------------------------------------------------------------------------


def look(
    spec: ClusterSpec, store: Store, place: Place = Place.DIRECTORY, overlay: Overlay | None = None
) -> Seen:
    return StateCredentials(store).look(spec, overlay or Overlay(), spec.nodes[0], place, NOW)


def test_a_pair_that_is_the_accepted_one_is_nothing_new(spec: ClusterSpec, store: Store) -> None:
    first = look(spec, store)
    assert (first.pair, first.reason) == (None, None)
    assert pairs.accepted_pair(store, DIRECTORY) is not None
    again = look(spec, store)
    assert (again.pair, again.reason) == (None, None)


@pytest.mark.parametrize("place", Place)
def test_a_good_pair_is_found_and_nothing_is_changed(spec: ClusterSpec, store: Store, place: Place) -> None:
    look(spec, store)
    new = issued(store)
    where = DIRECTORY if place is Place.DIRECTORY else f"{DIRECTORY}/{INCOMING}"
    accepted = pairs.accepted_pair(store, DIRECTORY)
    put(store, new, where)
    seen = look(spec, store, place)
    assert (seen.pair, seen.serial, seen.reason) == (new, node_pairs.serial_of(new), None)
    assert pairs.accepted_pair(store, DIRECTORY) == accepted


def test_a_pair_of_which_one_half_is_new_may_be_half_written(spec: ClusterSpec, store: Store) -> None:
    look(spec, store)
    for_another_key(store)
    seen = look(spec, store)
    assert (seen.reason, seen.unsettled) == ("key_mismatch", True)


def test_while_somebody_installs_a_pair_nothing_is_judged(spec: ClusterSpec, store: Store) -> None:
    look(spec, store)
    new = issued(store)
    ledger.note_certificate(store, DIRECTORY, new.certificate)  # as install_pair does first
    store.write(f"{DIRECTORY}/next.pem", new.key.reveal() + new.certificate)
    seen = look(spec, store)
    assert (seen.reason, seen.unsettled) == (INTERRUPTED, True)
    assert StateCredentials(store).restore(spec.nodes[0])
    assert pairs.read_pair(store, DIRECTORY) == new


def test_nothing_in_incoming_is_no_reason_to_say_anything(spec: ClusterSpec, store: Store) -> None:
    seen = look(spec, store, Place.INCOMING)
    assert seen == Seen()
    made = store.path(f"{DIRECTORY}/{INCOMING}")
    assert made.stat().st_mode & 0o777 == 0o700


def test_what_was_taken_is_gone_from_incoming(spec: ClusterSpec, store: Store, node: NodeSpec) -> None:
    put(store, issued(store), f"{DIRECTORY}/{INCOMING}")
    StateCredentials(store).consume(node, Place.INCOMING)
    assert not list(store.path(f"{DIRECTORY}/{INCOMING}").iterdir())
    StateCredentials(store).consume(node, Place.DIRECTORY)
    assert store.exists(f"{DIRECTORY}/key.pem")


def test_a_new_pair_lasts_as_long_as_is_configured_and_by_what_a_clock_was_set_back(
    spec: ClusterSpec, store: Store, node: NodeSpec
) -> None:
    short = replace(spec, certificate_days=60 / DAY)
    credentials = StateCredentials(store)
    credentials.renew(short, node, NOW, 0.0)
    life = credentials.life(node)
    assert (life.not_after, life.not_before) == (NOW + 60, NOW - 10)
    credentials.renew(short, node, NOW, 3600.0)
    assert credentials.life(node).not_after == NOW + 3660
    assert life.ours
    assert life.latest == credentials.authority().not_after


def test_without_the_cas_key_nothing_is_installed(spec: ClusterSpec, store: Store, node: NodeSpec) -> None:
    before = pairs.read_pair(store, DIRECTORY)
    store.remove("ca/key.pem")
    with pytest.raises(CaKeyUnavailable):
        StateCredentials(store).renew(spec, node, NOW, 0.0)
    assert pairs.read_pair(store, DIRECTORY) == before
    assert not store.exists("ca/pairs")
