"""Fixtures of the tests that run whole clusters."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.releases import OTPS, Otp
from tests.system.beam_control import BEAM_SOURCES
from tests.system.cluster import Cluster


@pytest.fixture(scope="session")
def beams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' own Erlang modules, compiled by the oldest release that is here."""
    directory = tmp_path_factory.mktemp("beams")
    oldest = min(OTPS, key=lambda otp: otp.release)
    sources = sorted(map(str, BEAM_SOURCES.glob("*.erl")))
    subprocess.run(
        [oldest.erlc, "+warnings_as_errors", "-o", str(directory), *sources], check=True, timeout=180
    )
    return directory


@pytest.fixture
def make_cluster(beams: Path, agent_ebin: Path) -> Iterator[Callable[..., Cluster]]:
    """`make_cluster(otp, nodes=["a"], …)`: see Cluster. All that a test makes is ended with the test."""
    with ExitStack() as stack:

        def make(otp: Otp | dict[str, Otp], *arguments: Any, **how: Any) -> Cluster:
            return stack.enter_context(Cluster(otp, beams, *arguments, **how))

        yield make


@pytest.fixture
def cluster(otp: Otp, make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three nodes a, b, c of one release, RUNNING and meshed, in production mode."""
    made = make_cluster(otp)
    made.start()
    return made
