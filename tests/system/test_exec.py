"""`distsec exec`: an application's own tool reaches its node and those it is linked with, and that is all."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attacks.claim import VISIBLE, Claim, claim
from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf
from tests.system.cluster import COMMAND, Cluster
from tests.waiting import wait_until

A, B, C = "a@127.0.0.1", "b@127.0.0.1", "c@127.0.0.1"

_ASK = """
import json, sys
from distsec.control.client import ControlClient
print(json.dumps(ControlClient(sys.argv[1]).tool(sys.argv[2], "thief")), flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.otp


@pytest.fixture(scope="module", params=OTPS, ids=str)
def shared(request: pytest.FixtureRequest, agent_ebin: Path, beams: Path) -> Iterator[Cluster]:
    with Cluster(request.param, beams) as made:
        made.settings["security"]["distribution"]["connect"] = "none"
        made.init()
        made.run()
        made.wait_running()
        made.wait_answering()
        yield made


@pytest.fixture
def cluster(shared: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """Three nodes, of which a and b are linked. Each test leaves them like that."""
    otp: Otp = shared.otps["a"]
    request.node.user_properties.append(("otp", otp.stands_for))
    wait_nobody(shared)  # a test's last tool is forgotten a moment after its end
    shared.wait(lambda: shared.erl("a", f"net_kernel:connect_node('{B}')") == "true", "the link of a and b")
    shared.wait_links(("a", "b"))
    return shared


def run(cluster: Cluster, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """`distsec exec a@127.0.0.1 -- COMMAND`, with nothing in the environment but a PATH."""
    return subprocess.run(
        [*COMMAND, "exec", A, "--", *command],
        cwd="/",
        env={"DISTSEC_CONFIG": str(cluster.config), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def erl(cluster: Cluster, name: str, expressions: str, *flags: str) -> list[str]:
    """A tool: an Erlang VM of that name ("": it takes one later) that prints the value of `expressions`."""
    printed = f"io:format([126,112,126,110],[begin {expressions} end]),halt()."
    named = ["-name", name] if name else []
    return [cluster.otps["a"].erl, "-noinput", *named, *flags, "-eval", printed]


def wait_nobody(cluster: Cluster) -> None:
    for name in ("a", "b"):
        rules = cluster.erl(name, "distsec_tools:rules()")
        what = f"{name} to forget {rules}"
        wait_until(lambda name=name: cluster.erl(name, "distsec_tools:rules()") == "[]", what)


# ---- what a tool can do ----------


def test_a_tool_reaches_its_node_and_those_that_are_linked_with_it(cluster: Cluster) -> None:
    ask = f"V = erpc:call('{A}', erlang, node, []), {{V, lists:sort(nodes(connected)), net_adm:ping('{C}')}}"
    done = run(cluster, *erl(cluster, "tool-1@127.0.0.1", ask))
    # b was dialled before a answered: what a asks b to tell the tool directly finds its way.
    assert done.stdout == f"{{'{A}',['{A}','{B}'],pang}}\n", done.stderr
    cluster.wait(lambda: cluster.erl("a", "nodes(hidden)") == "[]", "the end of its link")
    wait_nobody(cluster)


def test_a_tool_may_become_a_node_late_and_a_script_may_run_several(cluster: Cluster) -> None:
    late = f"net_kernel:start(['late@127.0.0.1', longnames]), net_adm:ping('{A}')"
    early = f"net_adm:ping('{A}')"
    one, other = (erl(cluster, f"run-{n}@127.0.0.1", early) for n in (1, 2))
    script = f"{shlex.join(erl(cluster, '', late))}; {shlex.join(one)} & {shlex.join(other)}; wait; exit 7"
    done = run(cluster, "/bin/sh", "-c", script)
    assert (done.stdout.split(), done.returncode) == (["pong"] * 3, 7), done.stderr


def test_it_listens_to_nobody_whatever_it_is_told(cluster: Cluster) -> None:
    listening = "[P || P <- erlang:ports(), {ok, L} <- [prim_inet:getstatus(P)], lists:member(listen, L)]"
    ask = f"net_adm:ping('{A}'), {{{listening}, node()}}"
    done = run(cluster, *erl(cluster, "deaf@127.0.0.1", ask, "-dist_listen", "true"))
    assert done.stdout == "{[],'deaf@127.0.0.1'}\n", done.stderr


@pytest.mark.parametrize("flags", [("-proto_dist", "inet_tcp"), ("-setcookie", "known")])
def test_a_tool_whose_own_flags_take_the_guard_away_does_not_run(
    cluster: Cluster, flags: tuple[str, str]
) -> None:
    done = run(cluster, *erl(cluster, "wrong@127.0.0.1", "net_adm:ping(x)", *flags))
    assert done.returncode == 78
    assert flags[0] in done.stdout + done.stderr


def test_what_cannot_be_run_is_said_and_leaves_nothing(cluster: Cluster) -> None:
    done = run(cluster, "/no/such/tool")
    assert done.returncode == 72
    assert "/no/such/tool: there is no such program" in done.stderr
    nowhere = cluster.distsec("exec", "nobody@127.0.0.1", "--", "true", check=False)
    assert nowhere.returncode == 68 and "the managed nodes are" in nowhere.stderr
    cluster.wait(lambda: not list((cluster.state / "shells").iterdir()), "its directory to go")
    wait_nobody(cluster)


# ---- what it is good for in other hands ----------


@dataclass(frozen=True, slots=True)
class Held:
    """A tool that was let in and does nothing: all that a thief could have of it."""

    leaf: Leaf
    cookie: str
    identity: str


@contextmanager
def held(cluster: Cluster) -> Iterator[Held]:
    """Until the block ends."""
    command = [sys.executable, "-c", _ASK, str(cluster.state / "control.sock"), A]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        directory = Path(json.loads(process.stdout.readline())["directory"])
        record = json.loads((directory / "shell.json").read_bytes())
        copies = cluster.directory / "stolen" / directory.name
        copies.mkdir(parents=True)
        names = ("certificate.pem", "key.pem", "trust.pem")
        for name in names:
            (copies / name).write_bytes((directory / name).read_bytes())
        cookies = (directory / "cookie.term").read_text()
        found = re.search(r'default => <<"(\w+)">>', cookies)
        assert found is not None
        paths = [copies / name for name in names]
        yield Held(Leaf(paths[0], paths[1], paths[2], ""), found[1], record["identity"])
        process.stdin.close()
    wait_until(lambda: not directory.exists(), "the tool's directory to go")


def try_as(cluster: Cluster, tool: Held, node: str = "a", name: str = "any@127.0.0.1", **how: int) -> Claim:
    claimed = claim(cluster.port(node), tool.leaf, name, tool.cookie, **how)
    claimed.connection.close()
    cluster.wait(lambda: cluster.erl(node, "nodes(hidden)") == "[]", "the end of its link")
    return claimed


def expect_refused(cluster: Cluster, claimed: Claim, reason: str) -> None:
    assert not claimed.admitted
    cluster.wait_event("UnauthorizedAccess", address=claimed.address, reason=reason)


def test_it_admits_any_name_of_the_host_again_and_again_and_none_once_the_tool_has_ended(
    cluster: Cluster,
) -> None:
    with held(cluster) as tool:
        assert try_as(cluster, tool).admitted
        assert try_as(cluster, tool, name="another@127.0.0.1").admitted
    wait_nobody(cluster)
    expect_refused(cluster, try_as(cluster, tool), "not_allowed")


def test_it_admits_no_listed_name_no_other_host_nobody_visible_and_at_no_other_node(cluster: Cluster) -> None:
    with held(cluster) as tool:
        expect_refused(cluster, try_as(cluster, tool, name=C), "name_not_in_certificate")
        expect_refused(cluster, try_as(cluster, tool, name="any@127.0.0.2"), "not_allowed")
        expect_refused(cluster, try_as(cluster, tool, flags=VISIBLE), "not_hidden")
        expect_refused(cluster, try_as(cluster, tool, node="c"), "not_allowed")


def test_it_is_worth_nothing_when_a_node_that_has_it_is_denied(cluster: Cluster) -> None:
    with held(cluster) as tool:
        assert try_as(cluster, tool).admitted
        cluster.distsec("deny", B)
        wait_until(lambda: cluster.erl("a", "distsec_tools:rules()") == "[]", "a to forget it")
        expect_refused(cluster, try_as(cluster, tool), "not_allowed")
        cluster.distsec("allow", B)


def test_a_tool_goes_on_when_its_node_or_the_orchestrator_starts_again(cluster: Cluster) -> None:
    with held(cluster) as tool:
        cluster.distsec("restart", A)
        cluster.wait_running()
        cluster.wait_answering("a")
        wait_until(lambda: cluster.erl("a", "distsec_tools:rules()") != "[]", "a to be told again")
        assert try_as(cluster, tool).admitted
        cluster.kill()
        assert try_as(cluster, tool).admitted, "the node knows it"
        cluster.run()
        cluster.wait_running()
        assert try_as(cluster, tool).admitted
    wait_nobody(cluster)
    expect_refused(cluster, try_as(cluster, tool), "not_allowed")


def test_one_that_ends_while_the_orchestrator_is_away_is_forgotten_when_it_is_back(cluster: Cluster) -> None:
    command = [*COMMAND, "exec", A, "--", "/bin/sh", "-c", "echo in; read end"]
    environment = {"DISTSEC_CONFIG": str(cluster.config), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
        assert tool.stdout is not None and tool.stdout.readline() == b"in\n"
        assert cluster.erl("a", "length(distsec_tools:rules())") == "1"
        cluster.kill()
    assert cluster.erl("a", "length(distsec_tools:rules())") == "1"
    cluster.run()
    cluster.wait_running()
    wait_nobody(cluster)
    cluster.wait(lambda: not list((cluster.state / "shells").iterdir()), "its directory to go")


# ---- other carriers ----------


@pytest.mark.parametrize("carrier", ["inet_tls", None], ids=["inet_tls", "development"])
def test_a_tool_works_over_the_stock_carriers_too(
    carrier: str | None,
    make_cluster: Callable[..., Cluster],
    request: pytest.FixtureRequest,
    agent_ebin: Path,
) -> None:
    request.node.user_properties.append(("otp", OTPS[0].stands_for))
    how = {"carrier": carrier} if carrier else {"mode": "development"}
    cluster = make_cluster(OTPS[0], ["a", "b"], **how)
    cluster.start()
    cluster.wait_answering()
    for number in (1, 2):
        ask = f"{{net_adm:ping('{A}'), net_adm:ping('{B}')}}"
        done = run(cluster, *erl(cluster, f"tool-{number}@127.0.0.1", ask))
        assert done.stdout == "{pong,pong}\n", done.stderr
    cluster.wait_event("ShellAttached", node=A, peer="tool-2@127.0.0.1")
    wait_nobody(cluster)
    cluster.wait(lambda: cluster.status()["healthy"], "all to be well")
