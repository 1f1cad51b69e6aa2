"""What the tests of applications share: compiled helpers, and releases that are built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.applications.builds import Builds
from tests.releases import OTPS, Otp
from tests.system.conftest import beams, make_cluster

__all__ = ["beams", "builds", "make_cluster"]


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("builds"))


@pytest.fixture(scope="module")
def debians(agent_ebin: Path) -> Otp:
    """The release that Debian's packages run on."""
    return OTPS[0]


@pytest.fixture(autouse=True)
def _tested_release_of_module(request: pytest.FixtureRequest) -> None:
    """As `_tested_release`, under the names that the fixtures have here."""
    for name in ("release", "debians"):
        if name in request.fixturenames:
            request.node.user_properties.append(("otp", request.getfixturevalue(name).stands_for))
            return
