"""`distsec check`: how the cluster, or any BEAM on this host, is set up, and what to do about it."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import TYPE_CHECKING

import click

from distsec.cli.options import client, config_option
from distsec.errors import ConfigError, DistsecError, PermissionRefused, Unavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from distsec.posture.facts import Facts

SCHEMA = 1
_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(?P<port>[0-9]{1,5})")


@click.command(
    epilog="Exit code: 0 nothing above info; 1 low or medium; 2 high or critical. Holes of the installed OTP"
    " and a shared uid are told and do not count. Every code is explained in docs/check.md."
    "\n\n\b\nExamples:\n  distsec check\n  distsec check --host --json\n  distsec check --port 10.0.0.7:9100"
)
@click.option("--host", "whole_host", is_flag=True, help="Look at every BEAM on this host, whoever runs it.")
@click.option("--port", metavar="HOST:PORT", help="Look at what one listener serves.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@config_option
@click.pass_context
def command(
    ctx: click.Context, whole_host: bool, port: str | None, as_json: bool, config: str | None
) -> None:
    """Looks for what makes a cluster unsafe: files, certificates, cookies, options, live ports, OTP releases.

    With a configuration it looks at that cluster; without one, or with --host, at every BEAM on this host. It
    changes nothing. It knocks at each distribution port as a stranger would: a guarded node refuses and
    reports that.
    """
    if port is not None and (whole_host or config):
        raise click.UsageError("--port looks at one listener alone: leave --host and -c out")
    if whole_host and config:
        raise click.UsageError("--host looks at every BEAM, -c at one cluster: use one of them")
    from distsec.posture.check import judge
    from distsec.posture.finding import exit_code

    facts = _listener(port) if port is not None else _host() if whole_host else _cluster(config)
    findings = judge(facts)
    if as_json:
        document = {"schema": SCHEMA, "findings": [finding.as_dict() for finding in findings]}
        click.echo(json.dumps(document))
    else:
        from distsec.cli.check_view import view
        from distsec.cli.console import console

        console().print(view(findings))
    ctx.exit(exit_code(findings))


def _cluster(config: str | None) -> Facts:
    """Of the configuration; where none was named and there is none, of this host."""
    from distsec.config.load import find_config, load
    from distsec.posture.collect.gather import gather_configuration

    try:
        path = find_config(config, os.environ)
    except ConfigError:
        return _host()
    if not os.path.lexists(path):
        load(path, os.environ)  # says that it is not there, and what to do
    return gather_configuration(
        path,
        os.environ,
        now=time.time(),
        search=os.environ.get("PATH", os.defpath),
        ask=lambda: _status(str(path)),
    )


def _status(path: str) -> tuple[Mapping[str, Any] | None, str]:
    """What the orchestrator says, or why it does not."""
    try:
        return client(path).status(), ""
    except Unavailable:
        return None, "no orchestrator answers"
    except PermissionRefused:
        return None, "this user may not ask the orchestrator"
    except DistsecError as error:
        return None, str(error)


def _host() -> Facts:
    from distsec.posture.collect.gather import gather_host

    return gather_host(now=time.time(), search=os.environ.get("PATH", os.defpath))


def _listener(text: str) -> Facts:
    """Raises UsageError, or Unavailable where nobody listens."""
    from distsec.posture.collect.gather import gather_listener

    found = _PORT.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 65_536:
        raise UsageError(f"{text[:80]!a} is no HOST:PORT", do="write it as 127.0.0.1:9100 or [::1]:9100")
    host, number = found["host"].strip("[]"), int(found["port"])
    try:
        address = str(socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError):
        raise Unavailable("this host is not known", where=host[:80], do="write its address") from None
    facts = gather_listener(address.partition("%")[0], number, now=time.time())
    served = facts.listeners[0].served
    if served is None or not served.reached:
        why = served.error if served else None
        raise Unavailable(f"nothing answers there ({why or 'no connection'})", where=text)
    return facts
