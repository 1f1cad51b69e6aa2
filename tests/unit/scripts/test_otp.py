"""scripts/otp: what it finds in a cache, what it says of it, and what it does where nothing can be made."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distsec.model.cluster import PROVEN_RELEASES
from tests.releases import ROOT


@pytest.fixture
def otp_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with an empty cache and a host without Erlang."""
    loader = importlib.machinery.SourceFileLoader("scripts_otp", str(ROOT / "scripts/otp"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, loader.name, module)
    loader.exec_module(module)
    monkeypatch.setenv("DISTSEC_OTP_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CI", raising=False)
    return module


def plant(module: Any, cache: Path, suite: str, release: int) -> Path:
    """A tree as it looks from outside; its `erl` says which release it is and does no more."""
    erlang = cache / f"{suite}-{module.RECIPE}" / "usr/lib/erlang"
    (erlang / "bin").mkdir(parents=True)
    (erlang / "releases").mkdir()
    (erlang / "releases/start_erl.data").write_text(f"15.2 {release}\n")
    for program in ("erl", "erlc"):
        (erlang / "bin" / program).write_text(f"#!/bin/sh\nprintf {release}\n")
        (erlang / "bin" / program).chmod(0o755)
    return erlang


def run(
    module: Any, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON document and what was said."""
    before = module.sys.argv
    module.sys.argv = ["otp", "--json", *arguments]
    try:
        code = module.main()
    finally:
        module.sys.argv = before
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def test_every_proven_release_has_a_suite(otp_script: Any) -> None:
    assert set(otp_script.SUITES) == PROVEN_RELEASES


def test_lists_the_trees_of_the_cache_oldest_first(
    otp_script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suite, release in {"forky": 29, "bookworm": 25}.items():
        plant(otp_script, tmp_path, suite, release)
    code, found, _ = run(otp_script, capsys, "--list")
    assert code == 0
    assert [(otp["release"], otp["proven"], otp["origin"]) for otp in found] == [
        (25, True, "bookworm"),
        (29, True, "forky"),
    ]
    assert all(os.access(otp["erl"], os.X_OK) for otp in found)


def test_a_suite_that_has_moved_on_stands_for_its_release_unproven(
    otp_script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(otp_script, tmp_path, "forky", 30)
    _, found, _ = run(otp_script, capsys, "--list")
    assert [(otp["release"], otp["stands_for"], otp["proven"]) for otp in found] == [(30, 29, False)]


def test_an_exact_release_is_preferred_to_a_suite_that_has_moved_on(
    otp_script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(otp_script, tmp_path, "forky", 30)
    plant(otp_script, tmp_path, "sid", 29)
    _, found, _ = run(otp_script, capsys, "--list")
    assert [(otp["release"], otp["origin"]) for otp in found] == [(29, "sid")]


def test_a_tree_without_its_programs_is_not_listed(
    otp_script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plant(otp_script, tmp_path, "trixie", 27) / "bin/erl").unlink()
    assert run(otp_script, capsys, "--list")[1] == []


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_what_cannot_be_made_is_named_and_fails_only_continuous_integration(
    otp_script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ci: str,
    code: int,
) -> None:
    plant(otp_script, tmp_path, "bookworm", 25)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(otp_script.os, "geteuid", lambda: 1000)
    got, found, said = run(otp_script, capsys)
    assert got == code
    assert [otp["release"] for otp in found] == [25]
    assert "OTP 27 cannot be tested here: trixie: debootstrap needs root" in said
    assert "OTP 29 cannot be tested here: forky: debootstrap needs root; sid: debootstrap needs root" in said


def test_a_tree_that_does_not_boot_is_made_anew(
    otp_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = plant(otp_script, tmp_path, "trixie", 27)
    (broken / "bin/erl").write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(otp_script, "ensure_programs", lambda: None)
    monkeypatch.setattr(otp_script, "debootstrap_arguments", lambda *_: [])
    commands: list[str] = []

    def pretend(log: Path, *command: str | Path) -> None:
        commands.append(str(command[0]))
        log.touch()

    def relocate(directory: Path, final: Path, log: Path) -> None:
        made = plant(otp_script, directory.parent / "made", "trixie", 27)
        made.parent.parent.rename(directory / "usr")

    monkeypatch.setattr(otp_script, "run", pretend)
    monkeypatch.setattr(otp_script, "relocate", relocate)
    code, found, said = run(otp_script, capsys, "27")
    assert (code, [otp["release"] for otp in found], commands) == (0, [27], ["debootstrap"])
    assert "the tree in the cache is broken, making it anew" in said
    assert not [path for path in tmp_path.iterdir() if ".part-" in path.name or ".old-" in path.name]


def test_a_making_that_fails_leaves_the_old_tree_and_no_debris(
    otp_script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = plant(otp_script, tmp_path, "trixie", 27)
    (broken / "bin/erl").write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(otp_script, "ensure_programs", lambda: None)
    monkeypatch.setattr(otp_script, "debootstrap_arguments", lambda *_: [])

    def fail(log: Path, *command: str | Path) -> None:
        raise otp_script.CannotMake("debootstrap failed: no network")

    monkeypatch.setattr(otp_script, "run", fail)
    code, found, said = run(otp_script, capsys, "27")
    assert (code, found) == (0, [])
    assert "OTP 27 cannot be tested here: trixie: debootstrap failed: no network" in said
    assert (broken / "bin/erl").exists()
    assert not [path for path in tmp_path.iterdir() if ".part-" in path.name]
