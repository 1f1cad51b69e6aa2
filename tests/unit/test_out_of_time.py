"""What scripts/test runs alone after a run: a few tests whose wait ran out, where nothing else failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.out_of_time import AT_MOST, FILE, STRICT
from tests.releases import ROOT

HEAD = """
import subprocess, sys, time
import pytest
from tests.waiting import wait_until
"""
LATE = {
    "wait": "wait_until(lambda: None, 'what never comes', 0)",
    "raises": "raise TimeoutError",
    "command": "subprocess.run([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE, timeout=0)",
}
FAILED = {"assertion": "assert not 1", "error": "raise OSError", "by itself": "pytest.fail('it is not so')"}


def run(
    directory: Path, *bodies: str, head: str = HEAD, workers: str = "0", folder: str = "tests/system"
) -> tuple[int, list[str]]:
    """The exit status of pytest over tests of these bodies, and the names of those to be run alone."""
    tests = "".join(f"def test_{number}():\n    {body}\n" for number, body in enumerate(bodies))
    (directory / "conftest.py").write_text(
        "from tests import out_of_time\ndef pytest_configure(config):\n    out_of_time.register(config)\n"
    )
    (directory / folder).mkdir(parents=True)
    (directory / folder / "test_made.py").write_text(head + tests)
    (directory / "pytest.ini").write_text("[pytest]\n")
    file = directory / "late"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", workers],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), FILE: str(file)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    named = file.read_text().splitlines() if file.exists() else []
    return done.returncode, [name.removeprefix(f"{folder}/test_made.py::") for name in named]


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("body", LATE.values(), ids=LATE)
def test_a_wait_that_ran_out_is_named_and_has_failed(tmp_path: Path, body: str, workers: str) -> None:
    assert run(tmp_path, "pass", body, workers=workers) == (1, ["test_1"])


def test_a_test_that_pytest_timeout_ended_is_named(tmp_path: Path) -> None:
    body = "pytestmark = pytest.mark.timeout(0.2)\n"
    assert run(tmp_path, "time.sleep(60)", head=HEAD + body) == (1, ["test_0"])


def test_a_fixture_whose_wait_ran_out_is_named_by_its_test(tmp_path: Path) -> None:
    fixture = f"@pytest.fixture(autouse=True)\ndef early():\n    {LATE['wait']}\n"
    assert run(tmp_path, "pass", head=HEAD + fixture) == (1, ["test_0"])


@pytest.mark.parametrize("body", FAILED.values(), ids=FAILED)
def test_nothing_is_named_where_anything_else_failed(tmp_path: Path, body: str) -> None:
    assert run(tmp_path, LATE["wait"], body) == (1, [])


def test_nothing_is_named_where_a_test_failed_and_its_end_ran_out(tmp_path: Path) -> None:
    fixture = f"@pytest.fixture(autouse=True)\ndef late():\n    yield\n    {LATE['wait']}\n"
    assert run(tmp_path, "assert not 1", head=HEAD + fixture) == (1, [])


def test_nothing_is_named_where_many_ran_out(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir()
    many.mkdir()
    assert run(few, *[LATE["wait"]] * AT_MOST)[1] == [f"test_{number}" for number in range(AT_MOST)]
    assert run(many, *[LATE["wait"]] * (AT_MOST + 1)) == (1, [])


@pytest.mark.parametrize("folder", STRICT)
def test_an_attack_that_stays_for_too_long_has_failed(tmp_path: Path, folder: str) -> None:
    assert run(tmp_path, LATE["wait"], folder=folder) == (1, [])


def test_nothing_is_named_where_a_process_of_tests_died(tmp_path: Path) -> None:
    assert run(tmp_path, LATE["wait"], "__import__('os')._exit(1)", workers="2") == (1, [])


def test_nothing_is_named_where_nothing_failed(tmp_path: Path) -> None:
    assert run(tmp_path, "pass") == (0, [])
