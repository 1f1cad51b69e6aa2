"""Mix releases of every kind under distsec, unchanged, and the commands of their own start script."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.applications.builds import Builds, libraries
from tests.applications.example import AWKWARD, Example
from tests.releases import OTPS, Otp
from tests.system.cluster import COMMAND
from tests.system.terminal import Terminal

pytestmark = pytest.mark.timeout(900)  # four kinds of release are built and started first

LINKED = ("ledger_a", "ledger_b", "whole", "bare")
REFUSED = {"cookie": "set_by_distsec", "carrier": "-proto_dist"}
"""Nodes that lack one of the lines → what the one clear line is about."""


@pytest.fixture(scope="module", params=[otp for otp in OTPS if otp.release == 25], ids=str)
def release(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """Debian's own, for which Debian's Elixir is made; test_examples.py has 27."""
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def cluster(release: Otp, builds: Builds, beams: Path) -> Iterator[Example]:
    """The example, whose release has ERTS and no ssl; `whole` has both, `bare` neither, and `hand` is for
    the test to start, with ssl alone.
    """
    small = builds.mix(release, ssl=False, erts=True)
    paths = {
        "/opt/ledger": str(small),
        "/usr/lib/erlang/lib": libraries(release),
        "/var/lib/ledger": "{here}",
    }
    with Example("mix-release", release, beams, paths) as made:
        more = {
            "whole": builds.mix(release, ssl=True, erts=True),
            "bare": builds.mix(release, ssl=False, erts=False),
            "hand": builds.mix(release, ssl=True, erts=False),
            **dict.fromkeys(REFUSED, small),
        }
        for name, directory in more.items():
            made.add(name, [str(directory / "bin" / "ledger"), "start"], like="ledger_a")
            made.table(name)["environment"] |= {
                "RELEASE_NODE": made.node(name),
                "RELEASE_TMP": str(made.directory / name),
                "LEDGER_SITE": f"{name}'s",
            }
        del made.table("whole")["otp_libraries"]
        del made.table("cookie")["environment"]["RELEASE_COOKIE"]
        vm_args = made.directory / "vm.args"
        vm_args.write_text("-proto_dist inet_tls\n")
        made.table("carrier")["environment"]["RELEASE_VM_ARGS"] = str(vm_args)
        for key in ("command", "otp_libraries"):
            del made.table("hand")[key]
        made.move_state(AWKWARD)
        made.init()
        made.run()
        made.wait_states(**dict.fromkeys(LINKED, "RUNNING"), **dict.fromkeys(REFUSED, "FATAL"))
        made.wait_links(*((a, b) for a in LINKED for b in LINKED if a < b))
        yield made


def script(cluster: Example, name: str) -> str:
    command: list[str] = cluster.table(name)["command"]
    return command[0]


@pytest.mark.otp
def test_releases_with_and_without_ssl_and_erts_are_proven_and_work_together(cluster: Example) -> None:
    nodes = {node["name"]: node for node in cluster.status()["nodes"]}
    assert {nodes[cluster.node(name)]["guard"] for name in LINKED} == {"proven"}
    everybody = "[rpc:call(N, 'Elixir.Ledger', entries, []) || N <- [node() | nodes()]]"
    cluster.ask("bare", "'Elixir.Ledger':add(shared).")
    assert cluster.ask("whole", f"lists:usort({everybody}).") == "[[shared]]"
    for name in ("whole", "bare"):  # with and without a second boot after config/runtime.exs
        assert cluster.ask(name, "application:get_env(ledger, site).") == f'{{ok,<<"{name}\'s">>}}'
    where = "[{K, filename:dirname(filename:dirname(code:which(M)))} || {K, M} <- [{a, ssl}, {b, kernel}]]"
    assert cluster.ask("whole", where).count(script(cluster, "whole").removesuffix("/bin/ledger")) == 2
    assert script(cluster, "ledger_a").removesuffix("/bin/ledger") in cluster.ask(
        "ledger_a", "code:which(kernel)"
    )
    assert cluster.ask("ledger_a", "init:get_argument(mode).") == '{ok,[["interactive"],["embedded"]]}'


@pytest.mark.otp
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_release_that_lacks_a_line_does_not_listen_and_says_which(cluster: Example, name: str) -> None:
    status = cluster.status_of(name)
    assert (status["state"], status["reason"]) == ("FATAL", "carrier_not_in_force")
    assert REFUSED[name] in status["detail"] and "\n" not in status["detail"]


@pytest.mark.otp
@pytest.mark.parametrize("name", ["ledger_a", "bare"])
def test_rpc_pid_and_eval_work_as_ever(cluster: Example, name: str) -> None:
    program = script(cluster, name)
    said = cluster.run_tool(name, program, "rpc", "IO.puts(node()); IO.inspect(length(Node.list()))")
    assert said.stdout.splitlines() == [cluster.node(name), str(len(LINKED) - 1)]
    assert int(cluster.run_tool(name, program, "pid").stdout) == cluster.status_of(name)["pid"]
    assert cluster.run_tool(name, program, "eval", "IO.puts(6 * 7)").stdout == "42\n"
    failed = cluster.run_tool(name, program, "rpc", "raise ~s(no luck)", check=False)
    assert failed.returncode == 1 and "no luck" in failed.stderr


@pytest.mark.otp
def test_remote_is_an_iex_prompt_on_the_node_and_leaves_it_running(cluster: Example) -> None:
    pid = cluster.status_of("ledger_a")["pid"]
    words = [*COMMAND, "exec", cluster.node("ledger_a"), "--", script(cluster, "ledger_a"), "remote"]
    environment = cluster.environment(TERM="xterm")
    with Terminal(words, environment=environment) as typed:
        typed.wait("iex(ledger_a@127.0.0.1)1>")
        typed.type("Ledger.entr\t")
        typed.wait("Ledger.entries")
        typed.type("() |> is_list()\r")
        typed.wait("true")
        typed.type("\x07")
        typed.wait("-->")
        typed.type("q\r")
        assert typed.exit_code() == 0
    with Terminal(words, environment=environment) as typed:
        typed.wait("1>")
        typed.hang_up()
        assert typed.exit_code() != 0
    cluster.wait(lambda: "rem-" not in str(cluster.status_of("ledger_a")["links"]), "the link to go")
    assert cluster.status_of("ledger_a")["pid"] == pid


@pytest.mark.otp
def test_restart_keeps_the_process_and_stop_ends_it_for_distsec_to_start(cluster: Example) -> None:
    pid, program = cluster.status_of("bare")["pid"], script(cluster, "bare")
    connected = len(cluster.events("AgentConnected", node=cluster.node("bare")))
    well = {"state": "RUNNING", "agent": "connected", "guard": "proven"}

    def restarted() -> dict[str, Any] | None:
        again = len(cluster.events("AgentConnected", node=cluster.node("bare"))) > connected
        return status if again and well.items() <= (status := cluster.status_of("bare")).items() else None

    def started_anew() -> bool:
        status = cluster.status_of("bare")
        return well.items() <= status.items() and status["pid"] != pid

    cluster.run_tool("bare", program, "restart")
    assert cluster.wait(restarted, "the restarted node")["pid"] == pid
    cluster.run_tool("bare", program, "stop")
    cluster.wait(started_anew, "the node after its stop")
    cluster.wait_event("NodeStopped", node=cluster.node("bare"), detail="exited with status 0")
    cluster.wait_links(*(("bare", other) for other in LINKED if other != "bare"))


@pytest.mark.otp
def test_a_release_that_is_started_by_hand_with_distsec_env_is_seen_running(
    cluster: Example, release: Otp, builds: Builds
) -> None:
    program = builds.mix(release, ssl=True, erts=False) / "bin" / "ledger"
    lines = (
        f'set -e; made=$({shlex.join(COMMAND)} env {cluster.node("hand")} --shell); eval "$made"; '
        f"exec {shlex.quote(str(program))} start"
    )
    log = cluster.directory / "hand.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", lines],
            env=cluster.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        cluster.wait_running("hand")
        cluster.wait_links(("hand", "whole"))
        status = cluster.status_of("hand")
        assert (status["guard"], status["pid"]) == ("proven", process.pid), log.read_text()
        assert cluster.ask("hand", "'Elixir.Ledger':entries().").startswith("[")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.otp
def test_releases_outlive_their_orchestrator_and_are_adopted_by_the_next(cluster: Example) -> None:
    before = {name: cluster.status_of(name)["pid"] for name in LINKED}
    launch = cluster.ask("ledger_a", "distsec_guard:launch().")
    cluster.kill()
    assert all(Path(f"/proc/{pid}").exists() for pid in before.values())
    cluster.run()
    cluster.wait_running(*LINKED)
    cluster.wait_links(("ledger_a", "bare"), ("whole", "ledger_b"))
    assert {name: cluster.status_of(name)["pid"] for name in LINKED} == before
    assert cluster.ask("ledger_a", "distsec_guard:launch().") == launch
    assert cluster.status_of("ledger_a")["guard"] == "proven"
