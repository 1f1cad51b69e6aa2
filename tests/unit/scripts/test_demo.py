"""scripts/demo.py: which processes it may end."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.releases import ROOT

Start = Callable[..., int]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Demo in a directory of its own, that has started nothing."""
    spec = importlib.util.spec_from_file_location("scripts_demo", ROOT / "scripts/demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.Demo(tmp_path, threading.Event())


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that sleeps, with these arguments and this environment; returns its pid."""
    with contextlib.ExitStack() as stack:

        def started(*arguments: str, **environment: str) -> int:
            # it writes once it is Python, so that its command line and environment are the ones asked for
            code = "import sys; print(flush=True); sys.stdin.read()"
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.callback(process.communicate)
            assert process.stdout is not None
            process.stdout.readline()
            return process.pid

        yield started


def test_shells_and_editors_of_a_visitor_are_left_alone(demo: Any, start: Start, tmp_path: Path) -> None:
    start(DISTSEC_CONFIG=f"{tmp_path}/distsec.toml")
    start(f"{tmp_path}/distsec.toml", PWD=f"{tmp_path}/state/nodes")
    start("-distsec_dir", f"{tmp_path}/elsewhere/nodes/poller@127.0.0.1")
    start(ERL_CRASH_DUMP=f"{tmp_path}/erl_crash.dump")
    start(ERL_CRASH_DUMP=f"{tmp_path}/state/../erl_crash.dump")
    start(OLD_ERL_CRASH_DUMP=f"{tmp_path}/state/nodes/a/log/erl_crash.dump")
    start("-other_dir", f"{tmp_path}/state/nodes/a")
    assert list(demo.processes()) == []


def test_what_the_demo_started_is_found(demo: Any, start: Start, tmp_path: Path) -> None:
    begun = {
        start("-noinput", "-distsec_dir", f"{tmp_path}/state/nodes/poller@127.0.0.1", "-name", "a"),
        start(ERL_CRASH_DUMP=f"{tmp_path}/state/nodes/poller@127.0.0.1/log/erl_crash.dump"),
    }
    with subprocess.Popen(["sleep", "60"]) as orchestrator:
        demo.orchestrator = orchestrator
        assert set(demo.processes()) == begun | {orchestrator.pid}
        orchestrator.kill()
    assert set(demo.processes()) == begun, "an orchestrator that has ended: its pid may be another's"
