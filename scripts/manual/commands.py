"""The command tree as manual pages: one page for each command, out of what `--help` is made of.

A verbatim paragraph of a help text (after \b) whose lines begin with `distsec ` is examples, and a paragraph
that begins with `Exit code` goes where exit codes are.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import click

from distsec.cli.group import LazyGroup
from scripts.manual import words
from scripts.manual.roff import (
    Page,
    bold,
    cells,
    escape,
    heading,
    italic,
    item,
    paragraph,
    references,
    verbatim,
)

_EXIT_CODES = re.compile(r"^Exit codes?: ")
_EXAMPLE = re.compile(r"^(distsec |eval |echo .*\| distsec )")
_OF_COMMANDS = re.compile(
    r"^(?:(?P<codes>\d[\d, and]*) of )?(?P<commands>`[^`]+`(?:, `[^`]+`)*): (?P<text>.*)$"
)


@dataclass(slots=True)
class Told:
    """A help text and an epilog, taken apart."""

    lines: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    exit_codes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ExitCodes:
    """The table of docs/commands.md: what a code means for every command, and for some alone."""

    common: list[tuple[str, str]]
    of: Mapping[str, list[tuple[str, str]]]


def pages(root: click.Group, codes: ExitCodes) -> Iterator[Page]:
    """distsec(1), and a page for each command below it, however deep."""
    context = root.context_class(root, info_name=root.name, **root.context_settings)
    yield from _pages(context, codes)


def _pages(context: click.Context, codes: ExitCodes) -> Iterator[Page]:
    yield _page(context, codes)
    if isinstance(context.command, click.Group):
        for child in _children(context):
            yield from _pages(child, codes)


def _children(context: click.Context) -> Iterator[click.Context]:
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{name} is listed"
        if not command.hidden:
            yield command.context_class(command, info_name=name, parent=context)


def _page(context: click.Context, codes: ExitCodes) -> Page:
    command, top = context.command, context.parent is None
    told = take_apart(command.help or "", command.epilog or "")
    page = Page(_name(context), 1, _summary(context))
    page.section_of("SYNOPSIS", _synopsis(context))
    described = [line for text in words.DESCRIPTION for line in paragraph(text)] if top else []
    page.section_of("DESCRIPTION", described or told.lines)
    if isinstance(command, click.Group):
        page.section_of("COMMANDS", _commands(context))
    page.section_of("OPTIONS", _options(context))
    page.section_of("EXIT STATUS", _exit_status(context, told, codes))
    uses_file = top or any(parameter.name == "config" for parameter in command.params)
    page.section_of("ENVIRONMENT", _items(words.ENVIRONMENT, uses_file if not top else None))
    page.section_of("FILES", _items(words.FILES, uses_file if not top else None))
    examples = list(words.EXAMPLES) if top else told.examples or _alone(context)
    page.section_of("EXAMPLES", verbatim(examples) if examples else [])
    page.section_of("SEE ALSO", references(_see_also(context)))
    return page


def _alone(context: click.Context) -> list[str]:
    """A command that wants nothing is its own example."""
    wants = any(parameter.required for parameter in context.command.params)
    return [] if wants or isinstance(context.command, click.Group) else [context.command_path]


def _name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _summary(context: click.Context) -> str:
    """For NAME: what the command does, as the help of its group has it."""
    above = context.parent.command if context.parent else None
    line = above.line_of(str(context.info_name)) if isinstance(above, LazyGroup) else ""
    text = (line or context.command.get_short_help_str(limit=300)).rstrip(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _synopsis(context: click.Context) -> list[str]:
    parts = [*_option_pieces(context), *_argument_pieces(context)]
    if isinstance(context.command, click.Group):
        parts += [f"{italic('COMMAND')} ..."]
    return [".HP 4", " ".join([bold(context.command_path), *parts])]


def _option_pieces(context: click.Context) -> Iterator[str]:
    """`[--out FILE]`; flags of which one counts stand together."""
    choices: dict[str, list[str]] = {}
    for option in _shown(context):
        spelled = bold(max(option.opts, key=len))
        if not (option.is_flag or option.count):
            spelled += f" {italic(option.make_metavar(context))}"
        choices.setdefault(str(option.name), []).append(spelled + (" ..." if option.multiple else ""))
    required = {str(option.name) for option in _shown(context) if option.required}
    for name, flags in choices.items():
        together = " | ".join(flags)
        yield together if name in required else f"[{together}]"


def _argument_pieces(context: click.Context) -> Iterator[str]:
    for parameter in context.command.params:
        if isinstance(parameter, click.Argument):
            shown = (parameter.metavar or parameter.human_readable_name.upper()).replace("…", "...")
            spelled = " | ".join(italic(part) for part in shown.split("|"))
            yield spelled if parameter.required else f"[{spelled}]"


def _shown(context: click.Context) -> list[click.Option]:
    return [p for p in context.command.params if isinstance(p, click.Option) and not p.hidden]


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            names, text = record
            yield from item(_spelled(names), text)


def _spelled(names: str) -> str:
    """`-c, --config FILE` with options bold and values in italics."""
    return " ".join(
        bold(word.rstrip(",")) + ("," if word.endswith(",") else "") if word.startswith("-") else italic(word)
        for word in names.split()
    )


def _commands(context: click.Context) -> Iterator[str]:
    for child in _children(context):
        what = _summary(child)
        yield from item(f"{bold(_name(child))}(1)", f"{what[:1].upper()}{what[1:]}.")


def _exit_status(context: click.Context, told: Told, codes: ExitCodes) -> Iterator[str]:
    if context.parent is None:
        for code, text in codes.common:
            yield from item(escape(code), text)
        for command, own in codes.of.items():
            yield f".SS {heading(f'distsec {command}')}"
            for code, text in own:
                yield from item(escape(code), text)
        return
    own = codes.of.get(context.command_path.partition(" ")[2], [])
    for text in told.exit_codes:
        yield from paragraph(text)
    if not told.exit_codes:
        for code, text in own:
            yield from item(escape(code), text)
    if not own and not told.exit_codes:
        yield from item("0", "Done.")
    yield from paragraph("Codes that all commands share, 64 and above, are in distsec(1).")


def exit_codes(document: str) -> ExitCodes:
    """Of the table `| code | means | … |` in docs/commands.md. A clause that begins with the name of a
    command, as in "1 of `shell`: the expression failed", is of that command alone.
    """
    rows = document[document.index("| code | means |") :].partition("\n\n")[0].splitlines()[2:]
    common: list[tuple[str, str]] = []
    of: dict[str, list[tuple[str, str]]] = {}
    for code, means, *_ in map(cells, rows):
        general = []
        for clause in means.split("; "):
            if found := _OF_COMMANDS.match(clause):
                for name in re.findall(r"`([^`]+)`", found["commands"]):
                    of.setdefault(name.removeprefix("distsec "), []).append(
                        (found["codes"] or code, found["text"])
                    )
            else:
                general.append(clause)
        if general:
            common.append((code, "; ".join(general)))
    return ExitCodes(common, of)


def take_apart(help_text: str, epilog: str) -> Told:
    """Help as click has it: paragraphs, verbatim where they begin with \b."""
    told = Told()
    for block in f"{inspect.cleandoc(help_text).partition(chr(12))[0]}\n\n{inspect.cleandoc(epilog)}".split(
        "\n\n"
    ):
        lines = [line for line in block.splitlines() if line.strip()]
        as_it_is = bool(lines) and lines[0].strip() == "\b"
        if as_it_is:
            lines = textwrap.dedent("\n".join(lines[1:])).splitlines()
        text = " ".join(line.strip() for line in lines)
        if _EXIT_CODES.match(text):
            told.exit_codes.append(_EXIT_CODES.sub("", text)[:1].upper() + _EXIT_CODES.sub("", text)[1:])
        elif as_it_is and lines[0] == "Examples:":
            told.examples += textwrap.dedent("\n".join(lines[1:])).splitlines()
        elif as_it_is and all(_EXAMPLE.match(line) for line in lines):
            told.examples += lines
        elif as_it_is and not any(line.startswith(" ") for line in lines):
            told.lines += paragraph(text)
        elif as_it_is:
            told.lines += verbatim(lines)
        elif lines:
            told.lines += paragraph(text)
    return told


def _items(which: Mapping[str, str], shared: bool | None) -> Iterator[str]:
    """All of them (None), those that every command with a configuration has, or nothing."""
    for name, text in which.items() if shared is not False else ():
        if shared is None or name in words.SHARED:
            yield from item(bold(name), text)


def _see_also(context: click.Context) -> Iterator[str]:
    """The group that it is in and what else is there, then what configures it."""
    above = context.parent
    if above is None:
        yield from ("distsec.toml(5)", *words.SEE_ALSO)
        return
    names = ["distsec"]
    if above.parent is not None:
        names += [_name(above), *(_name(child) for child in _children(above))]
    if isinstance(context.command, click.Group):
        names += [_name(child) for child in _children(context)]
    yield from (f"{name}(1)" for name in dict.fromkeys(names) if name != _name(context))
    yield "distsec.toml(5)"
