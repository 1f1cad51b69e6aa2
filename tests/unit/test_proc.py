"""Reads of /proc, against this kernel and against what it may print."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.beam import proc
from distsec.errors import PermissionRefused
from tests.waiting import wait_until

LISTEN = """
import socket, sys
server = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
server.bind((sys.argv[1], 0)); server.listen(); print(server.getsockname()[1], flush=True); sys.stdin.read()
"""

RENAME = r"""
import sys
open("/proc/self/comm", "wb").write(sys.argv[1].encode().decode("unicode_escape").encode())
print("renamed", flush=True); sys.stdin.read()
"""


@contextlib.contextmanager
def child(*command: str, session: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A child that lives until the block ends."""
    running = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )
    try:
        yield running
    finally:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.close()
        running.kill()
        running.wait()
        running.stdout.close()


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def gone() -> int:
    """The pid of a process that has just been reaped."""
    finished = subprocess.Popen(["true"])
    finished.wait()
    return finished.pid


# ---- one process ------------------------------------------------------------------------------------------


def test_reads_itself() -> None:
    found = proc.stat(os.getpid())
    assert found is not None and found.alive
    assert (found.pid, found.parent) == (os.getpid(), os.getppid())
    assert (found.group, found.session) == (os.getpgrp(), os.getsid(0))
    assert proc.parent(os.getpid()) == os.getppid()
    assert proc.owner(os.getpid()) == os.geteuid()


def test_a_process_that_is_gone_is_none_everywhere() -> None:
    pid = gone()
    assert proc.stat(pid) is None
    assert proc.start_time(pid) is None
    assert proc.parent(pid) is None
    assert proc.owner(pid) is None
    assert proc.tree(pid) == []
    assert proc.listening([pid]) == []
    assert not proc.same_process(pid, 1)
    assert not proc.descends_from(pid, os.getpid())
    assert not proc.descends_from(os.getpid(), pid)
    assert not proc.environment_holds(pid, b"PATH")


def test_only_pid_and_start_time_together_name_a_process() -> None:
    began = proc.start_time(os.getpid())
    assert began is not None
    assert proc.same_process(os.getpid(), began)
    assert not proc.same_process(os.getpid(), began + 1)


def test_a_zombie_is_there_but_not_alive() -> None:
    finished = subprocess.Popen(["true"])
    os.waitid(os.P_PID, finished.pid, os.WEXITED | os.WNOWAIT)
    found = proc.stat(finished.pid)
    assert found is not None and not found.alive
    finished.wait()


@pytest.mark.parametrize("name", ["a b", ") S 1 1 1", "a\\nb)", "((", ") R 0"])
def test_a_name_that_imitates_the_format_misleads_nobody(name: str) -> None:
    with child(sys.executable, "-c", RENAME, name) as running:
        line(running)
        found = proc.stat(running.pid)
    assert found is not None
    assert found.name == name.encode().decode("unicode_escape")
    assert found.parent == os.getpid()


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name), st.integers(0, 2**63))
def test_whatever_the_name_the_numbers_are_read(name: bytes, began: int) -> None:
    numbers = b" ".join(b"%d" % number for number in range(4, 22)) + b" %d 23 24\n" % began
    found = proc.parse_stat(b"77 (" + name + b") S " + numbers)
    assert (found.pid, found.parent, found.group, found.session) == (77, 4, 5, 6)
    assert (found.terminal, found.start_time) == (7, began)


@pytest.mark.parametrize(
    "content", [b"", b"77", b"77 (a S 1 2 3", b"(a) S 1", b"77 (a) S 1 2", b"77 (a) SS " + b"1 " * 30]
)
def test_what_proc_does_not_print_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="stat"):
        proc.parse_stat(content)


# ---- families ---------------------------------------------------------------------------------------------


