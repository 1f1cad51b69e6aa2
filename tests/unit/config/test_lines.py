"""The scanner that knows on which line each key stands, held against tomllib."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from distsec.config.lines import KeyPath, key_lines, line_of

DOCUMENT = '''\
# a comment with [brackets] and = signs
top = 1 # another
[server]
"quoted key" = "a # no comment"
'literal.key' = 'x = 1'
dotted.inner . deep = true
when = 1979-05-27 07:32:00
text = """
[not.a.table]
fake = 1 \\""" still inside
quotes at the end"""""
literal = QQQ
[[nor.this]]
QQQ
list = [ # a comment ]
  1,
  "two, ]", # "
  { name = "inline", more = [
    3,
  ] },
]
[[nodes]]
name = "a"
[nodes.environment]
A = "1"
[[nodes.rules]]
x = 1
[[nodes.rules]]
x = 2
[[nodes]]
name = "b"
  [[nodes.rules]]
  x = 3
[server.later]
end = "\\u0041"
"k\\u0041" = 1'''.replace("QQQ", "'''")

EXPECTED: dict[KeyPath, int] = {
    ("top",): 2,
    ("server",): 3,
    ("server", "quoted key"): 4,
    ("server", "literal.key"): 5,
    ("server", "dotted", "inner", "deep"): 6,
    ("server", "when"): 7,
    ("server", "text"): 8,
    ("server", "literal"): 12,
    ("server", "list"): 15,
    ("server", "list", 0): 16,
    ("server", "list", 1): 17,
    ("server", "list", 2): 18,
    ("server", "list", 2, "more"): 18,
    ("server", "list", 2, "more", 0): 19,
    ("nodes",): 22,
    ("nodes", 0): 22,
    ("nodes", 0, "name"): 23,
    ("nodes", 0, "environment"): 24,
    ("nodes", 0, "environment", "A"): 25,
    ("nodes", 0, "rules", 0): 26,
    ("nodes", 0, "rules", 0, "x"): 27,
    ("nodes", 0, "rules", 1): 28,
    ("nodes", 0, "rules", 1, "x"): 29,
    ("nodes", 1): 30,
    ("nodes", 1, "name"): 31,
    ("nodes", 1, "rules", 0): 32,
    ("nodes", 1, "rules", 0, "x"): 33,
    ("server", "later", "end"): 35,
    ("server", "later", "kA"): 36,
}


def paths(tree: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every key and element that tomllib has found."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found: set[KeyPath] = {path} if path else set()
    for key, value in items:
        found |= paths(value, (*path, key))
    return found


def test_finds_the_line_of_every_kind_of_key() -> None:
    lines = key_lines(DOCUMENT)
    assert {path: lines.get(path) for path in EXPECTED} == EXPECTED


def test_finds_exactly_the_keys_that_tomllib_finds() -> None:
    assert set(key_lines(DOCUMENT)) == paths(tomllib.loads(DOCUMENT))


def test_counts_the_lines_of_windows_files_too() -> None:
    lines = key_lines(DOCUMENT.replace("\n", "\r\n"))
    assert {path: lines.get(path) for path in EXPECTED} == EXPECTED


def test_a_key_that_is_not_there_has_the_line_of_the_table_around_it() -> None:
    lines = key_lines(DOCUMENT)
    assert line_of(lines, ("nodes", 1, "command", 3)) == 30
    assert line_of(lines, ("absent", "key")) == 0


def test_keeps_what_it_has_of_a_text_that_is_no_toml() -> None:
    assert key_lines("a = 1\nb = 2\n= = =\nc = 3") == {("a",): 1, ("b",): 2}


BARE = st.text("abc_-1", min_size=1, max_size=4)
STRINGS = st.text("ab\"'\\#[]{}=,.\n é", max_size=12)


def basic(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def multiline(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"""', '""\\"')
    return f'"""{escaped}{" " if escaped.endswith(chr(34)) else ""}"""'


KEYS = BARE | STRINGS.map(basic)
SCALARS = (
    STRINGS.map(basic)
    | STRINGS.map(multiline)
    | st.sampled_from(["1", "-0.5e3", "true", "1979-05-27 07:32:00", "''"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[ # ]\n" + ",\n".join(items) + "\n]")
        | st.dictionaries(BARE, inner, max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key} = {value}" for key, value in pairs.items()) + "}"
        )
    ),
    max_leaves=6,
)
HEADERS = st.lists(KEYS, min_size=1, max_size=3).flatmap(
    lambda keys: st.sampled_from([f"[{'.'.join(keys)}]", f"[[{'.'.join(keys)}]]"])
)
LINES = HEADERS | st.builds("{} = {}".format, KEYS, VALUES) | st.sampled_from(["", "# [x] = 1", "  \t"])


@given(st.lists(LINES, max_size=12))
def test_finds_what_tomllib_finds_in_any_document(statements: list[str]) -> None:
    text = ""
    for (
        statement
    ) in statements:  # leave out what would make the document invalid, such as a table given twice
        try:
            tomllib.loads(text + statement + "\n")
        except ValueError:
            continue
        text += statement + "\n"
    lines = key_lines(text)
    assert set(lines) == paths(tomllib.loads(text))
    assert all(1 <= line <= text.count("\n") for line in lines.values())


@given(st.lists(st.tuples(BARE, STRINGS.map(multiline), st.integers(0, 3)), max_size=8))
def test_names_the_line_on_which_each_key_was_written(entries: list[tuple[str, str, int]]) -> None:
    text, expected = "", {}
    for index, (key, value, blank) in enumerate(entries):
        text += "\n" * blank
        expected[(f"{key}{index}",)] = text.count("\n") + 1
        text += f"{key}{index} = {value}\n"
    assert key_lines(text) == expected
