"""Node names, identities, trust domains and the glob of CLI rules."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.errors import NameInvalid
from distsec.model.names import MAX_NAME_BYTES, NodeName, check_trust_domain, glob_matches

HEADS = st.text("abcXYZ019_", min_size=1, max_size=8)


@pytest.mark.parametrize(
    "text",
    [
        "poller@127.0.0.1",
        "a@localhost",
        "Poll_er-2@Host-1.Example.com",
        "a@::1",
        "a@2001:db8::1",
        "1@2.example",
        "a" * 64 + "@h",
        "a@123456789012",
    ],
)
def test_takes_a_name_that_erlang_spiffe_and_the_file_system_can_carry(text: str) -> None:
    assert str(NodeName.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "poller",
        "poller@",
        "@host",
        "a@b@c",
        "a b@host",
        "-a@host",
        "a.b@host",
        "ä@host",
        "a@hö.st",
        "a@-host",
        "a@host-",
        "a@ho_st",
        "a@host.",
        "a@.host",
        "a@ho..st",
        "a@host/..",
        "../x@host",
        "a@host\n",
        "a\n@host",
        "a@ho\x00st",
        "a@fe80::1%eth0",
        "a@[::1]",
        "a" * 65 + "@host",
        "a@" + "b" * 64,
        "a@" + ".".join(["b" * 60] * 4),
    ],
)
def test_refuses_a_name_that_one_of_them_cannot_carry(text: str) -> None:
    with pytest.raises(NameInvalid) as caught:
        NodeName.parse(text)
    assert caught.value.do
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.1", "127.0.0.256", "010.0.0.1", "1.2.3.4.5", "0x7f.0.0.0x1", "h.0x1"])
def test_refuses_a_host_that_a_resolver_would_guess_an_address_from(host: str) -> None:
    with pytest.raises(NameInvalid, match="looks like an IPv4 address"):
        NodeName.parse(f"a@{host}")


def test_shows_at_most_a_part_of_a_hostile_name_and_only_in_ascii() -> None:
    with pytest.raises(NameInvalid) as caught:
        NodeName.parse("\u202e\x1b[31m" * 1000)
    assert caught.value.what.isascii() and caught.value.what.isprintable()
    assert len(caught.value.what) < 1000


@given(st.text())
def test_whatever_the_text_it_is_a_name_that_reads_back_or_name_invalid(text: str) -> None:
    try:
        name = NodeName.parse(text)
    except NameInvalid:
        return
    assert NodeName.parse(str(name)) == name
    assert len(str(name).encode()) <= MAX_NAME_BYTES
    assert "/" not in str(name)


def test_a_dot_or_a_colon_makes_a_long_name() -> None:
    assert NodeName.parse("a@h.example").long
    assert NodeName.parse("a@::1").long
    assert not NodeName.parse("a@localhost").long


def test_knows_the_ip_of_a_literal_and_none_of_a_dns_name() -> None:
    assert NodeName.parse("a@127.0.0.1").ip == "127.0.0.1"
    assert NodeName.parse("a@0:0:0:0:0:0:0:1").ip == "::1"
    assert NodeName.parse("a@localhost").ip is None


def test_the_identity_is_a_spiffe_id_of_the_host_and_the_name() -> None:
    assert NodeName.parse("poller@127.0.0.1").identity("demo") == "spiffe://demo/node/127.0.0.1/poller"


@given(HEADS, HEADS, st.ip_addresses(v=6), st.ip_addresses(v=6))
def test_different_names_have_different_identities(
    head: str, other: str, ip: object, other_ip: object
) -> None:
    first, second = NodeName.parse(f"{head}@{ip}"), NodeName.parse(f"{other}@{other_ip}")
    assert (first == second) is (first.identity("d") == second.identity("d"))
    assert re.fullmatch(r"spiffe://d(/[A-Za-z0-9._-]+)+", first.identity("d"))


@pytest.mark.parametrize("text", ["demo", "a", "prod.example.org", "a_b-c", "0", "x" * 63])
def test_takes_a_trust_domain(text: str) -> None:
    assert check_trust_domain(text) == text


@pytest.mark.parametrize("text", ["", "Demo", "a b", "a/b", "-a", "é", "a\n", "x" * 64, "a:1", "a@b"])
def test_refuses_what_is_no_trust_domain(text: str) -> None:
    with pytest.raises(NameInvalid):
        check_trust_domain(text)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("cli-*@h", "cli-1@h"),
        ("cli-*@h", "cli-@h"),
        ("*@h", "anything@h"),
        ("*-cli-*@h", "x-cli-y@h"),
        ("a*a@h", "aa@h"),
        ("a*b*a@h", "axbxbya@h"),
        ("exact@h", "exact@h"),
    ],
)
def test_a_star_stands_for_any_run_of_the_name_part(pattern: str, name: str) -> None:
    assert glob_matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("cli-*@h", "cli-1@other"),
        ("cli-*@h", "cli-1@h@h"),
        ("cli-*@h", "xcli-1@h"),
        ("cli-*@*", "cli-1@h"),
        ("*@h", "@h"),
        ("*", "a@h"),
        ("*", "a@"),
        ("a*a@h", "a@h"),
        ("ab*ba@h", "aba@h"),
        ("a.c@h", "abc@h"),
        ("exact@h", "exact1@h"),
        ("exact@h", "Exact@h"),
    ],
)
def test_matches_nothing_else(pattern: str, name: str) -> None:
    assert not glob_matches(pattern, name)


@given(st.text("ab*", max_size=8), st.text("ab", min_size=1, max_size=8))
def test_agrees_with_a_regular_expression(pattern: str, head: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), head) is not None
    assert glob_matches(f"{pattern}@h", f"{head}@h") is expected


def test_no_name_makes_a_pattern_of_many_stars_slow() -> None:
    began = time.process_time()
    assert not glob_matches("*a" * 31 + "b@h", "a" * 64 + "@h")
    assert time.process_time() - began < 1  # backtracking would take longer than the universe is old
