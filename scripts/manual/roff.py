"""Writes man(7): a page is a title and sections, a section is lines of roff. Pure; knows nothing of commands.

Plain macros only, which groff and mandoc both know. Text comes in as help texts and the documentation have
it: `code`, **strong**, *emphasis*, [links](page.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

_SPECIAL = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
_INLINE = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>[^*]+)\*\*"
    r"|(?<![\w*])\*(?P<emphasis>[^*\s][^*]*)\*(?!\w)"
    r"|\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)"
    r"|(?<![\w-])(?P<option>--?[a-z][a-z-]*)(?![\w-])"
)


@dataclass(slots=True)
class Page:
    """One manual page; `lines` below the title, made with the functions of this module."""

    name: str
    section: int
    what: str
    """What stands behind the name in NAME."""
    lines: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        return f"{self.name}.{self.section}"

    def section_of(self, title: str, lines: Iterable[str]) -> None:
        """A section, if there is anything to stand in it."""
        if content := list(lines):
            begin = 1 if content[0] == ".PP" else 0  # a section is a paragraph already
            self.lines += [f".SH {heading(title)}", *content[begin:]]

    def render(self, *, date: str, source: str) -> str:
        """The whole page. `date` as 2026-01-31; `source` such as `distsec 0.1.0`."""
        manual = {1: "User Commands", 5: "File Formats"}[self.section]
        words = (escape(self.name.upper()), str(self.section), date, escape(source), manual)
        title = ".TH " + " ".join(f'"{word}"' for word in words)
        name = [".SH NAME", f"{escape(self.name)} \\- {inline(self.what)}"]
        # Neither hyphens nor wide gaps: what looks like part of a command is one. (groff's man hyphenates
        # again after each heading; hence the \\% before what is code.)
        return "\n".join([title, ".nh", ".ad l", *name, *self.lines, ""])


def escape(text: str) -> str:
    """`text` as it is, in the middle of a line."""
    return "".join(_SPECIAL.get(c, c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)


def inline(text: str) -> str:
    """`text` with its mark-up, as one line of text that begins with no macro."""
    words = " ".join(text.split())
    pieces, at = [], 0
    for found in _INLINE.finditer(words):
        pieces += [escape(words[at : found.start()]), _marked(found)]
        at = found.end()
    line = "".join([*pieces, escape(words[at:])])
    return f"\\&{line}" if line[:1] == "." else line  # escape() leaves no quote


def _marked(found: re.Match[str]) -> str:
    kind = found.lastgroup
    if kind == "target":
        return _link(found["text"], found["target"])
    assert kind is not None, "each alternative is a group"
    font = {"emphasis": "I"}.get(kind, "B")
    return " ".join(f"\\%\\f{font}{escape(word)}\\fR" for word in found[kind].split())


def _link(text: str, target: str) -> str:
    """A link of the documentation: where it leads is told unless the text says so."""
    page = target.partition("#")[0]
    shown = escape(text.strip("`"))
    return shown if not page or text.strip("`") == page else f"{shown} ({escape(page.removeprefix('../'))})"


def heading(title: str) -> str:
    return f'"{escape(title)}"'


def paragraph(text: str) -> list[str]:
    """Filled text."""
    return [".PP", inline(text)]


def item(tag: str, text: str) -> list[str]:
    """`tag`, which is roff already, and what it means, indented."""
    return [".TP", tag or "\\&", inline(text) or "\\&"]


def bullet(text: str) -> list[str]:
    return [".IP \\(bu 2", inline(text)]


def verbatim(lines: Iterable[str]) -> list[str]:
    """Lines as they are, indented."""
    shown = [escape(line.rstrip()) or "\\&" for line in lines]
    return [
        ".PP",
        ".RS 4",
        ".EX",
        *(f"\\&{line}" if line[:1] == "." else line for line in shown),
        ".EE",
        ".RE",
    ]


def bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def references(pages: Iterable[str]) -> list[str]:
    """Other pages, as `distsec-run(1)`."""
    split = (page.partition("(") for page in pages)
    return [", ".join(f"\\%{bold(name)}({section}" for name, _, section in split)]


def italic(text: str) -> str:
    """A value, which may be a choice of many: it is broken between them."""
    return f"\\fI{escape(text)}\\fR".replace("|", "|\\:")


# ---- the documentation ------------------------------------------------------------


def markdown(text: str) -> Iterator[str]:
    """What docs/*.md are written in: headings, paragraphs, bullets, tables, fenced code. Headings become
    subsections; a table becomes a list whose tags are its first column.
    """
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            yield from verbatim(lines[at + 1 : end])
            at = end + 1
        elif line.startswith("#"):
            yield f".SS {heading(line.lstrip('# '))}"
            at = _while(lines, at + 1, lambda each: not each.strip())
            if at < len(lines) and not lines[at].startswith(("```", "|", "- ", "#")):
                end = _while(lines, at, _continues)  # no paragraph macro after a heading
                yield inline(" ".join(lines[at:end]))
                at = end
        elif line.startswith("|"):
            end = _while(lines, at, lambda each: each.startswith("|"))
            yield from _table(lines[at:end])
            at = end
        elif line.strip():
            end = _while(lines, at + 1, _continues)
            text = " ".join(lines[at:end])
            yield from bullet(text[2:]) if text.startswith("- ") else paragraph(text)
            at = end
        else:
            at += 1


def _continues(line: str) -> bool:
    """Whether it goes on with the paragraph or bullet of the line before."""
    return bool(line.strip()) and not line.startswith(("#", "|", "```", "- "))


def _while(lines: list[str], at: int, holds: Callable[[str], bool]) -> int:
    while at < len(lines) and holds(lines[at]):
        at += 1
    return at


def cells(row: str) -> list[str]:
    r"""Of a row of a table; `\|` is a bar in a cell."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def _table(rows: list[str]) -> Iterator[str]:
    titles = cells(rows[0])
    for row in rows[2:]:
        tag, *rest = cells(row)
        told = [
            f"{title}: {cell}" if title and len(rest) > 1 else cell
            for title, cell in zip(titles[1:], rest, strict=True)
            if cell
        ]
        yield from item(inline(tag), "; ".join(told))
