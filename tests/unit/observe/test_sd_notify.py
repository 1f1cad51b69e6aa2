"""The word to systemd: what is said, what is taken out of the environment, and that nothing is ever waited
for."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsec.observe.sd_notify import MAX_STATUS, Notifier, extend_line, reloading_line, status_line
from tests.unit.observe.systemd import Systemd


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with Systemd(tmp_path / "notify") as made:
        yield made


def test_the_variables_are_taken_so_that_nothing_that_is_started_can_speak_for_us(systemd: Systemd) -> None:
    environment = {
        "NOTIFY_SOCKET": str(systemd.path),
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    notifier = Notifier.take(environment)
    assert environment == {"PATH": "/bin"}
    assert notifier.watchdog_seconds == 30.0
    assert notifier.send("READY=1", status_line("a\nb\x1b[2J"))
    assert systemd.read() == [b"READY=1\nSTATUS=a b\\x1b[2J"]


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("5000000", "", 5.0), ("5000000", "1", None), ("0", "", None), ("x", "", None), ("", "", None)],
)
def test_a_watchdog_that_is_for_another_process_is_none_of_ours(
    usec: str, pid: str, seconds: float | None
) -> None:
    assert Notifier.take({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).watchdog_seconds == seconds


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_without_systemd_nothing_is_said_and_nothing_fails(address: str) -> None:
    notifier = Notifier.take({"NOTIFY_SOCKET": address})
    assert not notifier.wanted
    assert notifier.send("READY=1")


def test_a_systemd_that_is_gone_or_does_not_read_is_not_waited_for(systemd: Systemd, tmp_path: Path) -> None:
    assert not Notifier(str(tmp_path / "nowhere")).send("READY=1")
    notifier = Notifier(str(systemd.path))
    assert [notifier.send("STATUS=x" * 1000) for _ in range(2000)][-1] is False
    systemd.read()
    assert notifier.send("READY=1")


def test_an_abstract_socket_is_found_too() -> None:
    name = f"distsec-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.settimeout(5)
        assert Notifier("@" + name).send("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_the_pulse_comes_at_a_third_of_the_limit_and_only_when_somebody_calls(systemd: Systemd) -> None:
    clock = Clock()
    notifier = Notifier(str(systemd.path), 30.0, clock)
    beats = []
    for _ in range(61):
        before = len(systemd.read())
        notifier.pulse()
        beats += [clock.now - 100] if len(systemd.read()) > before else []
        clock.now += 1
    assert beats == [0, 10, 20, 30, 40, 50, 60]
    assert set(systemd.words) == {b"WATCHDOG=1"}
    assert Notifier(str(systemd.path)).pulse() is None
    assert len(systemd.read()) == 7, "without a limit there is no pulse"


def test_lines_are_bounded_and_as_sd_notify_has_them() -> None:
    assert len(status_line("x" * 10_000)) < MAX_STATUS + 20
    assert extend_line(1.5) == "EXTEND_TIMEOUT_USEC=1500000"
    first, second = reloading_line().split("\n")
    assert first == "RELOADING=1"
    assert second.partition("=")[0] == "MONOTONIC_USEC" and int(second.partition("=")[2]) > 0
