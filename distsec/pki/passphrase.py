"""Where the passphrase of the CA's key comes from: a descriptor, a private file, a systemd credential, or a
terminal. Never an argument or the environment, which other processes can read.

A source is a function that asks for it; each raises CaKeyUnavailable, which holds nothing of what was read.
What is read is one line of UTF-8, with or without its end, and is taken as NFC (Unicode Standard Annex 15),
so that it is the same from whatever keyboard.
"""

from __future__ import annotations

import getpass
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from distsec.errors import CaKeyUnavailable, DistsecError
from distsec.model.secret import Secret
from distsec.pki.store import read_private

CREDENTIAL = "distsec-ca-passphrase"
"""`LoadCredential=distsec-ca-passphrase:/path` in the unit (systemd.exec(5), credentials)."""

CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
MAX_BYTES = 1024
_STDERR = 2

Source = Callable[[], Secret]


def from_descriptor(number: int) -> Source:
    """All that the open descriptor `number` gives until its end; read once, and closed."""
    read: list[Secret] = []

    def ask() -> Secret:
        if not read:
            where = f"descriptor {number}"
            try:
                with open(number, "rb", buffering=0, closefd=number > _STDERR) as stream:
                    found = b""
                    while len(found) <= MAX_BYTES and (more := stream.read(MAX_BYTES)):
                        found += more
            except OSError as error:
                raise _unreadable(where, error) from None
            read.append(checked(found, where))
        return read[0]

    return ask


def from_file(path: Path) -> Source:
    """The file at `path`, which must be a regular one, of this user or root, and closed to everybody else."""

    def ask() -> Secret:
        try:
            return checked(read_private(path, MAX_BYTES), str(path))
        except CaKeyUnavailable:
            raise
        except DistsecError as error:
            do = error.do if os.path.lexists(path) else "name the file that holds it"
            raise CaKeyUnavailable(f"no passphrase: {error.what}", where=str(path), do=do) from None

    return ask


def from_credential(environment: Mapping[str, str]) -> Source | None:
    """What systemd hands to the service; None: it hands it none of that name."""
    directory = environment.get(CREDENTIALS_DIRECTORY, "")
    path = Path(directory) / CREDENTIAL
    if not directory.startswith("/") or not os.path.lexists(path):
        return None

    def ask() -> Secret:
        # systemd keeps others out of the directory; the file is root's, with an ACL, or ours.
        try:
            with path.open("rb") as stream:
                return checked(stream.read(MAX_BYTES + 1), str(path))
        except OSError as error:
            raise _unreadable(str(path), error) from None

    return ask


def from_terminal(what: str, twice: bool = False) -> Source | None:
    """Asks on the terminal, without an echo; `twice` for a new one. None: stdin is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None

    def ask() -> Secret:
        first = getpass.getpass(f"{what}: ")
        if twice and getpass.getpass(f"{what}, again: ") != first:
            raise CaKeyUnavailable("the two passphrases differ", do="run it again; nothing was changed")
        return checked(first.encode("utf-8", "surrogateescape"), "the terminal")

    return ask


def once(source: Source | None) -> Source | None:
    """`source`, which is asked for no more than once: for a command that ends soon."""
    if source is None:
        return None
    told: list[Secret] = []

    def ask() -> Secret:
        if not told:
            told.append(source())
        return told[0]

    return ask


def of_service(environment: Mapping[str, str], configured: str | None) -> Source | None:
    """The file that the configuration names, else the credential; None: neither."""
    return from_file(Path(configured)) if configured else from_credential(environment)


def checked(content: bytes, where: str) -> Secret:
    """The passphrase in what was read from `where`."""

    def refused(what: str) -> CaKeyUnavailable:
        return CaKeyUnavailable(f"no passphrase: {what}", where=where, do="give it as one line of text")

    if len(content) > MAX_BYTES:
        raise refused(f"more than {MAX_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise refused("it is no UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise refused("it is empty")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise refused("it holds a control character, or more than one line")
    return Secret(unicodedata.normalize("NFC", text).encode())


def _unreadable(where: str, error: OSError) -> CaKeyUnavailable:
    reason = (os.strerror(error.errno) if error.errno else "unusable").lower()
    return CaKeyUnavailable(f"no passphrase: {reason}", where=where, do="see to it and try again")
