"""A real cluster for a test: real `erl`, the real command, its own directory, and nothing left afterwards.

    with Cluster(otp, beams, nodes=["a", "b", "c"]) as cluster:
        cluster.start()                                    # init, run, wait until every node is RUNNING
        assert cluster.erl("a", "nodes()") == "['b@127.0.0.1','c@127.0.0.1']"
        evil = cluster.intruder("evil", hidden=True, leaf=cluster.leaf("evil"))
        assert not evil.connect("a@127.0.0.1")
        cluster.wait_event("UnauthorizedAccess", reason="not_allowed")

It speaks to the product only as an operator does: files, commands, signals, HTTP.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import tomlkit
from prometheus_client.parser import text_string_to_metric_families

from tests.releases import Otp
from tests.system import intruder as strangers
from tests.system.beam_control import Control
from tests.system.certificates import Leaf, TestAuthority
from tests.system.processes import belonging_to, describe, end_all
from tests.waiting import PATIENCE_SECONDS, OutOfTime, wait_until

HOST = "127.0.0.1"
CARRIER = "distsec"
"""Of every cluster whose test does not say otherwise."""

RUNNING_SECONDS = 60.0
STOP_SECONDS = 60.0
COMMAND_SECONDS = 60.0


class Cluster:
    """One cluster. `nodes` are names without the host; `otp` may map each of them to a release of its own.

    `carrier`: as in the configuration; "inet_tls" where a test is about stock OTP. Without TLS (development
    mode) there is no choice. `host`: what every node is called after, an address of loopback that it listens
    on, or a name; then `address` is what it listens on.
    """

    def __init__(
        self,
        otp: Otp | Mapping[str, Otp],
        beams: Path,
        nodes: Iterable[str] = ("a", "b", "c"),
        *,
        name: str = "demo",
        mode: str = "production",
        carrier: str | None = CARRIER,
        host: str = HOST,
        address: str | None = None,
    ) -> None:
        # short: a Unix socket's path has at most 107 bytes, and pytest's tmp_path uses up most of them
        self.directory = Path(tempfile.mkdtemp(prefix="ds", dir="/tmp"))
        self.beams = beams
        self.name = name
        self.carrier = carrier if mode == "production" else None
        self.host = host
        self.address = address or host
        self.names = list(nodes)
        self.otps = dict(otp) if isinstance(otp, Mapping) else dict.fromkeys(self.names, otp)
        self.config = self.directory / "distsec.toml"
        self.state = self.directory / "state"
        self.enter: list[str] = []
        """What commands begin with: of a cluster in a network namespace what enters that."""
        self.program = list(COMMAND)
        self.surroundings: dict[str, str] = {}
        """What else is in an operator's environment."""
        self.run_arguments: list[str] = []  # of `distsec run`
        self.orchestrator: subprocess.Popen[bytes] | None = None
        self._strangers: list[strangers.Intruder] = []
        self._authority_count = 0
        six = ":" in self.address
        metrics_port, *ports = free_ports(1 + (0 if six else len(self.names)))
        self.metrics_port = metrics_port
        ports = free_ports(len(self.names), self.address) if six else ports
        self.ports = dict(zip(self.names, ports, strict=True))
        self.settings: dict[str, Any] = {
            "cluster": {"name": name, "state_dir": "state", "on_exit": "leave"},
            "security": {
                "mode": mode,
                "distribution": {
                    "allowed_nodes": [self.node(node) for node in self.names],
                    "connect": "mesh",
                },
            },
            "metrics": {"listen": f"{HOST}:{metrics_port}"},
            "nodes": [self._node_table(node) for node in self.names],
        }
        """The configuration: change it, then `write()`."""
        if carrier and mode == "production":
            self.settings["security"]["distribution"]["carrier"] = carrier

    def _node_table(self, node: str) -> dict[str, Any]:
        return {
            "name": self.node(node),
            **({"address": self.address} if self.address != self.host else {}),
            "port": self.ports[node],
            "command": [
                self.otps[node].erl,
                "-noinput",
                *Control.arguments(self.beams, self._control(node).path),
            ],
        }

    # ---- names and places

    def node(self, name: str) -> str:
        """`a` → `a@127.0.0.1`; a full name stays."""
        return name if "@" in name else f"{name}@{self.host}"

    def identity(self, name: str) -> str:
        """The SPIFFE ID that goes with a node name."""
        head, _, host = self.node(name).partition("@")
        return f"spiffe://{self.name}/node/{host.replace(':', '_')}/{head}"

    def port(self, name: str) -> int:
        return self.ports[name.partition("@")[0]]

    def table(self, name: str) -> dict[str, Any]:
        """The `[[nodes]]` table of a node, to be changed before `write()`."""
        table: dict[str, Any] = next(t for t in self.settings["nodes"] if t["name"] == self.node(name))
        return table

    def node_directory(self, name: str) -> Path:
        return self.state / "nodes" / self.node(name)

    def log(self, name: str) -> str:
        """What a node printed."""
        path = self.node_directory(name) / "log" / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _control(self, name: str) -> Control:
        return Control(self.directory / f"{name.partition('@')[0]}.sock")

    # ---- the command

    def write(self) -> None:
        """Writes `settings` as distsec.toml."""
        self.config.write_text(tomlkit.dumps(self.settings))

    def environment(self, **extra: str) -> dict[str, str]:
        """A plain operator's environment."""
        return {
            "HOME": str(self.directory),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "DISTSEC_CONFIG": str(self.config),
            **self.surroundings,
            **extra,
        }

    def distsec(
        self, *arguments: str, check: bool = True, seconds: float = COMMAND_SECONDS, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a `distsec` command to its end; `check` asserts that it exits with 0. `extra`: environment."""
        done = subprocess.run(
            [*self.enter, *self.program, *arguments],
            cwd=self.directory,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if check:
            assert done.returncode == 0, (
                f"distsec {' '.join(arguments)}: {done.returncode}\n{done.stderr}{done.stdout}"
            )
        return done

    def init(self, **extra: str) -> None:
        """Writes the configuration and has `distsec init` make what belongs to it. `extra`: environment."""
        self.write()
        self.distsec("init", str(self.directory), **extra)

    # ---- the orchestrator

    def run(self, **extra: str) -> None:
        """Starts the orchestrator; its JSON lines go to `orchestrator.log`. Waits for nothing.

        `extra`: environment, of the orchestrator alone.
        """
        assert self.orchestrator is None or self.orchestrator.poll() is not None, "it runs already"
        with self.orchestrator_log.open("ab") as output:
            self.orchestrator = subprocess.Popen(
                [*self.enter, *self.program, "run", "-c", str(self.config), *self.run_arguments],
                cwd=self.directory,
                env=self.environment(**extra),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start(self) -> None:
        """init, run, and every node RUNNING with a link to each other one."""
        self.init()
        self.run()
        self.wait_running()
        self.wait_meshed()

    @property
    def orchestrator_log(self) -> Path:
        return self.directory / "orchestrator.log"

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the orchestrator alone."""
        assert self.orchestrator is not None
        self.orchestrator.send_signal(number)

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and the exit code of the orchestrator."""
        self.signal(signal.SIGTERM)
        assert self.orchestrator is not None
        return self.orchestrator.wait(seconds)

    def kill(self) -> None:
        """SIGKILL to the orchestrator alone; the nodes are left as they are."""
        self.signal(signal.SIGKILL)
        assert self.orchestrator is not None
        self.orchestrator.wait(STOP_SECONDS)

    # ---- what it says

    def status(self) -> dict[str, Any]:
        """`distsec status --json`. Raises AssertionError where nobody answers."""
        done = self.distsec("status", "--json", check=False)
        assert done.returncode in {0, 1, 2}, f"status: {done.returncode}\n{done.stderr}{self.story()}"
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def status_of(self, name: str) -> dict[str, Any]:
        """A node's part of the status."""
        return next(node for node in self.status()["nodes"] if node["name"] == self.node(name))

    def states(self) -> dict[str, str]:
        """{"a": "RUNNING", …}; empty where nobody answers yet."""
        done = self.distsec("status", "--json", check=False)
        if done.returncode not in {0, 1, 2}:
            return {}
        return {node["name"].partition("@")[0]: node["state"] for node in json.loads(done.stdout)["nodes"]}

    def links(self) -> set[tuple[str, str]]:
        """{(managed node, peer)}: every link in the status, whatever its verdict; names without host."""
        return {
            (node["name"].partition("@")[0], link["peer"].partition("@")[0])
            for node in self.status()["nodes"]
            for link in node["links"]
        }

    def metrics(self) -> str:
        """The text of /metrics."""
        with urllib.request.urlopen(f"http://{HOST}:{self.metrics_port}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples called `name` that have these labels; 0 where there are none."""
        samples = (s for family in text_string_to_metric_families(self.metrics()) for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def events(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """The JSON lines of all orchestrators so far of this kind that have these fields, oldest first."""
        wanted["event"] = kind
        found = []
        for line in self.orchestrator_lines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if isinstance(event, dict) and all(event.get(key) == value for key, value in wanted.items()):
                    found.append(event)
        return found

    def orchestrator_lines(self) -> list[str]:
        """The whole lines that all orchestrators so far have printed, without one that is being written."""
        if not self.orchestrator_log.exists():
            return []
        text = self.orchestrator_log.read_text(errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()

    def story(self, lines: int = 40) -> str:
        """The end of the orchestrator's and each node's log, for the text of a failure."""
        logs = {"orchestrator": "\n".join(self.orchestrator_lines())}
        logs |= {name: self.log(name) for name in self.names}
        return "".join(
            f"\n---- {name}\n" + "\n".join(text.splitlines()[-lines:]) for name, text in logs.items() if text
        )

    # ---- waiting

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """Waits until `condition` returns something true, and returns it; fails with the whole story."""
        try:
            return wait_until(condition, what, seconds, poll_seconds=0.1)
        except OutOfTime as error:
            raise OutOfTime(f"{error}{self.story()}") from None

    def wait_states(self, seconds: float = RUNNING_SECONDS, **states: str) -> None:
        """Waits until the nodes are in these states, as in wait_states(a="RUNNING", b="FATAL")."""

        def reached() -> bool:
            assert self.orchestrator is None or self.orchestrator.poll() is None, "the orchestrator ended"
            return states.items() <= self.states().items()

        self.wait(reached, f"the states {states}", seconds)

    def wait_running(self, *names: str, seconds: float = RUNNING_SECONDS) -> None:
        """Waits until these nodes (default: all) are RUNNING."""
        self.wait_states(seconds, **dict.fromkeys(names or self.names, "RUNNING"))

    def wait_links(self, *pairs: tuple[str, str], seconds: float = RUNNING_SECONDS) -> None:
        """Waits until the status shows each of these links, at both ends."""
        wanted = {*pairs, *((peer, node) for node, peer in pairs)}
        self.wait(lambda: wanted <= self.links(), f"the links {sorted(wanted)}", seconds)

    def wait_meshed(self, seconds: float = RUNNING_SECONDS) -> None:
        """Waits until every node is linked with every other one."""
        self.wait_links(*((a, b) for a in self.names for b in self.names if a < b), seconds=seconds)

    def wait_well(self) -> None:
        """Until `distsec status` ends with 0: every node runs, is proven, and has the policy of now."""
        self.wait(lambda: self.distsec("status", check=False).returncode == 0, "all to be well")

    def wait_answering(self, *names: str) -> None:
        """Waits until `erl` works in these nodes (default: all): a node may be RUNNING a moment before."""
        for name in names or self.names:
            self.wait(self._control(name).ready, f"{name} to answer")

    def wait_event(self, kind: str, seconds: float = PATIENCE_SECONDS, **wanted: Any) -> dict[str, Any]:
        """Waits for an event of this kind with these fields, and returns the first."""
        found: list[dict[str, Any]] = self.wait(
            lambda: self.events(kind, **wanted), f"the event {kind} {wanted}", seconds
        )
        return found[0]

    # ---- inside and outside

    def erl(self, name: str, expressions: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Evaluates Erlang in a managed node, not over the distribution; the value as text. Waits for one
        that has only just been started.
        """
        return self._control(name).evaluate_soon(expressions, seconds)

    def erl_at_its_end(self, name: str, expressions: str) -> None:
        """As `erl`, for what ends the node or boots it anew: its answer may be lost with it."""
        with contextlib.suppress(ConnectionError):
            self.erl(name, expressions)

    def pid(self, name: str) -> int:
        """The pid of a node's BEAM, as the BEAM says it."""
        return int(self.erl(name, "list_to_integer(os:getpid())"))

    def cookie(self, name: str) -> str:
        """A node's default cookie: what whoever read its files would know."""
        path = strangers.string(str(self.node_directory(name) / "cookie.term"))
        return self.erl(
            name, f"{{ok,[{{distsec_cookies,#{{default := C}}}}]}} = file:consult({path}), binary_to_atom(C)"
        ).strip("'")

    def leaf(self, *names: str, authority: TestAuthority | None = None, **how: Any) -> Leaf:
        """A certificate for node names (or `uris=[…]`), by the cluster's own CA or another `authority`."""
        self._authority_count += 1
        uris = how.pop("uris", [self.identity(name) for name in names])
        issuer = authority or TestAuthority.of_cluster(self.state)
        how.setdefault("host", self.address)
        return issuer.issue(self.directory / "leaves" / str(self._authority_count), uris, **how)

    def intruder(
        self, name: str = "evil", *, leaf: Leaf | None, otp: Otp | None = None, **how: Any
    ) -> strangers.Intruder:
        """Starts a node that nobody manages; it knows every managed node's port. `how`: see Intruder."""
        peers = {self.node(node): port for node, port in self.ports.items()}
        directory = self.directory / f"stranger-{len(self._strangers)}"
        chosen = otp or next(iter(self.otps.values()))
        stranger = strangers.Intruder(
            chosen, self.beams, directory, self.node(name), leaf=leaf, peers=peers, host=self.address, **how
        )
        self._strangers.append(stranger)
        return stranger

    # ---- the end

    def processes(self) -> list[str]:
        """Every process that belongs to this cluster: orchestrator, nodes and their children, strangers."""
        return [describe(pid) for pid in belonging_to(self.directory)]

    def close(self) -> None:
        """Ends everything by pid, whatever state it is in, and removes the directory."""
        if self.orchestrator and self.orchestrator.poll() is None:
            self.kill()  # the orderly ways down have tests of their own; here it must be quick and sure
        for stranger in self._strangers:
            stranger.stop()
        end_all(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _command() -> list[str]:
    script = Path(sys.executable).parent / "distsec"
    return [str(script)] if script.exists() else [sys.executable, "-m", "distsec"]


COMMAND = _command()


def free_ports(count: int, host: str = HOST) -> list[int]:
    """Ports of an address of loopback that were free a moment ago, all different.

    None of those that the kernel takes for connections (ip_local_port_range: from 32768 on), and for each of
    the processes that run tests side by side others, as for what runs beside them by itself (the chaos run):
    what is free now is free when a node comes to listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with contextlib.closing(socket.socket(family)) as each, contextlib.suppress(OSError):
            each.bind((host, port))
            found.append(port)
    return found


def _own_ports() -> Iterator[int]:
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    number = 7 if worker is None else int(worker.removeprefix("gw")) % 7
    first = 10_000 + number * 2_700
    start = random.randrange(2_700)
    yield from (first + (start + step) % 2_700 for step in itertools.count())


_PORTS = _own_ports()
