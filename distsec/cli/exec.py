"""`distsec exec NODE -- COMMAND…`: this process asks for what a tool of NODE's application needs to reach it,
and then becomes that tool.

It keeps its pid, by which the orchestrator knows when the tool has ended, however it ends. Where root has a
terminal and the tool runs as another user, it stays there instead, and ends when the tool does (`cli.relay`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NoReturn

import click

from distsec.cli.candidates import managed_nodes
from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.cli.shell import become_user, open_standard_streams
from distsec.control.attach import DEFAULT_PATH, MAX_PROGRAM_CHARACTERS, tool_environment
from distsec.errors import CommandFailed, RuntimeMissing, UsageError
from distsec.model.text import escape

_EPILOG = """\b
Examples:
  distsec exec rabbit@127.0.0.1 -- rabbitmqctl cluster_status
  distsec exec ejabberd@127.0.0.1 -- ejabberdctl status
  distsec exec app@127.0.0.1 -- bin/app rpc 'App.ping()'
  distsec exec rabbit@127.0.0.1 -- sh      a shell in which each of its tools works

\b
The tool gets the operator's own environment, what [[nodes]].environment gives NODE, and ERL_AFLAGS. Any
Erlang VM that it starts can link with NODE and with the managed nodes that NODE is linked with, as a
hidden node that listens to nobody, under any name at NODE's host. That ends with COMMAND.

\b
Exit codes: those of COMMAND; before it runs: 64 wrong usage; 68 no such node; 69 no orchestrator answers;
70 the node takes no tool now; 72 there is no such program.
"""


@click.command("exec", epilog=_EPILOG)
@click.argument("node", metavar="NODE", shell_complete=managed_nodes)
@click.argument("words", metavar="-- COMMAND…", nargs=-1, required=True, type=click.UNPROCESSED)
@config_option
def command(node: str, words: tuple[str, ...], config: str | None) -> None:
    """Runs COMMAND, a tool of NODE's application, so that it reaches NODE over the cluster's own carrier.

    It has a certificate for this one run. A link is remote code execution both ways: NODE could run code in
    the tool's VM, as you.
    """
    if not all(words[:1]):
        raise UsageError("the command is empty")
    open_standard_streams()
    orchestrator = client(config)
    with waiting(f"asking for access to {escape(node)}"):
        answer = orchestrator.tool(node, escape(PurePath(words[0]).name)[:MAX_PROGRAM_CHARACTERS])
    environment = tool_environment(_environment(answer), os.environ)
    become_user(answer)
    if not os.access(".", os.R_OK | os.X_OK):
        os.chdir("/")  # root was where whom it has become may not look, and Erlang does
    _become(words, environment)


def _environment(answer: Mapping[str, Any]) -> dict[str, str]:
    given = answer.get("env")
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise CommandFailed("the orchestrator's answer is no environment", do="is it of another version?")
    return {str(name): value for name, value in given.items()}


def _become(words: tuple[str, ...], environment: Mapping[str, str]) -> NoReturn:
    """This process is that command from now on. Raises RuntimeMissing, CommandFailed."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and a child would go on to
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, {"PATH": DEFAULT_PATH, **environment})  # noqa: S606  that is the point
    except FileNotFoundError:
        raise RuntimeMissing(
            f"{escape(words[0], 1024)}: there is no such program", do="give its path, or correct PATH"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "a NUL byte in the command or the environment"
        raise CommandFailed(f"cannot be run: {reason}", where=escape(words[0], 1024)) from None
