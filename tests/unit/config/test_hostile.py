"""Whatever a file holds, it loads or is refused with a ConfigError, and no error shows a secret."""

from __future__ import annotations

import string
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from distsec.config.load import parse
from distsec.config.template import render_template
from distsec.errors import ConfigError
from distsec.model.names import NodeName

PATH = Path("/etc/distsec/distsec.toml")
SEED = (Path(__file__).parent / "security.toml").read_text()
INIT = render_template("demo", [NodeName.parse(f"{head}@127.0.0.1") for head in ("a", "b")]).replace(
    "\n#", "\n"
)
BASES = (SEED, INIT, SEED + INIT.partition("[metrics]")[2].join(["[metrics]", ""]))
SECRET = "hunter2 *correct horse*"

SNIPPETS = st.sampled_from(
    [
        *(
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            '"',
            "'",
            '"""',
            "=",
            ".",
            ",",
            "#",
            "\n",
            "\\",
            "\x00",
            "\ufeff",
            "\u202e",
        ),
        *(
            "true",
            "nan",
            "-inf",
            "1e999",
            "99999999999999999999",
            "1979-05-27",
            "${",
            "${X}",
            "$${",
            "''",
            "[]",
            "{}",
        ),
        *(
            "[[nodes]]\n",
            "[security]\n",
            "nodes = 1\n",
            "name = 'x@y'\n",
            "port = 0\n",
            "0.0.0.0",
            "::",
            "*@*",
            "@",
        ),
    ]
)
MUTATIONS = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 60), SNIPPETS | st.text(max_size=6)),
    min_size=1,
    max_size=6,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def loads_or_is_refused(text: str, environment: dict[str, str]) -> None:
    try:
        parse(text, PATH, environment)
    except ConfigError as error:
        assert error.problems
        lines = [problem.line for problem in error.problems]
        assert lines == sorted(lines)
        assert all(0 <= line <= text.count("\n") + 1 for line in lines)
        assert len(str(error).splitlines()) == len(error.problems)


@given(st.sampled_from(BASES), MUTATIONS)
def test_a_mangled_file_loads_or_is_refused(text: str, mutations: list[tuple[int, int, str]]) -> None:
    for position, length, replacement in mutations:
        position %= len(text) + 1
        text = text[:position] + replacement + text[position + length :]
    loads_or_is_refused(text, {"ERLANG_COOKIE": "x", "X": "\udcff"})


@given(st.text())
def test_any_text_loads_or_is_refused(text: str) -> None:
    loads_or_is_refused(text, {})


def toml(value: object) -> str:
    """A value as TOML, None left to whoever holds it."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            return (
                '"'
                + "".join(f"\\U{ord(c):08x}" if not "\ud800" <= c <= "\udfff" else "?" for c in value)
                + '"'
            )
        case list():
            return "[" + ", ".join(toml(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
        case _:
            return '"${X}"'


KEYS = sorted({line.split(" = ")[0] for line in (SEED + INIT).splitlines() if " = " in line})
HEADERS = sorted({line for line in (SEED + INIT).splitlines() if line.startswith("[")})


@given(st.lists(st.tuples(st.sampled_from(HEADERS), st.sampled_from(KEYS), VALUES), max_size=8))
def test_known_keys_with_any_value_load_or_are_refused(entries: list[tuple[str, str, object]]) -> None:
    text = "\n".join(f"{header}\n{key} = {toml(value)}" for header, key, value in entries)
    loads_or_is_refused(text, {"X": "é"})


def sections(reference: str) -> str:
    """A file that has the reference, or something broken by it, in every place that takes a text."""
    return f"""
[cluster]
name = "{reference}"
state_dir = "~{reference}"
on_exit = "{reference}"
[security]
mode = "{reference}"
[security.distribution]
cookie = "{reference}"
carrier = "{reference}"
verify_mode = "{reference}"
connect = "{reference}"
allowed_nodes = ["{reference}", "x@{reference}"]
[[security.distribution.rules]]
names = ["{reference}", "*@*{reference}"]
identity = "{reference}"
kind = "{reference}"
[[security.rbac.roles]]
identity = "{reference}"
permissions = ["{reference}"]
[[security.rbac.roles]]
identity = "{reference}"
permissions = []
[metrics]
listen = "{reference}"
[[nodes]]
name = "{reference}"
address = "{reference}"
restart = "{reference}"
command = ["", "{reference}"]
environment = {{ ERL_AFLAGS = "{reference}", "A B" = "{reference}" }}
[[peers]]
name = "{reference}"
address = "{reference}"
port = "{reference}"
"""


def complaints(text: str, environment: dict[str, str]) -> str:
    try:
        spec = parse(text, PATH, environment)
    except ConfigError as error:
        return str(error) + repr(error.problems)
    return "".join(spec.warnings)


@given(st.text(string.printable, min_size=8, max_size=90).map(lambda text: f" Zq{text}") | st.just(" Zq:80"))
def test_no_error_shows_what_came_from_a_variable(secret: str) -> None:
    text = complaints(sections("${TOKEN}"), {"TOKEN": secret})
    assert text.count("TOKEN") > 10
    assert "Zq" not in text


def test_no_error_shows_a_cookie_or_a_value_of_an_environment() -> None:
    text = f"""
    [security.distribution]
    cookie = "-{SECRET}"
    [[nodes]]
    name = "a@h"
    command = ["", "-setcookie", "{SECRET}"]
    environment = {{ ERL_AFLAGS = "{SECRET}", "A B" = "{SECRET}", ERL_FLAGS = "-setcookie {SECRET}" }}
    """
    assert SECRET not in complaints(text, {})
    allowed = text.replace("ERL_AFLAGS", "OTHER").replace('"A B"', "A_B").replace('["", ', '["erl", ')
    assert "begins with -" in complaints(allowed, {})
    assert SECRET not in complaints(allowed, {})
