"""`distsec tls init DIR`: the CA alone, as `distsec init` makes it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from distsec.cli.passphrases import Given, passphrase_options


@click.group()
def command() -> None:
    """The CA by itself: for a host that only keeps its key."""


@command.command("init", short_help="Make the CA of a cluster in DIR, and nothing else.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="CLUSTER", help="The cluster's name. [default: after the directory]")
@click.option("--seal", is_flag=True, help="Seal the CA's key with a passphrase.")
@click.option("--successor", is_flag=True, help="For `certs rotate-ca`: a CA with a name of its own.")
@passphrase_options
def init(
    directory: Path,
    name: str | None,
    seal: bool,
    successor: bool,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
) -> None:
    """Make the CA of a cluster in DIR, and nothing else; `distsec init DIR` goes on from there.

    Where DIR has a distsec.toml its cluster and state_dir count. A CA that is there is never replaced.

    \b
    distsec tls init /srv/ca --name shop --seal

    \b
    The CA's key on a host of its own:
      there    distsec tls init /srv/ca --name shop --seal
      here     distsec init . --trust certificate.pem --request ask.pem
      there    distsec certs sign ask.pem --ca /srv/ca --out answer.pem
      here     distsec certs renew --offline --answer answer.pem
    """
    from distsec.cli.ca_place import CaPlace
    from distsec.cli.initialise import CONFIG_FILE, default_name, make_directory
    from distsec.config.load import load
    from distsec.errors import UsageError
    from distsec.model.names import check_trust_domain
    from distsec.model.text import escape
    from distsec.pki.authority import CERTIFICATE_FILE, Authority

    directory = directory.absolute()
    spec = load(directory / CONFIG_FILE, os.environ) if (directory / CONFIG_FILE).exists() else None
    if spec is not None and name not in {None, spec.name}:
        raise UsageError(f"this is cluster {spec.name!r}", where=spec.config_file, do="leave --name out")
    cluster = spec.name if spec else check_trust_domain(name) if name else default_name(directory)
    place = CaPlace(Path(spec.state_dir) if spec else directory / "state", spec)
    make_directory(place.state.parent)
    store = place.store(Given(passphrase_fd, passphrase_file), sealing=seal)
    there = store.exists(CERTIFICATE_FILE)
    with store.locked():
        authority = Authority.create(store, cluster, time.time(), seal=seal, successor=successor)
    click.echo(f"{escape(str(store.path('ca')), limit=4096)}  {'kept' if there else 'made'}")
    click.echo(f"cluster {authority.cluster}, key {authority.key_state}", err=True)
