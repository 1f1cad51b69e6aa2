"""Copies distsec and all that it depends on from this checkout and its .venv into another site-packages.

    .venv/bin/python scripts/transplant.py SITE_PACKAGES [--dependencies-only]

For an installation without a network (scripts/install). The target must be of the same Python minor version
and platform. Exit code 0; 1 where something that is needed is not in .venv, on one line.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
_NOT_COPIED = ("__pycache__", "INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
"""What tells of an installation that is not this one."""


def main(arguments: list[str]) -> int:
    target = Path(arguments[0])
    try:
        everything = closure("distsec")
    except PackageNotFoundError as error:
        print(f"{error.name} is not in .venv: run scripts/prepare run", file=sys.stderr)
        return 1
    own = everything.pop("distsec")
    for found in everything.values():
        copy(found, target)
    if "--dependencies-only" not in arguments:
        copy_checkout(own, target)
    return 0


def closure(name: str) -> dict[str, Distribution]:
    """What `name` needs on this platform, without its extras, itself included, by canonical name.

    Raises PackageNotFoundError.
    """
    found: dict[str, Distribution] = {}
    waiting, seen = [Requirement(name)], set()
    while waiting:
        wanted = waiting.pop()
        key = canonicalize_name(wanted.name)
        if (key, frozenset(wanted.extras)) in seen:
            continue
        seen.add((key, frozenset(wanted.extras)))
        found[key] = distribution(wanted.name)
        extras = wanted.extras or {""}
        for text in found[key].requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    return found


def copy(found: Distribution, target: Path) -> None:
    """The files of one distribution below site-packages; not its commands."""
    site = Path(str(found.locate_file("")))
    for path in files_of(found, site):
        if ".." in path.parts or set(_NOT_COPIED) & set(path.parts) or path.suffix == ".pyc":
            continue
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site / path, place)


def files_of(found: Distribution, site: Path) -> list[Path]:
    """Relative to `site`. What pip installed by setup.py (pip 23, where there is no `wheel`) has a list of
    its own, relative to its egg-info; importlib.metadata of Python 3.11 lists the sources of such a one.
    """
    listed = found.read_text("installed-files.txt")
    if listed is None:
        return [Path(path) for path in found.files or ()]
    name = canonicalize_name(found.metadata["Name"])
    eggs = (egg for egg in site.glob("*.egg-info") if (egg / "installed-files.txt").is_file())
    egg = next(egg for egg in eggs if canonicalize_name(Distribution.at(egg).metadata["Name"]) == name)
    return [Path(os.path.relpath(egg / line, site)) for line in listed.splitlines() if line]


def copy_checkout(own: Distribution, target: Path) -> None:
    """The package as it lies in the checkout, with the compiled agent, and its metadata."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".ebin-*", ".built")
    shutil.copytree(ROOT / "distsec", target / "distsec", ignore=ignored, copy_function=shutil.copyfile)
    for path in own.files or ():
        if path.parts[0].endswith(".dist-info") and not set(_NOT_COPIED) & set(path.parts):
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(path.locate()), place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
