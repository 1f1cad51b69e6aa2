"""Sealing the CA's key where it lies, and taking the seal off.

At every moment one of `key.pem` and `key.sealed` is whole: the new one is written, read back and opened
before the old one is removed. Whoever is interrupted leaves both, and running the same again finishes it. A
plain key is overwritten too; what a disk or its snapshots kept of it is not ours to reach.
"""

from __future__ import annotations

from distsec.errors import CaKeyUnavailable, PassphraseWrong, StoreError
from distsec.model.secret import Secret
from distsec.pki.authority import DIRECTORY, key_state, load_ca_key
from distsec.pki.keyring import Keyring, KeyState
from distsec.pki.sealed import read_sealed
from distsec.pki.store import Store

NEXT_DIRECTORY = "ca/next"
"""Where a rotation keeps the CA that is to come (pki.trust)."""

KEY, SEALED = "key.pem", "key.sealed"


def sealed_files(store: Store) -> frozenset[str]:
    """The files of the CA keys that are sealed now. Raises CaKeyUnavailable."""
    sealed = [each for each in _with_keys(store) if key_state(store, each) is KeyState.SEALED]
    return frozenset(f"{directory}/{SEALED}" for directory in sealed)


def seal_keys(store: Store, *, prove: bool = False) -> list[str]:
    """Seals every plain CA key with the keyring's new passphrase. Returns the sealed files, those that were
    sealed already included; `prove`: the passphrase has to open these. Raises CaKeyUnavailable,
    PassphraseWrong, UsageError, StoreError; then nothing is lost.
    """
    with store.locked():
        for relative in sealed_files(store):
            _prove(store, relative, opening=prove)
        return [_seal(store, directory) for directory in _with_keys(store)]


def unseal_keys(store: Store) -> list[str]:
    """Takes the seal off every CA key. Returns the files of the plain keys. Raises like `seal_keys`."""
    with store.locked():
        return [_unseal(store, directory) for directory in _with_keys(store)]


def change_passphrase(store: Store) -> list[str]:
    """Seals every sealed CA key anew, in one step each. Returns the files. Raises like `seal_keys`."""
    with store.locked():
        changed = []
        for directory in _with_keys(store):
            if key_state(store, directory) is not KeyState.SEALED:
                raise StoreError(
                    "is not sealed",
                    where=str(store.path(f"{directory}/{KEY}")),
                    do="use `distsec certs seal`",
                )
            key = load_ca_key(store, directory)
            content = store.keyring.seal(key)
            _opens(store, content, key, f"{directory}/{SEALED}")
            store.write(f"{directory}/{SEALED}", content)
            changed.append(f"{directory}/{SEALED}")
        return changed


def _seal(store: Store, directory: str) -> str:
    plain, sealed = f"{directory}/{KEY}", f"{directory}/{SEALED}"
    if key_state(store, directory) is KeyState.SEALED:
        return sealed
    key = load_ca_key(store, directory)
    # What is there already was made by an interrupted call, or is of another day: it is made anew.
    store.write(sealed, store.keyring.seal(key))
    _opens(store, store.read(sealed), key, sealed)
    store.wipe(plain)
    return sealed


def _unseal(store: Store, directory: str) -> str:
    plain, sealed = f"{directory}/{KEY}", f"{directory}/{SEALED}"
    if key_state(store, directory) is KeyState.SEALED:
        store.create(plain, load_ca_key(store, directory).reveal())
    key = load_ca_key(store, directory)
    if store.exists(sealed):
        _same(store, key, store.keyring.open(store.read(sealed), _where(store, sealed)), sealed)
        store.remove(sealed)
    return plain


def _prove(store: Store, relative: str, *, opening: bool) -> None:
    """Raises unless `relative` is whole, and is opened by the new passphrase where that is to be tried."""
    content, where = store.read(relative), _where(store, relative)
    read_sealed(content, where)
    if opening:
        try:
            Keyring(store.keyring.new_passphrase or store.keyring.passphrase).open(content, where)
        except PassphraseWrong:
            raise PassphraseWrong(
                "it is sealed already, and not with this passphrase",
                where=where,
                do="another passphrase is set by `distsec certs seal --change`",
            ) from None


def _opens(store: Store, content: bytes, key: Secret, relative: str) -> None:
    """Raises unless the new passphrase, asked for by itself, opens `content`, and that is `key`."""
    ring = Keyring(store.keyring.new_passphrase or store.keyring.passphrase)
    _same(store, key, ring.open(content, _where(store, relative)), relative)


def _same(store: Store, key: Secret, other: Secret, relative: str) -> None:
    if key != other:
        raise StoreError(
            "holds another key than key.pem beside it",
            where=_where(store, relative),
            do="see which one is yours",
        )


def _with_keys(store: Store) -> list[str]:
    """The directories of CAs whose key is here, the present one first. CaKeyUnavailable if its is not."""
    if key_state(store, DIRECTORY) is KeyState.ELSEWHERE:
        raise CaKeyUnavailable(
            "the CA's key is not on this host", where=_where(store, DIRECTORY), do="run it where the key is"
        )
    coming = key_state(store, NEXT_DIRECTORY) is not KeyState.ELSEWHERE
    return [DIRECTORY, NEXT_DIRECTORY] if coming else [DIRECTORY]


def _where(store: Store, relative: str) -> str:
    return str(store.path(relative))
