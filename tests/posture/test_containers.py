"""What runs in a container beside us: it listens on nothing here, and its files are others of that name."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsec.beam import proc
from distsec.errors import PermissionRefused
from distsec.model.cluster import Carrier
from distsec.pki.store import Store
from distsec.posture.check import judge
from distsec.posture.collect import gather, processes
from distsec.posture.collect.gather import gather_host
from distsec.posture.facts import Served
from distsec.posture.finding import Code
from distsec.supervisor.foundlings import StateFoundlings
from tests.posture.planted import A, Planted
from tests.posture.private_host import PrivateHost
from tests.system.cluster import free_ports
from tests.unit.fake_machine import node_spec
from tests.waiting import wait_until

LISTEN = """
import socket, sys, time
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True: time.sleep(60)  # it ends with its container
"""


@pytest.fixture
def container() -> Iterator[PrivateHost]:
    with PrivateHost() as place:
        yield place


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def started_with(command: tuple[str, ...]) -> int | None:
    return next((each.pid for each in proc.everything() if proc.arguments(each.pid) == command), None)


def run(container: PrivateHost, tmp_path: Path, *command: str) -> int:
    """Starts a process there; its pid here, once it listens."""
    container.start(command, os.environ, tmp_path / "log")
    found: list[proc.Listener] = []

    def listens() -> bool:
        pid = started_with(command)
        found[:] = proc.listening([pid]) if pid is not None else []
        return bool(found)

    wait_until(listens, f"{command[0]} to listen", 30)
    return found[0].pid


@pytest.fixture
def nobody_is_knocked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of other tests are on this host too, and count what they refuse."""

    async def look(address: str, port: int, *, expect: Carrier) -> Served:
        return Served()

    monkeypatch.setattr(gather, "look", look)


def hide(container: PrivateHost, directory: Path) -> None:
    """What is called so there is another directory from now on."""
    made = container.run(["mount", "-t", "tmpfs", "none", str(directory)], os.environ, Path("/"))
    assert made.returncode == 0, made.stderr
    container.run(["mkdir", "-p", f"{directory}/nodes/{A}"], os.environ, Path("/"))


@pytest.mark.skipif(shutil.which("epmd") is None, reason="no epmd on the PATH")
@pytest.mark.usefixtures("nobody_is_knocked_at")
def test_an_epmd_there_is_no_finding_of_this_host_and_is_said_not_to_have_been_looked_at(
    container: PrivateHost, port: int, tmp_path: Path
) -> None:
    pid = run(container, tmp_path, "epmd", "-port", str(port))
    found = processes.find()
    assert [each for each in found.epmds if each[1] == port] == []
    assert (f"epmd (process {pid})", pid) in found.elsewhere
    [said] = [each for each in judge(gather_host(now=0.0, search="")) if each.where == f"/proc/{pid}/ns/net"]
    assert said.code is Code.NOT_SEEN and said.fix == f"nsenter --target {pid} --net distsec check --host"


@pytest.mark.skipif(shutil.which("epmd") is None, reason="no epmd on the PATH")
def test_an_epmd_whose_namespace_may_not_be_seen_is_taken_for_ours_and_said(
    monkeypatch: pytest.MonkeyPatch, container: PrivateHost, port: int, tmp_path: Path
) -> None:
    pid = run(container, tmp_path, "epmd", "-port", str(port))
    monkeypatch.setattr(proc, "shares_network", lambda pid: None)
    assert {("0.0.0.0", port, f"epmd (process {pid})")} <= processes.find().epmds

    def refuse(pids: list[int]) -> list[proc.Listener]:
        raise PermissionRefused("not yours")

    monkeypatch.setattr(proc, "listening", refuse)
    [said] = [what for what in processes.find().unseen if "epmds of other users" in what]
    assert str(pid) in said or "…" in said


def test_who_listens_there_does_not_hold_the_port_here(
    container: PrivateHost, port: int, tmp_path: Path
) -> None:
    there = run(container, tmp_path, sys.executable, "-c", LISTEN, str(port))
    assert [each.port for each in proc.listening([there])] == [port]
    assert proc.shares_network(there) is False and proc.shares_network(os.getpid()) is True
    assert proc.holder(port) is None
    with socket.create_server(("127.0.0.1", port)):
        holder = proc.holder(port)
        assert holder is not None and holder.pid == os.getpid()


def test_a_node_of_the_same_directory_there_is_not_ours(container: PrivateHost, clean: Planted) -> None:
    first = container.leader
    beam = clean.beam("-name", A, "-distsec_dir", str(clean.node()), pid=first)
    assert proc.finds_same(first, clean.node()) is True
    assert [each.managed for each in clean.facts().vms] == [True]
    hide(container, clean.state)
    assert proc.finds_same(first, clean.node()) is False and beam.flags.node == A
    assert clean.facts().vms == ()
    assert proc.finds_same(first, clean.directory) is True


def test_the_orchestrator_does_not_take_one_there_for_its_own(
    container: PrivateHost, clean: Planted, port: int, tmp_path: Path
) -> None:
    node, store = node_spec("a"), Store(clean.state)
    emulator = tmp_path / "beam.smp"  # by its name and its arguments
    shutil.copy(Path(sys.executable).resolve(), emulator)
    flags = ["-distsec_dir", str(clean.node().resolve())]
    pid = run(container, tmp_path, str(emulator), "-c", LISTEN, str(port), *flags)
    assert StateFoundlings(store).occupant(node, port) == pid
    hide(container, clean.state)
    assert StateFoundlings(store).occupant(node, port) is None
