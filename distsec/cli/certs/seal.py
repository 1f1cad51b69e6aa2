"""`distsec certs seal` and `distsec certs unseal`: the CA's key at rest."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distsec.cli.options import config_option
from distsec.cli.passphrases import Given, ca_option, new_passphrase_options, passphrase_options

if TYPE_CHECKING:
    from distsec.pki.store import Store


@click.command("seal")
@click.option("--change", is_flag=True, help="Give a key that is sealed another passphrase.")
@new_passphrase_options
@passphrase_options
@ca_option
@config_option
def seal(
    change: bool,
    new_passphrase_fd: int | None,
    new_passphrase_file: Path | None,
    passphrase_fd: int | None,
    passphrase_file: Path | None,
    ca_directory: Path | None,
    config: str | None,
) -> None:
    """Seals the CA's key with a passphrase (Argon2id, AES-256-GCM). Nodes run on without it.

    The passphrase comes from --passphrase-file or --passphrase-fd, from where the configuration or systemd
    keeps it, or is asked for on the terminal, twice. The plain key is removed after the sealed one was read
    back and opened. Interrupted, run it again. A key that is sealed already stays as it is; a passphrase
    that is given has to open it.

    \b
    distsec certs seal
    distsec certs seal --passphrase-fd 3 3< /run/secrets/ca
    distsec certs seal --change --new-passphrase-file /etc/distsec/ca.passphrase
    """
    from distsec.cli.ca_place import find_ca
    from distsec.errors import UsageError
    from distsec.pki.custody import change_passphrase, seal_keys, sealed_files
    from distsec.pki.passphrase import of_service

    new = Given(new_passphrase_fd, new_passphrase_file)
    if not change and new != Given():
        raise UsageError("a new passphrase is given for a key that has none", do="add --change")
    place = find_ca(ca_directory, config)
    given = Given(passphrase_fd, passphrase_file)
    store = place.store(given, new if change else None, sealing=True)
    if change:
        _show(store, change_passphrase(store), "sealed")
    else:
        before = sealed_files(store)
        _show(store, seal_keys(store, prove=given != Given()), "sealed", before)
    if place.spec is not None and of_service(os.environ, place.spec.ca_passphrase_file) is None:
        click.echo(
            "distsec: the orchestrator issues nothing until it has the passphrase:"
            " [certificates.ca] passphrase_file, or the systemd credential distsec-ca-passphrase",
            err=True,
        )


@click.command("unseal")
@passphrase_options
@ca_option
@config_option
def unseal(
    passphrase_fd: int | None, passphrase_file: Path | None, ca_directory: Path | None, config: str | None
) -> None:
    """Takes the seal off the CA's key: whoever reads its file then can issue certificates.

    The sealed file is removed after the plain one was read back. Interrupted, run it again.
    """
    from distsec.cli.ca_place import find_ca
    from distsec.pki.custody import unseal_keys

    store = find_ca(ca_directory, config).store(Given(passphrase_fd, passphrase_file))
    _show(store, unseal_keys(store), "plain")


def _show(store: Store, files: list[str], how: str, before: Collection[str] = ()) -> None:
    """`before`: files that were so before."""
    from distsec.model.text import escape

    for relative in files:
        already = " already" if relative in before else ""
        click.echo(f"{escape(str(store.path(relative)), limit=4096)}  {how}{already}")
