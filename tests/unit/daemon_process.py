"""An orchestrator as a process, for tests of what `distsec run` does around the supervisor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distsec.control.client import ControlClient
from tests.system.cluster import free_ports
from tests.waiting import PATIENCE_SECONDS, wait_until

MAIN = "from distsec.cli import main; main()"

CONFIG = """
[cluster]
name = "demo"
state_dir = "state"
on_exit = "stop"
[security]
mode = "production"
[security.distribution]
allowed_nodes = ["a@127.0.0.1"]
[metrics]
listen = "127.0.0.1:{metrics}"
[[nodes]]
name = "a@127.0.0.1"
{command}
port = {port}
"""


class Daemon:
    """A cluster of one node, which something else would start, and the orchestrator as a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "distsec.toml"
        self.state = directory / "state"
        self.process: subprocess.Popen[bytes] | None = None
        self.write()

    def write(self, text: str = CONFIG, **fields: object) -> None:
        given = {"metrics": 0, "command": "", "port": free_ports(1)[0], **fields}
        self.config.write_text(text.format(**given))

    def start(
        self, *arguments: str, program: str = MAIN, pass_fds: tuple[int, ...] = (), **environment: str
    ) -> None:
        """`program`: Python that ends in MAIN; what comes before it spoils something."""
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, "run", "-c", str(self.config), *arguments],
                stderr=log,
                pass_fds=pass_fds,
                env={**os.environ, **environment},
            )

    def log(self) -> list[dict[str, Any]]:
        """The JSON lines of its log, but for one that is being written."""
        lines = (self.directory / "log").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def logged(self, event: str, **fields: object) -> dict[str, Any] | None:
        for line in self.log():
            if line["event"] == event and all(line.get(key) == value for key, value in fields.items()):
                return line
        return None

    def ready(self) -> dict[str, Any]:
        assert self.process is not None
        wait_until(lambda: self.logged("ready") or self.process.poll() is not None, "the line `ready`")  # type: ignore[union-attr]
        found = self.logged("ready")
        assert found is not None, self.told()
        return found

    def client(self) -> ControlClient:
        return ControlClient(str(self.state / "control.sock"))

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_SECONDS)

    def told(self) -> str:
        """What it says on stderr that is no line of the log."""
        lines = (self.directory / "log").read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("{"))


@contextmanager
def one_daemon() -> Iterator[Daemon]:
    """Ended with the block, whatever state it is in."""
    # short: a Unix socket's path has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory:
        made = Daemon(Path(directory))
        yield made
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
