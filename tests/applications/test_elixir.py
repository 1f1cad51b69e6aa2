"""Elixir scripts under distsec, and IEx on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applications.builds import bin_of, need
from tests.applications.example import Example
from tests.releases import OTPS, Otp
from tests.system.cluster import COMMAND
from tests.system.terminal import Terminal


@pytest.fixture(scope="module", params=[otp for otp in OTPS if otp.release in (25, 27)], ids=str)
def release(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def cluster(release: Otp, beams: Path) -> Iterator[Example]:
    """One of the two nodes of the example is enough."""
    need("elixir")
    with Example("elixir", release, beams, {"/opt/pulse": "{here}"}, path=(bin_of(release),)) as made:
        made.names.remove("pulse_b")
        made.settings["nodes"].remove(made.table("pulse_b"))
        made.init()
        made.run()
        made.wait_running()
        yield made


@pytest.mark.otp
def test_iex_remsh_through_distsec_exec_is_a_prompt_on_the_node(cluster: Example) -> None:
    node = cluster.node("pulse_a")
    iex = ["iex", "--name", "me@127.0.0.1", "--remsh", node]
    with Terminal(
        [*COMMAND, "exec", node, "--", *iex], environment=cluster.environment(TERM="xterm")
    ) as typed:
        typed.wait(f"iex({node})1>")
        typed.type("{Node.self(), Node.list(:hidden)}\r")
        typed.wait(f'{{:"{node}", [:"me@127.0.0.1"]}}')
        typed.type("\x07")
        typed.wait("-->")
        typed.type("q\r")
        assert typed.exit_code() == 0
    assert cluster.states() == {"pulse_a": "RUNNING"}


@pytest.mark.otp
def test_elixir_is_evaluated_by_distsec_shell_and_by_elixir_itself(cluster: Example) -> None:
    node = cluster.node("pulse_a")
    assert cluster.ask("pulse_a", "'Elixir.System':version().") == '<<"1.14.0">>'
    code = "element(1, 'Elixir.Code':eval_string(<<\"Enum.sum(1..4)\">>))."
    assert cluster.ask("pulse_a", code) == "10"
    words = ("elixir", "--name", "me@127.0.0.1", "--rpc-eval", node, "IO.puts(node())")
    assert cluster.run_tool("pulse_a", *words).stdout == f"{node}\n"
