"""ejabberd as Debian packages it, started from config/examples/ejabberd."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.applications.packaged import Packaged
from tests.releases import Otp
from tests.system.cluster import HOST

CONTROL = Path("/usr/sbin/ejabberdctl")
USER = "ejabberd"
DOMAIN = "localhost"
BOOT_SECONDS = 120.0

_CONFIGURATION = """\
hosts: [{domain}]
loglevel: info
listen:
  -
    port: {port}
    ip: "{host}"
    module: ejabberd_c2s
auth_method: [mnesia]
access_rules:
  local: {{allow: all}}
  c2s: {{allow: all}}
modules: {{mod_roster: {{}}, mod_offline: {{}}}}
"""


class Servers(Packaged):
    def __init__(self, otp: Otp, beams: Path) -> None:
        paths = {
            "/etc/ejabberd": "{here}/etc",
            "/var/lib/ejabberd": "{here}/lib",
            "/var/log/ejabberd": "{here}/log",
        }
        super().__init__("ejabberd", USER, otp, beams, paths)
        example = (self.directory / "ejabberdctl.cfg").read_text()
        for number, name in enumerate(self.names, start=1):
            for kind in ("etc", "lib", "log"):
                (self.directory / kind / str(number)).mkdir(parents=True)
            etc = self.directory / "etc" / str(number)
            (etc / "ejabberdctl.cfg").write_text(example.replace(self.node(self.names[0]), self.node(name)))
            (etc / "ejabberd.yml").write_text(
                _CONFIGURATION.format(domain=DOMAIN, host=HOST, port=self.clients[name])
            )
            shutil.copy("/etc/ejabberd/inetrc", etc)
        self.give(*(self.directory / kind for kind in ("etc", "lib", "log")))

    def tool(self, name: str, *command: str) -> str:
        """What ejabberdctl prints under `distsec exec`."""
        return self.run_tool(name, str(CONTROL), *command).stdout

    def members(self, name: str) -> set[str]:
        """The nodes of the cluster, as that one sees it."""
        return {line.strip("'") for line in self.tool(name, "list_cluster").split()}

    def wait_members(self, seen_by: str, *names: str) -> None:
        """Waits until these are the cluster, as `seen_by` sees it."""
        wanted = {self.node(name) for name in names}
        self.wait(lambda: self.members(seen_by) == wanted, f"{seen_by} to see {names}")

    def wait_registered(self, at: str, *users: str) -> None:
        """Waits until these are all users that a node knows: the others have it of the one that was told."""
        self.wait(
            lambda: self.tool(at, "registered_users", DOMAIN).split() == [*users],
            f"{users} to be {at}'s users",
        )

    def booted(self, *names: str) -> None:
        for name in names or self.names:
            self.wait_tool(name, str(CONTROL), "status", seconds=BOOT_SECONDS)
