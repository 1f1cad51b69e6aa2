"""Where the compiled agent is: the Erlang modules that every managed node loads.

They are in the package, `distsec/agent/ebin`, in a wheel as in a checkout. Building them is no business of a
running program: in a checkout `scripts/build-agent` does it, for a wheel the build hook.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from distsec.errors import RuntimeMissing

BUILT = ".built"
"""Beside the beams: a digest of their sources, and the OTP release of their compiler, the oldest they fit."""


def ebin_directory() -> Path:
    """The absolute directory of `distsec.app` and the beams. Raises RuntimeMissing where it was not built."""
    directory = _directory()
    if not (directory / "distsec.app").is_file() or next(directory.glob("*.beam"), None) is None:
        raise RuntimeMissing(
            "the Erlang part of distsec is not compiled", where=str(directory), do="run scripts/build-agent"
        )
    return directory


def check_agent(release: int) -> None:
    """Raises RuntimeMissing where the agent was compiled for newer OTP releases than this one."""
    directory = _directory()
    try:
        oldest = int((directory / BUILT).read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return  # nobody noted it
    if release < oldest:
        raise RuntimeMissing(
            f"this distsec was compiled with OTP {oldest}, which OTP {release} cannot load",
            where=str(directory),
            do="install its published wheel, or build it with the erlc of the oldest release in use (ERLC=…)",
        )


def _directory() -> Path:
    return Path(str(files("distsec"))).resolve() / "agent" / "ebin"
