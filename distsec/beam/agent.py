"""Where the compiled agent is: the Erlang modules that every managed node loads.

They are in the package, `distsec/agent/ebin`, in a wheel as in a checkout. Building them is no business of a
running program: in a checkout `scripts/build-agent` does it, for a wheel the build hook.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from distsec.errors import RuntimeMissing


def ebin_directory() -> Path:
    """The absolute directory of `distsec.app` and the beams. Raises RuntimeMissing where it was not built."""
    directory = Path(str(files("distsec"))).resolve() / "agent" / "ebin"
    if not (directory / "distsec.app").is_file() or next(directory.glob("*.beam"), None) is None:
        raise RuntimeMissing(
            "the Erlang part of distsec is not compiled", where=str(directory), do="run scripts/build-agent"
        )
    return directory
