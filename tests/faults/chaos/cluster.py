"""The cluster that chaos happens to: nodes with witnesses, an orchestrator that is started again whenever it
ends, and intruders that never stop dialling.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.faults.chaos.ledger import Key, Within
from tests.faults.chaos.links import Sighting, parse
from tests.faults.chaos.place import Disk, loopback_up
from tests.releases import ROOT, Otp
from tests.system.beam_control import BEAM_SOURCES
from tests.system.certificates import TestAuthority
from tests.system.cluster import COMMAND, Cluster
from tests.system.intruder import Intruder, atom, string
from tests.system.processes import end_all
from tests.waiting import PATIENCE_SECONDS

HERE = Path(__file__).resolve().parent

NET_TICKTIME_SECONDS = 4
SEND_EVERY_MS = 250
DIAL_EVERY_MS = 900
"""Of each intruder: often enough that every node is being dialled while anything happens to it, seldom enough
that the log writes every refusal by itself."""

TOOLS = {"names": ["tools-*@127.0.0.1"], "kind": "cli"}
"""A rule that nobody uses: taken away by one reload, and put back by the next."""

FIRST_PORT = 9100
ANSWER_SECONDS = PATIENCE_SECONDS + 10.0
"""For what an Erlang node is asked: longer than it waits itself (beam/distsec_test_chaos.erl)."""

FORBIDDEN = "insider"


def compile_beams(erlc: str, directory: Path) -> None:
    """The agent if it is not yet, and into `directory` the system tests' modules and the witness."""
    build = str(ROOT / "scripts" / "build-agent")
    subprocess.run([build], env={**os.environ, "ERLC": erlc}, check=True, timeout=120)
    sources = sorted(map(str, [*BEAM_SOURCES.glob("*.erl"), *(HERE / "beam").glob("*.erl")]))
    subprocess.run([erlc, "+warnings_as_errors", "-o", str(directory), *sources], check=True, timeout=120)


