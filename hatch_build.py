"""Hatch's build hook: what a wheel carries beside the Python modules.

    distsec/agent/ebin/, src/     the agent, compiled by scripts/build-agent, and its sources to audit
    share/distsec/config/         examples, units of systemd, rules for Prometheus
    share/man/, share/*/…         manual pages and shell completions, made by scripts/manual

One wheel serves every OTP release that is not older than its compiler. So what is published is compiled by
the oldest; with another one the wheel is for its own machine, and the build says so. A wheel without the
agent would install and never start a node, so it is not made. An editable install takes the agent from the
checkout later (`scripts/build-agent`), so a missing compiler does not stop that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.utils import get_reproducible_timestamp

OLDEST_RELEASE = 25
"""As model.cluster has it; a test holds the two together."""


class WheelBuildHook(BuildHookInterface[Any]):
    """Compiles the agent, writes the manual, and puts both into the wheel."""

    _generated: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is "standard" or "editable". Raises where a wheel would lack the agent."""
        root = Path(self.root)
        done = subprocess.run([str(root / "scripts" / "build-agent")], stdin=subprocess.DEVNULL)
        if version == "editable":
            if done.returncode != 0:
                self.app.display_warning("distsec: the agent is not compiled yet; run scripts/build-agent")
            return
        if done.returncode != 0:
            raise RuntimeError(
                "the agent could not be compiled, and a wheel without it is of no use: see above"
            )
        self._look_at_the_release(root / "distsec" / "agent" / "ebin" / ".built")
        self._generated = tempfile.TemporaryDirectory(prefix="distsec-share-")
        share = Path(self._generated.name)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(get_reproducible_timestamp())}
        subprocess.run(
            [sys.executable, "-m", "scripts.manual", str(share)], cwd=root, env=environment, check=True
        )
        data: dict[str, str] = build_data["shared_data"]
        data |= {str(file): f"share/{file.relative_to(share)}" for file in _files(share)}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._generated is not None:
            self._generated.cleanup()

    def _look_at_the_release(self, built: Path) -> None:
        release = int(built.read_text("ascii").split()[1])
        if release != OLDEST_RELEASE:
            self.app.display_warning(
                f"distsec: the agent was compiled with OTP {release}: this wheel is for nodes of that release"
                f" and newer ones, not to be published; ERLC names the compiler of OTP {OLDEST_RELEASE}"
            )


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
