"""Processes that are not on record: which one a start has made, told from all that look alike."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distsec.beam import proc
from distsec.beam.logs import OutputLog
from distsec.beam.node import NodeProcess, RunRecord, boot_id, read_run
from distsec.beam.provision import node_directory
from distsec.errors import RuntimeMissing
from distsec.pki.store import Store
from distsec.supervisor.external import ExternalProcess
from distsec.supervisor.foundlings import StateFoundlings
from tests.unit.fake_machine import node_spec
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio

NODE = node_spec("a")
DIRECTORY = node_directory(NODE.name)
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.ensure_directory(f"{DIRECTORY}/log")
    return made


@pytest.fixture
def log(store: Store) -> OutputLog:
    return OutputLog(store.path(DIRECTORY) / "log" / "output.log", 1 << 20)


@pytest.fixture
def start(tmp_path: Path, log: OutputLog) -> Iterator[Start]:
    """`start("sleep")`: a process of that name that leads a session and has the node's mark (`marked`)."""
    started: list[subprocess.Popen[bytes]] = []

    def one(name: str = "sleep", *, marked: bool = True, leads: bool = True) -> subprocess.Popen[bytes]:
        program = tmp_path / name
        if not program.exists():
            shutil.copy(shutil.which("sleep") or "", program)
        mark = {"ERL_CRASH_DUMP": f"{log.path.parent}/erl_crash.dump"} if marked else {}
        process = subprocess.Popen(
            [program, "600"], env=mark, start_new_session=leads, stdin=subprocess.DEVNULL
        )
        started.append(process)
        wait_until(lambda: proc.arguments(process.pid)[1:] == ("600",), "its exec")
        return process

    yield one
    for process in started:
        process.kill()
        process.wait()


async def found(store: Store, log: OutputLog, recorded: RunRecord | None = None) -> int | None:
    process = await StateFoundlings(store).adopt(NODE, log, recorded)
    if process is None:
        return None
    await process.abandon()
    return process.pid


async def test_what_an_interrupted_start_made_is_found_and_put_on_record(
    store: Store, log: OutputLog, start: Start
) -> None:
    start("before")
    await asyncio.sleep(0.05)  # start times are in ticks of 10 ms
    StateFoundlings(store).begin(NODE)
    start("unmarked", marked=False)
    start("below", leads=False)
    made = start("wrapper")
    assert await found(store, log) == made.pid
    run = read_run(store.read(f"{DIRECTORY}/run.json"))
    assert (run.pid, run.start_time) == (made.pid, proc.start_time(made.pid))
    process = NodeProcess.adopt(run, log)
    assert process is not None, "and the next orchestrator finds it there"
    await process.abandon()


async def test_without_a_start_nothing_is_looked_for(store: Store, log: OutputLog, start: Start) -> None:
    start()
    assert await found(store, log) is None
    store.write(f"{DIRECTORY}/start.json", b'{"schema":1,"boot_id":"another","since":0,"directory":"/"}')
    assert await found(store, log) is None
    store.write(f"{DIRECTORY}/start.json", b"[" * 100_000)
    assert await found(store, log) is None


async def test_a_daemon_that_the_node_left_behind_is_not_taken_for_it(
    store: Store, log: OutputLog, start: Start
) -> None:
    StateFoundlings(store).begin(NODE)
    start("epmd")
    assert await found(store, log) is None
    gone = start("wrapper")
    run = RunRecord(gone.pid, proc.start_time(gone.pid) or 0, boot_id(), 0.0)
    gone.send_signal(signal.SIGKILL)
    gone.wait()
    start("daemon")
    assert await found(store, log, run) is None, "the start was on record, and what it made has ended"


async def test_what_another_user_runs_with_the_nodes_flags_or_mark_is_nobody_of_the_node(
    store: Store, log: OutputLog, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user of the host can give a process of his own these arguments, also in a session that another
    leads: taken for the node it would be watched, signalled, and in the node's place.
    """
    foundlings = StateFoundlings(store)
    foundlings.begin(NODE)
    flagged = ("-distsec_dir", str(store.path(DIRECTORY).resolve()))
    leader, vm = start("wrapper", marked=False), start("beam.smp")
    monkeypatch.setattr(proc, "arguments", lambda pid: flagged if pid == vm.pid else ())
    owner, others = proc.owner, {vm.pid}
    monkeypatch.setattr(proc, "owner", lambda pid: 65_533 if pid in others else owner(pid))
    assert foundlings.occupant(NODE, 1) is None and foundlings.below(NODE, vm.pid) is None
    assert await found(store, log) is None
    others = {leader.pid}
    everything = proc.everything
    monkeypatch.setattr(
        proc,
        "everything",
        lambda: (replace(each, session=leader.pid) if each.pid == vm.pid else each for each in everything()),
    )
    assert foundlings.below(NODE, vm.pid) == vm.pid
    assert await found(store, log) is None, "the VM is the node's, and who leads its session is not"


async def test_a_vm_that_was_taken_is_found_again_and_one_with_its_pid_is_not(
    store: Store, log: OutputLog, start: Start
) -> None:
    foundlings = StateFoundlings(store)
    other = start(marked=False)
    began = proc.start_time(other.pid)
    assert began is not None
    with pytest.raises(RuntimeMissing):
        foundlings.take(NODE, other.pid, began + 1)
    assert not store.exists(f"{DIRECTORY}/taken.json")
    (foundlings.take(NODE, other.pid, began)).close()
    again = await foundlings.adopt(NODE, log, None)
    assert isinstance(again, ExternalProcess) and again.pid == other.pid
    await again.abandon()
    record = json.loads(store.read(f"{DIRECTORY}/taken.json"))
    for forged in (
        {"start_time": began + 1},
        {"boot_id": "another"},
        {"pid": 1},
        {"pid": True},
        {"schema": 2},
    ):
        store.write(f"{DIRECTORY}/taken.json", json.dumps(record | forged).encode())
        assert await found(store, log) is None
    foundlings.forget(NODE)
    assert not store.exists(f"{DIRECTORY}/taken.json")
    assert other.poll() is None


async def test_a_directory_that_leads_elsewhere_now_is_told(store: Store, tmp_path: Path) -> None:
    foundlings = StateFoundlings(store)
    assert foundlings.moved_from(NODE) is None
    foundlings.begin(NODE)
    assert foundlings.moved_from(NODE) is None
    moved = tmp_path / "moved"
    (tmp_path / "state").rename(moved)
    elsewhere = StateFoundlings(Store(moved))
    assert elsewhere.moved_from(NODE) == str(tmp_path / "state" / DIRECTORY)
    (tmp_path / "state").symlink_to(moved)
    assert elsewhere.moved_from(NODE) is None, "the old path leads there still"
