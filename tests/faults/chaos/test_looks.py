"""What the chaos test looks at outside of itself: sockets, files, processes; and the witness in a real
node."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.faults.chaos import sockets
from tests.faults.chaos.cluster import ChaosCluster, Lines, compile_beams
from tests.faults.chaos.faults import Faults
from tests.faults.chaos.invariants import _wrong as wrong
from tests.faults.chaos.invariants import sample
from tests.faults.chaos.ledger import Ledger
from tests.faults.chaos.links import Links
from tests.faults.chaos.operator import Operator, _phase
from tests.releases import ROOT, Otp
from tests.system.beam_control import Control
from tests.system.processes import catches
from tests.waiting import wait_until

HOLD = """
import socket, sys
kind, where = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
listener.bind(where if kind == "unix" else ("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1] if kind == "tcp" else where, flush=True)
one, _ = listener.accept()
print("accepted", flush=True)
print("end" if one.recv(1) == b"" else "byte", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process, that accepts one connection and says when it ends."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.communicate()


@pytest.mark.skipif(not sockets.available(), reason="takes root")
def test_a_connection_of_another_process_is_shut_and_its_listener_goes_on(
    holder: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    for kind, where in (("unix", str(path)), ("tcp", "")):
        process = holder(kind, where)
        assert process.stdout is not None
        told = process.stdout.readline().strip()
        address = told if kind == "unix" else ("127.0.0.1", int(told))
        wanted = sockets.accepted_at(path) if kind == "unix" else sockets.accepted_on(int(told))
        assert sockets.shut(process.pid, wanted) == 0  # nobody has connected; the listener is left alone
        with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as client:
            client.settimeout(10)
            client.connect(address)
            assert process.stdout.readline() == "accepted\n"
            assert sockets.shut(process.pid, wanted) == 1
            assert process.stdout.readline() == "end\n"
            assert client.recv(1) == b""
            again = socket.socket(client.family)
            again.connect(address)
            again.close()


@pytest.mark.skipif(not sockets.available(), reason="takes root")
def test_the_client_of_a_unix_socket_is_found_by_where_it_is_connected_to(
    holder: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    process = holder("unix", str(path))
    assert process.stdout is not None
    process.stdout.readline()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert sockets.shut(os.getpid(), sockets.connected_to(tmp_path / "other")) == 0
        assert sockets.shut(os.getpid(), sockets.connected_to(path)) == 1
        process.stdout.readline()
        assert process.stdout.readline() == "end\n"


@pytest.mark.parametrize(
    ("name", "whole", "half"),
    [
        ("contacts.json", b'{"schema":1}\n', b'{"schema"'),
        ("policy.overlay", b"{}", b""),
        ("agent.key", b"0a" * 32 + b"\n", b"0a" * 31),
        ("policy.mark", b"distsec_mark 1 7\n", b"distsec_mark 1 "),
    ],
)
def test_half_a_file_is_noticed(tmp_path: Path, name: str, whole: bytes, half: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(whole)
    assert wrong(path) == ""
    path.write_bytes(half)
    assert wrong(path) != ""


def test_half_a_certificate_is_noticed(tmp_path: Path) -> None:
    from tests.system.certificates import TestAuthority

    leaf = TestAuthority.foreign().issue(tmp_path / "leaf", ["spiffe://x/node/h/a"])
    content = leaf.certificate.read_bytes()
    path = tmp_path / "certificate.pem"
    for cut in (len(content) - 5, len(content) // 2, 0):
        path.write_bytes(content[:cut])
        assert wrong(path) != "", cut
    path.write_bytes(content + content)
    assert wrong(path) == ""


def test_lines_come_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = Lines(path)
    assert lines.new() == []
    path.write_bytes(b"one\ntw")
    assert lines.new() == ["one"]
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert lines.new() == ["two", "three"]


def test_a_leaked_descriptor_shows_in_the_sample(tmp_path: Path) -> None:
    gc.collect()  # what another test has left open is closed now, and not in between
    before = sample(os.getpid())["descriptors"]
    with (tmp_path / "leak").open("w"):
        assert sample(os.getpid())["descriptors"] == before + 1


REAPED = """
import os, subprocess
from tests.faults.chaos.place import reap
from tests.waiting import wait_until
with subprocess.Popen(["true"]) as own:
    os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
    assert reap({own.pid}) == 0
    assert own.wait() == 0
assert os.fork() or os._exit(0) is None
wait_until(lambda: reap(set()) == 1, "the orphan's end")
"""


def test_children_that_others_wait_for_are_left_alone() -> None:
    """In a process that has no other children: one of these tests' may end at any moment."""
    subprocess.run([sys.executable, "-c", REAPED], cwd=ROOT, check=True, timeout=120)


def test_whether_a_process_catches_a_signal_is_seen_from_outside() -> None:
    code = "import signal, sys; signal.signal(1, print); print('now', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        assert catches(process.pid, signal.SIGHUP) and not catches(process.pid, signal.SIGUSR2)
        process.communicate()
    assert not catches(process.pid, signal.SIGHUP)


def test_who_began_on_a_full_disk_may_say_so_whenever_it_comes_to_write() -> None:
    cluster = SimpleNamespace(started_at=0.0)
    others = cast("tuple[Operator, Links, Ledger]", (None, None, None))
    faults = Faults(cast("ChaosCluster", cluster), *others)
    now = time.monotonic()
    faults.full_from, faults.full_until = now - 90.0, now - 60.0
    for began, may in ((now - 91.0, False), (now - 80.0, True), (now - 50.0, False)):
        cluster.started_at = began
        assert faults.found_full() is may
    faults.full_until = now + 60.0
    assert faults.found_full()


def test_without_a_record_no_rotation_is_under_way(tmp_path: Path) -> None:
    assert _phase(tmp_path / "rotation.json") == "idle"


PLACED = """
Me = self(),
Other = spawn(fun() -> ok end),
{ok, H1} = distsec_test_chaos:place({Me, 5}, undefined),
{ok, H2} = distsec_test_chaos:place({Me, 6}, H1),
{{missing, 2}, H3} = distsec_test_chaos:place({Me, 9}, H2),
{again, _} = distsec_test_chaos:place({Me, 9}, H3),
{again, _} = distsec_test_chaos:place({Me, 3}, H3#{fresh := true}),
{ok, _} = distsec_test_chaos:place({Me, 12}, H3#{fresh := true}),
{ok, _} = distsec_test_chaos:place({Other, 1}, H3),
ok
"""


def test_numbers_may_be_missing_between_two_links_and_never_within_one(otp: Otp, tmp_path: Path) -> None:
    compile_beams(otp.erlc, tmp_path)
    control = Control(tmp_path / "s")
    with subprocess.Popen([otp.erl, "-noinput", *Control.arguments(tmp_path, control.path)]) as process:
        try:
            wait_until(control.ready, "the node", 30)
            assert control.evaluate(PLACED.strip()) == "ok"
        finally:
            process.kill()


# ---- operators' commands -----------------------------------------------------------------------------------


class Ended:
    """A command that has ended with `code`."""

    pid = 0

    def __init__(self, code: int, said: str = "") -> None:
        self.code, self.said = code, said

    def poll(self) -> int:
        return self.code

    def communicate(self) -> tuple[str, None]:
        return self.said, None


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Operator:
    """Its commands are not carried out; `ends` gives each of them an end."""
    monkeypatch.setattr("tests.faults.chaos.operator.command", lambda cluster, *arguments: Ended(0))
    return Operator(cast("ChaosCluster", None))


def ends(operator: Operator, code: int, said: str = "") -> None:
    operator.tasks[-1].process = cast("subprocess.Popen[str]", Ended(code, said))
    operator.tick()


@pytest.mark.parametrize(
    ("code", "said", "violations"),
    [
        (0, "", 0),
        (1, "", 0),
        (3, "", 0),
        (2, "", 1),
        (70, "", 1),
        (1, "Traceback (most recent call last)", 1),
    ],
)
def test_a_status_may_be_degraded_or_away_and_never_a_violation(
    operator: Operator, code: int, said: str, violations: int
) -> None:
    operator.look(lambda: False)
    ends(operator, code, said)
    assert len(operator.violations) == violations


def test_the_status_of_an_orchestrator_that_cannot_answer_says_so(operator: Operator) -> None:
    for code, violations in ((3, 0), (0, 1), (1, 2)):
        operator.look(lambda: True)
        ends(operator, code)
        assert len(operator.violations) == violations


def test_a_status_that_outlasts_the_stop_of_the_orchestrator_may_have_its_answer(operator: Operator) -> None:
    """On a busy machine its own start may take as long as the stop."""
    for code, violations in ((0, 0), (1, 0), (3, 0), (2, 1)):
        stopped = [False, True]
        operator.look(stopped.pop)
        ends(operator, code)
        assert (stopped, len(operator.violations)) == ([], violations)


def test_a_rotation_that_was_interrupted_is_given_again_and_a_wrong_end_is_noticed(
    operator: Operator,
) -> None:
    operator.give("cookie", "rotate", again=True)
    ends(operator, 75, "not acknowledged")
    assert operator.violations == [] and list(operator.unfinished) == [("cookie", "rotate")]
    operator.go_on()
    assert operator.tasks[-1].insists and not operator.unfinished
    operator.give("cookie", "rotate", again=True)
    ends(operator, 78)
    assert "ended with 78" in operator.violations[0]


def test_an_allow_is_given_until_it_is_done(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[float] = []
    operator.give("allow", "n1@127.0.0.1", insists=True, on_done=done.append)
    ends(operator, 75)
    assert operator.busy and not done
    operator.tasks[-1].not_before = 0.0
    operator.tick()
    operator.tick()
    assert len(done) == 1 and not operator.busy
