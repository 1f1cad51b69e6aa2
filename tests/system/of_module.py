"""Fixtures of a module whose tests share a cluster, as values:

otp = of_module(OTPS)       # in place of the `otp` that every test has for itself
shared = started()          # three nodes of that release, meshed, as long as the module
cluster = meshed()          # the same, and before each test RUNNING and meshed again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.releases import Otp
from tests.system.cluster import Cluster


def of_module(releases: Sequence[Otp]) -> Any:
    """The fixture `otp`: each of these, one after the other, and what a module makes for it is made once."""

    @pytest.fixture(scope="module", params=releases, ids=str)
    def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
        chosen: Otp = request.param
        return chosen

    return otp


def started() -> Any:
    """The fixture `shared`."""

    @pytest.fixture(scope="module")
    def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
        with Cluster(otp, beams) as cluster:
            cluster.start()
            yield cluster

    return shared


def meshed() -> Any:
    """The fixture `cluster`. Each test leaves it RUNNING and meshed."""

    @pytest.fixture
    def cluster(shared: Cluster) -> Cluster:
        shared.wait_running()
        shared.wait_meshed()
        return shared

    return cluster
