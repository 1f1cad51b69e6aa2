"""scripts/bench: how samples are taken in turn and become rows. What it measures runs in tests/system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.benchmarks.calm import descendants
from scripts.benchmarks.rows import Row, Samples, compare, in_turn, table
from tests.releases import ROOT
from tests.waiting import wait_until


def test_each_round_begins_with_another_one_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return len(order)

    taken = in_turn({name: lambda name=name: measure(name) for name in "abc"}, rounds=2, warm_up=1)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert taken == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


def test_a_round_in_which_others_had_the_machine_is_taken_again() -> None:
    values, calm = iter([1.0, 2.0, 3.0, 4.0]), iter([True, False, True, True])
    taken = in_turn({"a": lambda: next(values)}, rounds=2, warm_up=1, calm=lambda: next(calm))
    assert taken == {"a": [3.0, 4.0]}
    assert taken.disturbed == 0


def test_on_a_machine_that_is_never_calm_there_are_rounds_and_the_row_says_so() -> None:
    looks = iter([False] * 7 + [True])
    taken = in_turn({"a": lambda: 1.0, "b": lambda: 2.0}, rounds=2, warm_up=0, calm=lambda: next(looks))
    assert (taken, taken.disturbed) == ({"a": [1.0, 1.0], "b": [2.0, 2.0]}, 1)
    row = compare("x", taken, "a", "b", show=str)
    assert row.disturbed == 1 and table([row]).endswith("(1 rounds disturbed)")


def samples(**taken: list[float]) -> Samples:
    return Samples(taken)


def test_a_ratio_is_the_median_of_the_rounds_and_not_of_two_medians() -> None:
    """A machine that slows down in the middle slows both sides of a round."""
    taken = samples(ours=[1.0, 10.0, 2.0], plain=[2.0, 20.0, 4.0])
    row = compare("join", taken, "ours", "plain", show=lambda value: f"{value:.0f} ms")
    assert (row.value, row.baseline) == ("2 ms", "plain 4 ms")
    assert (row.ratio, row.low, row.high) == (0.5, 0.5, 0.5)


def test_the_spread_is_that_of_the_rounds() -> None:
    taken = samples(ours=[1.0, 2.0, 3.0, 4.0, 5.0], one=[1.0] * 5)
    row = compare("x", taken, "ours", "one", show=str, goal="≤ 1.1")
    assert (row.low, row.ratio, row.high) == (2.0, 3.0, 4.0)
    assert (
        table([row])
        == "x           3.0  one 1.0                         3.000 x (2.000 to 4.000)   goal ≤ 1.1"
    )


def test_samples_of_different_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare("x", samples(ours=[1.0, 2.0], one=[1.0]), "ours", "one", show=str)


def test_what_a_measured_node_starts_in_a_session_of_its_own_is_ours() -> None:
    script = "import subprocess, sys; subprocess.run(['cat'], start_new_session=True)"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: len(list(descendants(child.pid))) == 2, "cat")
        assert child.pid in descendants(os.getpid())
        assert set(descendants(child.pid)) < set(descendants(os.getpid()))
    finally:
        child.communicate()


def test_a_row_without_a_baseline_is_printed_without_a_ratio() -> None:
    assert table([Row("port: lost", "0")]) == "port: lost             0"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["latency"], "unknown measurement: latency"), (["--otp", "24", "join"], "none of these releases")],
)
def test_what_it_does_not_know_is_wrong_usage(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "bench"), *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
