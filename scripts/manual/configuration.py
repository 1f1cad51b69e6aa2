"""distsec.toml(5): the commented file that `distsec init` writes, key by key, then docs/configuration.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from distsec.config.template import render_template
from distsec.model.names import NodeName
from scripts.manual import words
from scripts.manual.roff import Page, bold, escape, item, markdown, paragraph, references

_HEADER = re.compile(r"^(?P<off>#?)(?P<header>\[+[a-z_.]+\]+)$")
_KEY = re.compile(r"^(?P<off>#?)(?P<key>[a-z_]+) = (?P<value>.*)$")


@dataclass(slots=True)
class Key:
    """`value`: what it is set to, or where it is commented out (`off`) its default or an example."""

    name: str
    value: str
    off: bool
    text: str


@dataclass(slots=True)
class Table:
    header: str
    text: str
    keys: list[Key] = field(default_factory=list)


def page(document: str) -> Page:
    """`document`: docs/configuration.md."""
    made = Page("distsec.toml", 5, "which BEAM nodes are started, and who may link with whom")
    made.section_of(
        "SYNOPSIS",
        [f"{bold('-c')} \\fIFILE\\fR, $DISTSEC_CONFIG, ./distsec.toml, {escape(words.CONFIGURATION)}"],
    )
    introduction, _, rest = document.partition("\n")[2].partition("\n## ")
    described = [line for text in (words.TOML, introduction, words.TRUST) for line in paragraph(text)]
    made.section_of("DESCRIPTION", described)
    for table in tables(template()):
        made.section_of(table.header, _table(table))
    made.section_of("NOTES", markdown(f"## {rest}"))
    names = ["distsec", "distsec-init", "distsec-run", "distsec-check"]
    made.section_of("SEE ALSO", references(f"{name}(1)" for name in names))
    return made


def template() -> str:
    """As `distsec init` writes it, for a cluster of one node."""
    return render_template("shop", [NodeName.parse("web@10.0.0.5")])


def tables(text: str) -> Iterator[Table]:
    """Every table of the template with its keys, each with the comment above it."""
    comment: list[str] = []
    table: Table | None = None
    lines = iter(text.splitlines())
    for line in lines:
        if found := _HEADER.match(line):
            if table is not None:
                yield table
            table, comment = Table(found["header"], " ".join(comment)), []
        elif (found := _KEY.match(line)) and table is not None:
            value = found["value"]
            while value.count("[") > value.count("]"):
                value = f"{value} {next(lines).strip()}"
            value = value.replace("[ ", "[").replace(", ]", "]")  # a list over several lines
            table.keys.append(Key(found["key"], value, bool(found["off"]), " ".join(comment)))
            comment = []
        elif line.startswith("#"):
            comment.append(line.lstrip("# "))
        else:
            comment = []
    if table is not None:
        yield table


def _table(table: Table) -> Iterator[str]:
    if table.text:
        yield from paragraph(table.text)
    for key in table.keys:
        yield from item(f"{bold(key.name)} = {escape(key.value)}", key.text)
