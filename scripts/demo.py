"""The demo that scripts/quickstart runs: a cluster, intruders, and what one sees of both.

Starts the cluster of config/demo with the real command, waits until it is whole, has two strangers try to
join it, and checks that both were refused and counted. Uses the product as an operator does, except for the
certificate of the first stranger: no command issues one to a node that is not listed, so the CA is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distsec.beam.provision import distribution_ports
from distsec.config.load import load
from distsec.model.cluster import ClusterSpec
from distsec.model.names import NodeName
from distsec.pki.authority import Authority
from distsec.pki.store import Store

ROOT = Path(__file__).resolve().parent.parent
DISTSEC = [str(Path(sys.executable).parent / "distsec")]
INTRUDER = "intruder@127.0.0.1"

WHOLE_SECONDS = 90.0
COUNTED_SECONDS = 15.0
STOP_SECONDS = 60.0
INTRUDER_SECONDS = 60.0
LONGEST_SOCKET_PATH = 107  # sun_path holds 108 bytes with its NUL (linux/un.h)


class DemoFailed(Exception):
    """Something did not hold; the text says what."""


def say(text: str) -> None:
    print(f"\n── {text}", flush=True)


def wait(condition: Callable[[], Any], what: str, seconds: float, stop: threading.Event) -> Any:
    """Waits until `condition` returns something true, and returns it. Raises DemoFailed after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if stop.is_set():
            raise KeyboardInterrupt
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what}: not within {seconds:.0f} s")
        stop.wait(0.2)
    return value


# ---- the cluster ------------------------------------------------------------------------------------------


def demo_directory() -> Path:
    """./demo in the checkout; where that makes a socket's path too long for Linux, a private one in /tmp."""
    directory = ROOT / "demo"
    if len(os.fsencode(directory / "state/nodes/poller@127.0.0.1/agent.sock")) > LONGEST_SOCKET_PATH:
        directory = Path(tempfile.gettempdir()) / f"distsec-demo-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise DemoFailed(f"{directory} belongs to another user")
    return directory


