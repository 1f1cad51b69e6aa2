"""Tests whose wait ran out beside others, apart from those that failed (docs/adr/0034-out-of-time.md).

A deadline in a test keeps it from hanging; it measures nothing. Where scripts/test names a file in
DISTSEC_OUT_OF_TIME, and nothing failed but a few tests whose wait ran out, that file has their ids in the
end, one a line, and scripts/test runs them alone. That run has failed all the same, by its exit status.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import OutOfTime

AT_MOST = 3
"""Tests of one run. More of them are a machine, or a change, that is too slow."""

STRICT = "tests/attacks/", "tests/vectors/"
"""What an attack leaves for too long is a failure, however busy the machine."""

FILE = "DISTSEC_OUT_OF_TIME"
_PROPERTY = "out of time"
_PYTEST_TIMEOUT = "from pytest-timeout"


def ran_out(error: BaseException) -> bool:
    """Whether a test was ended by a deadline of its own, of a command that it ran, or of pytest-timeout."""
    if isinstance(error, pytest.fail.Exception):
        return _PYTEST_TIMEOUT in str(error)
    return isinstance(error, (OutOfTime, TimeoutError, subprocess.TimeoutExpired))


class Marking:
    """Lives where a test is run, and marks its report: pytest-xdist carries properties to who reports."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[Any]:
        report = yield
        if call.excinfo is not None and report.failed and ran_out(call.excinfo.value):
            report.user_properties.append((_PROPERTY, report.when))
        return report


class Sorting:
    """Lives in the process that reports."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._late: set[str] = set()
        self._failed = False  # anything at all for another reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        late = (_PROPERTY, report.when) in map(tuple, report.user_properties)
        if late and not report.nodeid.startswith(STRICT):
            self._late.add(report.nodeid)
        else:
            self._failed = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._failed = self._failed or report.failed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        alone = session.exitstatus == pytest.ExitCode.TESTS_FAILED and not self._failed
        if alone and 0 < len(self._late) <= AT_MOST:
            self._file.write_text("".join(f"{nodeid}\n" for nodeid in sorted(self._late)))


def register(config: pytest.Config) -> None:
    config.pluginmanager.register(Marking(), "distsec-out-of-time-marking")
    file = os.environ.get(FILE)
    if file and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Sorting(Path(file)), "distsec-out-of-time-sorting")
