"""The overlay on disk, and the policy that configuration and overlay together want."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.beam.overlay import Allowed, Overlay, load_overlay, save_overlay
from distsec.core.wanted import Taint, TaintStage, wanted_policy
from distsec.errors import NameInvalid, StoreError
from distsec.model.cluster import Carrier, CliRuleSpec, ClusterSpec, Mode, NodeSpec, PeerSpec
from distsec.model.names import NodeName
from distsec.model.policy import Phase, PolicyPeer, PolicyRule
from distsec.pki.store import Store

A, B, C = (NodeName.parse(f"{head}@127.0.0.1") for head in "abc")
SPEC = ClusterSpec(
    name="demo",
    config_file="/etc/distsec/distsec.toml",
    state_dir="/nonexistent",
    mode=Mode.PRODUCTION,
    carrier=Carrier.INET_TLS,
    allowed_nodes=(A, B),
    nodes=(NodeSpec(A, ("erl",)),),
    peers=(PeerSpec(B, "192.0.2.7", 9100),),
)
PORTS = {"a@127.0.0.1": 9101, "b@127.0.0.1": 9100}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


NAMES = st.from_regex(r"[a-z]{1,5}@[a-z]{1,5}", fullmatch=True)
OVERLAYS = st.builds(
    Overlay,
    generation=st.integers(1, 2**40),
    allow=st.lists(st.builds(Allowed, NAMES, st.none() | st.just("spiffe://demo/node/x/y"))).map(tuple),
    deny=st.frozensets(NAMES),
    revoked=st.frozensets(st.from_regex(r"[0-9a-f]{1,40}", fullmatch=True)),
    revoked_identities=st.frozensets(st.sampled_from(["spiffe://d/a", "dns:h.example", "dn:2.5.4.3:61"])),
    issued_at=st.integers(0, 2**40),
    epochs=st.dictionaries(NAMES, st.integers(0, 99)).map(lambda epochs: tuple(sorted(epochs.items()))),
    tainted=st.lists(
        st.builds(
            Taint, NAMES, st.sampled_from(TaintStage), st.integers(0, 2**40), st.booleans(), NAMES,
            st.from_regex(r"[0-9a-f-]{0,36}", fullmatch=True), st.integers(0, 2**40),
        )
    ).map(tuple),
)  # fmt: skip


@given(OVERLAYS)
def test_an_overlay_is_read_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, overlay: Overlay
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "overlays")
    save_overlay(store, overlay)
    assert load_overlay(store) == overlay


def test_without_an_overlay_nothing_was_changed(store: Store) -> None:
    assert load_overlay(store) == Overlay(generation=1)


GOOD_1 = {"schema": 1, "generation": 1, "allow": [], "deny": [], "revoked": []}
TAINT: dict[str, object] = {"name": "a@h", "cause": "a@h", "stage": "held", "since": 1, "start": False}
TAINT |= {"boot": "", "rekeyed_at": 0}
GOOD_2 = GOOD_1 | {"schema": 2, "issued_at": 1, "epochs": {"a@h": 1}, "tainted": [TAINT]}
GOOD = GOOD_2 | {"schema": 3, "revoked_identities": ["spiffe://demo/x"]}
DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"[" * 100_000,
    b"\xff",
    *(
        json.dumps(document).encode()
        for document in (
            {},
            GOOD_1 | {"schema": 2},
            GOOD | {"schema": 1},
            GOOD | {"schema": 2},
            GOOD | {"schema": 4},
            GOOD_2 | {"schema": 1},
            GOOD_2 | {"schema": 3},
            GOOD_1 | {"schema": []},
            GOOD | {"issued_at": -1},
            GOOD | {"epochs": ["a@h"]},
            GOOD | {"epochs": {"no name": 1}},
            GOOD | {"epochs": {"a@h": "1"}},
            GOOD | {"tainted": [TAINT | {"stage": "cured"}]},
            GOOD | {"tainted": [TAINT | {"name": "no name"}]},
            GOOD | {"tainted": [TAINT | {"start": 1}]},
            GOOD | {"tainted": [TAINT | {"boot": "x y"}]},
            GOOD | {"tainted": [TAINT | {"more": 1}]},
            GOOD | {"tainted": {}},
            GOOD | {"generation": 0},
            GOOD | {"generation": "1"},
            GOOD | {"generation": True},
            GOOD | {"deny": "a@h"},
            GOOD | {"deny": ["no name"]},
            GOOD | {"deny": [7]},
            GOOD | {"allow": [{"name": "a@h"}]},
            GOOD | {"allow": [{"name": "a@h", "identity": "spiffe://demo/*"}]},
            GOOD | {"revoked": ["XYZ"]},
            GOOD | {"revoked_identities": ["spiffe://demo/*"]},
            GOOD | {"revoked_identities": "spiffe://demo/x"},
            GOOD | {"revoked_identities": [None]},
            {key: value for key, value in GOOD.items() if key != "deny"},
            GOOD | {"unknown": 1},
        )
    ),
]


@pytest.mark.parametrize("document", [GOOD_1, GOOD_2, GOOD])
def test_this_schema_and_those_before_are_read(store: Store, document: dict[str, object]) -> None:
    store.write("policy.overlay", json.dumps(document).encode())
    overlay = load_overlay(store)
    assert (overlay.generation, overlay.epoch("a@h")) == (1, 0 if document is GOOD_1 else 1)
    assert overlay.revoked_identities == ({"spiffe://demo/x"} if document is GOOD else set())


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_overlay_is_an_error_and_never_an_empty_one(store: Store, content: bytes) -> None:
    store.write("policy.overlay", content)
    with pytest.raises(StoreError, match=r"policy\.overlay: is damaged"):
        load_overlay(store)


@pytest.mark.parametrize(
    "overlay",
    [
        Overlay(allow=(Allowed("a@h", "spiffe://demo/node/*"),)),
        Overlay(allow=(Allowed("a@h\n"),)),
        Overlay(deny=frozenset({"nobody"})),
        Overlay(revoked=frozenset({"0A"})),
        Overlay(revoked_identities=frozenset({"dns:H.example"})),
    ],
)
def test_what_could_not_be_read_back_is_not_saved(store: Store, overlay: Overlay) -> None:
    save_overlay(store, Overlay().denying("x@host"))
    with pytest.raises(NameInvalid):
        save_overlay(store, overlay)
    assert load_overlay(store).deny == {"x@host"}


def test_every_change_is_a_new_generation_and_the_last_word_counts() -> None:
    overlay = Overlay().denying("c@127.0.0.1")
    assert (overlay.generation, overlay.deny) == (2, frozenset({"c@127.0.0.1"}))
    overlay = overlay.allowing("c@127.0.0.1", "spiffe://demo/x")
    assert (overlay.generation, overlay.deny) == (3, frozenset())
    assert overlay.allow == (Allowed("c@127.0.0.1", "spiffe://demo/x"),)
    overlay = overlay.allowing("c@127.0.0.1")
    assert (overlay.generation, overlay.allow) == (4, (Allowed("c@127.0.0.1"),))
    overlay = overlay.denying("c@127.0.0.1").revoking("0a").advanced()
    assert overlay == Overlay(7, (), frozenset({"c@127.0.0.1"}), frozenset({"0a"}))


def test_what_the_configuration_lists_is_allowed_again_without_an_entry_that_would_outlive_it() -> None:
    overlay = Overlay().denying("c@127.0.0.1").allowing("c@127.0.0.1", configured=True)
    assert overlay == Overlay(3)
    other = overlay.allowing("c@127.0.0.1", "spiffe://demo/x", configured=True)
    assert other.allow == (Allowed("c@127.0.0.1", "spiffe://demo/x"),)


def test_the_policy_lists_allowed_nodes_with_where_they_are_dialled() -> None:
    policy = wanted_policy(SPEC, Overlay(), PORTS, issued_at=1000)
    assert policy.peers == (
        PolicyPeer("a@127.0.0.1", "spiffe://demo/node/127.0.0.1/a", Phase.OPEN, "127.0.0.1", 9101),
        PolicyPeer("b@127.0.0.1", "spiffe://demo/node/127.0.0.1/b", Phase.OPEN, "192.0.2.7", 9100),
    )
    assert (policy.cluster, policy.generation, policy.issued_at) == ("demo", 1, 1000)
    assert policy.require_identity


def test_a_node_that_is_started_here_but_not_allowed_is_no_peer() -> None:
    policy = wanted_policy(replace(SPEC, allowed_nodes=(B,)), Overlay(), PORTS, 0)
    assert [peer.name for peer in policy.peers] == ["b@127.0.0.1"]


def test_an_empty_configuration_gives_a_policy_that_admits_nobody() -> None:
    policy = wanted_policy(replace(SPEC, allowed_nodes=()), Overlay(), {}, 0)
    assert (policy.peers, policy.rules) == ((), ())


def test_allowed_by_the_overlay_comes_last_with_its_identity_and_no_address_that_nobody_knows() -> None:
    overlay = (
        Overlay().allowing("x@elsewhere", "spiffe://demo/other").allowing("b@127.0.0.1", "spiffe://demo/b")
    )
    policy = wanted_policy(SPEC, overlay, PORTS, 0, prepared=frozenset({"x@elsewhere"}))
    assert [peer.name for peer in policy.peers] == ["a@127.0.0.1", "b@127.0.0.1", "x@elsewhere"]
    assert policy.peers[1].identity == "spiffe://demo/b"
    assert policy.peers[2] == PolicyPeer("x@elsewhere", "spiffe://demo/other", Phase.PREPARED, None, None)


def test_a_denied_node_stays_listed_so_that_the_reason_is_denied() -> None:
    policy = wanted_policy(SPEC, Overlay().denying("b@127.0.0.1"), PORTS, 0)
    assert policy.denied == {"b@127.0.0.1"}
    assert "b@127.0.0.1" in [peer.name for peer in policy.peers]


def test_revoked_serials_and_identities_are_in_the_policy() -> None:
    policy = wanted_policy(SPEC, Overlay().revoking("0a1b", identities=["dns:h.example"]), PORTS, 0)
    assert (policy.revoked, policy.revoked_identities) == ({"0a1b"}, {"dns:h.example"})


def test_allowing_a_name_lifts_the_revocation_of_its_identity_and_of_nothing_else() -> None:
    revoked = Overlay().revoking("0a1b", identities=["dns:a.example", "dns:b.example"])
    allowed = revoked.allowing("a@h", known_by="dns:a.example")
    assert allowed.revoked_identities == {"dns:b.example"}
    assert allowed.revoked == {"0a1b"}
    assert revoked.allowing("a@h").revoked_identities == revoked.revoked_identities


@pytest.mark.parametrize(
    ("address", "dialled"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.5", "10.0.0.5")]
)
def test_a_node_that_listens_everywhere_is_dialled_on_loopback(address: str, dialled: str) -> None:
    policy = wanted_policy(
        replace(SPEC, nodes=(NodeSpec(A, ("erl",), address=address),)), Overlay(), PORTS, 0
    )
    assert policy.peers[0].address == dialled


def test_cli_rules_without_an_identity_take_every_identity_of_kind_cli() -> None:
    rules = (CliRuleSpec(("x-*@h", "y-*@h")), CliRuleSpec(("z-*@h",), "spiffe://demo/cli/ops"))
    assert wanted_policy(replace(SPEC, rules=rules), Overlay(), PORTS, 0).rules == (
        PolicyRule("x-*@h", "spiffe://demo/cli/*"),
        PolicyRule("y-*@h", "spiffe://demo/cli/*"),
        PolicyRule("z-*@h", "spiffe://demo/cli/ops"),
    )


def test_links_without_tls_carry_no_identity() -> None:
    assert not wanted_policy(replace(SPEC, carrier=Carrier.INET_TCP), Overlay(), PORTS, 0).require_identity
