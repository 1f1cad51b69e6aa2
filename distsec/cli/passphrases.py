"""Options that say where a passphrase is read from. A passphrase itself is never an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distsec.errors import UsageError

if TYPE_CHECKING:
    from distsec.pki.passphrase import Source

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says of a passphrase: the number of an open descriptor, or a file."""

    descriptor: int | None = None
    file: Path | None = None

    def source(self) -> Source | None:
        """None: it says nothing. Raises UsageError if it says two things."""
        from distsec.pki import passphrase

        if self.descriptor is not None and self.file is not None:
            raise UsageError("the passphrase is given twice", do="give a descriptor or a file")
        if self.descriptor is not None:
            return passphrase.from_descriptor(self.descriptor)
        return passphrase.from_file(self.file) if self.file is not None else None


def passphrase_options(command: Command) -> Command:
    """`--passphrase-fd N` and `--passphrase-file FILE`, as `passphrase_fd` and `passphrase_file`."""
    return _options("passphrase", "The passphrase of the CA's key")(command)


def new_passphrase_options(command: Command) -> Command:
    """The same for another one, to seal with: `new_passphrase_fd`, `new_passphrase_file`."""
    return _options("new-passphrase", "The new passphrase")(command)


def key_passphrase_options(command: Command) -> Command:
    """The same for a key that is brought: `key_passphrase_fd`, `key_passphrase_file`."""
    return _options("key-passphrase", "The passphrase of the key that is brought")(command)


def _options(name: str, what: str) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        descriptor = click.option(
            f"--{name}-fd",
            metavar="N",
            type=click.IntRange(0, 65535),
            help=f"{what}: read from this open descriptor.",
        )
        file = click.option(
            f"--{name}-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help=f"{what}: in this file, closed to other users.",
        )
        return file(descriptor(command))

    return decorate


ca_option = click.option(
    "--ca",
    "ca_directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The directory that `distsec init` or `distsec tls init` made. [default: as the configuration says]",
)


ca_option = click.option(
    "--ca",
    "ca_directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="What `distsec init` or `distsec tls init` made. [default: as the configuration says]",
)
