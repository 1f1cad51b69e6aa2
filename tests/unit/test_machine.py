"""The real machine: what a node left behind, and what it wrote about its own end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsec.beam import proc
from distsec.beam.node import RunRecord, boot_id
from distsec.beam.provision import provision
from distsec.errors import StoreError
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec
from distsec.model.names import NodeName
from distsec.pki.store import Store
from distsec.supervisor.external import ExternalProcess
from distsec.supervisor.machine import LocalMachine
from tests.waiting import wait_until

A = NodeName.parse("a@127.0.0.1")
NODE = NodeSpec(A, ("erl",))
DIRECTORY = "nodes/a@127.0.0.1"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[LocalMachine]:
    spec = ClusterSpec(
        name="demo",
        config_file=str(tmp_path / "distsec.toml"),
        state_dir=str(tmp_path / "state"),
        mode=Mode.PRODUCTION,
        carrier=Carrier.INET_TLS,
        allowed_nodes=(A,),
        nodes=(NODE,),
    )
    store = Store(tmp_path / "state")
    provision(spec, store, time.time())
    yield LocalMachine(spec, store, {})


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process that leads a session, and its child."""
    program = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    try:
        yield leader.pid, int(leader.stdout.readline())
    finally:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()
        leader.stdout.close()


def refused(machine: LocalMachine, text: str = "proto_dist -proto_dist twice\n") -> Path:
    path = machine.store.path(DIRECTORY) / "guard.refused"
    path.write_text(text)
    return path


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n", None])
def test_a_certificate_file_that_is_none_is_an_error_that_names_it(
    machine: LocalMachine, content: bytes | None
) -> None:
    path = machine.store.path(f"{DIRECTORY}/certificate.pem")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(StoreError, match=r"certificate\.pem"):
        machine.certificate(NODE)


def test_a_refusal_is_told_once(machine: LocalMachine) -> None:
    path = refused(machine)
    assert machine.take_refusal(NODE, None) == ("proto_dist", "-proto_dist twice")
    assert not path.exists()
    assert machine.take_refusal(NODE, None) is None


def test_a_refusal_of_an_earlier_process_is_passed_over_for_good(
    machine: LocalMachine, family: tuple[int, int]
) -> None:
    since = proc.start_time(family[0])
    assert since is not None
    path = refused(machine)
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert machine.take_refusal(NODE, since) is None
    assert not path.exists()
    refused(machine)
    assert machine.take_refusal(NODE, since) == ("proto_dist", "-proto_dist twice")


@pytest.mark.asyncio
async def test_a_vm_that_something_else_started_is_of_the_node_with_all_below_it(
    family: tuple[int, int],
) -> None:
    leader, child = family
    process = ExternalProcess(leader)
    assert process.contains(leader) and process.contains(child)
    assert not process.contains(os.getpid())
    await process.abandon()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("boot", "ended"), [(boot_id(), True), ("another-boot", False)], ids=["this boot", "another"]
)
async def test_what_an_earlier_boot_called_the_leader_is_nobody_now(
    machine: LocalMachine, boot: str, ended: bool
) -> None:
    """The record's session is looked for only where its pid means anything."""
    log = machine.store.path(DIRECTORY) / "log" / "output.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        leader = subprocess.Popen(
            ["sh", "-c", "sleep 600 & echo $!; exec sleep 600"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            start_new_session=True,
        )
    wait_until(lambda: log.read_text().strip(), "the pid of the helper")
    helper, began = int(log.read_text()), proc.start_time(leader.pid)
    assert began is not None
    try:
        os.kill(leader.pid, signal.SIGKILL)
        leader.wait()
        record = RunRecord(leader.pid, began, boot, 1.5).to_bytes()
        machine.store.write(f"{DIRECTORY}/run.json", record)
        assert await asyncio.wait_for(machine.adopt(NODE), 20) is None
        found = proc.stat(helper)
        assert (found is None or not found.alive) is ended
    finally:
        if (found := proc.stat(helper)) is not None and found.session == leader.pid:
            os.kill(helper, signal.SIGKILL)


@pytest.mark.asyncio
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b'{"pid": "1"}'])
async def test_a_node_that_spoils_its_own_record_is_not_adopted_and_keeps_nobody_from_starting(
    machine: LocalMachine, content: bytes
) -> None:
    machine.store.write(f"{DIRECTORY}/run.json", content)
    assert await asyncio.wait_for(machine.adopt(NODE), 20) is None
    assert not machine.store.exists(f"{DIRECTORY}/run.json")
