"""What applications of Debian's have in common: each runs as the user that its package makes."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.applications.example import Example
from tests.releases import Otp
from tests.system.cluster import free_ports
from tests.system.open_package import use_open_package


def need_package(program: Path) -> None:
    """CI has it, and is root; elsewhere the test is skipped."""
    missing = None if program.exists() else f"{program.name} is not installed"
    if missing is None and os.geteuid() != 0:
        missing = "only root can start a node as another user"
    if missing is not None:
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)


class Packaged(Example):
    """The example as it is, but for ports, and for paths in place of /etc, /var/lib and /var/log. `clients`:
    the port of each node that is for those of the application.
    """

    def __init__(self, name: str, user: str, otp: Otp, beams: Path, paths: Mapping[str, str]) -> None:
        super().__init__(name, otp, beams, paths)
        self.directory.chmod(0o711)  # the nodes have a user of their own
        use_open_package(self)
        self.user = user
        self.clients = dict(zip(self.names, free_ports(len(self.names)), strict=True))

    def give(self, *trees: Path) -> None:
        """These directories, and all in them, are the user's."""
        owner = pwd.getpwnam(self.user)
        for tree in trees:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, owner.pw_uid, owner.pw_gid)

    def begin(self) -> None:
        """init, run, and the application up in every node."""
        self.init()
        self.run()
        self.wait_running()
        self.booted()

    def booted(self, *names: str) -> None:
        """Waits until the application is up in these nodes (default: all)."""
        raise NotImplementedError

    def wait_tool(self, name: str, *words: str, seconds: float) -> None:
        """Waits until a tool under `distsec exec` ends with 0."""
        self.wait(
            lambda: self.run_tool(name, *words, check=False).returncode == 0,
            f"{' '.join(words)} for {name}",
            seconds,
        )

    def nodes(self, *but: str) -> set[str]:
        """The whole names of all nodes, but for some."""
        return {self.node(name) for name in self.names if name not in but}

    def assert_linked_at_the_first_try(self) -> None:
        """As their user, over proven links, and without an epmd."""
        self.wait_meshed()
        status = self.assert_well()
        assert {node["user"] for node in status["nodes"]} == {self.user}
        assert not self.events("NodeStopped"), "at the first try"
        assert not [each for each in self.processes() if "epmd -daemon" in each]

    def assert_stops_in_good_order(self) -> None:
        """Afterwards nothing runs."""
        self.wait_running()
        pids = list(self.pids().values())
        self.distsec("stop", "--all", seconds=120)
        assert set(self.states().values()) == {"STOPPED"}
        # Of one that was adopted the host's init collects what is left.
        self.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their end")
