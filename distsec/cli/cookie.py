"""`distsec cookie rotate | status`: the secret that the cookies of the distribution are derived from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from distsec.cli.options import client, config_option
from distsec.cli.progress import waiting
from distsec.errors import DistsecError
from distsec.model.text import escape

if TYPE_CHECKING:
    from distsec.control.client import ControlClient

_DAY_SECONDS = 86400
_DOES = {
    "idle": "every node dials with, and takes, one cookie for each peer",
    "accepting": "nodes dial with the old cookies, and take the new ones too",
    "using": "nodes dial with the new cookies, and take the old ones still",
    "forgetting": "nodes dial with, and take, the new cookies; some may not have forgotten the old ones",
}


@click.group()
def command() -> None:
    """The cookies of the distribution: rotate them without ending a link, see how old they are."""


@command.command(short_help="Give every pair of nodes another cookie; no link ends.")
@click.option(
    "--give-up", is_flag=True, help="Take back a rotation, as long as no node dials with the new cookies."
)
@click.option(
    "--elsewhere", is_flag=True, help="Also though listed nodes are not run here: they will be refused."
)
@config_option
def rotate(give_up: bool, elsewhere: bool, config: str | None) -> None:
    """Gives every pair of nodes another cookie; no link ends, and no node is locked out meanwhile.

    First every node takes the new cookies too, then all dial with them, then every link is proven with them
    at both ends, and then the old ones are forgotten. A node that does not run gets its new ones when it
    starts. Where a node does not answer it stops, and says who; nothing is broken then, and running it again
    goes on.

    \b
      distsec cookie rotate
      distsec cookie rotate --give-up     back to the old ones, in phase accepting
    """
    if give_up and elsewhere:
        raise click.UsageError("--elsewhere is of no use with --give-up")
    orchestrator = client(config)
    doing = "giving up the new cookies" if give_up else "rotating the cookies"
    with waiting(doing, lambda: _so_far(orchestrator)):
        answer = orchestrator.rotate_cookies(give_up=give_up, elsewhere=elsewhere)
    nodes, links = len(answer.get("acknowledged", [])), answer.get("links", 0)
    what = "the new cookies are given up" if answer.get("given_up") else "the cookies are rotated"
    proven = f", {_count(links, 'link')} proven with the new ones" if links else ""
    click.echo(f"{what}: acknowledged by {_count(nodes, 'node')}{proven}")
    if others := answer.get("elsewhere"):
        names = ", ".join(escape(str(name)) for name in others)
        click.echo(f"refused until they are brought their new cookies: {names}")


@command.command(short_help="Show how old the cookies are; how far a rotation is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@config_option
def status(as_json: bool, config: str | None) -> None:
    """Shows how old the cookies are, and how far a rotation has got."""
    answer = client(config).cookies()
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    phase = str(answer.get("phase"))
    click.echo(f"age      {_age(answer.get('age_seconds'))}")
    click.echo(f"phase    {escape(phase)}: {_DOES.get(phase, 'unknown to this version')}")
    if answer.get("under_way"):
        click.echo(f"waiting  {_names(answer, 'waiting')}")
    elif phase != "idle":
        click.echo("next     `distsec cookie rotate` goes on from here")


def _so_far(orchestrator: ControlClient) -> str:
    try:
        answer = orchestrator.cookies()
    except DistsecError:
        return ""
    names = [escape(str(name)) for name in answer.get("waiting", [])]
    shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    return f", {escape(str(answer.get('phase')))}" + (f", waiting for {shown}" if shown else "")


def _names(answer: Mapping[str, Any], key: str) -> str:
    return ", ".join(escape(str(name)) for name in answer.get(key, [])) or "nobody"


def _age(seconds: object) -> str:
    if not isinstance(seconds, int):
        return "unknown"
    if seconds < _DAY_SECONDS:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return _count(seconds // _DAY_SECONDS, "day")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
