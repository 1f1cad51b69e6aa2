"""A cluster that is started from `config/examples/NAME` as an operator would take it: the file as it is, but
for the paths that exist here and free ports.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from tests.releases import ROOT, Otp
from tests.system.cluster import HOST, Cluster, free_ports

EXAMPLES = ROOT / "config" / "examples"
TOOL_SECONDS = 180
AWKWARD = "state of 'all' $(x)"
"""A directory that a script which splits words, or has a shell look at them once more, takes apart."""


class Example(Cluster):
    """`paths`: what is replaced in the example's text, each of which must be there. `path`: directories that
    come first on the PATH of everything that is started (an Erlang of another release, say).
    """

    def __init__(
        self, name: str, otp: Otp, beams: Path, paths: Mapping[str, str], *, path: tuple[str, ...] = ()
    ) -> None:
        text = (EXAMPLES / name / "distsec.toml").read_text()
        document = tomlkit.parse(text).unwrap()
        heads = [node["name"].partition("@")[0] for node in document["nodes"]]
        super().__init__(otp, beams, heads, name=document["cluster"]["name"])
        self.search = os.pathsep.join((*path, os.environ["PATH"]))
        for old, new in paths.items():
            assert old in text, f"{old} is not in the example {name}"
            text = text.replace(old, new.replace("{here}", str(self.directory)))
        self.settings = tomlkit.parse(text).unwrap()
        for node in self.settings["nodes"]:
            node["port"] = self.port(node["name"])
        self.settings["metrics"] = {"listen": f"{HOST}:{self.metrics_port}"}
        shutil.copytree(EXAMPLES / name, self.directory, dirs_exist_ok=True)

    def add(self, name: str, command: list[str], *, like: str) -> None:
        """One node more than the example has, as that one but for its name, port and `command`."""
        (self.ports[name],) = free_ports(1)
        self.names.append(name)
        self.otps[name] = self.otps[like]
        table = copy.deepcopy(self.table(like))
        table |= {"name": self.node(name), "port": self.ports[name], "command": command}
        self.settings["nodes"].append(table)
        self.settings["security"]["distribution"]["allowed_nodes"].append(self.node(name))

    def move_state(self, name: str) -> None:
        """The state is in another directory than the example says."""
        self.state = self.directory / name
        self.settings["cluster"]["state_dir"] = name

    def environment(self, **extra: str) -> dict[str, str]:
        return super().environment(**{"PATH": self.search, **extra})

    def ask(self, name: str, expression: str) -> str:
        """What `distsec shell --eval` prints: the only way into a node that the example did not change."""
        return self.distsec("shell", self.node(name), "--eval", expression).stdout.strip()

    def run_tool(
        self, name: str, *command: str, check: bool = True, stdin: str = "", **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """`distsec exec NAME -- COMMAND`."""
        done = subprocess.run(
            [*self.enter, *self.program, "exec", self.node(name), "--", *command],
            cwd=self.directory,
            env=self.environment(**extra),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr}{done.stdout}"
        return done

    def pids(self) -> dict[str, int]:
        return {node["name"]: node["pid"] for node in self.status()["nodes"]}

    def assert_well(self) -> dict[str, Any]:
        """Every node RUNNING and proven, and every link allowed; the status. Waits for what is not well yet,
        and fails at once where a link is not allowed.
        """

        def well() -> dict[str, Any] | None:
            status = self.status()
            links = [link for node in status["nodes"] for link in node["links"]]
            assert {link["verdict"] for link in links} <= {"allow"}, json.dumps(status)
            states = {(node["state"], node["guard"]) for node in status["nodes"]}
            return status if status["healthy"] and links and states == {("RUNNING", "proven")} else None

        status: dict[str, Any] = self.wait(well, "every node to be well")
        return status

    def assert_refuses_a_stranger(self, otp: Otp) -> None:
        """One that is not listed, with a certificate of the cluster's own CA and a node's cookie: no link,
        nothing run, and it is on record.
        """
        victim, marker = self.names[0], self.directory / "was-here"
        leaf = self.leaf("stranger")
        stranger = self.intruder("stranger", leaf=leaf, hidden=True, otp=otp, cookie=self._cookie(victim))
        assert not stranger.execute(self.node(victim), marker)
        assert stranger.links() == "[]"
        self.wait_event("UnauthorizedAccess", node=self.node(victim), reason="not_allowed")

    def _cookie(self, name: str) -> str:
        """A node's default cookie, from its file: as somebody who has read it."""
        text = (self.node_directory(name) / "cookie.term").read_text()
        return text.partition('default => <<"')[2].partition('"')[0]

    def assert_stops_clean(self) -> None:
        """`distsec stop --all`: STOPPED, exit code 0 all the way, and nothing of theirs left."""
        pids = self.pids().values()
        self.distsec("stop", "--all")
        assert set(self.states().values()) == {"STOPPED"}, self.story()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        ends = {event["detail"] for event in self.events("NodeStopped")}
        assert ends == {"exited with status 0"}, self.story()
