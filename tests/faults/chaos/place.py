"""A place of one's own: namespaces for processes, mounts and network, made anew for each run.

    scripts/chaos → private(arguments) → unshare(1) → this program again, as pid 1 of the new place

What comes of it: the state directory can be a small disk that is really full; a node's port is nobody else's
while the node is down; whoever loses its parent becomes our child, as systemd's; and whatever happens to this
program, SIGKILL included, nothing that it has started is left: the kernel ends a pid namespace with its first
process. Without root there is no such place, and the run goes on without the faults that take it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

MARK = "DISTSEC_CHAOS_PLACE"
DISK_BYTES = 24 * 1024 * 1024

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h


def is_private() -> bool:
    """Whether this process is in one, as its first."""
    return os.environ.get(MARK) == "1" and os.getpid() == 1


def private(command: Sequence[str]) -> int | None:
    """Runs `command` in a place of its own, hands on the signals that end it, and returns its exit code.
    None: there is none to be had here."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        return None
    flags = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    flags.append("--net")
    if subprocess.run([unshare, *flags, "true"], capture_output=True).returncode:
        return None
    process = subprocess.Popen([unshare, *flags, *command], env={**os.environ, MARK: "1"})

    def hand_on(number: int, _frame: object) -> None:
        # unshare(1) does not hand signals on: its child is found as the only one below it
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, hand_on)
    code = process.wait()
    return 128 - code if code < 0 else code


def loopback_up() -> None:
    """A new network namespace has its loopback down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xh", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


class Disk:
    """A small disk (tmpfs) at `directory`, that can be filled to its last byte."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filling = directory / ".filling"
        directory.mkdir(mode=0o700, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "chaos", str(directory)],
            check=True,
        )

    def fill(self) -> None:
        """Until there is no room for a byte."""
        with contextlib.suppress(OSError), self._filling.open("ab", buffering=0) as filling:
            for size in (1024 * 1024, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        if filling.write(b"\0" * size) < size:
                            break

    def free(self) -> None:
        self._filling.unlink(missing_ok=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.free()
        subprocess.run(["umount", "--lazy", str(self.directory)], capture_output=True)


def reap(own: Collection[int]) -> int:
    """Waits for children that came to us as to pid 1; those that we started (`own`) are left to who waits for
    them. How many."""
    reaped = 0
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid in own:
                return reaped  # it is first in line until it is waited for, which happens soon
            os.waitpid(found.si_pid, os.WNOHANG)
            reaped += 1
    return reaped
