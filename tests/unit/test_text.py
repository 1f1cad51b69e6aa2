"""The escaper: whatever a stranger chose comes out printable, bounded, and as one line."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.model.text import DEFAULT_LIMIT, escape


def test_leaves_node_names_and_identities_as_they_are() -> None:
    for text in ("poller@127.0.0.1", "spiffe://demo/node/127.0.0.1/agent", "C=DE,O=Müller & Söhne,CN=ä"):
        assert escape(text) == text
        assert escape(text.encode()) == text


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\nb", r"a\x0ab"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x00", r"\x00"),
        ("\x9b31m", r"\x9b31m"),  # the 8-bit CSI
        ("evil\u202egpj.exe", r"evil\u202egpj.exe"),  # right-to-left override
        ("a\u200bb", r"a\u200bb"),  # zero width space
        ("a\u2028b", r"a\u2028b"),  # line separator
        ("\U000e0041", r"\U000e0041"),  # a tag character
        ("\ud800", r"\ud800"),  # a lone surrogate
        ("\u0378", r"\u0378"),  # unassigned
    ],
)
def test_shows_what_cannot_be_seen(hostile: str, shown: str) -> None:
    assert escape(hostile) == shown


def test_shows_bytes_that_are_no_utf8() -> None:
    assert escape(b"caf\xe9\xff") == r"caf\xe9\xff"


def test_leaves_markup_as_text_for_whoever_prints_it() -> None:
    assert escape("[bold]<script>") == "[bold]<script>"


def test_cuts_a_long_text_and_says_so() -> None:
    assert escape("x" * DEFAULT_LIMIT) == "x" * DEFAULT_LIMIT
    assert escape("x" * (DEFAULT_LIMIT + 1)) == "x" * DEFAULT_LIMIT + "…"
    assert escape(b"x" * 10_000_000, 3) == "xxx…"
    assert escape("é" * 11, 10) == escape(("é" * 11).encode(), 10) == "é" * 10 + "…"


@given(st.text() | st.binary(), st.integers(0, 300))
def test_is_printable_bounded_and_one_line_whatever_comes(text: str | bytes, limit: int) -> None:
    shown = escape(text, limit)
    assert len(shown) <= 10 * limit + 1
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(character) for character in shown} & {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    }
    shown.encode("utf-8")


@given(st.text(max_size=100))
def test_changes_nothing_when_it_has_been_there_before(text: str) -> None:
    once = escape(text, 1000)
    assert escape(once, 1000) == once
