"""The package where every user of this host can import it: nodes with a user of their own load its agent.

A checkout may be closed to other users (below /root, or in a directory of mktemp's), and so may its
interpreter. For root.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.releases import ROOT
from tests.system.cluster import Cluster

SOMEBODY = "daemon"
"""Any user who is not root."""


def use_open_package(cluster: Cluster) -> None:
    """Has `cluster` run distsec from where its nodes' users can read it too."""
    if package_for_all() != ROOT:
        run_from_open_package(cluster)


def run_from_open_package(cluster: Cluster) -> None:
    """As a user who may not be able to read the checkout or its interpreter."""
    interpreter, package = python_of_all(), package_for_all()
    assert interpreter is not None, "no Python of this version is open to other users"
    libraries = site_packages() if package == ROOT else [package / "site-packages"]
    cluster.program = [interpreter, "-c", "from distsec.cli import main; main()"]
    cluster.surroundings["PYTHONPATH"] = os.pathsep.join(map(str, [package, *libraries]))


def python_of_all() -> str | None:
    """An interpreter like this one that any user may run: one below /root is closed to them."""
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        ours = f"{sys.version_info.major}.{sys.version_info.minor}"
        # Through a shell: setpriv itself still has root's capabilities when it executes.
        asked = [
            *("setpriv", "--reuid", SOMEBODY, "--regid", SOMEBODY, "--clear-groups"),
            *("sh", "-c", '"$0" -I -c \'import sys; print("%d.%d" % sys.version_info[:2])\'', candidate),
        ]
        done = subprocess.run(asked, cwd="/", capture_output=True, text=True, check=False)
        if done.stdout.strip() == ours:
            return candidate
    return None


def site_packages() -> list[Path]:
    return [Path(each) for each in sys.path if each.endswith("site-packages")]


@functools.cache
def package_for_all() -> Path:
    """From where every user can import distsec: the checkout; where that is closed to others (below /root, or
    in a directory of mktemp's), a copy of the package, with what it depends on in `site-packages`.
    """
    places = [ROOT / "distsec" / "agent", *(each / "cryptography" for each in site_packages())]
    if all(is_open_to(SOMEBODY, each) for each in places if each.exists()):
        return ROOT
    copy = for_all(ROOT / "distsec", "distsec")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for each in site_packages():
        shutil.copytree(
            each,
            copy / "site-packages",
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(
                "__pycache__", "mypy*", "*mypyc*", "pip", "hypothesis", "setuptools"
            ),
        )
    return copy


def for_all(directory: Path, name: str = ".") -> Path:
    """A copy of `directory`, as `name` in the directory that is returned, which every user may read: pytest's
    own are closed. The caller removes it.
    """
    copy = Path(tempfile.mkdtemp(prefix="ds-", dir="/tmp"))
    # What others write here meanwhile (importlib, scripts/build-agent) has these names until it is whole.
    passing = shutil.ignore_patterns("*.pyc.*", ".ebin-*")
    shutil.copytree(directory, copy / name, dirs_exist_ok=True, ignore=passing)
    for each in copy.rglob("*"):
        each.chmod(0o755 if each.is_dir() else 0o644)
    copy.chmod(0o755)
    return copy


def is_open_to(user: str, path: Path) -> bool:
    asked = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "test", "-r", str(path)]
    return subprocess.run(asked, cwd="/", check=False).returncode == 0
