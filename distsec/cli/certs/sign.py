"""`distsec certs sign FILE --out ANSWER`: where the CA's key is."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distsec.cli.options import config_option
from distsec.cli.passphrases import Given, ca_option, passphrase_options

if TYPE_CHECKING:
    from distsec.pki.requests import Request

DAYS = 365
"""Where neither --days nor a configuration says otherwise."""


@click.command("sign")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--out", metavar="ANSWER", type=click.Path(path_type=Path), required=True, help="The answer.")
@click.option("--days", type=click.IntRange(1, 3650), help="Their lifetime. [default: as configured, or 365]")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@passphrase_options
@ca_option
@config_option
def command(
    file: Path,
    out: Path,
    days: int | None,
    yes: bool,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
    ca_directory: Path | None,
    config: str | None,
) -> None:
    """Signs the requests that `distsec certs renew --offline NODE... --out FILE` wrote on another host.

    Shows who asks with which key, and asks before it signs; compare the keys with what was shown there. What
    is signed follows from the names alone: whatever else a request wants, it does not get. One request that
    is not in order, and none is signed.

    \b
    distsec certs sign ask.pem --out answer.pem --ca /srv/ca
    """
    from distsec.cli.ca_place import find_ca
    from distsec.cli.certs.exchange import check_replaceable, read_file, write_file
    from distsec.errors import UsageError
    from distsec.pki import trust
    from distsec.pki.authority import Authority
    from distsec.pki.issued import keep_issued
    from distsec.pki.requests import read_requests

    check_replaceable(out)
    place = find_ca(ca_directory, config)
    store = place.store(Given(passphrase_fd, passphrase_file))
    authority = Authority.load(store, trust.issuing_directory(store))
    authority.check(store, authority.cluster, time.time())
    requests = read_requests(read_file(file), authority.cluster, str(file))
    _show(requests, authority.cluster)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to be asked", do="look at what is shown, then add --yes")
        click.confirm(f"Sign {'it' if len(requests) == 1 else f'these {len(requests)}'}?", abort=True)
    lifetime = days or (place.spec.certificate_days if place.spec is not None else DAYS)
    answer = b""
    for each in requests:
        pem = authority.certify_public(each.public, each.name, each.address, lifetime, time.time())
        if place.spec is None or place.spec.node(str(each.name)) is None:
            keep_issued(store, pem, time.time())  # first: it is known here before it can be used
        answer += f"# {each.name}, key {each.fingerprint}\n".encode() + pem
    write_file(out, answer)
    click.echo(f"{len(requests)} signed, for {lifetime} days at most", err=True)


def _show(requests: tuple[Request, ...], cluster: str) -> None:
    from distsec.model.text import escape

    for each in requests:
        click.echo(escape(str(each.name)))
        click.echo(f"  identity  {escape(each.name.identity(cluster), 512)}")
        click.echo(f"  address   {escape(each.address)}")
        click.echo(f"  key       ECDSA {each.public.curve.name}")
        click.echo(f"            {each.fingerprint}")
        if each.ignored:
            click.echo(f"  not given {', '.join(each.ignored)}")
