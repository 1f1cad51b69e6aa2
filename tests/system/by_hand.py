"""A node that is started by hand, as a unit of systemd would do it: with what `distsec env` prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from types import TracebackType

from tests.system.beam_control import Control
from tests.system.cluster import Cluster
from tests.waiting import wait_until

BOOT_SECONDS = 60.0


class ByHand:
    """Ends with its block. The orchestrator is asked for the environment once, when this is made."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.control = Control(cluster.directory / f"{name}.sock")
        document = json.loads(cluster.distsec("env", cluster.node(name), "--json").stdout)
        self.environment: dict[str, str] = {
            "HOME": str(cluster.directory),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            **document["env"],
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        log = self.cluster.node_directory(self.name) / "log"
        with (log / "output.log").open("ab") as output:
            self.process = subprocess.Popen(
                [
                    self.cluster.otps[self.name].erl,
                    "-noinput",
                    *Control.arguments(self.cluster.beams, self.control.path),
                ],
                cwd=self.cluster.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self.control.ready, f"{self.name} to answer", BOOT_SECONDS)

    def stop(self) -> None:
        """Ends it at once, by pid."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def __enter__(self) -> ByHand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
