"""The group `distsec`: its commands by name, imported when they run, and every error as one line.

Imports click and nothing else that takes time: `distsec --help` and a mistyped command answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from distsec import __version__
from distsec.errors import DistsecError
from distsec.model.text import escape

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

EX_USAGE = 64
EX_SOFTWARE = 70
INTERRUPTED = 130
READER_GONE = 141
"""128 + SIGINT and 128 + SIGPIPE, as shells say it."""

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("distsec.cli.init:command", "Write a configuration, a CA, and a key and certificate per node."),
    "run": ("distsec.cli.run:command", "Run the orchestrator in the foreground."),
    "start": ("distsec.cli.nodes:start", "Start nodes."),
    "stop": ("distsec.cli.nodes:stop", "Stop nodes."),
    "restart": ("distsec.cli.nodes:restart", "Stop and start nodes."),
    "status": (
        "distsec.cli.status:command",
        "Show every node and every link; the exit code tells how it is.",
    ),
    "allow": ("distsec.cli.policy:allow", "Let a node into the cluster."),
    "deny": ("distsec.cli.policy:deny", "Keep a node out and end its links."),
    "shell": ("distsec.cli.shell:command", "A shell on a node, or the value of an expression there."),
    "exec": ("distsec.cli.exec:command", "Run an application's own tool against a node (rabbitmqctl, …)."),
    "tls": ("distsec.cli.tls:command", "Make the CA alone."),
    "certs": ("distsec.cli.certs:command", "Certificates: show, issue, import, export, revoke them."),
    "cookie": ("distsec.cli.cookie:command", "The cookies of the distribution: rotate them, see their age."),
    "check": ("distsec.cli.check:command", "Look for what makes this cluster, or any BEAM here, unsafe."),
    "env": ("distsec.cli.env:command", "Print what a node needs that something else starts."),
    "adopt": ("distsec.cli.adopt:command", "Take over a node that something else has started."),
    "export": ("distsec.cli.export:command", "What this host says of itself, for the other hosts."),
    "import": ("distsec.cli.imports:command", "Take what another host has exported."),
    "events": ("distsec.cli.events:command", "Show what happened, and with -f what happens."),
}
"""Name → where the command is, and its line in `--help` (here, so that help imports no command)."""

COMPLETE_VARIABLE = "_DISTSEC_COMPLETE"
"""Click's, after the program's name: the scripts of completion.py set it."""

DEBUG = "distsec.debug"
"""In the root context's `meta`: whether `--debug` was given anywhere."""


class LazyGroup(click.Group):
    """Knows its commands by `table` (as COMMANDS is) and imports one when it is run or asked for its help."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **extra: Any) -> None:
        super().__init__(*args, **extra)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def line_of(self, name: str) -> str:
        """What `--help` says of a command."""
        return self._table[name][1]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self._table and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self._table, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, out of the table: a TAB imports no command either."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=line)
            for name, (_, line) in self._table.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


class _Program(LazyGroup):
    """The whole command line: what becomes of its errors, and of a reader that goes away."""

    def invoke(self, ctx: click.Context) -> Any:
        """The command's result; whoever read stdout may go away (`distsec events | head -1`)."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered has to go somewhere, or the interpreter complains at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return READER_GONE

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Like click's, with this program's errors and exit codes."""
        meta: dict[str, Any] = {}
        extra.setdefault("obj", meta)
        if COMPLETE_VARIABLE in os.environ:  # a TAB in a shell: click answers it in main()
            from distsec.cli.completion import register

            register()
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except (click.ClickException, click.Abort, DistsecError, OSError) as error:
            if not standalone_mode:
                raise
            if meta.get(DEBUG):
                import traceback

                traceback.print_exception(error)
            sys.exit(_told(error))
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result


def _told(error: BaseException) -> int:
    """Says what `error` is, one line for each problem, on stderr; returns the exit code."""
    match error:
        case click.exceptions.NoArgsIsHelpError():  # a group without its subcommand
            error.show()
            return EX_USAGE
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "distsec"
            message = escape(error.format_message().replace("\n", " "), 1000).rstrip(".")
            stop = "" if message.endswith("?") else ";"
            click.echo(f"{path}: {message}{stop} see `{path} --help`", err=True)
            return EX_USAGE
        case click.ClickException():
            click.echo(f"distsec: {escape(error.format_message(), 1000)}", err=True)
            return EX_SOFTWARE
        case click.Abort():
            return INTERRUPTED
        case DistsecError():
            show_error(error)
            return error.exit_code
        case OSError():
            where = f"{escape(str(error.filename))}: " if error.filename else ""
            click.echo(f"distsec: {where}{escape(error.strerror or str(error), 1000)}", err=True)
            return EX_SOFTWARE
        case _:
            raise error


def show_error(error: DistsecError) -> None:
    """The error on stderr: one line; of a configuration one line for each problem."""
    for line in str(error).splitlines():
        click.echo(f"distsec: {escape(line, 4000)}", err=True)


def set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Callback of `--debug`, wherever it is given."""
    if value:
        ctx.ensure_object(dict)[DEBUG] = True


@click.group(
    "distsec",
    cls=_Program,
    table=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=set_debug, help="Show tracebacks of errors."
)
@click.version_option(__version__, "--version", prog_name="distsec", message="%(prog)s %(version)s")
@click.pass_context
def distsec(ctx: click.Context) -> None:
    """Starts, watches and guards clusters of BEAM nodes over mutual-TLS distribution."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EX_USAGE)


def main() -> NoReturn:
    """The console script."""
    distsec.main(prog_name="distsec")
    raise AssertionError("unreachable: main() ends the program")
