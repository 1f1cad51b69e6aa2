"""A clean cluster on disk for each test, and one running for the module that needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsec.posture.collect import gather, processes
from tests.posture.planted import Planted
from tests.system.conftest import beams, make_cluster  # noqa: F401  the same clusters, made in the same way


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """What `distsec init` makes, once."""
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        yield Planted(Path(directory)).directory


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, template: Path) -> Iterator[Planted]:
    """A cluster as `distsec init` makes it, on a host on which no emulator runs; `plant` changes it."""
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        planted = Planted(Path(directory), template)
        monkeypatch.setattr(gather.processes, "find", lambda: planted.found)
        assert processes.find() is planted.found
        with planted.keep:
            yield planted
