"""A booted systemd of its own for a module of tests: systemd-nspawn on an overlay of `/`, with a private
network.

    machine = Machine()
    machine.write("/etc/distsec/distsec.toml", …)       # before it boots: a layer of files above `/`
    with machine:
        machine.run("systemctl", "start", "distsec")

Everything that it changes is in memory and gone with it, but for `share`, a directory that both sides see,
and the journal, which `journal` reads even after the machine was switched off. No bus and no machined are
needed: commands enter the namespaces of its PID 1 (nsenter(1)). The host's own services do not run in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.releases import ROOT
from tests.waiting import wait_until

NEEDED = ("systemd-nspawn", "nsenter", "unshare", "ip")
SHARE = "/share"
"""`Machine.share`, inside."""

BOOT_SECONDS = 180.0
COMMAND_SECONDS = 120.0
OFF_SECONDS = 120.0
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

_NOT_HERE = (
    "console-getty.service",
    "getty.target",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
)
"""Static units that a machine without a console and a network has no use for."""

_EMPTY = (
    "etc/distsec",
    "etc/systemd/system",
    "etc/systemd/system-generators",
    "var/log/journal",
    *(f"etc/rc{level}.d" for level in "0123456S"),
)
"""Directories of the host that the machine finds empty: what the host runs, and what it knows of distsec."""

# The mounts are in a namespace of their own, so that they end with the last process in it. Its processes are
# in a cgroup of their own: systemd takes whatever it is put into for its own.
_START = r"""
set -eu
directory=$1 name=$2 installed=$3; shift 3
mount -t tmpfs -o mode=755 distsec "$directory/memory"
cd "$directory/memory"
mkdir upper work root
[ -z "$installed" ] || cp -a "$installed/." upper
cp -a "$directory/layer/." upper
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd /
while IFS=: read -r number controllers path; do
    case "$number:$controllers" in
        0:)
            mount=/sys/fs/cgroup/unified
            [ -e "$mount/cgroup.procs" ] || mount=/sys/fs/cgroup
            ;;
        *:name=systemd) mount=/sys/fs/cgroup/systemd ;;
        *) continue ;;
    esac
    mkdir -p "$mount${path%/}/$name"
    echo "$mount${path%/}/$name" >>"$directory/cgroups"
    echo $$ >"$mount${path%/}/$name/cgroup.procs"
done </proc/self/cgroup
# bpf(2): IPAddressDeny=
exec systemd-nspawn --quiet --boot --directory="$directory/memory/root" --machine="$name" --private-network \
    --register=no --keep-unit --system-call-filter=bpf --capability=CAP_BPF --link-journal=no --console=pipe \
    --bind="$directory/share:/share" --bind="$directory/journal:/var/log/journal" "$@"
"""


def needed() -> None:
    """Skips where a machine cannot be had; with CI=true that fails."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if os.geteuid() != 0:
        missing.insert(0, "root")
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, and not here: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not here: {', '.join(missing)}")


