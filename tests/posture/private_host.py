"""A host of a test's own: network, processes and /proc, so that a listener may be open to all of it.

What is started there ends with it, and `distsec check --host` there sees nothing of the tests beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

_FIRST = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # lo up: SIOCSIFFLAGS, IFF_UP
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))
print("up", flush=True)
sys.stdin.read()
"""


class PrivateHost:
    """Skips the test where the kernel does not let this user have one."""

    def __init__(self) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._namespaces = ["--net", "--pid", "--mount", *user[:1]]
        self._unshare = subprocess.Popen(
            [
                *("unshare", *user, "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *(sys.executable, "-c", _FIRST),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._unshare.stdout is not None and self._unshare.stderr is not None
        if self._unshare.stdout.readline() != b"up\n":
            why = self._unshare.stderr.read().decode(errors="replace").strip()
            self.close()
            pytest.skip(f"no namespaces for this user: {why}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        self.leader = int(children.split()[0])
        """Its first process, as it is called here."""
        self._enter = ["nsenter", "--target", str(self.leader), *self._namespaces, "--"]

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Starts a process that ends with this host."""
        with log.open("ab") as output:
            subprocess.Popen(
                [*self._enter, *command],
                cwd=log.parent,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter, *command],
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def close(self) -> None:
        """Ends the first process there, and the kernel ends all others with it."""
        self._unshare.kill()
        self._unshare.communicate()

    def __enter__(self) -> PrivateHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
