"""`distsec env NODE`: the environment and files for a node that something else starts. Pure but for the
question."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import click

from distsec.cli.options import client, config_option
from distsec.errors import CommandFailed
from distsec.model.text import escape

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMATS = ("shell", "systemd", "json")


@click.command()
@click.argument("node", metavar="NODE")
@click.option("--shell", "form", flag_value="shell", help="`export` lines, for eval in a POSIX shell.")
@click.option("--systemd", "form", flag_value="systemd", help="Environment= lines of a unit.")
@click.option("--json", "form", flag_value="json", help="One JSON document, with the files.")
@config_option
def command(node: str, form: str | None, config: str | None) -> None:
    """Prints what NODE needs in its environment to come up guarded, where something else starts it."""
    document = client(config).environment(node)
    if form == "json":
        click.echo(json.dumps(document))
        return
    environment = _variables(document)
    if form == "shell":
        lines: Iterable[str] = shell_lines(environment)
    elif form == "systemd":
        lines = systemd_lines(environment)
    else:
        lines = _listing(environment, document.get("files") or {})
    for line in lines:
        click.echo(line)


def shell_lines(environment: Mapping[str, str]) -> list[str]:
    """`export NAME=value`, quoted for a POSIX shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def systemd_lines(environment: Mapping[str, str]) -> list[str]:
    """`Environment="NAME=value"`, quoted as systemd.syntax(7) has it; `%` would begin a specifier."""
    return [f'Environment="{name}={_systemd(value)}"' for name, value in environment.items()]


def _systemd(value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 0x20 or ord(c) == 0x7F else c for c in quoted)


def _listing(environment: Mapping[str, str], files: Mapping[str, object]) -> list[str]:
    width = max((len(name) for name in (*environment, *files)), default=0)
    return [
        *(f"{name:<{width}}  {escape(value, 4096)}" for name, value in environment.items()),
        *(f"{escape(str(name)):<{width}}  {escape(str(path), 4096)}" for name, path in files.items()),
    ]


def _variables(document: Mapping[str, Any]) -> dict[str, str]:
    """Raises CommandFailed for a name or value that no environment can hold."""
    environment = document.get("env")
    if not isinstance(environment, dict):
        raise CommandFailed("the orchestrator told no environment", do="is it of another version?")
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(value, str) or "\0" in value:
            raise CommandFailed(f"{name[:40]!a} is no environment variable")
    return environment
