"""`distsec env NODE`: the environment and files for a node that something else starts.

The orchestrator is asked; where none runs, the state directory answers the same. The functions that write
each form are pure.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import click

from distsec.cli.candidates import managed_nodes
from distsec.cli.options import client, config_option, state_directory
from distsec.errors import CommandFailed, Unavailable
from distsec.model.names import NodeName
from distsec.model.text import escape

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CONTROL_BUT_NEWLINE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@click.command()
@click.argument("node", metavar="NODE", shell_complete=managed_nodes)
@click.option("--shell", "form", flag_value="shell", help="`export` lines, for eval in a POSIX shell.")
@click.option("--systemd", "form", flag_value="systemd", help="Environment= lines of a unit.")
@click.option(
    "--env-file", "form", flag_value="env-file", help="For EnvironmentFile= of a unit, or `. FILE`."
)
@click.option("--docker", "form", flag_value="docker", help="For --env-file of docker and podman.")
@click.option("--json", "form", flag_value="json", help="One JSON document, with the files.")
@config_option
def command(node: str, form: str | None, config: str | None) -> None:
    """Prints what NODE needs in its environment to come up guarded, where something else starts it.

    \b
    eval "$(distsec env poller@127.0.0.1 --shell)" && erl -noinput
    distsec env poller@127.0.0.1 --env-file > /etc/distsec/poller.env
    distsec env poller@127.0.0.1 --docker > poller.list

    Without an orchestrator the answer comes from the state directory. It changes with the configuration and
    with the place of distsec itself: print it again after an upgrade.
    """
    document = _document(node, config)
    if form == "json":
        click.echo(json.dumps(document))
        return
    environment = _variables(document)
    if form is None:
        lines: Iterable[str] = _listing(environment, document.get("files") or {})
    else:
        lines = FORMS[form](environment)
    for line in lines:
        click.echo(line)


def shell_lines(environment: Mapping[str, str]) -> list[str]:
    """`export NAME=value`, quoted for a POSIX shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def systemd_lines(environment: Mapping[str, str]) -> list[str]:
    """`Environment="NAME=value"`, quoted as systemd.syntax(7) has it; `%` would begin a specifier."""
    return [f'Environment="{name}={_systemd(value)}"' for name, value in environment.items()]


def env_file_lines(environment: Mapping[str, str]) -> list[str]:
    """`NAME="value"`: systemd.exec(5), EnvironmentFile=, and a POSIX shell undo the same escapes, and no
    others, within double quotes.
    """
    return [
        f'{name}="{re.sub(_ESCAPED, lambda found: chr(92) + found[0], value)}"'
        for name, value in environment.items()
    ]


def docker_lines(environment: Mapping[str, str]) -> list[str]:
    """`NAME=value`: docker takes the rest of the line as it is. Raises CommandFailed for a line feed."""
    for name, value in environment.items():
        if "\n" in value or "\r" in value:
            raise CommandFailed(f"{name} holds a line feed, which an env file of docker cannot")
    return [f"{name}={value}" for name, value in environment.items()]


_ESCAPED = re.compile(r'["\\`$]')


def _unit(environment: Mapping[str, str]) -> list[str]:
    _refuse(environment, _CONTROL_BUT_NEWLINE, "a unit of systemd")
    return systemd_lines(environment)


def _env_file(environment: Mapping[str, str]) -> list[str]:
    _refuse(environment, _CONTROL_BUT_NEWLINE, "an EnvironmentFile of systemd")
    return env_file_lines(environment)


FORMS: Mapping[str, Callable[[Mapping[str, str]], list[str]]] = MappingProxyType(
    {"shell": shell_lines, "systemd": _unit, "env-file": _env_file, "docker": docker_lines}
)


def _refuse(environment: Mapping[str, str], pattern: re.Pattern[str], where: str) -> None:
    """systemd passes over an assignment with such a character, with a line in its own log alone."""
    for name, value in environment.items():
        if pattern.search(value):
            raise CommandFailed(f"{name} holds a control character, which {where} cannot")


def _systemd(value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return "".join(f"\\x{ord(c):02x}" if ord(c) < 0x20 or ord(c) == 0x7F else c for c in quoted)


def _listing(environment: Mapping[str, str], files: Mapping[str, object]) -> list[str]:
    width = max((len(name) for name in (*environment, *files)), default=0)
    return [
        *(f"{name:<{width}}  {escape(value, 4096)}" for name, value in environment.items()),
        *(f"{escape(str(name)):<{width}}  {escape(str(path), 4096)}" for name, path in files.items()),
    ]


def _document(node: str, config: str | None) -> dict[str, Any]:
    """From whoever knows. Raises DistsecError."""
    try:
        return client(config).environment(node)
    except Unavailable:
        name = str(NodeName.parse(node))
        path, state = state_directory(config)
        if not os.path.lexists(f"{state}/nodes/{name}/guard.term"):
            raise
        from distsec.control.offline import environment

        return environment(path, name)


def _variables(document: Mapping[str, Any]) -> dict[str, str]:
    """Raises CommandFailed for a name or value that no environment can hold."""
    environment = document.get("env")
    if not isinstance(environment, dict):
        raise CommandFailed("the orchestrator told no environment", do="is it of another version?")
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(value, str) or "\0" in value:
            raise CommandFailed(f"{name[:40]!a} is no environment variable")
    return environment
