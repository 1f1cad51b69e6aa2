"""What is published, made once for a whole run of the tests, and an installation that knows no checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from distsec.model.cluster import OLDEST_RELEASE
from tests.releases import OTPS, ROOT

EPOCH = 1_767_225_600
"""2026-01-01: the time of every file in what the tests make."""

CI = os.environ.get("CI") == "true"
MAKE_SECONDS = 600.0


def need(holds: bool, what: str) -> None:
    """Skips without `what`; with CI=true that is a failure."""
    if not holds:
        if CI:
            pytest.fail(f"CI=true, and {what} is missing")
        pytest.skip(f"{what} is missing")


def run(
    *words: str | Path, environment: Mapping[str, str] | None = None, seconds: float = 180.0, **how: object
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; its output is text. Asserts nothing."""
    return subprocess.run(
        [str(word) for word in words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        **how,  # type: ignore[call-overload]
    )


def done(*words: str | Path, **how: object) -> str:
    """Like `run`, of a command that has to exit with 0: its stdout."""
    ended = run(*words, **how)  # type: ignore[arg-type]
    assert ended.returncode == 0, f"{words}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
    return str(ended.stdout)


def once(directory: Path, name: str, make: Callable[[Path], None]) -> Path:
    """`directory`/`name`, made by whichever test process comes first; the others wait."""
    target = directory / name
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            staging = directory / f"{name}.new"
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            make(staging)
            staging.rename(target)
    return target


def build_environment(**extra: str) -> dict[str, str]:
    """For what builds: the oldest release's compiler, and one time for everything."""
    oldest = min(OTPS, key=lambda otp: otp.release)
    return {**os.environ, "ERLC": oldest.erlc, "SOURCE_DATE_EPOCH": str(EPOCH), **extra}


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with nothing but distsec and what it depends on."""

    venv: Path

    @property
    def share(self) -> Path:
        return self.venv / "share"

    @property
    def package(self) -> Path:
        (found,) = self.venv.glob("lib/python*/site-packages/distsec")
        return found

    @property
    def program(self) -> Path:
        return self.venv / "bin" / "distsec"

    def words(self, *arguments: str | Path) -> list[str]:
        """The command, where nothing of the checkout can be reached."""
        return hidden([str(self.program), *map(str, arguments)])


def hidden(words: Sequence[str]) -> list[str]:
    """`words` in a mount namespace with an empty directory in the checkout's place."""
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    return ["unshare", "--mount", "--", "sh", "-c", script, str(ROOT), *words]


def make_packages(directory: Path) -> None:
    """Wheel, sdist, manual pages and completions, by the command that makes them for everybody."""
    oldest = min(otp.release for otp in OTPS)
    allowed = [] if oldest == OLDEST_RELEASE else ["--any-otp"]
    words = [ROOT / "scripts/package", "--no-deb", *allowed, "--out", directory]
    done(*words, environment=build_environment(), seconds=MAKE_SECONDS)


def make_wheels(directory: Path, wheel: Path) -> None:
    """The wheel with all that it depends on, as one carries them to a machine without a network."""
    done(sys.executable, "-m", "pip", "wheel", "-q", "-w", directory, wheel, seconds=MAKE_SECONDS)


def make_venv(directory: Path, wheels: Path) -> None:
    """From those wheels alone."""
    done(getattr(sys, "_base_executable", sys.executable), "-m", "venv", "--without-pip", directory)
    words = (
        "-m",
        "pip",
        "--python",
        directory / "bin/python",
        "install",
        "-q",
        "--no-index",
        "--find-links",
        wheels,
    )
    done(sys.executable, *words, "distsec", seconds=MAKE_SECONDS)
