"""A pid that the kernel has given away again, for real: in a pid namespace of its own, where the next pid can
be chosen (pid_namespaces(7), /proc/sys/kernel/ns_last_pid)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.releases import ROOT

INSIDE = r"""
import asyncio, json, os, pathlib, signal, subprocess, sys, time
from distsec.beam import proc, session
from distsec.beam.logs import OutputLog
from distsec.beam.node import NodeProcess, RunRecord, boot_id, leftovers
from distsec.errors import RuntimeMissing
from distsec.supervisor.external import ExternalProcess

SLEEP = ["sleep", "600"]
directory = pathlib.Path(sys.argv[1]) / "log"
directory.mkdir()
log = OutputLog(directory / "output.log", 1 << 20)

def start(**how):
    return subprocess.Popen(SLEEP, start_new_session=True, stdin=subprocess.DEVNULL, **how)

async def main():
    records = []
    first = NodeProcess.start(SLEEP, environment=dict(os.environ), working_directory=directory, log=log,
                              started_at=0.0, record=records.append)
    run = RunRecord(first.pid, first.start_time, boot_id(), 0.0)
    watched = ExternalProcess(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    await first.wait()  # reaped: from here on the pid is free
    while session.ticks_now() <= run.start_time + 2:
        time.sleep(0.01)
    pathlib.Path("/proc/sys/kernel/ns_last_pid").write_text(str(run.pid - 1))
    with log.path.open("ab") as output:  # even one that writes to the node's own log
        stranger = start(stdout=output, stderr=output)
    assert stranger.pid == run.pid, (stranger.pid, run.pid)
    told = {"reused": proc.start_time(run.pid) != run.start_time}
    told["adopted"] = NodeProcess.adopt(run, log) is not None
    found = leftovers(run, log)
    told["left"] = [member.pid for member in found]
    await session.end([session.Member(run.pid, run.start_time)], 0.2)
    told["first signalled"] = first.signal_group(signal.SIGKILL)
    told["watched signalled"] = watched.signal_group(signal.SIGKILL)
    told["contains"] = first.contains(run.pid) or watched.contains(run.pid)
    try:
        ExternalProcess(run.pid, run.start_time)
        told["taken"] = True
    except RuntimeMissing:
        told["taken"] = False
    for forged in (RunRecord(run.pid, run.start_time + 1, boot_id(), 0.0),
                   RunRecord(run.pid, proc.start_time(run.pid) - 1, boot_id(), 0.0),
                   RunRecord(run.pid, proc.start_time(run.pid), "another-boot", 0.0)):
        told["adopted"] = told["adopted"] or NodeProcess.adopt(forged, log) is not None
    told["alive"] = stranger.poll() is None
    stranger.kill()
    print(json.dumps(told))

asyncio.run(main())
"""


def test_a_pid_that_was_given_away_again_is_neither_adopted_nor_touched(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("a pid namespace takes root")
        pytest.skip("a pid namespace takes root")
    done = subprocess.run(
        [
            *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
            sys.executable,
            "-c",
            INSIDE,
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.stderr.startswith("unshare: ") and os.environ.get("CI") != "true":
        pytest.skip(f"no pid namespace: {done.stderr.strip()}")  # in a container, or below chroot
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "reused": True,
        "adopted": False,
        "left": [],
        "first signalled": False,
        "watched signalled": False,
        "contains": False,
        "taken": False,
        "alive": True,
    }
