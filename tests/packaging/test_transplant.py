"""What scripts/install copies of a dependency from the checkout's .venv, however pip has put it there."""

from __future__ import annotations

import runpy
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tests.packaging.made import ROOT

METADATA = "Metadata-Version: 2.1\nName: Some.Thing\nVersion: 1.0\n"


def by_wheel(site: Path) -> Path:
    found = site / "some_thing-1.0.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text(METADATA)
    (found / "RECORD").write_text(
        "thing.py,,\nsome_thing-1.0.dist-info/METADATA,,\nsome_thing-1.0.dist-info/RECORD,,\n../../bin/thing,,\n"
    )
    return found


def by_setup(site: Path) -> Path:
    """As pip 23 leaves it where there is no `wheel`."""
    found = site / "Some.Thing-1.0.egg-info"
    found.mkdir(parents=True)
    (found / "PKG-INFO").write_text(METADATA)
    (found / "SOURCES.txt").write_text("LICENSE\nsetup.py\nthing.py\n")
    (found / "installed-files.txt").write_text(
        "../__pycache__/thing.cpython-311.pyc\n../thing.py\nPKG-INFO\nSOURCES.txt\n../../../bin/thing\n"
    )
    return found


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (by_wheel, {"thing.py", "some_thing-1.0.dist-info/METADATA"}),
        (by_setup, {"thing.py", "Some.Thing-1.0.egg-info/PKG-INFO", "Some.Thing-1.0.egg-info/SOURCES.txt"}),
    ],
    ids=["wheel", "setup.py"],
)
def test_the_files_of_a_distribution_are_copied_whole(
    tmp_path: Path, made: object, expected: set[str]
) -> None:
    assert callable(made)
    site, target = tmp_path / "lib" / "site", tmp_path / "target"
    found = made(site)
    (site / "thing.py").write_text("answer = 42\n")
    transplant = runpy.run_path(str(ROOT / "scripts" / "transplant.py"))
    transplant["copy"](Distribution.at(found), target)
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == expected
    assert (target / "thing.py").read_text() == "answer = 42\n"
