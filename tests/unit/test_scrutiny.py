"""What a node is given is looked at before its start and in its emulators, wherever a wrapper put those."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from distsec.beam import proc, session
from distsec.beam.scrutiny import BootWatch, find_before_start
from tests.waiting import wait_until

NODE = "a@127.0.0.1"
GENERATED = ("-proto_dist", "inet_tls", "-no_epmd", "false")
EMULATOR = "/erts/bin/beam.smp"

Wrapped = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def wrapped() -> Iterator[Wrapped]:
    """`wrapped(script)`: a shell that leads a session; `beam WORDS` in it is an emulator with these."""
    with ExitStack() as stack:

        def start(script: str) -> subprocess.Popen[bytes]:
            emulator = f"beam() {{ exec -a {EMULATOR} sh -c 'sleep 600; :' \"$@\"; }}\n"
            process = subprocess.Popen(
                ["bash", "-c", emulator + script], stdin=subprocess.PIPE, start_new_session=True
            )
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[bytes]) -> None:
    while left := proc.session_members(process.pid):  # again and again: one may be forking
        for member in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def look(watch: BootWatch) -> str:
    return str(wait_until(watch.look, "a look that finds something", poll_seconds=0.001))


def test_follows_relative_args_files_from_where_the_command_starts(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "vm.args").write_text("-args_file more.args\n")
    (tmp_path / "more.args").write_text("-setcookie x\n")
    command = ["erl", "-args_file", "release/vm.args"]
    found = find_before_start(NODE, command, {}, tmp_path)
    assert found is not None
    assert (found.flag, found.where) == ("-setcookie", "more.args")
    assert find_before_start(NODE, command, {}, tmp_path / "release") is None, "not there"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_regular_file_holds_nothing_up(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "vm.args")
    assert find_before_start(NODE, ["erl", "-args_file", "vm.args"], {}, tmp_path) is None


def test_an_honest_emulator_is_left_alone_and_one_that_follows_it_is_found(wrapped: Wrapped) -> None:
    honest = "(beam -- -root /erts -- -proto_dist inet_tls -no_epmd false -- -noinput) & "
    process = wrapped(f"{honest} read go; beam -proto_dist inet_tls -no_epmd false -proto_dist inet_tcp")
    watch = BootWatch(NODE, process.pid, GENERATED)
    wait_until(lambda: len(proc.session_members(process.pid)) > 1, "the honest one")
    for _ in range(30):
        assert watch.look() is None
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    assert look(watch).startswith("-proto_dist in the flags of the emulator")
    watch.end()
    assert process.wait(10) == -signal.SIGKILL


def test_an_emulator_that_has_lost_its_parent_is_found_and_ended(wrapped: Wrapped) -> None:
    process = wrapped("set -m; (beam -proto_dist inet_tls -no_epmd false -setcookie x &); read forever")

    def orphans() -> list[proc.Stat]:
        members = proc.session_members(process.pid)
        emulators = [each for each in members if proc.arguments(each.pid)[:1] == (EMULATOR,)]
        return [each for each in emulators if each.parent not in {member.pid for member in members}]

    (orphan,) = wait_until(orphans, "an orphan")
    watch = BootWatch(NODE, process.pid, GENERATED)
    assert look(watch).startswith("-setcookie")
    assert orphan.group != process.pid, "a signal to the process group would not have reached it"
    watch.end()
    wait_until(lambda: not session.lives(session.Member(orphan.pid, orphan.start_time)), "its end")
    assert process.poll() is None


def test_an_emulator_without_our_flags_is_judged_only_if_it_takes_a_name(wrapped: Wrapped) -> None:
    helper = wrapped("beam -- -setcookie its_own -noinput")
    watch = BootWatch(NODE, helper.pid, GENERATED)
    wait_until(lambda: proc.arguments(helper.pid)[:1] == (EMULATOR,), "the emulator")
    assert watch.look() is None
    node = wrapped(f"beam -- -name {NODE}")
    found = look(BootWatch(NODE, node.pid, GENERATED))
    assert found.startswith("-name in")
    assert "ERL_AFLAGS" in found


def test_nothing_is_found_of_a_process_that_is_gone(wrapped: Wrapped) -> None:
    process = wrapped("exit 0")
    process.wait()
    assert proc.children(process.pid) == []
    assert proc.arguments(process.pid) == ()
    watch = BootWatch(NODE, process.pid, GENERATED)
    for _ in range(12):
        assert watch.look() is None
