"""`distsec adopt NODE`: takes over a node's VM that something else has started."""

from __future__ import annotations

import json

import click

from distsec.cli.candidates import managed_nodes
from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.model.text import escape


@click.command()
@click.argument("node", metavar="NODE", shell_complete=managed_nodes)
@click.option(
    "--pid",
    metavar="PID",
    type=click.IntRange(2),
    help="The VM, or what started it. [default: whoever proves to be NODE]",
)
@click.option(
    "--timeout",
    "seconds",
    metavar="S",
    type=click.FloatRange(0, 3600, min_open=True),
    help="How long its hello is waited for. [default: start_deadline_seconds]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@config_option
def command(node: str, pid: int | None, seconds: float | None, as_json: bool, config: str | None) -> None:
    """Takes over the VM of NODE that something else started with what `distsec env` prints.

    Returns when it is RUNNING: its agent has proven that it has the node's key, and its guard is in force. If
    not, one line says what is missing, and nothing was taken over. A VM without these variables cannot be
    adopted: start it anew with them.

    A node without a command is taken over by itself; this waits for it. One with a command is supervised from
    then on as if it had been started here: when it ends, its command starts it.

    \b
    distsec adopt poller@127.0.0.1
    distsec adopt poller@127.0.0.1 --pid 4711 --timeout 60
    """
    orchestrator = client(config)
    with waiting(f"waiting for the hello of {escape(node)}"):
        answer = orchestrator.adopt(node, pid, seconds)
    if as_json:
        click.echo(json.dumps(answer))
        return
    what = "" if answer.get("command") else "; something else starts it"
    click.echo(f"adopted {escape(str(answer.get('node')))}: RUNNING as process {answer.get('pid')}{what}")
