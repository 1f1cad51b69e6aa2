"""Hatch's build hook: compiles the agent, so that a wheel carries the Erlang modules.

A wheel without them would install and never start a node, so it is not made. An editable install takes them
from the checkout later (`scripts/build-agent`), so a missing compiler does not stop that.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AgentBuildHook(BuildHookInterface[Any]):
    """Runs scripts/build-agent before a wheel is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is "standard" or "editable". Raises where a wheel would lack the agent."""
        done = subprocess.run([str(Path(self.root, "scripts", "build-agent"))], stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return
        if version == "editable":
            self.app.display_warning("distsec: the agent is not compiled yet; run scripts/build-agent")
            return
        raise RuntimeError("the agent could not be compiled, and a wheel without it is of no use: see above")
