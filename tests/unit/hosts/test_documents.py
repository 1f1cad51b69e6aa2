"""What a host exports and another takes: who may speak for whom, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsec.beam.host_document import MAX_BYTES, HostDocument, read_host_document, sign_with
from distsec.beam.host_import import plan_forget
from distsec.beam.overlay import load_overlay, save_overlay
from distsec.core.wanted import wanted_policy
from distsec.errors import ConfigError, DistsecError, ImportRefused, NotFound, StoreError, UsageError
from distsec.model.hosts import HostSpec
from distsec.pki import hosts, pairs
from distsec.pki.signing import PolicySigner
from tests.unit.hosts.sides import NOW, Side, Sides, sides

A, B, B6 = "a@192.0.2.1", "b@192.0.2.2", "b6@192.0.2.2"


class Untouched(NamedTuple):
    """Shared by tests that change nothing; `content`: of `there`."""

    here: Side
    there: Side
    content: bytes


@pytest.fixture(scope="module")
def untouched() -> Iterator[Untouched]:
    with sides() as make:
        here = make("here", {A: "192.0.2.1"})
        there = make("there", {B: "192.0.2.2", B6: "2001:db8::2"}, ca=here)
        yield Untouched(here, there, there.export())


def refused(side: Side, content: bytes, **how: Any) -> ImportRefused:
    known = hosts.load_hosts(side.store)
    with pytest.raises(ImportRefused) as caught:
        side.plan(content, **how)
    assert hosts.load_hosts(side.store) == known
    assert caught.value.exit_code == 65
    assert "there.json" in str(caught.value)
    return caught.value


def changed(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(content)
    change(document)
    return json.dumps(document).encode()


def signed_by(side: Side, content: bytes, change: Callable[[dict[str, Any]], Any], *nodes: str) -> bytes:
    """Changed, and signed anew by the host itself and by `nodes`: what a host that lies can make."""
    document = json.loads(changed(content, lambda whole: change(whole["export"])))
    canonical = json.dumps(document["export"], sort_keys=True, separators=(",", ":"))
    message = b"distsec host document 1\0" + canonical.encode()
    signatures = document["signatures"]
    signatures["host"] = base64.b64encode(PolicySigner.load(side.store).sign(message)).decode()
    for node in nodes:
        pair = pairs.read_pair(side.store, f"nodes/{node}")
        signatures["nodes"][node] = base64.b64encode(sign_with(pair.key, message)).decode()
    return json.dumps(document).encode()


# ---- what it leads to


def test_what_was_exported_is_listed_with_its_address_on_the_other_host(here: Side, there: Side) -> None:
    plan = here.take(there.export())
    assert plan.lines == (f"+ {B}  192.0.2.2:9100", f"+ {B6}  [2001:db8::2]:9101")
    spec = here.whole
    policy = wanted_policy(spec, load_overlay(here.store), {A: 9100, B: 9100, B6: 9101}, 1)
    found = {peer.name: (peer.identity, peer.address, peer.port) for peer in policy.peers}
    assert found[B] == ("spiffe://shop/node/192.0.2.2/b", "192.0.2.2", 9100)
    assert found[B6] == ("spiffe://shop/node/192.0.2.2/b6", "2001:db8::2", 9101)
    assert set(found) == {A, B, B6}


def test_a_document_holds_no_secret(here: Side, there: Side) -> None:
    content = there.export()
    assert b"PRIVATE" not in content
    files = [path for path in there.store.root.rglob("*") if path.is_file()]
    secrets = [path for path in files if path.name in {"cookie.secret", "agent.key", "cookie.term"}]
    assert len(secrets) == 5
    for path in secrets:
        words = path.read_bytes().replace(b'"', b" ").split()
        assert not [word for word in words if len(word) >= 60 and word in content]


def test_the_same_document_twice_changes_nothing_and_is_no_error(here: Side, there: Side) -> None:
    content = there.export()
    here.take(content)
    again = here.take(content)
    assert again.before
    assert (again.added, again.removed, again.lines) == ((), (), ())


def test_whoever_is_no_longer_in_it_is_taken_out(here: Side, there: Side) -> None:
    here.take(there.export())
    overlay = load_overlay(there.store)
    save_overlay(there.store, overlay.denying(B6))
    plan = here.take(there.export(NOW + 1), NOW + 1)
    assert (plan.removed, plan.added) == ((B6,), ())
    assert {str(name) for name in here.whole.allowed_nodes} == {A, B}


def test_a_peers_table_counts_before_what_the_host_says_of_itself(make_side: Sides) -> None:
    table = f'[[peers]]\nname = "{B}"\naddress = "198.51.100.7"\nport = 443\n'.replace("443", "4430")
    here = make_side("here", {A: "192.0.2.1"})
    there = make_side("there", {B: "192.0.2.2"}, ca=here)
    behind = make_side("here", {A: "192.0.2.1"}, more=table)
    plan = behind.take(there.export())
    assert any("[[peers]]" in warning for warning in plan.warnings)
    assert {(str(p.name), p.address, p.port) for p in behind.whole.peers} == {(B, "198.51.100.7", 4430)}


def test_a_host_is_forgotten_by_its_name(here: Side, there: Side) -> None:
    here.take(there.export())
    with pytest.raises(NotFound, match="there"):
        plan_forget(here.store, "elsewhere")
    plan = plan_forget(here.store, "there")
    assert (plan.removed, plan.hosts) == ((B, B6), ())


def test_a_node_that_is_managed_here_and_was_imported_stops_the_start(make_side: Sides) -> None:
    here = make_side("here", {A: "192.0.2.1"})
    there = make_side("there", {B: "192.0.2.2"}, ca=here)
    here.take(there.export())
    moved = make_side("here", {A: "192.0.2.1", B: "192.0.2.1"})
    with pytest.raises(ConfigError, match=f"{B} is managed here, and was imported from there"):
        _ = moved.whole


# ---- cookies


def cookie(side: Side, own: str, other: str) -> bytes:
    spec = side.whole
    host = next(host for host in spec.hosts if any(str(node.name) == other for node in host.nodes))
    epochs = dict(load_overlay(side.store).epochs)
    return hosts.load_host_key(side.store).pair_cookie(host, own, other, epochs).reveal()


def test_both_hosts_derive_the_same_cookie_for_a_pair_and_another_for_each(here: Side, there: Side) -> None:
    here.take(there.export())
    there.take(here.export())
    assert cookie(here, A, B) == cookie(there, B, A)
    assert cookie(here, A, B6) == cookie(there, B6, A)
    assert cookie(here, A, B) != cookie(here, A, B6)
    assert cookie(here, A, B)[:1] == b"h" and len(cookie(here, A, B)) == 65


def test_a_third_host_derives_another(make_side: Sides, here: Side, there: Side) -> None:
    third = make_side("third", {"c@192.0.2.3": "192.0.2.3"}, ca=here)
    document = there.export()
    here.take(document)
    third.take(document)
    assert cookie(third, A, B) != cookie(here, A, B)


@pytest.mark.parametrize("rekeyed", [A, B])
@pytest.mark.parametrize("by", ["here", "there"])
def test_a_node_that_one_of_them_re_keyed_has_another_when_both_have_heard_of_it(
    here: Side, there: Side, rekeyed: str, by: str
) -> None:
    here.take(there.export())
    there.take(here.export())
    before = cookie(here, A, B)
    side, other = (here, there) if by == "here" else (there, here)
    overlay = load_overlay(side.store)
    save_overlay(side.store, overlay.tainting((), (), {rekeyed}))
    assert cookie(here, A, B) != cookie(there, B, A)
    plan = other.take(side.export(NOW + 1), NOW + 1)
    assert plan.lines == ("~ cookies: nodes were re-keyed",)
    assert cookie(here, A, B) == cookie(there, B, A) != before


# ---- what is refused


def test_a_document_of_another_cluster_is_refused(make_side: Sides, here: Side) -> None:
    other = make_side("there", {B: "192.0.2.2"}, cluster="market")
    assert "is of the cluster market, not of shop" in str(refused(here, other.export()))


def test_a_document_of_another_ca_is_refused(make_side: Sides, here: Side) -> None:
    other = make_side("there", {B: "192.0.2.2"})
    assert "trusts another CA" in str(refused(here, other.export()))


def test_a_host_that_claims_our_ca_with_certificates_of_its_own_is_refused(
    make_side: Sides, here: Side
) -> None:
    other = make_side("there", {B: "192.0.2.2"})
    ours = json.loads(here.export())["export"]["authorities"]
    forged = signed_by(other, other.export(), lambda export: export.update(authorities=ours), B)
    assert f"the certificate of {B} does not lead to a CA" in str(refused(here, forged))


def test_its_own_document_is_refused(here: Side) -> None:
    assert "this host's own" in str(refused(here, here.export()))


def test_an_older_document_is_refused(here: Side, there: Side) -> None:
    old = there.export()
    here.take(there.export(NOW + 10), NOW + 10)
    assert "is older than the one that was imported from there" in str(refused(here, old))


def test_two_documents_of_one_number_are_refused(here: Side, there: Side) -> None:
    content = there.export()
    here.take(content)
    twin = signed_by(there, content, lambda export: export.update(issued_at=export["issued_at"] + 1), B, B6)
    assert "has the serial number of another document" in str(refused(here, twin))


def test_a_document_from_ahead_of_now_is_refused(here: Side, there: Side) -> None:
    assert "ahead of now" in str(refused(here, there.export(NOW + 7200)))


def test_serial_numbers_rise_though_the_clock_was_set_back(there: Side) -> None:
    first = json.loads(there.export(NOW + 86400))["export"]["serial"]
    assert json.loads(there.export())["export"]["serial"] == first + 1


def test_a_name_that_is_managed_here_is_refused(make_side: Sides, here: Side) -> None:
    twin = make_side("there", {A: "192.0.2.2"}, ca=here)
    assert f"{A} is managed here" in str(refused(here, twin.export()))


def test_a_node_of_a_host_that_is_known_is_not_taken_over_by_another(
    make_side: Sides, here: Side, there: Side
) -> None:
    here.take(there.export())
    thief = make_side("thief", {B: "192.0.2.3"}, ca=here)
    assert f"{B} is of the host there" in str(refused(here, thief.export()))


def test_another_host_of_the_same_name_is_refused(make_side: Sides, here: Side, there: Side) -> None:
    here.take(there.export())
    twin = make_side("twin", {"c@192.0.2.3": "192.0.2.3"}, ca=here)
    assert "its key is another" in str(refused(here, twin.export(host="there")))


def test_a_host_speaks_for_no_node_whose_key_it_does_not_have(
    make_side: Sides, here: Side, there: Side
) -> None:
    """A node of `thief` was broken into. It has a certificate, and that of b is no secret."""
    thief = make_side("thief", {"c@192.0.2.3": "192.0.2.3"}, ca=here)
    entry = json.loads(there.export())["export"]["nodes"][0]

    def claim(export: dict[str, Any]) -> None:
        export["nodes"].append({**entry, "address": "192.0.2.3", "port": 9666})

    forged = signed_by(thief, thief.export(), claim, "c@192.0.2.3")
    taken = changed(forged, lambda whole: whole["signatures"]["nodes"].update({B: "AAAA"}))
    assert "does not speak for" in str(refused(here, taken))


def test_a_node_comes_with_its_own_certificate_and_no_other_one(here: Side, there: Side) -> None:
    def swap(export: dict[str, Any]) -> None:
        one, other = export["nodes"]
        one["certificate"], other["certificate"] = other["certificate"], one["certificate"]

    content = signed_by(there, there.export(), swap)
    document = json.loads(content)
    by = document["signatures"]["nodes"]
    message = (
        b"distsec host document 1\0"
        + json.dumps(document["export"], sort_keys=True, separators=(",", ":")).encode()
    )
    for name, key_of in ((B, B6), (B6, B)):
        pair = pairs.read_pair(there.store, f"nodes/{key_of}")
        by[name] = base64.b64encode(sign_with(pair.key, message)).decode()
    assert "is for spiffe://shop/node/192.0.2.2/b6" in str(refused(here, json.dumps(document).encode()))


def test_a_revoked_certificate_is_refused(here: Side, there: Side) -> None:
    content = there.export()
    chain = read_host_document(content, "x").nodes[0].chain
    save_overlay(here.store, load_overlay(here.store).revoking(f"{chain[0].serial_number:032x}"))
    assert f"the certificate of {B} is revoked here" in str(refused(here, content))


def test_a_certificate_that_has_ended_is_refused(here: Side, there: Side) -> None:
    content = there.export()
    assert "has expired" in str(refused(here, content, now=NOW + 40 * 86400))


def test_a_node_that_a_rule_knows_by_something_else_is_refused(make_side: Sides) -> None:
    rule = f'[[security.distribution.rules]]\nnames = ["{B}"]\ndns = "b.example"\n'
    here = make_side("here", {A: "192.0.2.1"})
    there = make_side("there", {B: "192.0.2.2"}, ca=here)
    ruled = make_side("here", {A: "192.0.2.1"}, more=rule)
    assert "have the same [[security.distribution.rules]]" in str(refused(ruled, there.export()))


def test_an_address_of_a_family_that_this_host_does_not_have_is_refused(here: Side, there: Side) -> None:
    found = refused(here, there.export(), here=("127.0.0.1", "192.0.2.1", "::1", "fe80::1"))
    assert "no IPv6 address to reach it from" in str(found)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "host.example", "192.0.2.02"]
)
def test_an_address_that_is_of_no_other_host_is_refused(untouched: Untouched, address: str) -> None:
    there, content = untouched.there, untouched.content
    forged = signed_by(there, content, lambda e: e["nodes"][0].update(address=address), B, B6)
    refused(untouched.here, forged)


def test_a_key_that_has_nothing_in_common_with_any_other_is_refused(here: Side, there: Side) -> None:
    zero = base64.b64encode(bytes(32)).decode()
    forged = signed_by(there, there.export(), lambda e: e.update(agreement_key=zero), B, B6)
    assert "nothing in common" in str(refused(here, forged))


def test_a_denied_node_stays_denied(here: Side, there: Side) -> None:
    save_overlay(here.store, load_overlay(here.store).denying(B))
    plan = here.take(there.export())
    assert any("denied here, and stays so" in warning for warning in plan.warnings)
    policy = wanted_policy(here.whole, load_overlay(here.store), {A: 1, B: 1, B6: 1}, 1)
    assert B in policy.denied


ALTERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a port": lambda d: d["export"]["nodes"][0].update(port=9999),
    "an address": lambda d: d["export"]["nodes"][0].update(address="192.0.2.9"),
    "its key": lambda d: d["export"].update(agreement_key=base64.b64encode(b"k" * 32).decode()),
    "its serial": lambda d: d["export"].update(serial=d["export"]["serial"] + 1),
    "an epoch": lambda d: d["export"].update(epochs={A: 0}),
    "a node less": lambda d: (d["export"]["nodes"].pop(), d["signatures"]["nodes"].pop(B6)),
    "a signature less": lambda d: d["signatures"]["nodes"].pop(B),
    "a signature more": lambda d: d["signatures"]["nodes"].update({A: "AAAA"}),
    "another host's signature": lambda d: d["signatures"].update(
        host=base64.b64encode(Ed25519PrivateKey.generate().sign(b"x")).decode()
    ),
    "a key more": lambda d: d["export"].update(more=1),
    "another kind": lambda d: d.update(kind="distsec guest"),
    "a later version": lambda d: d.update(schema=2),
    "no nodes": lambda d: d["export"].update(nodes=[]),
    "a number that is none": lambda d: d["export"].update(serial=True),
    "a huge number": lambda d: d["export"].update(serial=2**60),
    "a text for a list": lambda d: d["export"].update(nodes="b"),
    "a name that is none": lambda d: d["export"]["nodes"][0].update(name="../../etc"),
    "a host that is none": lambda d: d["export"].update(host="a\x1b[2J"),
    "no certificate": lambda d: d["export"]["nodes"][0].update(certificate="none"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_document_that_was_altered_is_refused(untouched: Untouched, what: str) -> None:
    found = refused(untouched.here, changed(untouched.content, ALTERED[what]))
    assert "\x1b" not in str(found)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"kind":' * 3000, b"1" * 100_000, b" " * (MAX_BYTES + 1)],
    ids=["empty", "object", "list", "null", "bytes", "deep", "number", "large"],
)
def test_what_is_no_document_is_refused(untouched: Untouched, content: bytes) -> None:
    refused(untouched.here, content)


def test_a_key_that_is_in_it_twice_is_refused(here: Side, there: Side) -> None:
    twice = there.export().replace(b'"schema": 1', b'"schema": 1, "schema": 1')
    assert "twice" in str(refused(here, twice))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_bytes_does_anything_but_have_it_refused(
    untouched: Untouched, data: st.DataObject
) -> None:
    content = bytearray(untouched.content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=8))
    try:
        found = read_host_document(bytes(content), "x")
    except DistsecError:
        return
    assert found == read_host_document(untouched.content, "x"), "what differs means nothing"


# ---- what is exported


def test_nodes_on_loopback_are_not_exported(make_side: Sides) -> None:
    side = make_side("here", {"a@127.0.0.1": "127.0.0.1"})
    with pytest.raises(UsageError, match=r"listens on 127\.0\.0\.1, which nobody on another host reaches"):
        side.export()


def test_who_listens_everywhere_is_exported_with_the_address_that_is_named(make_side: Sides) -> None:
    side = make_side("here", {"a@a.example": "0.0.0.0"}, more="confirm_network = true")
    with pytest.raises(UsageError, match="--address"):
        side.export()
    content = side.export(address="192.0.2.9")
    assert json.loads(content)["export"]["nodes"][0]["address"] == "192.0.2.9"


def test_a_node_without_a_certificate_is_not_exported(make_side: Sides, here: Side) -> None:
    there = make_side("there", {B: "192.0.2.2"}, ca=here)
    more = make_side("there", {B: "192.0.2.2"}, ca=here)
    for name in ("certificate.pem", "key.pem"):
        more.store.remove(f"nodes/{B}/{name}")
    more.store.remove(f"ca/pairs/{B}.pem")
    with pytest.raises(StoreError, match="has no certificate yet"):
        there.export()


def test_a_development_cluster_has_nothing_to_export(make_side: Sides, here: Side) -> None:
    text = 'mode = "development"\n'
    spec = here.spec
    side = make_side("dev", {"a@127.0.0.1": "127.0.0.1"}, more=f"[security]\n{text}")
    assert not side.spec.carrier.encrypted and spec.carrier.encrypted
    with pytest.raises(UsageError, match="nothing to export in development mode"):
        side.export()
    assert "in development mode" in str(refused(side, here.export()))


# ---- what is kept


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b'{"schema":1,"hosts":{}}', b'{"schema":2,"hosts":[]}', b'{"schema":1,"hosts":[{}]}', b"[]"],
)
def test_a_damaged_record_of_hosts_is_an_error_and_never_an_empty_one(here: Side, content: bytes) -> None:
    here.store.write(hosts.HOSTS_FILE, content)
    with pytest.raises(StoreError, match=r"hosts\.json: is damaged"):
        hosts.load_hosts(here.store)


def test_what_is_kept_is_read_as_it_was(here: Side, there: Side) -> None:
    plan = here.take(there.export())
    assert hosts.load_hosts(here.store) == (plan.host,)
    assert isinstance(plan.host, HostSpec)
    assert isinstance(read_host_document(there.export(NOW + 1), "x"), HostDocument)
