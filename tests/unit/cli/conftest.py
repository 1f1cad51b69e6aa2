"""A configuration with a fake orchestrator behind it, and the command line as a person types it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner, Result

from distsec.cli.group import distsec
from tests.unit.control.fake_orchestrator import Running, running

Type = Callable[..., Result]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: the path of a Unix socket has at most 107 bytes."""
    with TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "distsec.toml"
    path.write_text('[cluster]\nname = "demo"\nstate_dir = "run"\n')
    path.chmod(0o600)
    return path


@pytest.fixture
def orchestrator(config: Path) -> Iterator[Running]:
    with running(config.parent / "run") as server:
        yield server


@pytest.fixture
def type_in(config: Path) -> Type:
    """`type_in("status", "--json")`: runs the command line, with `config` in the environment."""

    def run(*args: str, **environment: str | None) -> Result:
        env = {"DISTSEC_CONFIG": str(config), "NO_COLOR": None, **environment}
        return CliRunner().invoke(distsec, args, env=env, prog_name="distsec")

    return run
