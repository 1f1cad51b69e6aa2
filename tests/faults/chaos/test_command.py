"""`scripts/chaos` as one types it; what it does is seen by running it (.ci/run)."""

from __future__ import annotations

import subprocess

import pytest

from tests.releases import ROOT


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "chaos", *arguments], capture_output=True, text=True, timeout=60
    )


def test_a_plan_is_printed_and_nothing_is_done() -> None:
    done = chaos("--plan", "--seed", "7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == chaos("--plan", "--seed", "7").stdout
    assert done.stdout.startswith("round 1\n") and "kill node n" in done.stdout
    alone = chaos("--plan", "--seed", "7", "--round", "3").stdout
    assert alone.count("round") == 1 and alone in done.stdout


@pytest.mark.parametrize("wrong", [["--nodes", "1"], ["--minutes", "soon"], ["--otp", "x"], ["elsewhere"]])
def test_wrong_usage_ends_with_64_and_says_what_is_wrong(wrong: list[str]) -> None:
    done = chaos(*wrong)
    assert done.returncode == 64
    assert done.stderr.startswith("scripts/chaos: ") and done.stderr.count("\n") == 1


def test_a_release_that_is_not_here_ends_with_69() -> None:
    assert chaos("--no-namespaces", "--otp", "24").returncode == 69
