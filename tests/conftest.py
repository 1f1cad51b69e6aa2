"""What all tests share: the OTP releases that are here, and the compiled agent.

A test that starts a BEAM takes `otp` (it runs once a release) or `otps` (all of them, for mixed clusters).
`scripts/otp` makes the releases; nothing is made and no network is used here. DISTSEC_OTP=25,27 limits them.
The last lines of a run name the proven releases that were not tested; with CI=true a missing one fails it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from distsec.model.cluster import PROVEN_RELEASES
from tests.releases import OTPS, ROOT, Otp

BUILD_SECONDS = 120

# An example that takes long on a busy machine is no failure; Hypothesis has a profile of its own for CI=true.
settings.register_profile("here", deadline=None)
if "CI" not in os.environ:
    settings.load_profile("here")


@pytest.fixture(scope="session")
def agent_ebin() -> Path:
    """The compiled agent, built by the oldest release that is here: one build serves all newer ones."""
    if not OTPS:
        pytest.fail("no OTP release is here: run scripts/otp")
    oldest = min(OTPS, key=lambda otp: otp.release)
    subprocess.run(
        [str(ROOT / "scripts" / "build-agent")],
        check=True,
        env={**os.environ, "ERLC": oldest.erlc},
        timeout=BUILD_SECONDS,
    )
    return ROOT / "distsec" / "agent" / "ebin"


@pytest.fixture(params=OTPS, ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """Each OTP release that is here, one after the other; the agent is compiled."""
    chosen: Otp = request.param
    return chosen


@pytest.fixture(autouse=True)
def _tested_release(request: pytest.FixtureRequest) -> None:
    """Tells the run's summary which release this test was for; a fixture of a module cannot."""
    if "otp" in request.fixturenames:
        request.node.user_properties.append(("otp", request.getfixturevalue("otp").stands_for))


@pytest.fixture
def otps(request: pytest.FixtureRequest, agent_ebin: Path) -> tuple[Otp, ...]:
    """All OTP releases that are here, oldest first, for a test that mixes them; the agent is compiled."""
    return OTPS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever takes a release talks to a BEAM."""
    for item in items:
        if {"otp", "otps"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.otp)


class Releases:
    """Which releases a run has tested. Lives in the process that reports, so it works with pytest-xdist."""

    def __init__(self) -> None:
        self.wanted = False  # whether any selected test talks to a BEAM
        self.tested: set[int] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.wanted = self.wanted or "otp" in report.keywords
        if report.when == "call":
            self.tested |= {int(str(release)) for key, release in report.user_properties if key == "otp"}

    @property
    def missing(self) -> list[int]:
        """Proven releases that are not here at all."""
        return sorted(PROVEN_RELEASES - {otp.stands_for for otp in OTPS})

    @property
    def fatal(self) -> bool:
        return self.wanted and bool(self.missing) and os.environ.get("CI") == "true"

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if self.fatal and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if untested := sorted(PROVEN_RELEASES - self.tested):
            names = ", ".join(f"OTP {release}" for release in untested)
            terminalreporter.write_line(f"not tested in this run: {names}")
        for otp in OTPS:
            if not otp.proven and otp.stands_for in self.tested:
                terminalreporter.write_line(f"OTP {otp.release} ran in place of {otp.stands_for}, unproven")
        if self.fatal:
            names = ", ".join(f"OTP {release}" for release in self.missing)
            terminalreporter.write_line(
                f"ERROR: CI=true, and {names} is missing: scripts/otp makes it", red=True
            )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers report nothing themselves
        config.pluginmanager.register(Releases(), "distsec-releases")
