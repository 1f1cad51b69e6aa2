"""What `distsec run` does around the supervisor: one at a time, its record, errors, and word to systemd."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distsec.beam import proc
from distsec.control.client import ControlClient
from distsec.daemon import STRAY_LINES, STRAY_SECONDS, Strays, notify, only_one, raise_open_files, run
from distsec.errors import StoreError, Unavailable
from distsec.observe.log import make_logger
from distsec.pki.store import Store
from distsec.supervisor import Supervisor
from tests.waiting import wait_until

CONFIG = """
[cluster]
name = "demo"
state_dir = "state"
on_exit = "stop"
[security]
mode = "production"
[security.distribution]
allowed_nodes = ["a@127.0.0.1"]
[metrics]
listen = "127.0.0.1:{metrics}"
[[nodes]]
name = "a@127.0.0.1"
{command}
port = {port}
"""


class Daemon:
    """A cluster of one node, which something else would start, and the orchestrator as a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "distsec.toml"
        self.state = directory / "state"
        self.process: subprocess.Popen[bytes] | None = None
        self.write()

    def write(self, text: str = CONFIG, **fields: object) -> None:
        given = {"metrics": 0, "command": "", "port": free_port(), **fields}
        self.config.write_text(text.format(**given))

    def start(self, **environment: str) -> None:
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from distsec.cli import main; main()", "run", "-c", str(self.config)],
                stderr=log,
                env={**os.environ, **environment},
            )

    def log(self) -> list[dict[str, Any]]:
        """The JSON lines of its log."""
        lines = (self.directory / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, event: str, **fields: object) -> dict[str, Any] | None:
        for line in self.log():
            if line["event"] == event and all(line.get(key) == value for key, value in fields.items()):
                return line
        return None

    def ready(self) -> dict[str, Any]:
        assert self.process is not None
        wait_until(lambda: self.logged("ready") or self.process.poll() is not None, "the line `ready`", 30)  # type: ignore[union-attr]
        found = self.logged("ready")
        assert found is not None, self.told()
        return found

    def client(self) -> ControlClient:
        return ControlClient(str(self.state / "control.sock"))

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(30)

    def told(self) -> str:
        """What it says on stderr that is no line of the log."""
        lines = (self.directory / "log").read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("{"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    # short: a Unix socket's path has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        made = Daemon(Path(directory))
        yield made
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def test_says_where_it_is_while_it_runs_and_leaves_no_trace(daemon: Daemon) -> None:
    daemon.start()
    ready = daemon.ready()
    assert daemon.process is not None
    record = json.loads((daemon.state / "orchestrator.json").read_text())
    assert record["schema"] == 1
    assert record["pid"] == daemon.process.pid
    assert record["start_time"] == proc.start_time(daemon.process.pid)
    assert len(record["nonce"]) == 32
    assert record["metrics"] == ready["metrics"]
    assert record["control"] == str(daemon.state / "control.sock")
    assert daemon.client().status()["cluster"] == "demo"
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert not (daemon.state / "orchestrator.json").exists()
    assert not (daemon.state / "control.sock").exists()
    with pytest.raises(Unavailable):
        daemon.client().status()


def test_a_second_orchestrator_is_told_who_runs_here(daemon: Daemon) -> None:
    daemon.start()
    daemon.ready()
    first = daemon.process
    assert first is not None
    second = subprocess.run(
        [sys.executable, "-c", "from distsec.cli import main; main()", "run", "-c", str(daemon.config)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode == StoreError.exit_code
    assert f"another orchestrator runs here (pid {first.pid})" in second.stderr
    assert first.poll() is None


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    with only_one(store), pytest.raises(StoreError, match="another orchestrator"), only_one(store):
        pass
    with only_one(store):
        pass


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"metrics": "taken"}, 71, "[metrics] listen"),
        ({"port": "taken", "command": 'command = ["erl"]'}, 71, "the port is in use"),
        ({"command": 'command = ["no-such-program"]'}, 72, "no-such-program is not on the PATH"),
        ({"text": "[cluster\n"}, 78, "distsec.toml"),
        ({"text": CONFIG + "\n[nonsense]\n"}, 78, "nonsense"),
    ],
)
def test_what_is_wrong_beforehand_is_one_line_and_nothing_is_started(
    daemon: Daemon, fields: dict[str, str], code: int, text: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon.write(**{key: port if value == "taken" else value for key, value in fields.items()})  # type: ignore[arg-type]
        daemon.start()
        assert daemon.ended() == code
    assert text in daemon.told()
    assert len(daemon.told().splitlines()) == 1
    assert daemon.logged("NodeStarted") is None
    assert not (daemon.state / "orchestrator.json").exists()


def test_a_reload_takes_a_good_configuration_and_keeps_the_old_one_over_a_bad(daemon: Daemon) -> None:
    daemon.start()
    daemon.ready()
    assert daemon.process is not None
    text = daemon.config.read_text()
    daemon.config.write_text(text + '\n[[nodes]]\nname = "b@127.0.0.1"\n')
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.logged("ConfigurationReloaded", result="allow"), "the reload")
    assert [node["name"] for node in daemon.client().status()["nodes"]] == ["a@127.0.0.1", "b@127.0.0.1"]
    daemon.config.write_text(text.replace('"demo"', '"other"'))
    daemon.process.send_signal(signal.SIGHUP)
    refused = wait_until(lambda: daemon.logged("ConfigurationReloaded", result="deny"), "the refusal")
    assert "cluster.name" in refused["detail"]
    daemon.config.write_text("[cluster\n")
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: sum(line["event"] == "ConfigurationReloaded" for line in daemon.log()) == 3, "the third"
    )
    assert daemon.client().status()["cluster"] == "demo"
    assert len(daemon.client().status()["nodes"]) == 2