class Machine:
    """Boots at `with`, and is off afterwards whatever happened. `installed`: a directory with files to be
    found above the host's (`scripts/install --root`).
    """

    def __init__(self, installed: Path | None = None) -> None:
        needed()
        self.directory = Path(tempfile.mkdtemp(prefix="dsn", dir="/var/tmp"))
        self.share = self.directory / "share"
        """What is /share inside."""
        for part in ("memory", "share", "journal", "layer"):
            (self.directory / part).mkdir()
        self.directory.chmod(0o755)
        self._installed = installed
        self._write_layer()
        self.name = f"distsec-{os.getpid()}-{os.urandom(3).hex()}"
        self._leader = 0
        self._nspawn: subprocess.Popen[bytes] | None = None

    def _write_layer(self) -> None:
        """What makes the host's files those of a machine of its own."""
        layer = self.directory / "layer"
        for name in _EMPTY:
            (layer / name).mkdir(parents=True)
            os.setxattr(layer / name, "trusted.overlay.opaque", b"y")
        for unit in _NOT_HERE:
            (layer / "etc/systemd/system" / unit).symlink_to("/dev/null")
        (layer / "etc/fstab").touch()
        (layer / "etc/machine-id").write_text(os.urandom(16).hex() + "\n")
        (layer / "etc/hostname").write_text("distsec-test\n")
        (layer / "etc/systemd/journald.conf").write_text(
            "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n"
        )

    def __enter__(self) -> Machine:
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _boot(self) -> None:
        installed = str(self._installed or "")
        binds = [f"--bind-ro={ROOT}"]
        if not sys.base_prefix.startswith("/usr"):
            binds.append(f"--bind-ro={sys.base_prefix}")
        with self._console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                [
                    *("unshare", "--mount", "--propagation", "private"),
                    *("bash", "-c", _START, "machine", str(self.directory), self.name, installed, *binds),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._is_up, "the machine to boot", BOOT_SECONDS)

    @property
    def _console(self) -> Path:
        return self.directory / "console.log"

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, f"it ended: {self._console.read_text(errors='replace')}"
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._leader = int(child)
        if not self._leader:
            return False
        done = self.run("systemctl", "is-system-running", check=False)
        return done.stdout.strip() in {"running", "degraded"}

    def _end(self) -> None:
        if self._nspawn is not None and self._nspawn.poll() is None:
            # KILL for its PID 1 ends all that is in it: the kernel sees to that
            for pid in filter(None, (self._leader, self._nspawn.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._nspawn.wait(OFF_SECONDS)
        for line in _lines(self.directory / "cgroups"):
            wait_until(lambda line=line: _removed(Path(line)), f"{line} to be empty", OFF_SECONDS)  # type: ignore[misc]
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- inside

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` inside, as root, in the checkout."""
        return [
            *("nsenter", "--target", str(self._leader), "--mount", "--uts", "--ipc", "--net", "--pid"),
            *("env", "-i", f"--chdir={ROOT}", *(f"{key}={value}" for key, value in ENVIRONMENT.items())),
            *words,
        ]

    def run(
        self, *words: str, check: bool = True, seconds: float = COMMAND_SECONDS, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end; `check` asserts that it exits with 0."""
        done = subprocess.run(
            self.command(*words), input=stdin, capture_output=True, text=True, timeout=seconds, check=False
        )
        if check:
            assert done.returncode == 0, f"{shlex.join(words)}: {done.returncode}\n{done.stderr}{done.stdout}"
        return done

    def shell(self, script: str, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """What a bash script prints inside."""
        return self.run("bash", "-euc", script, check=check, seconds=seconds).stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def write(self, path: str, text: str) -> None:
        """A file inside; its directory is made. Before the boot, too."""
        if not self._leader:
            place = self.directory / "layer" / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
            return
        self.run("bash", "-euc", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "write", path, stdin=text)

    def link(self, path: str, target: Path) -> None:
        """Before the boot: a symbolic link."""
        place = self.directory / "layer" / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def enable(self, *units: str, target: str = "multi-user.target") -> None:
        """Before the boot: `systemctl enable`."""
        wants = self.directory / "layer/etc/systemd/system" / f"{target}.wants"
        wants.mkdir(parents=True, exist_ok=True)
        for unit in units:
            own = Path("/etc/systemd/system") / unit
            there = (self.directory / "layer" / str(own).lstrip("/")).exists()
            (wants / unit).symlink_to(own if there else Path("/usr/local/lib/systemd/system") / unit)

    def journal(self, *options: str) -> list[dict[str, Any]]:
        """The journal's entries, oldest first; also of a machine that is off. FIELD=value among the options:
        only such entries. (journalctl itself would lose the first of them behind --after-cursor.)
        """
        if self._nspawn is not None and self._nspawn.poll() is None:
            self.run("journalctl", "--sync")
        matches = [option for option in options if not option.startswith("-") and "=" in option]
        rest = [option for option in options if option not in matches]
        done = subprocess.run(
            ["journalctl", "-D", str(self.directory / "journal"), "-o", "json", "--all", "-q", *rest],
            capture_output=True,
            text=True,
            check=True,
        )
        entries = map(json.loads, done.stdout.splitlines())
        wanted = [match.split("=", 1) for match in matches]
        return [entry for entry in entries if all(entry.get(name) == value for name, value in wanted)]

    def messages(self, *matches: str) -> str:
        """What the journal's entries say, a line each."""
        return "\n".join(str(entry.get("MESSAGE")) for entry in self.journal(*matches))

    def power_off(self) -> None:
        """As an operator does it; returns when it is off."""
        assert self._nspawn is not None
        self.run("systemctl", "poweroff", check=False)  # it may be ended itself before it has ended
        assert self._nspawn.wait(OFF_SECONDS) == 0


def _lines(path: Path) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        yield from path.read_text().splitlines()


def _removed(cgroup: Path) -> bool:
    """Removes a cgroup with all below it, deepest first; False while something is in it."""
    for directory in sorted(cgroup.rglob("*"), reverse=True):
        if directory.is_dir():
            with contextlib.suppress(OSError):
                directory.rmdir()
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()
