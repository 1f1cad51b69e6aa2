"""Hosts that are network namespaces, with one veth each on a bridge in a namespace of its own.

Nothing of the machine that the tests run on is reached: no namespace has a way out. What runs in one is ended
by whoever started it; the namespaces are removed by name, and their names hold the pid of the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from itertools import count
from types import TracebackType

import pytest

_numbers = count()
PREFIX_4, PREFIX_6 = "10.77.0", "fd77::"


class Network:
    """As many hosts as wanted; the n-th, from 1, has the addresses 10.77.0.n and fd77::n on `eth0`."""

    def __init__(self) -> None:
        self._unique = f"ds{os.getpid()}n{next(_numbers)}"
        self._bridge = f"{self._unique}-net"
        self._namespaces: list[str] = []
        self.hosts: list[NetworkHost] = []
        if os.geteuid() != 0 or shutil.which("ip") is None:
            _cannot("this takes root and iproute2")
        try:
            self._namespace(self._bridge)
            self._in(self._bridge, "link", "add", "br0", "type", "bridge")
            self._in(self._bridge, "link", "set", "br0", "up")
        except subprocess.CalledProcessError as error:
            self.close()
            _cannot(error.stderr.strip())

    def add(self) -> NetworkHost:
        """One more host."""
        number = len(self.hosts) + 1
        name, port = f"{self._unique}-{number}", f"port{number}"
        self._namespace(name)
        self._in(self._bridge, *("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name))
        self._in(self._bridge, "link", "set", port, "master", "br0", "up")
        self._in(name, "link", "set", "lo", "up")
        self._in(name, "addr", "add", f"{PREFIX_4}.{number}/24", "dev", "eth0")
        # nodad: else the address cannot be listened on for the first second
        self._in(name, "addr", "add", f"{PREFIX_6}{number}/64", "dev", "eth0", "nodad")
        self._in(name, "link", "set", "eth0", "up")
        self.hosts.append(NetworkHost(self, name, port, number))
        return self.hosts[-1]

    def plug(self, port: str, state: str) -> None:
        self._in(self._bridge, "link", "set", port, state)

    def _namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)

    def _in(self, namespace: str, *arguments: str) -> None:
        _ip("-n", namespace, *arguments)

    def close(self) -> None:
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NetworkHost:
    def __init__(self, network: Network, namespace: str, port: str, number: int) -> None:
        self._network = network
        self._port = port
        self.address = f"{PREFIX_4}.{number}"
        self.address_6 = f"{PREFIX_6}{number}"
        self.enter = ["nsenter", f"--net=/run/netns/{namespace}", "--"]

    def cut_off(self) -> None:
        """Its cable is pulled out."""
        self._network.plug(self._port, "down")

    def plug_in(self) -> None:
        self._network.plug(self._port, "up")

    def run(self, command: Sequence[str], **how: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.enter, *command], capture_output=True, text=True, timeout=60, **how)  # type: ignore[call-overload,no-any-return]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


def _cannot(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"no network namespaces: {why}")
    pytest.skip(f"no network namespaces: {why}")