def test_a_grandchild_descends_and_a_stranger_does_not() -> None:
    with child("sh", "-c", "sleep 60 & echo $!; wait") as wrapper, child("cat") as stranger:
        below = int(line(wrapper))
        try:
            assert proc.descends_from(below, wrapper.pid)
            assert proc.descends_from(wrapper.pid, wrapper.pid)
            assert proc.descends_from(below, os.getpid())
            assert not proc.descends_from(wrapper.pid, below)
            assert not proc.descends_from(stranger.pid, wrapper.pid)
            assert set(proc.tree(wrapper.pid)) == {wrapper.pid, below}
        finally:
            os.kill(below, 9)


def ancestors(pid: int) -> list[int]:
    found = []
    while (above := proc.parent(pid)) is not None and above > 1:
        found.append(pid := above)
    return found


def test_an_orphan_still_belongs_to_the_session_it_was_born_in() -> None:
    # The inner shell dies at once, so the sleeper's parent is init; its session is still the leader's.
    with child("sh", "-c", "sh -c 'sleep 60 & echo $!'; read line", session=True) as leader:
        orphan = int(line(leader))
        try:
            wait_until(lambda: leader.pid not in ancestors(orphan), "the orphan to change parents")
            assert proc.descends_from(orphan, leader.pid)
            assert orphan in proc.tree(leader.pid)
            assert orphan in {member.pid for member in proc.session_members(leader.pid)}
        finally:
            os.kill(orphan, 9)


# ---- sockets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::"])
def test_finds_what_a_process_listens_on(address: str) -> None:
    with child(sys.executable, "-c", LISTEN, address) as running:
        port = int(line(running))
        assert proc.listening([running.pid]) == [proc.Listener(running.pid, address, port)]


def test_a_listener_mapped_into_ipv6_is_named_by_its_ipv4_address() -> None:
    with child(sys.executable, "-c", LISTEN, "::ffff:127.0.0.1") as running:
        port = int(line(running))
        assert proc.listening([running.pid]) == [proc.Listener(running.pid, "127.0.0.1", port)]


def test_a_connection_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), child("cat") as running:
            mine = [found for found in proc.listening([os.getpid(), running.pid]) if found.port == port]
    assert mine == [proc.Listener(os.getpid(), "127.0.0.1", port)]


def test_finds_the_listener_of_a_child_of_a_wrapper() -> None:
    inner = f"{sys.executable} -c '{LISTEN}' 127.0.0.1; exit"
    with child("sh", "-c", inner) as wrapper:
        port = int(line(wrapper))
        found = proc.listening(proc.tree(wrapper.pid))
        assert [(listener.address, listener.port) for listener in found] == [("127.0.0.1", port)]


@pytest.mark.skipif(sys.byteorder != "little", reason="the vectors are from a little-endian machine")
@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("0100007F:1F90", "127.0.0.1", 8080),
        ("04030201:0001", "1.2.3.4", 1),
        ("00000000000000000000000001000000:FFFF", "::1", 65535),
        ("B80D0120000000000000000078563412:0016", "2001:db8::1234:5678", 22),
        ("0000000000000000FFFF00000100007F:0050", "127.0.0.1", 80),
    ],
)
def test_reads_addresses_in_the_byte_order_of_the_kernel(text: str, address: str, port: int) -> None:
    assert proc.parse_address(text) == (address, port)


@pytest.mark.parametrize(
    "text", ["", "0100007F", "0100007F:1", "01:1F90", "0100007G:1F90", "0" * 16 + ":0050"]
)
def test_an_address_that_the_kernel_does_not_print_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # int() words some of them
        proc.parse_address(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_sockets_that_may_not_be_seen_are_not_taken_for_none(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(proc.__file__).parents[2])!r})
from distsec.beam import proc
os.setresuid(65534, 65534, 65534)
try:
    print(proc.listening([{os.getpid()}]))
except Exception as error:
    print(type(error).__name__)
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert output.stdout.strip() == PermissionRefused.__name__, output.stderr


def test_sees_the_environment_that_a_process_was_started_with() -> None:
    with child("env", "MARK=here/", "cat") as running:
        wait_until(lambda: proc.environment_holds(running.pid, b"MARK=here/"), "env to have become cat")
        assert not proc.environment_holds(running.pid, b"MARK=there/")
