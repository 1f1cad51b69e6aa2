"""What `distsec run` does around the supervisor: one at a time, its record, errors, and word to systemd."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsec.beam import proc
from distsec.control.presence import only_one, recorded
from distsec.daemon import raise_open_files, run
from distsec.errors import StoreError, Unavailable
from distsec.observe.log import make_logger
from distsec.observe.strays import STRAY_LINES, STRAY_SECONDS, Strays
from distsec.pki.store import Store
from distsec.supervisor import Supervisor
from tests.system.cluster import free_ports
from tests.unit.daemon_process import CONFIG, Daemon, one_daemon
from tests.waiting import PATIENCE_SECONDS, wait_until


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with one_daemon() as made:
        yield made


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
        timeout=PATIENCE_SECONDS,
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
        ({"command": 'command = ["no-such-program"]'}, 72, "no-such-program is not on the PATH"),
        ({"text": "[cluster\n"}, 78, "distsec.toml"),
        ({"text": CONFIG + "\n[nonsense]\n"}, 78, "nonsense"),
    ],
)
def test_what_is_wrong_beforehand_is_one_line_and_nothing_is_started(
    daemon: Daemon, fields: dict[str, str], code: int, text: str
) -> None:
    daemon.write(**fields)
    daemon.start()
    assert daemon.ended() == code
    assert text in daemon.told()
    assert len(daemon.told().splitlines()) == 1
    assert daemon.logged("NodeStarted") is None
    assert not (daemon.state / "orchestrator.json").exists()


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port of loopback that somebody else listens at, and nobody once it is free."""
    port = free_ports(1)[0]
    with socket.create_server(("127.0.0.1", port)):
        yield port


def test_a_held_port_is_told_at_once_and_the_orchestrator_goes_on(daemon: Daemon) -> None:
    with taken_port() as port:
        daemon.write(port=port, command='command = ["false"]')
        daemon.start()
        told = wait_until(lambda: daemon.logged("NodeStateChanged", reason="start_failed"), "the line")
        assert f"BACKOFF: 127.0.0.1:{port}: the port is in use by process {os.getpid()} (" in told["detail"]
        assert "end that process, or give the node another port" in told["detail"]
        assert daemon.client().status()["healthy"] is False
        assert daemon.logged("NodeStarted") is None
    wait_until(lambda: daemon.logged("NodeStarted"), "its start, once the port is free")
    assert daemon.told() == ""


def test_a_held_port_of_the_metrics_keeps_no_node_down_and_they_are_served_when_it_is_free(
    daemon: Daemon,
) -> None:
    with taken_port() as port:
        daemon.write(metrics=port)
        daemon.start()
        assert daemon.ready()["metrics"] is None
        problem = f"[metrics] listen = 127.0.0.1:{port}: the port is taken; choose another"
        assert problem in daemon.client().status()["metrics_problem"]
        assert daemon.client().status()["healthy"] is False
        [told] = [line for line in daemon.log() if line["event"].startswith("metrics are not served")]
        assert told["level"] == "error" and problem in told["error"]
        assert json.loads((daemon.state / "orchestrator.json").read_text())["metrics"] is None
    wait_until(lambda: daemon.logged("metrics are served"), "the metrics, once the port is free")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"distsec_build_info" in answer.read()
    assert daemon.client().status()["metrics_problem"] is None

    def recorded_where() -> bool:
        record = json.loads((daemon.state / "orchestrator.json").read_text())
        return bool(record["metrics"] == f"127.0.0.1:{port}")

    wait_until(recorded_where, "where they are, on record")


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
    told = [line for line in daemon.log() if "cluster.name" in json.dumps(line)]
    assert told == [refused], "once, with the reason"
    assert daemon.client().status()["cluster"] == "demo"
    assert len(daemon.client().status()["nodes"]) == 2


def test_a_reload_that_is_asked_for_before_the_orchestrator_is_up_is_done_when_it_is(daemon: Daemon) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"the first half of a passphrase, ")
        daemon.start("--passphrase-fd", str(reading), pass_fds=(reading,))
        process = daemon.process
        assert process is not None
        # when it has taken that it has its configuration too, and waits for the other half
        wait_until(lambda: not select.select([reading], [], [], 0)[0], "it to read the passphrase")
        daemon.config.write_text(daemon.config.read_text() + '\n[[nodes]]\nname = "b@127.0.0.1"\n')
        process.send_signal(signal.SIGHUP)
    finally:
        os.close(writing)
        os.close(reading)
    wait_until(lambda: daemon.logged("ConfigurationReloaded", result="allow"), "the reload")
    assert [node["name"] for node in daemon.client().status()["nodes"]] == ["a@127.0.0.1", "b@127.0.0.1"]
    assert sum(line["event"] == "ConfigurationReloaded" for line in daemon.log()) == 1


def test_a_reload_whose_new_node_has_no_agent_socket_changes_nothing(daemon: Daemon) -> None:
    daemon.start()
    daemon.ready()
    assert daemon.process is not None
    foreign = daemon.state / "nodes" / "b@127.0.0.1" / "agent.sock"
    foreign.parent.mkdir(mode=0o700)
    foreign.write_text("not a socket")
    text = daemon.config.read_text().replace('name = "a@', 'name = "c@', 1)
    daemon.config.write_text(text + '\n[[nodes]]\nname = "b@127.0.0.1"\nrestart = "never"\n')
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
    warned = [line["detail"] for line in daemon.log() if line["event"] == "configuration"]
    assert any("nodes[1].restart" in detail for detail in warned), warned


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


def test_a_record_that_cannot_be_kept_is_told_of_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = Store(tmp_path / "state"), list[str]()
    store.write("orchestrator.json", b'{"pid": 1}\n')  # of one that was killed
    written = store.write

    def full(_relative: str, _content: bytes) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    with recorded(store, None, lambda error: told.append(str(error))) as presence:
        presence.keep(None)
        assert told == ["the disk is full"]
        assert not store.exists("orchestrator.json")
        monkeypatch.setattr(store, "write", written)
        presence.keep(None)
        assert json.loads(store.read("orchestrator.json"))["pid"] == os.getpid()
    assert not store.exists("orchestrator.json")
