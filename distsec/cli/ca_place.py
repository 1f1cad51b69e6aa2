"""Where a command finds the CA, and what opens its key: for commands that use it without an orchestrator."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from distsec.cli.passphrases import Given
from distsec.errors import UsageError
from distsec.model.cluster import ClusterSpec
from distsec.pki import passphrase
from distsec.pki.keyring import Keyring
from distsec.pki.store import Store

_WHAT, _NEW = "Passphrase of the CA's key", "New passphrase of the CA's key"
_CONFIG_FILE = "distsec.toml"
_STATE = "state"


@dataclass(frozen=True, slots=True)
class CaPlace:
    """The state directory that holds the CA; `spec`: the configuration beside it, if there is one."""

    state: Path
    spec: ClusterSpec | None

    def store(self, given: Given, new: Given | None = None, *, sealing: bool = False) -> Store:
        """Opens it. A passphrase that is needed comes from `given`, else from where the configuration or
        systemd says, else the terminal is asked; one to seal with (`sealing`) from `new`, if there is that.
        """
        standing = passphrase.of_service(os.environ, self.spec.ca_passphrase_file if self.spec else None)
        known = given.source() or standing
        old = known or passphrase.from_terminal(_WHAT)
        fresh = None
        if sealing:
            chosen = known if new is None else new.source()
            fresh = passphrase.once(chosen or passphrase.from_terminal(_NEW, twice=True))
        return Store(self.state, Keyring(passphrase.once(old), fresh))


def find_ca(directory: Path | None, config: str | None) -> CaPlace:
    """`directory`: as `--ca` has it; None: the state directory of the configuration. Raises ConfigError,
    UsageError.
    """
    from distsec.config.load import find_config, load

    if directory is None:
        spec = load(find_config(config, os.environ), os.environ)
        return CaPlace(Path(spec.state_dir), spec)
    if config is not None:
        raise UsageError("both --ca and a configuration are given", do="give one of them")
    if (directory / _CONFIG_FILE).exists():
        spec = load(directory / _CONFIG_FILE, os.environ)
        return CaPlace(Path(spec.state_dir), spec)
    for state in (directory / _STATE, directory):
        if (state / "ca").is_dir():
            return CaPlace(state, None)
    raise UsageError("holds no CA", where=str(directory), do="make one with `distsec tls init`")
