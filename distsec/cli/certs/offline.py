"""`distsec certs renew --offline`: a request for a CA whose key is elsewhere, and its answer."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import click

from distsec.beam.offline import install_answer, take_requests
from distsec.cli.ca_place import find_ca
from distsec.cli.certs.exchange import check_replaceable, read_file, write_file
from distsec.cli.certs.serving import served
from distsec.cli.passphrases import Given
from distsec.cli.status_words import remaining
from distsec.errors import UsageError
from distsec.model.text import escape
from distsec.pki.requests import read_requests


def ask(names: Sequence[str], everything: bool, out: Path | None, config: str | None) -> None:
    """Writes the file that is to be signed. Raises DistsecError."""
    place = find_ca(None, config)
    assert place.spec is not None, "there is a configuration, or ConfigError was raised"
    chosen = [str(node.name) for node in place.spec.nodes] if everything else list(names)
    if not chosen:
        raise UsageError("no node is named", do="name one or more, or use --all")
    if out is None:
        raise UsageError("there is no file for the request", do="add --out FILE")
    check_replaceable(out)
    content = take_requests(place.spec, place.store(Given()), chosen)
    write_file(out, content)
    for each in read_requests(content, place.spec.name, str(out)):
        click.echo(f"{escape(str(each.name))}  key {each.fingerprint}", err=True)
    shown = shlex.quote(str(out))
    click.echo(f"next: where the CA's key is: distsec certs sign {shown} --out ANSWER", err=True)


def bring(answer: Path, config: str | None) -> int:
    """Installs what was signed, and has it served, if an orchestrator runs. Returns the exit code. Raises
    DistsecError.
    """
    place = find_ca(None, config)
    assert place.spec is not None, "there is a configuration, or ConfigError was raised"
    store = place.store(Given())
    done = install_answer(place.spec, store, read_file(answer), str(answer), time.time())
    for each in done:
        left = remaining(each.not_after, time.time())
        how = "was there already" if each.before else "installed"
        click.echo(f"{escape(each.node)}  {each.serial}  {how}, expires {left}")
    new = [each.node for each in done if not each.before]
    if new:
        served(store, new)
    return 0
