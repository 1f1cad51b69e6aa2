"""`distsec shell NODE`: this process asks the orchestrator for a shell, and then becomes its Erlang VM.

It keeps its pid, by which the orchestrator knows when the shell has ended, however it ends. Where root has a
terminal and becomes another user, it stays with the terminal instead, and ends with the shell (`cli.relay`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from distsec.cli.candidates import managed_nodes
from distsec.cli.keystrokes import refuse_typing
from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.control.attach import (
    EXPRESSION,
    MAX_EXPRESSION_BYTES,
    MAX_TIMEOUT_SECONDS,
    Use,
    check_expression,
    environment,
    use_words,
)
from distsec.errors import CommandFailed, PermissionRefused, UsageError
from distsec.model.text import escape

DEFAULT_TIMEOUT_SECONDS = 60
BOOT_SECONDS = 60
"""Beyond its timeout an evaluation is given so long, for the VM to start and to end, before it is killed."""

TERMINALS = ("xterm-256color", "xterm", "vt100", "ansi")
"""What a terminal that does not say what it is (no TERM, as under `docker exec`) is taken for."""

_EPILOG = """\b
Examples:
  distsec shell poller@127.0.0.1
  distsec shell poller@127.0.0.1 --eval 'erlang:memory(total).'
  distsec shell poller@127.0.0.1 --eval - < expressions.erl
  echo 'nodes().' | distsec shell poller@127.0.0.1

\b
At the prompt, Ctrl-G then q, or q() leaves the shell; Ctrl-C interrupts an evaluation. The node goes on:
only init:stop() stops it. Without a terminal each expression that ends with a dot is evaluated as it is
read, and the first that fails is the last.

\b
Exit codes: 0 done; 1 the expression raised an exception; 64 wrong usage; 65 it is no Erlang; 68 no such
node; 69 no orchestrator answers; 70 no link with the node, or it was lost; 72 there is no erl; 124 no value
in time; 130 Ctrl-C.
"""


@click.command("shell", epilog=_EPILOG)
@click.argument("node", metavar="NODE", shell_complete=managed_nodes)
@click.option(
    "--eval",
    "expression",
    metavar="EXPR",
    help="Evaluate EXPR on NODE and print its value; `-`: from stdin, where no process list shows it.",
)
@click.option(
    "--timeout",
    type=click.IntRange(1, MAX_TIMEOUT_SECONDS),
    metavar="SECONDS",
    help=f"For the value of an expression (default {DEFAULT_TIMEOUT_SECONDS}; at a terminal: none).",
)
@config_option
def command(node: str, expression: str | None, timeout: int | None, config: str | None) -> None:
    """A shell on NODE, over the cluster's own carrier, with a certificate for this one session.

    It needs no HOME, no TERM and no terminal. A link is remote code execution both ways: NODE could run code
    in the VM of this shell, as you. So do not attach to a node that you believe compromised.
    """
    open_standard_streams()
    given = (
        None if expression is None else check_expression(_from_stdin() if expression == "-" else expression)
    )
    use, term = _use(given)
    orchestrator = client(config)
    with waiting(f"asking for a shell on {escape(node)}"):
        answer = orchestrator.shell(node)
    words, directory = _answered(answer)
    prompt = use is Use.LINES and os.isatty(0)
    watched = use is Use.TERMINAL or prompt
    seconds = timeout or (0 if watched else DEFAULT_TIMEOUT_SECONDS)
    if watched:
        click.echo(f"{escape(node)}: leave with Ctrl-G q or q(); only init:stop() stops the node", err=True)
    become_user(answer)
    if given is not None:
        _write_private(f"{directory}/{EXPRESSION}", given)
    if use is Use.EVALUATE:
        signal.alarm(seconds + BOOT_SECONDS)  # it outlives the exec below: nothing hangs for ever
    _become(
        [*words, *use_words(use, node, timeout_seconds=seconds, prompt=prompt)],
        environment(directory, os.environ, term),
    )


def _use(expression: bytes | None) -> tuple[Use, str | None]:
    """What the shell is for, and the type of the terminal where it has one that can be driven."""
    if expression is not None:
        return Use.EVALUATE, None
    if os.isatty(0) and os.isatty(1) and (term := terminal(os.environ.get("TERM"))):
        return Use.TERMINAL, term
    return Use.LINES, None


def terminal(named: str | None) -> str | None:
    """The type to drive this terminal as, or None where it had better be lines: one that says it is dumb, or
    that no description is here for. What is not known is as good as not named.
    """
    if named == "dumb":
        return None
    try:
        import curses
    except ImportError:  # a Python without it cannot tell; Erlang says if it does not work
        return named or TERMINALS[0]
    for candidate in (*([named] if named else []), *TERMINALS):
        with contextlib.suppress(curses.error):
            curses.setupterm(candidate, 1)
            return candidate
    return None


def _from_stdin() -> str:
    try:
        return sys.stdin.buffer.read(MAX_EXPRESSION_BYTES + 1).decode() if sys.stdin else ""
    except UnicodeDecodeError:
        raise UsageError("the expression on stdin is not UTF-8") from None


def open_standard_streams() -> None:
    """An Erlang VM needs all three; whoever starts this may have closed some."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: that one


def _answered(answer: Mapping[str, Any]) -> tuple[list[str], str]:
    words, directory = answer.get("words"), answer.get("directory")
    if not isinstance(words, list) or not words or not isinstance(directory, str):
        raise CommandFailed("the orchestrator's answer is no shell", do="is it of another version?")
    return [str(word) for word in words], directory


def become_user(answer: Mapping[str, Any]) -> None:
    """Root gives up what it need not have: the node could run code in this shell, and is the orchestrator's
    user's. A tool runs as its node does. Neither gets the terminal that root goes on with: where there is one
    this process stays with it (`cli.relay`), and a child of its own goes on here.
    """
    uid, gid = answer.get("uid"), answer.get("gid")
    if os.geteuid() != 0 or not isinstance(uid, int) or not isinstance(gid, int) or uid == 0:
        return
    from distsec.cli import relay, tool_session  # for root alone

    keeper = relay.keep_terminal(uid)
    refuse_typing()
    try:
        os.setgroups([group for group in answer.get("groups", ()) if isinstance(group, int)])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise PermissionRefused(f"cannot become uid {uid}: {error.strerror}") from None
    if keeper is not None:
        tool_session.end_with(keeper)


def _write_private(path: str, octets: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)


def _become(words: list[str], variables: Mapping[str, str]) -> NoReturn:
    """This process is that command from now on. Raises CommandFailed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its memory holds the shell's key
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and a child would go on to
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(words[0], words, variables)  # noqa: S606  becoming another program is the point
    except OSError as error:
        raise CommandFailed(
            f"cannot be run: {error.strerror}", where=escape(words[0], 1024), do="repair the installation"
        ) from None
