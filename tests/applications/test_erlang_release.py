"""Releases of rebar3 (relx) of every kind under distsec, and the commands of its extended start script."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applications.builds import Builds, libraries
from tests.applications.example import AWKWARD, EXAMPLES, Example
from tests.releases import OTPS, Otp

pytestmark = pytest.mark.timeout(900)  # four kinds of release are built and started first

LINKED = ("tally_a", "tally_b", "whole", "bare")


@pytest.fixture(scope="module", params=[otp for otp in OTPS if otp.release == 25], ids=str)
def release(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """Debian's own, for which Debian's rebar3 is made; test_examples.py has 27."""
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def cluster(release: Otp, builds: Builds, beams: Path) -> Iterator[Example]:
    """The example, whose release has ERTS and no ssl; `whole` has both, and `bare` has nothing of OTP."""
    vm_args = EXAMPLES / "erlang-release" / "vm.args.src"
    kinds = {kind: builds.rebar3(release, kind, vm_args) for kind in ("small", "bare")}
    kinds["whole"], _ = builds.rebar3_upgrade(release, vm_args)
    paths = {
        "/opt/tally": str(kinds["small"]),
        "/usr/lib/erlang/lib": libraries(release),
        "/var/lib/tally": "{here}",
    }
    with Example("erlang-release", release, beams, paths) as made:
        for name in ("whole", "bare"):
            made.add(name, [str(kinds[name] / "bin" / "tally"), "foreground"], like="tally_a")
            made.table(name)["environment"] |= {
                "NODE_NAME": made.node(name),
                "RELX_OUT_FILE_PATH": str(made.directory / name),
            }
        del made.table("whole")["otp_libraries"]
        made.table("tally_b")["restart"] = "on-failure"
        for name in ("a", "b", "whole", "bare"):
            (made.directory / name).mkdir()
        made.move_state(AWKWARD)
        made.init()
        made.run()
        made.wait_running()
        made.wait_meshed()
        yield made


def script(cluster: Example, name: str) -> str:
    command: list[str] = cluster.table(name)["command"]
    return command[0]


@pytest.mark.otp
def test_releases_with_and_without_ssl_and_erts_are_proven_and_work_together(cluster: Example) -> None:
    cluster.assert_well()
    cluster.ask("bare", "tally:add(3).")
    values = "lists:usort([rpc:call(N, tally, value, []) || N <- [node() | nodes()] -- [Hot]])."
    assert cluster.ask("whole", f"Hot = '{cluster.node('whole')}', {values}") == "[3]"
    assert cluster.ask("tally_a", "init:get_argument(mode).") == '{ok,[["interactive"],["embedded"]]}'
    own = script(cluster, "whole").removesuffix("/bin/tally")
    assert own in cluster.ask("whole", "code:which(ssl).")
    assert own not in cluster.ask("bare", "code:which(kernel).")


@pytest.mark.otp
@pytest.mark.parametrize("name", ["tally_a", "bare"])
def test_ping_rpc_eval_and_pid_work_with_nodetool(cluster: Example, name: str) -> None:
    program = script(cluster, name)
    assert cluster.run_tool(name, program, "ping").stdout == "pong\n"
    assert cluster.run_tool(name, program, "rpc", "erlang", "node").stdout == f"'{cluster.node(name)}'\n"
    assert cluster.run_tool(name, program, "eval", "length(nodes()).").stdout == f"{len(LINKED) - 1}\n"
    pid = cluster.run_tool(name, program, "pid").stdout
    assert int(pid) == cluster.status_of(name)["pid"]


@pytest.mark.otp
def test_erl_call_which_speaks_no_tls_reaches_no_node(cluster: Example) -> None:
    words = ("env", "-u", "USE_NODETOOL", script(cluster, "tally_a"), "ping")
    done = cluster.run_tool("tally_a", *words, check=False)
    assert (done.returncode, done.stdout) == (1, "Node is not running!\n")


@pytest.mark.otp
def test_stop_stops_a_node_that_is_restarted_on_failure_alone_and_start_brings_it_back(
    cluster: Example,
) -> None:
    pid = cluster.status_of("tally_b")["pid"]
    cluster.run_tool("tally_b", script(cluster, "tally_b"), "stop")
    cluster.wait_states(tally_b="STOPPED")
    assert not Path(f"/proc/{pid}").exists()
    cluster.distsec("start", cluster.node("tally_b"))
    cluster.wait_links(*(("tally_b", other) for other in LINKED if other != "tally_b"))
    cluster.assert_well()


@pytest.mark.otp
def test_a_hot_upgrade_changes_the_application_under_its_links_and_nothing_of_the_guard(
    cluster: Example, release: Otp, builds: Builds
) -> None:
    old, tarball = builds.rebar3_upgrade(release, EXAMPLES / "erlang-release" / "vm.args.src")
    place = old / "releases" / "0.2.0"
    place.mkdir()
    shutil.copy(tarball, place / "tally.tar.gz")
    before = cluster.status_of("whole")
    downs = len(cluster.events("NodeDown", node=cluster.node("whole"), peer=cluster.node("bare")))
    cluster.run_tool("whole", script(cluster, "whole"), "upgrade", "0.2.0")
    assert cluster.ask("whole", "element(1, tally:value()).") == "now", "the new code answers"
    assert cluster.ask("whole", "code:is_sticky(distsec_dist).") == "true"
    after = cluster.status_of("whole")
    assert (after["pid"], after["guard"]) == (before["pid"], "proven")
    assert len(cluster.events("NodeDown", node=cluster.node("whole"), peer=cluster.node("bare"))) == downs
    assert ("whole", "bare") in cluster.links()
