"""Identities: equal texts stand for equal structures, and what cannot be compared is refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distsec.errors import NameInvalid
from distsec.model.identities import (
    MAX_ATTRIBUTES,
    canonical_identity,
    dn_identity,
    dns_identity,
    is_canonical_dn,
    is_certificate_name,
    readable,
    spiffe_identity,
    trust_domain,
)
from distsec.pki.subject import identity_from_text, subject_identity

CN, O, OU = "2.5.4.3", "2.5.4.10", "2.5.4.11"  # noqa: E741  the attribute's own name
POLLER = "dn:2.5.4.10:536572766963655261646172,2.5.4.3:706f6c6c65722e736572766963657261646172"

pairs = st.tuples(st.sampled_from([CN, O, OU, "1.2.3"]), st.text('ab,+:=6\\ #"äП', min_size=1, max_size=4))
rdns = st.lists(pairs, min_size=1, max_size=3, unique_by=lambda pair: pair[0])
subjects = st.lists(rdns, min_size=1, max_size=4)


@given(subjects, subjects)
def test_subjects_are_equal_where_their_structure_is(one: list[list[tuple[str, str]]], other: object) -> None:
    for second in (other, [list(reversed(rdn)) for rdn in one]):
        same = [set(rdn) for rdn in one] == [set(rdn) for rdn in second]  # type: ignore[attr-defined]
        assert (dn_identity(one) == dn_identity(second)) is same  # type: ignore[arg-type]


@given(subjects)
@example([[(CN, ",6=#")]])
@example([[(CN, "a+b=#1")], [(O, "\\,6=#")]])
def test_what_is_shown_leads_back_to_what_it_stands_for(subject: list[list[tuple[str, str]]]) -> None:
    identity = dn_identity(subject)
    assert canonical_identity(identity) == identity
    assert subject_identity(readable(identity).removeprefix("dn:")) == identity
    assert identity_from_text(readable(identity)) == identity_from_text(identity) == identity


@given(st.text(max_size=40))
def test_any_text_is_an_identity_or_is_refused(text: str) -> None:
    for given_text in (text, f"dns:{text}", f"dn:{text}", f"spiffe://{text}", f"dn:CN={text}"):
        try:
            identity = identity_from_text(given_text)
        except NameInvalid:
            continue
        assert canonical_identity(identity) == identity
        assert identity.isascii() and identity.isprintable()


@given(st.text(max_size=40), subjects)
def test_no_text_of_an_operator_is_taken_for_one_that_is_kept(
    text: str, subject: list[list[tuple[str, str]]]
) -> None:
    assert not is_canonical_dn(f"dn:CN={text}")
    assert not is_canonical_dn(readable(dn_identity(subject)))


def test_a_subject_is_read_as_rfc_4514_writes_it_the_most_specific_part_first() -> None:
    assert subject_identity("CN=poller.serviceradar,O=ServiceRadar") == POLLER
    assert subject_identity("O=ServiceRadar,CN=poller.serviceradar") != POLLER
    assert dn_identity([[(O, "ServiceRadar")], [(CN, "poller.serviceradar")]]) == POLLER
    assert readable(POLLER) == "dn:CN=poller.serviceradar,O=ServiceRadar"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CN=a,O=b", "CN=a+O=b"),
        (r"CN=a\,O\=b", "CN=a,O=b"),
        ("CN=a,OU=b,O=c", "CN=a,O=c,OU=b"),
        ("CN=a", "CN=A"),
        ("CN=a", "OU=a"),
        (r"CN=a\ ", "CN=a"),
        ("CN=é", "CN=e\u0301"),  # one character, or two that look like it
    ],
)
def test_subjects_that_look_alike_are_not_the_same(one: str, other: str) -> None:
    assert subject_identity(one) != subject_identity(other)


@pytest.mark.parametrize(
    "same",
    [
        ["CN=a+O=b", "O=b+CN=a"],
        ["CN=a", "2.5.4.3=a", r"CN=\61"],
        ["emailAddress=a@b.example,CN=a", "1.2.840.113549.1.9.1=a@b.example,CN=a"],
        ["CN=é", r"CN=\C3\A9"],
        ["street=a,title=b,serialNumber=c", "STREET=a,2.5.4.12=b,2.5.4.5=c"],  # as openssl writes them
    ],
)
def test_two_ways_to_write_a_subject_mean_the_same(same: list[str]) -> None:
    assert len(set(map(subject_identity, same))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "poller",
        "CN=",
        "CN=a,",
        "CN = a , O = b",
        "/O=b/CN=a",
        "CN=a+CN=b",
        r"CN=a\00b",
        "CN=a\u202eb",
        "CN=a\u200bb",
        "CN=\ufeffa",
        "CN=#61",
        "CN=#0c0161",
        "CN=a,O=#0c0161",
        "C=Germany",
        "BAD=x",
        "CN=\ud800",
        "CN=" + "a" * 65,
        "2.5.4.99=" + "a" * 257,
        ",".join(["CN=a"] * (MAX_ATTRIBUTES + 1)),
        ",".join(["2.5.4.99=" + "a" * 250] * 5),
        "CN=a" * 100_000,
    ],
)
def test_a_subject_that_cannot_be_compared_or_seen_is_refused(text: str) -> None:
    with pytest.raises(NameInvalid) as caught:
        subject_identity(text)
    assert caught.value.do
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("host", "identity"),
    [
        ("poller.example.net", "dns:poller.example.net"),
        ("Poller.Example.NET", "dns:poller.example.net"),
        ("db1", "dns:db1"),
        ("xn--bcher-kva.example", "dns:xn--bcher-kva.example"),
        ("a_b.example", "dns:a_b.example"),
    ],
)
def test_a_dns_name_is_kept_in_lower_case(host: str, identity: str) -> None:
    assert dns_identity(host) == identity
    assert canonical_identity(identity) == identity
    assert identity_from_text(f"dns:{host}") == identity


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "*.example.net",
            "a.*",
            "-a.b",
            "a-.b",
            "127.0.0.1",
            "::1",
            "bücher.de",
        ),
        *("a b", "a\x00", "a/b", "a@b", "İ.example", "dns:a", "a" * 64, "a." * 127 + "aa"),
    ],
)
def test_what_names_no_single_host_is_refused(host: str) -> None:
    with pytest.raises(NameInvalid):
        dns_identity(host)


@pytest.mark.parametrize(
    "text",
    [
        *("", "demo", "spiffe://", "spiffe://demo", "spiffe://demo/", "spiffe:///a", "SPIFFE://demo/a"),
        *(
            "spiffe://Demo/a",
            "spiffe://demo//a",
            "spiffe://demo/a/",
            "spiffe://demo/a/../b",
            "spiffe://demo/./a",
        ),
        *(
            "spiffe://demo/a*",
            "spiffe://demo/a?b",
            "spiffe://demo/a#b",
            "spiffe://demo:1/a",
            "spiffe://x@demo/a",
        ),
        *("spiffe://demo/ä", "spiffe://demo/a\n", "https://demo/a", "spiffe://demo/" + "a/" * 1100 + "a"),
    ],
)
def test_what_is_no_spiffe_id_is_refused(text: str) -> None:
    with pytest.raises(NameInvalid):
        spiffe_identity(text)


@pytest.mark.parametrize(
    "text",
    [
        *("dns:DB1", "dn:", "dn:CN=a", "dn:2.5.4.3=61", "dn:2.5.4.3:", "dn:2.5.4.3:6", "dn:2.5.4.3:6A"),
        *("dn:2.5.4.3:ff", "dn:2.5.4.3:00", "dn:.:61", "dn:2.05.4:61", "dn:2.5.4.3:61+2.5.4.10:62"),
        *(
            "dn:2.5.4.3:61+2.5.4.3:62",
            "dn:2.5.4.3:61,",
            "dn:2.5.4.3:61\n",
            "dn:" + ",".join(["2.5.4.3:61"] * 17),
        ),
    ],
)
def test_what_would_not_have_been_kept_so_is_refused(text: str) -> None:
    with pytest.raises(NameInvalid):
        canonical_identity(text)


def test_what_is_shown_of_a_strangers_text_is_that_text() -> None:
    for text in (
        "spiffe://demo/node/h/a",
        "dns:a",
        "dn:whatever",
        "dn:2.5.4.3:ff",
        "dn:2.5.4.3:00",
        "",
        "x" * 9999,
    ):
        assert readable(text) == text


def test_only_spiffe_ids_have_a_trust_domain() -> None:
    domains = ["spiffe://demo/a", "spiffe://demo/cli/*", "dns:demo", "dn:2.5.4.3:61", "https://demo/a"]
    assert list(map(trust_domain, domains)) == ["demo", "demo", None, None, None]
    assert list(map(is_certificate_name, domains)) == [False, False, True, True, False]