class Demo:
    """The running demo; `stop` is set by Ctrl-C and SIGTERM."""

    def __init__(self, directory: Path, stop: threading.Event) -> None:
        self.directory = directory
        self.config = directory / "distsec.toml"
        self.log = directory / "orchestrator.log"
        self.stop = stop
        self.orchestrator: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DISTSEC, *arguments],
            env={**os.environ, "DISTSEC_CONFIG": str(self.config)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def prepare(self) -> None:
        """Configuration, CA, keys and certificates; what is there from an earlier run is kept."""
        if self.status():
            raise DemoFailed(f"an orchestrator runs on {self.config} already; end that first")
        shutil.copyfile(ROOT / "config/demo/distsec.toml", self.config)
        done = self.command("init", str(self.directory))
        if done.returncode:
            raise DemoFailed(f"distsec init: {done.stderr.strip()}")

    def start(self) -> None:
        with self.log.open("wb") as output:
            self.orchestrator = subprocess.Popen(
                [*DISTSEC, "run", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us; the orchestrator is then ended in order
            )

    def status(self) -> dict[str, Any] | None:
        """`distsec status --json`, or None where no orchestrator answers."""
        if not self.config.exists():
            return None
        done = self.command("status", "--json")
        if done.returncode not in {0, 1, 2}:
            return None
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def whole(self) -> bool:
        """Whether every node is RUNNING and linked over TLS 1.3 with each other one, and with nobody else."""
        if self.orchestrator and self.orchestrator.poll() is not None:
            raise DemoFailed(f"the orchestrator ended with {self.orchestrator.returncode}; see {self.log}")
        status = self.status()
        if not status or not status["healthy"]:
            return False
        names = {node["name"] for node in status["nodes"]}
        return all(
            node["state"] == "RUNNING"
            and {link["peer"] for link in node["links"]} == names - {node["name"]}
            and all(link["tls_version"] == "tlsv1.3" and link["verdict"] == "allow" for link in node["links"])
            for node in status["nodes"]
        )

    def refusals(self, node: str, reason: str) -> int:
        """How many of this reason the status counts, of links into `node`."""
        rows = (self.status() or {"refusals": []})["refusals"]
        return sum(
            row["count"]
            for row in rows
            if (row["node"], row["reason"], row["direction"]) == (node, reason, "in")
        )

    def end(self) -> None:
        """SIGTERM and everything that follows from it. Raises DemoFailed if anything had to be killed."""
        if self.orchestrator is None:
            return
        self.orchestrator.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.orchestrator.wait(STOP_SECONDS)
        left = list(self.processes())
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left:
            raise DemoFailed(f"left running, and killed: {left}")

    def processes(self) -> Iterator[int]:
        """What this demo has started and still runs: the orchestrator, its nodes and what they started.

        No other process, whatever it knows of the demo: the shell and the editor of whoever looks around name
        its directory as well (DISTSEC_CONFIG).
        """
        if self.orchestrator and self.orchestrator.poll() is None:
            yield self.orchestrator.pid
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                    arguments = (entry / "cmdline").read_bytes().split(b"\0")
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    if any(map(self._in_state, node_directories(arguments, environment))):
                        yield int(entry.name)

    def _in_state(self, path: str) -> bool:
        return os.path.normpath(path).startswith(f"{self.directory / 'state'}/")


def node_directories(arguments: list[bytes], environment: list[bytes]) -> Iterator[str]:
    """The paths that tell whose a process of a node is: distsec gives each node both, and it inherits one."""
    for option, value in itertools.pairwise(arguments):
        if option == b"-distsec_dir":
            yield os.fsdecode(value)
    for entry in environment:
        name, _, value = entry.partition(b"=")
        if name == b"ERL_CRASH_DUMP":
            yield os.fsdecode(value)


# ---- the intruders ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """A stranger: what it has, and the reason that its refusal must be counted under."""

    what: str
    with_certificate: bool
    reason: str


ATTEMPTS = (
    Attempt(
        "an unlisted node with the cookie and a certificate of the demo's own CA",
        True,
        "not_allowed",
    ),
    Attempt("an unlisted node with the cookie and no certificate", False, "certificate_required"),
)

# the cookie is read from the victim's own file, which no stranger could do: the certificate alone must decide
INTRUDE = """
{ok, [{distsec_cookies, #{default := Cookie}}]} = file:consult(os:getenv("COOKIE_FILE")),
Victim = list_to_atom(os:getenv("VICTIM")),
true = erlang:set_cookie(binary_to_atom(Cookie)),
Joined = net_kernel:connect_node(Victim),
Ran = (catch erpc:call(Victim, erlang, node, [], 3000)) =:= Victim,
io:format("joined=~p ran=~p~n", [Joined, Ran]), halt().
"""


def intrude(demo: Demo, spec: ClusterSpec, store: Store, attempt: Attempt, directory: Path) -> None:
    """One attempt on the first node of the demo. Raises DemoFailed unless it was refused and counted."""
    victim = str(spec.nodes[0].name)
    counted = demo.refusals(victim, attempt.reason)
    own = ""
    if attempt.with_certificate:
        key, certificate = Authority.load(store).issue(NodeName.parse(INTRUDER), "127.0.0.1", 1, time.time())
        for name, content in {"key.pem": key.reveal(), "certificate.pem": certificate}.items():
            (directory / name).touch(mode=0o600)
            (directory / name).write_bytes(content)
        own = f'{{certfile,"{directory}/certificate.pem"}},{{keyfile,"{directory}/key.pem"}},'
    optfile = directory / "dist.conf"
    optfile.write_text(f"[{{client,[{own}{{verify,verify_none}},{{versions,['tlsv1.3']}}]}}].\n")
    done = subprocess.run(
        [
            *("erl", "-noinput", "-hidden", "-name", INTRUDER, "-dist_listen", "false"),
            *("-proto_dist", "inet_tls", "-ssl_dist_optfile", str(optfile)),
            *("-start_epmd", "false", "-erl_epmd_port", str(distribution_ports(spec, store)[victim])),
            *("-eval", INTRUDE),
        ],
        cwd=directory,
        env={
            "HOME": str(directory),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "VICTIM": victim,
            "COOKIE_FILE": str(store.path(f"nodes/{victim}/cookie.term")),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INTRUDER_SECONDS,
    )
    if "joined=false ran=false" not in done.stdout.splitlines():
        raise DemoFailed(f"{attempt.what}: {done.stdout.strip() or 'it said nothing'}\n{done.stderr}")
    wait(
        lambda: demo.refusals(victim, attempt.reason) > counted,
        f"{attempt.what}: its refusal being counted as {attempt.reason}",
        COUNTED_SECONDS,
        demo.stop,
    )
    print(f"   refused: {attempt.what}; counted as {attempt.reason}", flush=True)


# ---- all of it --------------------------------------------------------------------------------------------


def metrics_address(spec: ClusterSpec, store: Store) -> str | None:
    """Where /metrics is: as configured, or where the system put it (orchestrator.json)."""
    if spec.metrics_listen is None:
        return None
    host, port = spec.metrics_listen
    if port == 0:
        return f"http://{json.loads(store.read('orchestrator.json'))['metrics']}/metrics"
    return f"http://{host}:{port}/metrics"


def show(demo: Demo, address: str | None) -> None:
    """The status as people see it, and what the metrics say of the intruders (and that none was linked)."""
    say("distsec status")
    subprocess.run([*DISTSEC, "status", "-c", str(demo.config)], stdin=subprocess.DEVNULL)
    if address:
        say(f"metrics: {address}")
        with urllib.request.urlopen(address, timeout=5) as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("distsec_security_refusals_total{")]
        counted = [line for line in lines if not line.endswith(" 0.0")]
        print("\n".join(counted))
        for attempt in ATTEMPTS:
            if not any(f'reason="{attempt.reason}"' in line for line in counted):
                raise DemoFailed(f"the metrics count no {attempt.reason}")
        if any('reason="unlisted_link"' in line for line in counted):
            raise DemoFailed("an unlisted link was up for a moment: see distsec_security_refusals_total")


def perform(demo: Demo) -> None:
    """The demo up to the point where one looks around."""
    demo.prepare()
    spec = load(demo.config, os.environ)
    store = Store(Path(spec.state_dir))
    say(f"starting {len(spec.nodes)} nodes: {', '.join(str(node.name) for node in spec.nodes)}")
    began = time.monotonic()
    demo.start()
    wait(demo.whole, "every node RUNNING and linked with each other one", WHOLE_SECONDS, demo.stop)
    print(f"   all are RUNNING and linked over TLS 1.3, after {time.monotonic() - began:.1f} s", flush=True)
    say("two strangers try to join")
    for attempt in ATTEMPTS:
        with tempfile.TemporaryDirectory(prefix="distsec-intruder-") as directory:
            intrude(demo, spec, store, attempt, Path(directory))
    if not demo.whole():
        raise DemoFailed("after the strangers the cluster is no longer whole")
    show(demo, metrics_address(spec, store))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description="A guarded cluster to look at.")
    parser.add_argument(
        "--once", action="store_true", help="stop at once; exit code 0 only if all of it held"
    )
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    code = 0
    demo = None
    try:
        demo = Demo(demo_directory(), stop)
        perform(demo)
        if not arguments.once:
            say("look around in another terminal, end with Ctrl-C here")
            print(f"   export PATH={Path(sys.executable).parent}:$PATH DISTSEC_CONFIG={demo.config}")
            print("   distsec status --watch · distsec events -f · distsec deny sync@127.0.0.1")
            stop.wait()
    except KeyboardInterrupt:
        code = 130 if arguments.once else 0
    except DemoFailed as failure:
        print(f"\nscripts/quickstart: {failure}", file=sys.stderr)
        if demo and demo.log.exists():
            print(
                "".join(f"   {line}\n" for line in demo.log.read_text().splitlines()[-15:]), file=sys.stderr
            )
        code = 1
    try:
        if demo:
            demo.end()
    except DemoFailed as failure:
        print(f"scripts/quickstart: {failure}", file=sys.stderr)
        code = 1
    if code == 0:
        say(
            "everything held, and nothing is left running"
            if arguments.once
            else "stopped, nothing is left running"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
