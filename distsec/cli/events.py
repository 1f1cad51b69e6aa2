"""`distsec events`: what happened, and with -f what happens."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from distsec.cli.options import client, config_option
from distsec.control.wire import SCHEMA
from distsec.model.text import escape

FOLLOW_BEGINS_WITH = 10
"""Events that `-f` shows from before it was called, as tail(1) does."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RELATIVE = re.compile(r"(\d{1,9})([smhd])")
_SHOWN = ("peer", "direction", "reason", "address", "identity", "result", "detail")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--since", metavar="T", help="From then on: 10m, 2h, 1d, or a time such as 2026-01-31T12:00.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document; with -f one JSON object a line.")
@config_option
def command(follow: bool, since: str | None, as_json: bool, config: str | None) -> None:
    """Shows the events that the orchestrator still holds: the most recent few thousand.

    \b
    distsec events --since 10m
    distsec events -f --json | jq 'select(.event == "UnauthorizedAccess")'
    """
    begin = 0.0 if since is None else parse_since(since, time.time())
    orchestrator = client(config)
    if not follow:
        document = orchestrator.events(since=begin)
        if as_json:
            click.echo(json.dumps(document))
        else:
            for event in document.get("events", []):
                click.echo(event_line(event))
        return
    limit = FOLLOW_BEGINS_WITH if since is None else None
    try:
        for event in orchestrator.follow(since=begin, limit=limit):
            click.echo(json.dumps({"schema": SCHEMA, **event}) if as_json else event_line(event))
    except KeyboardInterrupt:
        pass  # the ordinary way to end it


def parse_since(text: str, now: float) -> float:
    """Unix seconds of `text`: an age such as `10m`, or an ISO 8601 time (local, where it names no zone)."""
    if relative := _RELATIVE.fullmatch(text.strip()):
        return now - int(relative[1]) * _UNITS[relative[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            "write an age (10m, 2h, 1d) or a time (2026-01-31T12:00)", param_hint="--since"
        ) from None


def event_line(event: Mapping[str, Any]) -> str:
    """One event for a person: time (UTC), severity, type, node, and what is known of the peer."""
    if "dropped" in event:
        return f"… {event['dropped']} events were lost: this reader is too slow"
    at = event.get("time")
    moment = datetime.fromtimestamp(at, UTC) if isinstance(at, int | float) else None
    columns = [
        moment.strftime("%Y-%m-%d %H:%M:%SZ") if moment else "-",
        f"{_text(event, 'severity').upper():<8}",
        _text(event, "type"),
        _text(event, "node") or "-",
    ]
    details = [f"{key}={_text(event, key)}" for key in _SHOWN if event.get(key) is not None]
    return "  ".join(columns + details)


def _text(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key)
    return "" if value is None else escape(str(value), 1024)
