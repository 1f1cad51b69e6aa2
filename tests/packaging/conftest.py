"""Fixtures: what scripts/package makes, the Debian package, and an installation from the wheel alone.
Each is made once a run.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.packaging import made
from tests.releases import ROOT


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all test processes of this run."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "packaging"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def packages(common: Path, agent_ebin: Path) -> Path:
    """What scripts/package wrote, without the Debian package."""
    return made.once(common, "packages", made.make_packages)


@pytest.fixture(scope="session")
def wheel(packages: Path) -> Path:
    (found,) = packages.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def wheels(common: Path, wheel: Path) -> Path:
    """The wheel and what it depends on."""
    return made.once(common, "wheels", lambda directory: made.make_wheels(directory, wheel))


@pytest.fixture(scope="session")
def installed(common: Path, wheels: Path) -> made.Installed:
    """Installed from the wheel alone, without an index."""
    # A virtual environment stays where it was made: its scripts name that place.
    place = common / "venv"
    made.once(common, "venv.made", lambda _: made.make_venv(place, wheels))
    return made.Installed(place)


@pytest.fixture(scope="session")
def package(common: Path, wheel: Path, wheels: Path) -> Path:
    """The package, made of the wheels that are here already, and barely compressed."""
    made.need(os.geteuid() == 0 and shutil.which("dpkg-deb") is not None, "root with dpkg-deb")
    version = made.done("/usr/bin/python3", "-c", "import sys; print(sys.version_info[:2])")
    made.need(version == f"{sys.version_info[:2]}\n", "a Debian Python of the same version")

    def make(directory: Path) -> None:
        environment = made.build_environment(
            PIP_NO_INDEX="1",
            PIP_FIND_LINKS=str(wheels),
            DPKG_DEB_COMPRESSOR_TYPE="gzip",
            DPKG_DEB_COMPRESSOR_LEVEL="1",
        )
        made.done(
            ROOT / "scripts/debian/build",
            wheel,
            directory,
            environment=environment,
            seconds=made.MAKE_SECONDS,
        )

    (found,) = made.once(common, "debian", make).glob("*.deb")
    return found
