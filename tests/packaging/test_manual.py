"""The manual pages: one a command, nothing that --help says is missing, and man(1) does not complain."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from distsec import __version__
from distsec.cli.group import distsec
from distsec.config.schema import Document, headers
from scripts.manual import __main__ as manual
from scripts.manual import commands, configuration, roff
from tests.packaging.made import done, need, run
from tests.releases import ROOT

DATE = "2026-01-31"


def tree(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from tree(inner, click.Context(inner, info_name=name, parent=context))


CONTEXTS = {
    context.command_path.replace(" ", "-"): context
    for context in tree(distsec, click.Context(distsec, info_name="distsec", **distsec.context_settings))
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    share = tmp_path_factory.mktemp("manual")
    for path, content in manual.files(ROOT, DATE).items():
        (share / path).parent.mkdir(parents=True, exist_ok=True)
        (share / path).write_text(content)
    return share / "man"


def test_every_command_has_a_page_and_the_configuration_has_one(pages: Path) -> None:
    assert {file.name for file in pages.rglob("*.*")} == {f"{name}.1" for name in CONTEXTS} | {
        "distsec.toml.5"
    }
    assert len(CONTEXTS) > 30


def test_mandoc_and_groff_have_nothing_to_complain_of(pages: Path) -> None:
    for program in ("mandoc", "man", "groff"):
        need(shutil.which(program) is not None, program)
    files = sorted(pages.rglob("*.[15]"))
    assert run("mandoc", "-T", "lint", "-W", "warning", *files).stdout == ""
    variables = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"}
    ended = run("man", "-l", "--warnings", "-EUTF-8", "-Tutf8", "-Z", *files, environment=variables)
    assert (ended.returncode, ended.stderr) == (0, "")


def rendered(file: Path) -> str:
    """What is shown of it, on one line; bold letters are struck twice."""
    return " ".join(re.sub(r".\x08", "", done("mandoc", "-T", "utf8", "-O", "width=400", file)).split())


@pytest.mark.parametrize(
    "name", ["distsec-run", "distsec-certs-renew", "distsec-status", "distsec-certs-import"]
)
def test_a_page_has_what_help_has(pages: Path, name: str) -> None:
    need(shutil.which("mandoc") is not None, "mandoc")
    text, context = rendered(pages / "man1" / f"{name}.1"), CONTEXTS[name]
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option):
            record = parameter.get_help_record(context)
            assert record is not None
            assert " ".join(f"{record[0]} {record[1]}".split()) in text
    for paragraph in (context.command.help or "").split("\n\n"):
        if "\b" not in paragraph:
            assert " ".join(paragraph.replace("`", "").split()) in text
    sections = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "SEE ALSO",
    ]
    at = [text.index(section) for section in sections]
    assert at == sorted(at)
    assert f"distsec {__version__} {DATE}" in text


def test_every_command_that_does_something_has_an_example(pages: Path) -> None:
    without = {
        name
        for name, context in CONTEXTS.items()
        if not isinstance(context.command, click.Group)
        and '.SH "EXAMPLES"' not in (pages / "man1" / f"{name}.1").read_text()
    }
    assert without == set()


def test_the_exit_codes_of_the_documentation_are_in_the_page_of_the_program(pages: Path) -> None:
    need(shutil.which("mandoc") is not None, "mandoc")
    document = (ROOT / "docs/commands.md").read_text()
    codes = commands.exit_codes(document)
    text = rendered(pages / "man1/distsec.1")
    assert {"0", "64", "72", "78", "130"} <= {code for code, _ in codes.common}
    for code, means in codes.common:
        assert f"{code} {' '.join(means.replace('`', '').split())}" in text
    assert dict(codes.of["status"])["1, 2, 3"] == "degraded, violation, no answer"
    assert "Exit code" not in rendered(pages / "man1/distsec-status.1").partition("EXIT STATUS")[0]


def test_every_key_that_init_writes_is_in_the_page_of_the_configuration(pages: Path) -> None:
    need(shutil.which("mandoc") is not None, "mandoc")
    text = rendered(pages / "man5/distsec.toml.5")
    tables = {
        table.header: {key.name for key in table.keys}
        for table in configuration.tables(configuration.template())
    }
    known = {"[" + header.strip("[]") + "]": set(table.model_fields) for header, table in headers(Document)}
    assert len(tables) > 8
    for header, keys in tables.items():
        assert header in text
        assert keys and keys <= known["[" + header.strip("[]") + "]"]
        for key in keys:
            assert f"{key} = " in text
    template = configuration.template()
    written = set(re.findall(r"^#?([a-z_]+) = ", template, re.MULTILINE))
    assert written == {key for keys in tables.values() for key in keys}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (".so /etc/passwd", "\\&.so /etc/passwd"),
        ("'tis \\n", "\\(aqtis \\en"),
        ("a -- `b c` --all", "a \\-\\- \\%\\fBb\\fR \\%\\fBc\\fR \\%\\fB\\-\\-all\\fR"),
        ("é…", "\\[u00E9]\\[u2026]"),
        ("[certificates.md](certificates.md#renewal)", "certificates.md"),
        ("[the board](attack-board.md)", "the board (attack\\-board.md)"),
    ],
)
def test_text_is_text_and_no_roff(text: str, line: str) -> None:
    assert roff.inline(text) == line


def test_a_help_text_is_taken_apart() -> None:
    told = commands.take_apart(
        "Does it.\n\n\b\ndistsec do x\ndistsec do y\n\n\b\nHow:\n  first   a\n",
        "Exit code: 0 done.\n\n\b\nExamples:\n  distsec do z",
    )
    assert told.examples == ["distsec do x", "distsec do y", "distsec do z"]
    assert told.exit_codes == ["0 done."]
    assert told.lines[:2] == [".PP", "Does it."]
    assert "  first   a" in told.lines


def test_the_pages_need_click_and_nothing_else_that_must_be_installed() -> None:
    """The build of a wheel makes them, with what pyproject.toml's [build-system] names."""
    script = (
        "import sys; from pathlib import Path; from scripts.manual.__main__ import files, ROOT\n"
        "files(ROOT, '2026-01-31')\n"
        "places = {str(getattr(m, '__file__', None) or '') for m in list(sys.modules.values())}\n"
        "names = {p.partition('site-packages/')[2].partition('/')[0] for p in places}\n"
        "print(sorted(n for n in names if n and not n.startswith(('_', 'distutils'))))"
    )
    assert done(sys.executable, "-c", script, cwd=ROOT) == "['click']\n"
