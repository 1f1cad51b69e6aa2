"""Options that the commands share, and the way from a configuration file to the orchestrator that runs it."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distsec.cli.candidates import any_file
from distsec.cli.group import set_debug

if TYPE_CHECKING:
    from distsec.control.client import ControlClient

Command = TypeVar("Command", bound=Callable[..., Any])

CONFIG_VARIABLE = "DISTSEC_CONFIG"
SEARCHED = ("distsec.toml", "/etc/distsec/distsec.toml")
"""As config.load has them, which is slow to import; a test holds the two together."""

_STATE_DIR = "state"


def config_option(command: Command) -> Command:
    """`-c FILE`, given to the command as `config` (None: look for it), and `--debug`."""
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, callback=set_debug, help="Show tracebacks of errors."
    )
    config = click.option(
        "-c",
        "--config",
        metavar="FILE",
        shell_complete=any_file,
        help=f"The configuration; else ${CONFIG_VARIABLE}, ./distsec.toml, /etc/distsec/distsec.toml.",
    )
    return config(debug(command))


def client(config: str | None) -> ControlClient:
    """A client of the orchestrator that runs this configuration. Raises ConfigError where there is none."""
    from distsec.control.client import ControlClient  # http.client: not for --help, nor for a TAB
    from distsec.control.wire import SOCKET_NAME

    path = _find(config)
    start = f"distsec run -c {shlex.quote(str(path))}"
    return ControlClient(f"{_state_dir(path)}/{SOCKET_NAME}", start_command=start)


def known_config(option: str | None) -> Path | None:
    """What a command with this `-c` reads; None: there is no configuration."""
    named = option or os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named).absolute()
    for candidate in SEARCHED:
        if os.path.lexists(candidate):
            return Path(candidate).absolute()
    return None


def _find(option: str | None) -> Path:
    if (path := known_config(option)) is not None:
        return path
    from distsec.config.load import find_config

    return find_config(None, os.environ)


def state_directory(config: str | None) -> tuple[Path, str]:
    """The configuration that `client` would go by, and its state directory. Raises ConfigError."""
    path = _find(config)
    return path, _state_dir(path)


def _state_dir(path: Path) -> str:
    """The state directory of the configuration at `path`: read quickly, without judging the rest of the
    file, since an orchestrator may well be running while the file is being edited; loaded in full where
    that does not do."""
    from distsec.config.source import read_source

    text = read_source(path)
    try:
        cluster = tomllib.loads(text).get("cluster", {})
        state_dir = cluster.get("state_dir", _STATE_DIR)
        if isinstance(state_dir, str) and state_dir and not set("$\0") & set(state_dir):
            return os.path.normpath(path.parent / state_dir)
    except (ValueError, AttributeError, RecursionError):
        pass  # not what it should be: the real reader says what is wrong, and where
    from distsec.config.load import load

    return load(path, os.environ).state_dir