def test_a_reload_whose_new_node_has_no_agent_socket_changes_nothing(daemon: Daemon) -> None:
    daemon.start()
    daemon.ready()
    assert daemon.process is not None
    foreign = daemon.state / "nodes" / "b@127.0.0.1" / "agent.sock"
    foreign.parent.mkdir(mode=0o700)
    foreign.write_text("not a socket")
    text = daemon.config.read_text().replace('name = "a@', 'name = "c@', 1)
    daemon.config.write_text(text + '\n[[nodes]]\nname = "b@127.0.0.1"\nuser = "somebody"\n')
    daemon.process.send_signal(signal.SIGHUP)
    refused = wait_until(lambda: daemon.logged("ConfigurationReloaded", result="deny"), "the refusal")
    assert "agent.sock" in refused["detail"]
    status = daemon.client().status()
    assert [node["name"] for node in status["nodes"]] == ["a@127.0.0.1"]
    assert foreign.read_text() == "not a socket"
    foreign.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.logged("ConfigurationReloaded", result="allow"), "the reload")
    assert [node["name"] for node in daemon.client().status()["nodes"]] == ["c@127.0.0.1", "b@127.0.0.1"]
    assert daemon.logged("not_enforced", key="nodes[1].user")


def test_tells_systemd_when_it_is_ready_reloading_and_stopping(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = str(daemon.directory / "notify")
        systemd.bind(path)
        systemd.settimeout(30)
        daemon.start(NOTIFY_SOCKET=path)
        assert systemd.recv(100) == b"READY=1"
        daemon.ready()
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        assert systemd.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(100) == b"READY=1"
        daemon.process.send_signal(signal.SIGTERM)
        assert systemd.recv(100) == b"STOPPING=1"
        assert daemon.ended() == 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_libraries_say_are_lines_of_the_log_and_not_too_many() -> None:
    stream, clock = io.StringIO(), Clock()
    strays = Strays(make_logger(stream), clock)
    with strays.caught():
        for number in range(STRAY_LINES + 30):
            logging.getLogger("aiohttp.server").error("request %d\n\x1b[31m", number)
        warnings.warn("old", stacklevel=1)
        strays.of_loop(asyncio.new_event_loop(), {"message": "lost"})
        clock.now += STRAY_SECONDS
        strays.flush()
        try:
            raise ValueError("x")
        except ValueError:
            logging.getLogger("asyncio").exception("%d", "no number")
        strays.of_bus("metrics", 1, ValueError("y"))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == STRAY_LINES + 3
    assert {line["event"] for line in lines} == {"unexpected"}
    assert (lines[0]["source"], lines[0]["level"]) == ("aiohttp.server", "error")
    assert "\x1b" not in lines[0]["what"]
    assert lines[STRAY_LINES]["suppressed"] == 32
    assert lines[-2]["error"] == "ValueError('x')"
    assert lines[-1]["source"] == "bus"


def test_stderr_is_lines_of_json_whatever_comes_to_the_metrics_port(daemon: Daemon) -> None:
    daemon.start()
    host, port = daemon.ready()["metrics"].rsplit(":", 1)
    for garbage in (b"GET / HTTP/9.9\r\n\r\n", b"\x00\xff\r\n\r\n", b"POST /metrics HTTP/1.1\r\nX: \n\n"):
        with socket.create_connection((host, int(port)), 5) as stranger:
            stranger.sendall(garbage)
            stranger.settimeout(1)
            with contextlib.suppress(OSError):
                stranger.recv(1000)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert daemon.told() == ""


def test_the_limit_of_open_files_is_raised_and_not_beyond_what_nodes_bear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[int, int]] = []
    limits = (1024, 2**30)
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, to: made.append(to))
    raise_open_files()
    limits = (1024, 4096)
    raise_open_files()
    limits = (4096, 4096)
    raise_open_files()
    assert made == [(65536, 2**30), (4096, 4096)]


@pytest.mark.parametrize(("left", "code"), [([], 0), (["a@127.0.0.1"], 70)])
def test_a_node_that_is_left_at_the_end_is_no_success(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, left: list[str], code: int
) -> None:
    async def stop_all(self: Supervisor) -> list[str]:
        return left

    monkeypatch.setattr(Supervisor, "stop_all", stop_all)
    monkeypatch.setattr(asyncio.Event, "wait", lambda self: asyncio.sleep(0))
    umask = os.umask(0o077)
    try:
        assert run(daemon.config) == code
    finally:
        os.umask(umask)


def test_without_systemd_nothing_is_said_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify("READY=1")
