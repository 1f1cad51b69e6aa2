"""What the tests of the configuration share: a file that loads, and how to see what is wrong with another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from distsec.config.load import parse
from distsec.errors import ConfigError, Problem
from distsec.model.cluster import ClusterSpec

CONFIG_FILE = Path("/etc/distsec/distsec.toml")

Parse = Callable[..., ClusterSpec]
Problems = Callable[..., list[Problem]]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket; that of tmp_path grows with the number of runs."""
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def spec() -> Parse:
    """Parses a text as /etc/distsec/distsec.toml, in an environment that is empty unless given."""

    def run(text: str, environment: Mapping[str, str] | None = None, path: Path = CONFIG_FILE) -> ClusterSpec:
        return parse(text, path, environment or {})

    return run


@pytest.fixture
def problems(spec: Parse) -> Problems:
    """The problems of a text that must not load."""

    def run(text: str, environment: Mapping[str, str] | None = None) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            spec(text, environment)
        assert caught.value.problems
        return list(caught.value.problems)

    return run


@pytest.fixture
def only(problems: Problems) -> Callable[..., Problem]:
    """The one problem of a text that has exactly one."""

    def run(text: str, environment: Mapping[str, str] | None = None) -> Problem:
        (found,) = problems(text, environment)
        return found

    return run
