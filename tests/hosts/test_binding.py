"""Where a host of its own listens: an address, the tailnet, every interface; and what it refuses."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.host import Host
from tests.hosts.network import Network
from tests.releases import OTPS
from tests.system.processes import end_all

TAILNET = ("100.101.102.103", "fd7a:115c:a1e0::7")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        made.add()
        made.add()
        yield made


@pytest.fixture
def host(network: Network, beams: Path, agent_ebin: Path) -> Iterator[Host]:
    """Two nodes that say nowhere where they listen; set up, and not running. Its name is no address."""
    with Host(network.hosts[0], OTPS[0], beams, ["a", "b"]) as made:
        made.host = "one.example"
        names = [f"{name}@one.example" for name in made.names]
        made.settings["security"]["distribution"]["allowed_nodes"] = names
        for table, name in zip(made.settings["nodes"], names, strict=True):
            table["name"] = name
        yield made


def listening(host: Host) -> dict[int, str]:
    """Port → address of every TCP listener on that host."""
    said = host.where.run(["ss", "-Hltn"]).stdout.splitlines()
    found = [line.split()[3].rpartition(":") for line in said]
    return {int(port): address.strip("[]").replace("*", "::") for address, _, port in found}


def all_listening(host: Host) -> dict[int, str]:
    """The same, once it has all ports of this host."""
    wanted = {*host.ports.values(), host.metrics_port}
    found: dict[int, str] = host.wait(
        lambda: wanted <= (now := listening(host)).keys() and now, f"listeners at {sorted(wanted)}"
    )
    return found


def started(host: Host, *arguments: str) -> dict[int, str]:
    host.init()
    host.run_arguments = list(arguments)
    host.run()
    host.wait_running()
    host.wait_meshed()
    return all_listening(host)


def refused(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = host.distsec("run", *arguments, check=False)
    assert done.stdout == ""
    assert not [pid for pid in end_all(host.directory) if "beam" in pid], "nothing was started"
    return done


def fake_tailscale(host: Host, *addresses: str, state: str = "Running") -> dict[str, str]:
    """The environment with a `tailscale` on PATH that says so: the program itself is not to be had here."""
    directory = host.directory / "bin"
    directory.mkdir(exist_ok=True)
    status = {"BackendState": state, "Self": {"TailscaleIPs": list(addresses), "Online": True}}
    (directory / "status.json").write_text(json.dumps(status))
    (directory / "tailscale").write_text(f"#!/bin/sh\ncat {directory}/status.json\n")
    (directory / "tailscale").chmod(0o755)
    return {"PATH": f"{directory}:{host.environment()['PATH']}"}


def test_nodes_listen_on_the_address_that_is_bound_and_on_no_other(host: Host, network: Network) -> None:
    found = started(host, "--bind", host.where.address)
    assert {found[port] for port in host.ports.values()} == {host.where.address}
    assert found[host.metrics_port] == "127.0.0.1", "the metrics were not spoken of"


def test_nodes_and_metrics_listen_in_the_tailnet_and_on_no_other_address(host: Host) -> None:
    for address, prefix in zip(TAILNET, (32, 128), strict=True):
        host.where.run(["ip", "addr", "replace", f"{address}/{prefix}", "dev", "lo"])
    environment = fake_tailscale(host, TAILNET[1], TAILNET[0], "192.0.2.9")
    host.settings["security"]["distribution"]["bind"] = "tailscale"
    host.settings["metrics"]["listen"] = f"tailscale:{host.metrics_port}"
    host.init(**environment)
    host.run(**environment)
    host.wait_running()
    found = all_listening(host)
    assert {found[port] for port in (*host.ports.values(), host.metrics_port)} == {TAILNET[0]}
    assert not [line for line in host.orchestrator_lines() if "every interface" in line]


def test_a_tailnet_that_is_down_or_not_on_this_host_starts_nothing(host: Host) -> None:
    host.init()
    stopped = fake_tailscale(host, "100.101.102.104", state="Stopped")
    done = host.distsec("run", "--bind", "tailscale", check=False, **stopped)
    assert (done.returncode, done.stdout) == (71, "")
    assert "Tailscale is stopped" in done.stderr
    elsewhere = fake_tailscale(host, "100.101.102.104")
    done = host.distsec("run", "--bind", "tailscale", check=False, **elsewhere)
    assert done.returncode == 71
    assert "100.101.102.104 of the tailnet is on no interface of this host" in done.stderr


def test_every_interface_is_listened_on_only_when_it_was_confirmed(host: Host, network: Network) -> None:
    host.init()
    done = refused(host, "--bind", "0.0.0.0")
    assert done.returncode == 78
    assert "--confirm-network" in done.stderr and "127.0.0.1" in done.stderr
    found = started(host, "--bind", "0.0.0.0", "--confirm-network")
    assert {found[port] for port in host.ports.values()} == {"0.0.0.0"}
    [line] = {json.loads(line)["detail"] for line in host.orchestrator_lines() if "every interface" in line}
    assert "whoever reaches this host may knock" in line
    knock = ["timeout", "50", "bash", "-c", f"</dev/tcp/{host.where.address}/{host.ports['a']}"]
    assert network.hosts[1].run(knock).returncode == 0


def test_an_address_of_another_host_starts_nothing_and_the_own_ones_are_named(host: Host) -> None:
    host.init()
    done = refused(host, "--bind", "10.77.0.2")
    assert done.returncode == 71
    assert "10.77.0.2, which is on no interface of this host (it has " in done.stderr
    assert "10.77.0.1" in done.stderr and "127.0.0.1" not in done.stderr
