"""A host of a cluster of several: its nodes, its own state directory and orchestrator, in its own network."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distsec.control.client import ControlClient
from distsec.errors import NotAcknowledged, Unavailable
from tests.hosts.network import NetworkHost
from tests.releases import Otp
from tests.system import intruder as strangers
from tests.system.certificates import Leaf
from tests.system.cluster import RUNNING_SECONDS, Cluster
from tests.waiting import wait_until

TICK_SECONDS = 4
"""net_ticktime of the nodes, so that a host that is cut off is noticed within seconds."""


class Host(Cluster):
    """A part of a cluster: `nodes` on the network's host `where`, called after its IPv4 address."""

    def __init__(
        self, where: NetworkHost, otp: Otp | Mapping[str, Otp], beams: Path, nodes: Iterable[str]
    ) -> None:
        super().__init__(otp, beams, nodes, host=where.address)
        self.where = where
        self.enter = where.enter
        for table in self.settings["nodes"]:
            table["command"] += ["-kernel", "net_ticktime", str(TICK_SECONDS)]

    # ---- set up, as docs/hosts.md has it

    def found(self) -> Path:
        """The first host: its CA's certificate."""
        self.init()
        bundle = self.directory / "ca.pem"
        self.distsec("certs", "export", "--ca", "--out", str(bundle))
        return bundle

    def join(self, first: Host, bundle: Path) -> None:
        """A further host, whose certificates the first one signs."""
        self.write()
        ask, answer = self.directory / "ask.pem", self.directory / "answer.pem"
        directory = str(self.directory)
        self.distsec("init", directory, "--trust", str(bundle), "--request", str(ask))
        first.distsec("certs", "sign", str(ask), "--out", str(answer), "--yes")
        self.distsec("certs", "renew", "--offline", "--answer", str(answer))

    def export(self, *arguments: str) -> Path:
        """A new document of this host, called after its number."""
        path = self.directory / "export.json"
        self.distsec(
            "export", "--host", f"host-{self.host.rpartition('.')[2]}", "--out", str(path), *arguments
        )
        kept = self.directory / f"export-{json.loads(path.read_text())['export']['serial']}.json"
        shutil.copy(path, kept)
        return kept

    def take(self, *documents: Path) -> None:
        """Imports them; again while a node has not acknowledged it, as the command itself says."""
        for document in documents:
            until = time.monotonic() + RUNNING_SECONDS
            while (done := self.distsec("import", "--yes", str(document), check=False)).returncode:
                assert done.returncode == NotAcknowledged.exit_code, f"{done.returncode}\n{done.stderr}"
                assert time.monotonic() < until, done.stderr

    # ---- what is seen from outside

    def metrics(self) -> str:
        """As Cluster.metrics; they are served on this host's own loopback."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        ask = f"import urllib.request as u; print(u.urlopen('{url}', timeout=30).read().decode())"
        done = self.where.run([sys.executable, "-c", ask])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stranger(
        self, where: NetworkHost, name: str, leaf: Leaf | None, peers: Mapping[str, int], **how: Any
    ) -> strangers.Intruder:
        """A node on `where`, that knows `peers`."""
        directory = self.directory / f"stranger-{len(self._strangers)}"
        stranger = strangers.Intruder(
            next(iter(self.otps.values())),
            self.beams,
            directory,
            name,
            leaf=leaf,
            peers=peers,
            enter=where.enter,
            **how,
        )
        self._strangers.append(stranger)
        return stranger


def answered(host: Host) -> dict[str, Any]:
    """The status of a host, once its orchestrator answers: it may have been started a moment ago."""

    def ask() -> dict[str, Any] | None:
        with contextlib.suppress(Unavailable):
            return ControlClient(f"{host.state}/control.sock").status()
        return None

    return wait_until(ask, f"the orchestrator of {host.host} to answer")


def linked(hosts: Iterable[Host]) -> set[tuple[str, str]]:
    """Every link that some host's status shows: (its node, the peer), in whole names."""
    return {
        (node["name"], link["peer"])
        for host in hosts
        for node in answered(host)["nodes"]
        for link in node["links"]
        if link["verdict"] == "allow"
    }


def mesh(hosts: Iterable[Host]) -> set[tuple[str, str]]:
    names = [host.node(name) for host in hosts for name in host.names]
    return {(one, other) for one in names for other in names if one != other}