class Lines:
    """The lines of a file as they come: whole ones only. A file that is not there has none yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def new(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                read = file.read()
        except FileNotFoundError:
            return []
        whole = read[: read.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.decode(errors="replace").splitlines()


class ChaosCluster(Cluster):
    """`runs` counts the orchestrators; each has a log of its own. `disk` None: there is no small disk
    here."""

    def __init__(self, otps: Mapping[str, Otp], beams: Path, *, private: bool) -> None:
        self.runs = 0
        super().__init__(otps, beams, list(otps), name="chaos")
        self.started_at = 0.0
        self.disk: Disk | None = None
        self.memory: Disk | None = None
        seen = self.directory / "seen"
        seen.mkdir()
        self.watched = {name: Lines(seen / f"{name}.links") for name in self.names}
        self.listening: list[tuple[int, Lines]] = []
        self.intruders: dict[str, Intruder] = {}
        if private:
            loopback_up()
            self.disk = Disk(self.state)
            self.memory = Disk(seen)  # a witness that waits for a busy disk writes down the wrong time
            self._fixed_ports()
        self._configure()

    @property
    def orchestrator_log(self) -> Path:
        return self.directory / f"orchestrator-{self.runs}.log"

    def _fixed_ports(self) -> None:
        """In a network of our own: below the ports that connections are made from, so that a node that is
        down finds its port free when it comes back."""
        self.metrics_port = FIRST_PORT - 1
        self.settings["metrics"]["listen"] = f"127.0.0.1:{self.metrics_port}"
        for number, name in enumerate(self.names):
            self.ports[name] = FIRST_PORT + number
            self.table(name)["port"] = FIRST_PORT + number

    def _configure(self) -> None:
        self.settings["security"]["distribution"]["rules"] = [TOOLS]
        self.settings["cluster"]["acknowledge_deadline_seconds"] = 4
        self.settings["logging"] = {"max_bytes": 200_000}
        for name in self.names:
            table = self.table(name)
            table["command"] += [
                *("-kernel", "net_ticktime", str(NET_TICKTIME_SECONDS)),
                *("-run", "distsec_test_chaos", "witness", str(self.watched[name].path), str(SEND_EVERY_MS)),
            ]
            # a node that dies again and again is given up in the end, as it should be; that has tests of its
            # own
            table["restart"], table["restart_intensity"], table["restart_period_seconds"] = "always", 100, 30

    # ---- the orchestrator

    def run(self, **extra: str) -> None:
        """The next one."""
        self.runs += 1
        super().run(**extra)
        self.started_at = time.monotonic()
        self.listening.append((self.runs, Lines(self.orchestrator_log)))

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """New lines of all orchestrators, with the run that wrote them."""
        for run, lines in self.listening:
            for line in lines.new():
                with contextlib.suppress(json.JSONDecodeError):
                    document = json.loads(line)
                    if isinstance(document, dict):
                        yield run, document
        if len(self.listening) > 2:  # what came before the last two has ended, and was read
            del self.listening[:-2]

    def sightings(self, name: str) -> list[Sighting]:
        """What the witness of `name` has written since this was asked last."""
        return [seen for line in self.watched[name].new() if (seen := parse(self.node(name), line))]

    def samples(self, family: str) -> list[Any]:
        """Of /metrics, what is called so."""
        families = text_string_to_metric_families(self.metrics())
        return [each for found in families for each in found.samples if each.name == family]

    # ---- nodes

    def beam_pid(self, name: str) -> int | None:
        """Of the node's BEAM, by the operating system alone: a stopped node does not answer."""
        socket_path = os.fsencode(self._control(name).path)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    arguments = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"beam" in arguments[0] and socket_path in arguments:
                        return int(entry.name)
        return None

    def within(self, name: str, how: str = "within") -> dict[str, Any]:
        """What the node says of itself; "weighed": after a collection. Raises OSError where it does not
        answer, EvalFailed."""
        answer: dict[str, Any] = json.loads(
            json.loads(self._control(name).evaluate(f"distsec_test_chaos:{how}()", seconds=ANSWER_SECONDS))
        )
        return answer

    def echoes(self, name: str, launch: str) -> dict[str, int]:
        """How many refusals of that launch were the orchestrator's own probes, by reason."""
        try:
            found = json.loads((self.node_directory(name) / "probes.json").read_text())
        except FileNotFoundError:
            return {}
        return found["absorbed"] if found["launch"] == launch else {}

    def told(self, name: str) -> Within:
        """For the ledger. Raises as `within`."""
        said = self.within(name)
        counts: dict[Key, int] = {(direction, reason): count for direction, reason, count in said["counts"]}
        return Within(
            said["launch"],
            {"critical": said["critical"], "refusals": said["refusals"]},
            {"critical": said["dropped_critical"], "refusals": said["dropped_refusals"]},
            counts,
            self.echoes(name, said["launch"]),
        )

    # ---- intruders

    def hammer(self, otps: Sequence[Otp]) -> None:
        """Four strangers: what each has, and what it must be refused for, is in REASONS. Anew after the CA
        was rotated, so that what they show is still of the cluster's own."""
        for name in list(self.intruders):
            stranger = self.intruders.pop(name)
            stranger.stop()
            self._strangers.remove(stranger)
        own = TestAuthority.of_cluster(self.state)
        subject = own.certificate.subject.rfc4514_string().removeprefix("CN=")
        first, second = self.names[0], self.names[1]
        leaves = {
            "evil": self.leaf("evil", authority=own),  # of the cluster's CA, and on no list
            "bare": None,  # no certificate
            "foreign": self.leaf(first, authority=TestAuthority.foreign(subject)),  # a look-alike of the CA
            FORBIDDEN: self.leaf(first, authority=own),  # a listed node's certificate, under another's name
        }
        for number, (name, leaf) in enumerate(leaves.items()):
            claimed = second if name == FORBIDDEN else name
            stranger = self.intruder(claimed, leaf=leaf, otp=otps[number % len(otps)], hidden=number % 2 == 1)
            self.intruders[name] = stranger
            victims = ",".join(atom(self.node(each)) for each in self.names if each != claimed)
            stranger.erl(
                f"distsec_test_chaos:hammer([{victims}], {DIAL_EVERY_MS}, {string(str(self.booty))})"
            )
        self.tell_cookies()

    @property
    def booty(self) -> Path:
        """Where nodes that execute what a stranger asks for leave a file."""
        directory = self.directory / "booty"
        directory.mkdir(exist_ok=True)
        return directory

    def tell_cookies(self) -> None:
        """Every intruder knows every node's cookie, as whoever has read its files."""
        for name in self.names:
            with contextlib.suppress(OSError, AssertionError):
                cookie = self.cookie(name)
                for stranger in self.intruders.values():
                    stranger.erl(
                        f"erlang:set_cookie({atom(self.node(name))}, {atom(cookie)})"
                        if stranger.name != self.node(name)
                        else "ok"
                    )

    def pause(self, paused: bool) -> None:
        for stranger in self.intruders.values():
            stranger.erl(f"distsec_test_chaos:pause({str(paused).lower()})")

    def hammered(self) -> dict[str, tuple[int, int, int]]:
        """By intruder: how often it dialled, how often a link came up, and nodeups that it saw."""
        found = {}
        for name, stranger in self.intruders.items():
            text = stranger.erl("distsec_test_chaos:hammered()", seconds=ANSWER_SECONDS)
            tried, linked, ups = json.loads(json.loads(text))
            found[name] = (tried, linked, ups)
        return found

    # ---- processes

    def children(self) -> set[int]:
        """The pids of what this program has started itself and waits for."""
        own = {stranger.process.pid for stranger in self._strangers}
        if self.orchestrator is not None:
            own.add(self.orchestrator.pid)
        return own

    def close(self) -> None:
        for pid in filter(None, map(self.beam_pid, self.names)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.orchestrator and self.orchestrator.poll() is None:
            self.kill()
        for stranger in self._strangers:
            stranger.stop()
        end_all(self.directory)
        for disk in filter(None, (self.disk, self.memory)):  # after the last who writes there
            disk.close()
        super().close()


REASONS = {
    "evil": "not_allowed",
    "bare": "certificate_required",
    "foreign": "unknown_ca",
    FORBIDDEN: "name_not_in_certificate",
}
"""What each intruder is refused for, while the cluster's CA is the one that its certificate was issued by."""


def command(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    """Begins a `distsec` command, as an operator types it."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=cluster.directory,
        env=cluster.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
