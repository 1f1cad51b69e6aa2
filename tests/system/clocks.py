"""Wall clocks of their own for the processes of a cluster, set while they run.

    clocks = Clocks(cluster, "a", RUN)      # node a has one, and the orchestrator
    clocks.start()
    clocks.set(-DAY, "a")                   # a day behind from now on; returns when a has noticed and said so

Debian's libfaketime, preloaded into these processes and what they start. Only the wall clock is another, as
it is where somebody sets it; what runs by CLOCK_MONOTONIC and CLOCK_BOOTTIME, and the times of files, are the
right ones. CA and certificates are nine and a half days old when the cluster starts, and end in half a day.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.catalogue.dialogue import HIDDEN, Wire, name_frame
from tests.system.certificates import Leaf
from tests.system.cluster import Cluster
from tests.system.intruder import tls

DAY = 86_400
RUN = ""
"""The orchestrator, among the names of nodes; it reports its own steps as those of no node."""

GUEST = "d"
"""A name that the policy lists and nobody runs."""


def library() -> str:
    """Where libfaketime is. Skips the test without it; with CI=true that is a failure."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        if os.environ.get("CI") == "true":
            pytest.fail("libfaketime is missing: scripts/prepare dev installs it")
        pytest.skip("libfaketime is not installed")
    return str(found[0])


class FakeClock:
    """`file` is read by the process whenever it asks for the time. `seconds`: how far ahead it is."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._library = library()
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """Of the process."""
        return {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, seconds: int) -> None:
        """So many seconds ahead of the right time from now on; below 0: behind it."""
        self.seconds = seconds
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self.file)  # never half a number


class Clocks:
    """Of those that are named: nodes, and RUN. See the module."""

    def __init__(self, cluster: Cluster, *names: str) -> None:
        self.cluster = cluster
        self._clocks = {
            name: FakeClock(cluster.directory / f"{name or 'run'}.clock") for name in (*names, RUN)
        }

    def start(self) -> None:
        """init, run, and every node RUNNING and meshed."""
        for name, clock in self._clocks.items():
            if name != RUN:
                self.cluster.table(name)["environment"] = clock.environment
        for name in self.cluster.names:  # a link that ends ends alone: `global` would end others with it
            self.cluster.table(name)["command"] += ["-kernel", "prevent_overlapping_partitions", "false"]
        self.cluster.settings["security"]["distribution"]["allowed_nodes"].append(self.cluster.node(GUEST))
        self.cluster.settings["certificates"] = {"days": 10, "renew_before_seconds": 3600}
        own = self._clocks[RUN]
        own.set(-9 * DAY - DAY // 2)
        self.cluster.init(**own.environment)
        own.set(0)
        self.cluster.run(**own.environment)
        self.cluster.wait_running()
        self.cluster.wait_meshed()

    def set(self, seconds: int, *names: str) -> None:
        """Sets these clocks (default: all) to so many seconds ahead of the right time, at once."""
        steps = {name: seconds - self._clocks[name].seconds for name in names or self._clocks}
        known = {name: len(self.steps(name)) for name in steps}
        for name in steps:
            self._clocks[name].set(seconds)
        for name, step in steps.items():
            if step:
                self._noticed(name, step, known[name])

    def _noticed(self, name: str, step: int, known: int) -> None:
        def told() -> bool:
            return len(self.steps(name)) > known

        self.cluster.wait(told, f"{name or 'the orchestrator'} to tell of the step")
        [event] = self.steps(name)[known:]
        assert (event["reason"], event["level"]) == ("ahead" if step > 0 else "back", "warning")
        assert abs(event["seconds"] - abs(step)) <= 2

    def steps(self, name: str) -> list[dict[str, Any]]:
        """What was told of that clock so far."""
        node = self.cluster.node(name) if name else ""
        return [event for event in self.cluster.events("ClockStepped") if event.get("node", "") == node]


def guest(cluster: Cluster, valid_from: timedelta, valid_to: timedelta) -> Leaf:
    """A certificate of the cluster's CA for the guest; both are counted from the right time."""
    return cluster.leaf(GUEST, valid_from=valid_from, valid_for=valid_to - valid_from)


def knock(cluster: Cluster, name: str, leaf: Leaf) -> str:
    """What a node says of a certificate that is shown to it: the reason of its refusal, or "admitted".

    Whom it answers, whatever it answers, has shown one that will do (tests/system/test_carrier_gates.py).
    """

    def refusals() -> list[dict[str, Any]]:
        return cluster.events("CertificateValidationFailed", node=cluster.node(name), serial=leaf.serial)

    known = len(refusals())
    with contextlib.suppress(OSError), tls(cluster.port(name), leaf) as connection:
        Wire(connection, "").send(name_frame(cluster.node(GUEST).encode(), HIDDEN))
        if connection.recv(1):
            return "admitted"
    cluster.wait(lambda: len(refusals()) > known, "the refusal to be told of")
    [event] = refusals()[known:]
    assert event["direction"] == "in"
    reason: str = event["reason"]
    return reason


def relink(cluster: Cluster, name: str, peer: str) -> None:
    """Ends a link from one end, and returns when there is another in its place: when both ends have told of
    the end, since the status may show the old link until then.
    """
    ends = [(cluster.node(name), cluster.node(peer)), (cluster.node(peer), cluster.node(name))]

    def downs() -> list[int]:
        return [len(cluster.events("NodeDown", node=node, peer=other)) for node, other in ends]

    known = downs()
    assert cluster.erl(name, f"erlang:disconnect_node('{cluster.node(peer)}')") == "true"
    cluster.wait(lambda: all(now > then for now, then in zip(downs(), known, strict=True)), "the link to end")
    cluster.wait_meshed()


def pids(cluster: Cluster) -> dict[str, int]:
    return {node["name"]: node["pid"] for node in cluster.status()["nodes"]}
