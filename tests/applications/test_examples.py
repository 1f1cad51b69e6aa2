"""Each example is started as it stands: linked, proven, closed to strangers, and stopped without a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.applications.builds import Builds, bin_of, libraries, need
from tests.applications.example import EXAMPLES, Example
from tests.releases import OTPS, Otp

pytestmark = pytest.mark.timeout(600)  # a release is built first


@dataclass(frozen=True, slots=True)
class Case:
    """`paths`: what the example's text is given in place of its own paths. `releases`: those that the
    program is known to run on.
    """

    example: str
    paths: Callable[[Builds, Otp], dict[str, str]]
    releases: tuple[int, ...]


def elixir(_builds: Builds, _otp: Otp) -> dict[str, str]:
    need("elixir")
    return {"/opt/pulse": "{here}"}


def mix(builds: Builds, otp: Otp) -> dict[str, str]:
    release = builds.mix(otp, ssl=False, erts=True)
    return {"/opt/ledger": str(release), "/usr/lib/erlang/lib": libraries(otp), "/var/lib/ledger": "{here}"}


def rebar3(builds: Builds, otp: Otp) -> dict[str, str]:
    release = builds.rebar3(otp, "small", EXAMPLES / "erlang-release" / "vm.args.src")
    return {"/opt/tally": str(release), "/usr/lib/erlang/lib": libraries(otp), "/var/lib/tally": "{here}"}


def gleam(builds: Builds, otp: Otp) -> dict[str, str]:
    return {"/opt/greeter": str(builds.shipment(otp))}


# Elixir 1.14 and rebar3 3.19 are compiled by OTP 25, whose code 27 loads and 29 does not.
CASES = [
    Case("elixir", elixir, (25,)),  # 27: test_elixir.py
    Case("mix-release", mix, (25, 27)),
    Case("erlang-release", rebar3, (25, 27)),
    Case("gleam", gleam, (25, 29)),
]


@pytest.mark.otp
@pytest.mark.parametrize(
    ("case", "release"),
    [
        pytest.param(case, otp, id=f"{case.example}-{otp}")
        for case in CASES
        for otp in OTPS
        if otp.release in case.releases
    ],
)
def test_two_nodes_of_an_example_are_linked_proven_closed_to_strangers_and_stopped(
    case: Case, release: Otp, builds: Builds, beams: Path, agent_ebin: Path
) -> None:
    paths = case.paths(builds, release)
    with Example(case.example, release, beams, paths, path=(bin_of(release),)) as cluster:
        for path in (cluster.directory / "a", cluster.directory / "b"):
            path.mkdir()  # /var/lib/tally/a and b
        cluster.start()
        status = cluster.assert_well()
        assert {node["otp"] for node in status["nodes"]} == {str(release.release)}
        assert all(len(node["links"]) == 1 for node in status["nodes"])
        assert not cluster.events("NodeStopped"), "at the first try"
        cluster.assert_refuses_a_stranger(release)
        cluster.assert_stops_clean()
