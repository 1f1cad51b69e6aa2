"""A cluster whose nodes, and perhaps whose orchestrator, run as users of their own. For root.

The users are Debian's own that nothing uses here: `daemon` and `games` for nodes, `mail` for an orchestrator
that has the four capabilities and is nobody otherwise.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.releases import Otp
from tests.system.cluster import Cluster
from tests.system.open_package import python_of_all, run_from_open_package, use_open_package

ORCHESTRATOR = "mail"
NODE_USERS = {"a": "daemon", "b": "games"}
CAPABILITIES = ("setuid", "setgid", "chown", "kill")


def require_users() -> None:
    """Skips where this cannot be tested; fails there with CI=true."""
    missing = [name for name in (ORCHESTRATOR, *NODE_USERS.values()) if not _exists(name)]
    why = None
    if os.geteuid() != 0:
        why = "only root can make nodes run as other users"
    elif missing:
        why = f"there is no user {missing[0]} on this host"
    elif shutil.which("setpriv") is None:
        why = "setpriv (util-linux) is not installed"
    elif python_of_all() is None:
        why = f"no Python {sys.version_info.major}.{sys.version_info.minor} that other users may run"
    if why is not None and os.environ.get("CI") == "true":
        pytest.fail(why)
    if why is not None:
        pytest.skip(why)


def uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


class UserCluster(Cluster):
    """`orchestrator`: "root", or the name of a user, which then has `capabilities` and no others."""

    def __init__(
        self,
        otp: Otp | Mapping[str, Otp],
        beams: Path,
        nodes: Iterable[str] = ("a", "b"),
        *,
        orchestrator: str = "root",
        capabilities: Iterable[str] = CAPABILITIES,
        **how: Any,
    ) -> None:
        super().__init__(otp, beams, nodes, **how)
        self.user = orchestrator
        self.capabilities = tuple(capabilities)
        for node in self.names:
            self.table(node)["user"] = NODE_USERS[node]
        # Like /tmp: each node makes the socket by which it is asked here (beam_control).
        self.directory.chmod(0o1777)
        use_open_package(self)
        if orchestrator != "root":
            run_from_open_package(self)
            os.chown(self.directory, uid(orchestrator), -1)
            self.enter = self._as_user([])

    def write(self) -> None:
        super().write()
        os.chown(self.config, uid(self.user), -1)

    def run(self, **extra: str) -> None:
        """The orchestrator alone has capabilities, and no command of an operator."""
        before, self.enter = self.enter, self._as_user(self.capabilities)
        try:
            super().run(**extra)
        finally:
            self.enter = before

    def _as_user(self, capabilities: Sequence[str]) -> list[str]:
        if self.user == "root":
            return []
        given = ",".join(["-all", *(f"+{each}" for each in capabilities)])
        return [
            *("setpriv", "--reuid", self.user, "--regid", self.user, "--clear-groups", "--no-new-privs"),
            *(f"--inh-caps={given}", f"--ambient-caps={given}", f"--bounding-set={given}"),
        ]


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
