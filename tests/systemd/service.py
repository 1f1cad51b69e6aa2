"""A cluster inside a Machine, as its operator sees it: systemctl, distsec, the journal."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.systemd.machine import Machine
from tests.waiting import OutOfTime, wait_until

UP_SECONDS = 120.0
NODES = ("a@127.0.0.1", "b@10.77.0.2")
CONFIG = "/etc/distsec/distsec.toml"
CREDENTIAL = "/etc/credstore/distsec-ca-passphrase"
ADDRESS = "10.77.0.2"
"""Beyond loopback for IPAddressDeny=; on `lo` of the machine."""

ADDRESS_UNIT = f"""\
# A network that takes its time, as DHCP does.
[Unit]
DefaultDependencies=no
Before=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'sleep 0.7; ip addr add {ADDRESS}/32 dev lo; ip addr add 10.77.0.3/32 dev lo'
[Install]
WantedBy=network-online.target
"""


def configuration(
    nodes: Iterable[str] = NODES,
    *,
    name: str = "demo",
    state: str = "/var/lib/distsec",
    metrics: int = 9911,
    allowed: Iterable[str] = (),
    tables: Mapping[str, str] | None = None,
) -> str:
    """A distsec.toml. `tables`: further lines for the [[nodes]] of some."""
    listed = json.dumps([*nodes, *allowed])
    text = f"""\
[cluster]
name = "{name}"
state_dir = "{state}"
[security]
mode = "production"
[security.distribution]
allowed_nodes = {listed}
[metrics]
listen = "127.0.0.1:{metrics}"
"""
    for node in nodes:
        lines = (tables or {}).get(node, 'command = ["erl", "-noinput"]')
        text += f'[[nodes]]\nname = "{node}"\n{lines}\n'
    return text


@dataclass(slots=True)
class Service:
    """`unit` with the configuration at `config`; `nodes` are those that it starts."""

    machine: Machine
    unit: str = "distsec.service"
    config: str = "/etc/distsec/distsec.toml"
    nodes: tuple[str, ...] = field(default=NODES)

    @property
    def nodes_unit(self) -> str:
        return self.unit.replace("distsec", "distsec-nodes", 1)

    def up(self) -> None:
        """Everything runs, whatever the test before left."""
        self.machine.run("systemctl", "reset-failed")
        started = self.machine.run("systemctl", "start", self.unit, self.nodes_unit, check=False)
        assert started.returncode == 0, self.machine.messages("-n", "60")
        self.wait_well()

    def wait_well(self) -> None:
        try:
            wait_until(self.is_well, f"{self.unit} to be well", UP_SECONDS, poll_seconds=0.2)
        except OutOfTime as error:
            raise OutOfTime(f"{error}\n{self.machine.messages('-n', '60')}") from None

    def distsec(self, *words: str, check: bool = True) -> Any:
        return self.machine.run("distsec", *words, "-c", self.config, check=check)

    def status(self) -> dict[str, Any]:
        """`distsec status --json`; {} where no orchestrator answers."""
        done = self.distsec("status", "--json", check=False)
        document: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return document

    def is_well(self) -> bool:
        """Every one of `nodes` is RUNNING and linked with every other one."""
        found = [node for node in self.status().get("nodes", []) if node["name"] in self.nodes]
        return len(found) == len(self.nodes) and all(
            node["state"] == "RUNNING"
            and {node["name"], *(link["peer"] for link in node["links"])} >= set(self.nodes)
            for node in found
        )

    def pids(self) -> dict[str, int]:
        return {node["name"]: node["pid"] for node in self.status()["nodes"]}

    def links(self) -> dict[tuple[str, str], float]:
        """(node, peer) → since when the link is up; without those of shells, which come and go."""
        nodes = self.status()["nodes"]
        names = {node["name"] for node in nodes}
        return {
            (node["name"], link["peer"]): link["since"]
            for node in nodes
            for link in node["links"]
            if link["peer"] in names
        }

    def wait_ended(self, pids: Iterable[int]) -> None:
        """Waits until there are no such processes. Of those that were taken over the machine's own init
        collects what is left, in its own time.
        """
        for pid in pids:
            wait_until(
                lambda pid=pid: self.machine.run("kill", "-0", str(pid), check=False).returncode != 0,  # type: ignore[misc]
                f"the end of process {pid}",
                poll_seconds=0.2,
            )

    def main_pid(self) -> int:
        return int(self.machine.show(self.unit, "MainPID"))

    def evaluate(self, node: str, expression: str) -> str:
        """What an expression is on a node."""
        printed: str = self.distsec("shell", node, "--eval", expression).stdout
        return printed.strip()

    def inside(self, node: str, script: str) -> str:
        """What a shell script prints that a node starts: as its user and in its sandbox."""
        printed = self.evaluate(
            node, f"base64:encode(unicode:characters_to_binary(os:cmd({json.dumps(script)})))"
        )
        return base64.b64decode("".join(re.findall(r'"([A-Za-z0-9+/=]*)"', printed))).decode()


def since(machine: Machine) -> list[str]:
    """Options of journalctl for what comes from now on."""
    cursor = machine.run("journalctl", "-n", "1", "--show-cursor", "-o", "cat").stdout
    found = re.search(r"-- cursor: (.*)", cursor)
    assert found
    return [f"--after-cursor={found.group(1)}"]


def assert_untouched(
    service: Service, cursor: list[str], pids: dict[str, int], links: dict[tuple[str, str], float]
) -> None:
    """Nodes and links are those from before, and no node saw another one go."""
    service.wait_well()
    assert service.pids() == pids
    assert service.links() == links
    between_nodes = [
        entry
        for entry in service.machine.journal(*cursor, "DISTSEC_EVENT=NodeDown")
        if entry.get("DISTSEC_PEER") in NODES
    ]
    assert between_nodes == []
