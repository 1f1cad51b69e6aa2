"""A node that something else starts: a shell that evaluates what `distsec env NODE --shell` prints."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from types import TracebackType

from tests.system.beam_control import Control
from tests.system.cluster import COMMAND, Cluster
from tests.waiting import wait_until

BOOT_SECONDS = 60.0


class Outside:
    """One VM, which prints into a file of its own. `extra`: flags of its command. Ends with its block."""

    def __init__(
        self, cluster: Cluster, name: str, *, guarded: bool = True, extra: tuple[str, ...] = ()
    ) -> None:
        self._extra = extra
        self.cluster = cluster
        self.name = name
        self.control = Control(cluster.directory / f"{name}.sock")
        self.output = cluster.directory / f"{name}-outside.log"
        command = " ".join(COMMAND)
        take = f'eval "$({command} env {cluster.node(name)} --shell)"; ' if guarded else ""
        self._script = f'set -e; {take}exec "$@"'
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> int:
        """Starts it, and waits until it answers. Returns its pid: the shell's, which the VM takes over."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *("/bin/sh", "-c", self._script, "sh"),
                    self.cluster.otps[self.name].erl,
                    "-noinput",
                    *self._extra,
                    *Control.arguments(self.cluster.beams, self.control.path),
                ],
                cwd=self.cluster.directory,
                env=self.cluster.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if wait:
            wait_until(self.control.ready, f"{self.name} to answer ({self.told()})", BOOT_SECONDS)
        return self.process.pid

    def told(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def ended(self, seconds: float = BOOT_SECONDS) -> int:
        """Waits for its end."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> None:
        """Ends it at once, by pid."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                if self.process.poll() is None:
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Outside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
