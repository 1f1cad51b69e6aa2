"""`${VAR}` in string values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.config.interpolate import interpolate
from distsec.config.lines import KeyPath


def expand(tree: Any, environment: Mapping[str, str]) -> tuple[Any, list[tuple[KeyPath, str]]]:
    complaints: list[tuple[KeyPath, str]] = []
    result, _ = interpolate(tree, environment, lambda path, what, do: complaints.append((path, what)))
    return result, complaints


def test_replaces_variables_anywhere_in_string_values_and_nowhere_else() -> None:
    tree = {"a": "x${A}y${A}", "list": ["${A}", 1, {"in": "${B_2}"}], "n": 2, "${A}": "key"}
    result, complaints = expand(tree, {"A": "1", "B_2": "two"})
    assert result == {"a": "x1y1", "list": ["1", 1, {"in": "two"}], "n": 2, "${A}": "key"}
    assert not complaints


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$A", "$A"),
        ("100$", "100$"),
        ("$$", "$$"),
        ("{A}", "{A}"),
        ("$${", "${"),
        ("${A}$${A}${A}", "1${A}1"),
    ],
)
def test_two_dollars_and_a_brace_stand_for_themselves(text: str, expected: str) -> None:
    assert expand(text, {"A": "1"}) == (expected, [])


def test_what_a_variable_holds_is_not_expanded_again() -> None:
    assert expand("${A}", {"A": "${B} $${C}", "B": "no"}) == ("${B} $${C}", [])


def test_an_empty_variable_is_set() -> None:
    assert expand("[${A}]", {"A": ""}) == ("[]", [])


def test_every_variable_that_is_not_set_is_told_with_its_place() -> None:
    result, complaints = expand({"a": ["ok", "${X}${Y}"]}, {})
    assert result == {"a": ["ok", None]}
    assert complaints == [
        (("a", 1), "the environment variable X is not set"),
        (("a", 1), "the environment variable Y is not set"),
    ]


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${1A}", "${A:-x}", "${A B}", "${é}"])
def test_a_brace_that_begins_no_variable_is_told(text: str) -> None:
    result, complaints = expand(text, {"A": "1"})
    assert result is None
    assert complaints == [((), "${ begins no variable")]


def test_a_variable_that_is_not_utf8_is_told_and_not_shown() -> None:
    result, complaints = expand("${A}", {"A": "secret\udcff"})
    assert result is None
    assert complaints == [((), "the environment variable A does not hold UTF-8")]


def test_says_which_values_came_from_which_variables() -> None:
    _, origins = interpolate({"a": "${A}-${B}", "b": "$${A}"}, {"A": "1", "B": "2"}, lambda *_: None)
    assert origins == {("a",): ("A", "B")}


@given(st.text())
def test_any_text_survives_when_it_is_escaped(text: str) -> None:
    assert expand(text.replace("${", "$${"), {}) == (text, [])
