"""Fixtures of the tests in a booted systemd."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.releases import ROOT
from tests.systemd.machine import needed

INSTALL_SECONDS = 300


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, agent_ebin: Path) -> Path:
    """What `scripts/install --root` made, once for all test processes; the accounts are the machine's own."""
    needed()
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "installed"
    place.mkdir(mode=0o755, exist_ok=True)
    place.chmod(0o755)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.with_suffix(".done").exists():
            subprocess.run(
                [str(ROOT / "scripts" / "install"), "--root", str(place)],
                check=True,
                capture_output=True,
                timeout=INSTALL_SECONDS,
            )
            for name in ("passwd", "group", "shadow", "gshadow"):
                for path in (place / "etc").glob(f"{name}*"):
                    path.unlink()
            (place / "etc/distsec/distsec.toml").unlink()
            place.with_suffix(".done").touch()
    return place
