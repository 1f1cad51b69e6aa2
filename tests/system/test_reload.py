"""SIGHUP: the difference is applied, or, where the new configuration is bad, nothing is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import HOST, Cluster, free_ports


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """One release: what a reload does is the orchestrator's, and its pushes are tested in test_policy."""
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(shared: Cluster, otp: Otp, request: pytest.FixtureRequest) -> Cluster:
    """Three nodes, RUNNING and meshed, and what the file says. Each test leaves them like that."""
    request.node.user_properties.append(("otp", otp.stands_for))
    shared.wait_running()
    shared.wait_meshed()
    return shared


def reload(cluster: Cluster) -> dict[str, Any]:
    """SIGHUP, and the event that says what came of it."""
    known = len(cluster.events("ConfigurationReloaded"))
    cluster.signal(signal.SIGHUP)
    cluster.wait(lambda: len(cluster.events("ConfigurationReloaded")) > known, "the end of the reload")
    [event] = cluster.events("ConfigurationReloaded")[known:]
    return event


def pids(cluster: Cluster) -> dict[str, int]:
    return {node["name"]: node["pid"] for node in cluster.status()["nodes"]}


def add_node(cluster: Cluster, name: str) -> None:
    (port,) = free_ports(1)
    cluster.names.append(name)
    cluster.ports[name] = port
    cluster.otps[name] = next(iter(cluster.otps.values()))
    cluster.settings["nodes"].append(cluster._node_table(name))
    allowed(cluster).append(cluster.node(name))
    cluster.write()


def remove_node(cluster: Cluster, name: str) -> None:
    cluster.names.remove(name)
    cluster.settings["nodes"].remove(cluster.table(name))
    allowed(cluster).remove(cluster.node(name))
    cluster.write()


def allowed(cluster: Cluster) -> list[str]:
    names: list[str] = cluster.settings["security"]["distribution"]["allowed_nodes"]
    return names


def test_a_node_that_is_added_joins_and_one_that_is_removed_is_stopped(cluster: Cluster) -> None:
    before = pids(cluster)
    add_node(cluster, "d")
    event = reload(cluster)
    assert (event["result"], event["detail"]) == ("allow", "added d@127.0.0.1")
    cluster.wait_running("d")
    cluster.wait_meshed()
    after = pids(cluster)
    newcomer = after.pop("d@127.0.0.1")
    assert after == before

    remove_node(cluster, "d")
    event = reload(cluster)
    assert (event["result"], event["detail"]) == ("allow", "removed d@127.0.0.1")
    assert not Path(f"/proc/{newcomer}").exists()
    assert pids(cluster) == before
    assert 'node="d@127.0.0.1"' not in cluster.metrics()
    for name in cluster.names:  # which see the link end a moment after the node
        cluster.wait(
            lambda name=name: "d@127.0.0.1" not in cluster.erl(name, "nodes(connected)"), f"{name} without d"
        )
    assert (cluster.node_directory("d") / "key.pem").exists()  # keys are nobody's to remove


def test_a_name_that_is_no_longer_allowed_loses_its_links(cluster: Cluster) -> None:
    before, generation = pids(cluster), cluster.status()["policy_generation"]
    allowed(cluster).remove("c@127.0.0.1")
    cluster.write()
    event = reload(cluster)
    assert event["result"] == "allow"
    status = cluster.status()
    assert status["policy_generation"] > generation
    assert {node["policy_generation"] for node in status["nodes"]} == {status["policy_generation"]}
    # The others have ended their links; c may not see it for a moment (distsec_parting holds the sockets).
    cluster.wait(lambda: cluster.erl("c", "nodes(connected)") == "[]", "c to be alone")
    assert cluster.erl("a", f"net_kernel:connect_node('c@{HOST}')") == "false"
    assert cluster.erl("c", f"net_kernel:connect_node('a@{HOST}')") == "false"

    allowed(cluster).append("c@127.0.0.1")
    cluster.write()
    assert reload(cluster)["result"] == "allow"
    cluster.wait_meshed()
    assert pids(cluster) == before


def test_a_command_that_changed_restarts_that_node_alone(cluster: Cluster) -> None:
    before = pids(cluster)
    cluster.table("b")["environment"] = {"COLOUR": "green"}
    cluster.write()
    assert reload(cluster)["detail"] == "restarted b@127.0.0.1"
    cluster.wait(lambda: pids(cluster)["b@127.0.0.1"] not in {None, before["b@127.0.0.1"]}, "b's restart")
    cluster.wait_running()
    assert cluster.erl("b", 'os:getenv("COLOUR")') == '"green"'
    after = pids(cluster)
    assert {name for name in after if after[name] != before[name]} == {"b@127.0.0.1"}
    cluster.wait_meshed()


def broken(text: str) -> str:
    return text + "\n[cluster\n"


def unknown_key(text: str) -> str:
    return text.replace("[cluster]", "[cluster]\non_exitt = 1", 1)


def another_carrier(text: str) -> str:
    return text.replace('carrier = "distsec"', 'carrier = "inet_tls"')


def epmd_after_all(text: str) -> str:
    return text.replace('carrier = "distsec"', 'carrier = "distsec"\nepmd = "loopback"')


def another_name(text: str) -> str:
    return text.replace('name = "demo"', 'name = "omed"', 1)


def another_state_directory(text: str) -> str:
    return text.replace('state_dir = "state"', 'state_dir = "elsewhere"', 1)


def a_node_without_its_program(text: str) -> str:
    table = '\n[[nodes]]\nname = "e@127.0.0.1"\ncommand = ["no-such-program"]\n'
    return text + table


BAD: dict[Callable[[str], str], str] = {
    broken: "line ",
    unknown_key: "cluster.on_exitt: is no key of this configuration; did you mean on_exit?",
    another_name: "cluster.name: cannot change while the orchestrator runs; restart it for that",
    another_carrier: "security.distribution.carrier: cannot change while the orchestrator runs",
    epmd_after_all: "security.distribution.epmd: cannot change while the orchestrator runs",
    another_state_directory: "cluster.state_dir: cannot change while the orchestrator runs",
    a_node_without_its_program: "no-such-program",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_configuration_changes_nothing(cluster: Cluster, spoil: Callable[[str], str]) -> None:
    before, generation = pids(cluster), cluster.status()["policy_generation"]
    overlay = (cluster.state / "policy.overlay").read_bytes()
    told = len(cluster.orchestrator_lines())
    good = cluster.config.read_text()
    cluster.config.write_text(spoil(good))
    event = reload(cluster)
    cluster.config.write_text(good)  # the commands read it too
    assert (event["result"], event["reason"]) == ("deny", "rejected")
    assert BAD[spoil] in event["detail"]
    assert event["level"] == "warning"
    assert event["detail"].startswith("the old configuration stays in force: ")
    assert pids(cluster) == before
    assert cluster.status()["policy_generation"] == generation
    assert (cluster.state / "policy.overlay").read_bytes() == overlay
    assert not (cluster.directory / "elsewhere").exists()
    assert reload(cluster)["result"] == "allow"  # whatever the refusal had to say is said by now
    assert sum(BAD[spoil] in line for line in cluster.orchestrator_lines()[told:]) == 1, "it is told once"
