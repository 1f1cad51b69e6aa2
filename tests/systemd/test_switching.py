"""Nodes under users of their own in a booted systemd (users.conf), and a node in a unit of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import Machine
from tests.systemd.service import (
    ADDRESS_UNIT,
    CONFIG,
    CREDENTIAL,
    NODES,
    Service,
    assert_untouched,
    configuration,
    since,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first one boots the machine

A, B = NODES
C = "c@127.0.0.1"
USERS = {A: "nodea", B: "nodeb", C: "nodec"}
SECRET = "correct horse battery"

TABLES = {
    A: 'command = ["erl", "-noinput"]\nuser = "nodea"',
    B: 'command = ["erl", "-noinput"]\nuser = "nodeb"',
    C: 'user = "nodec"',  # its own unit starts it
}

OWN_UNIT = """\
[Unit]
After=distsec.service
[Service]
User=nodec
ExecStart=/usr/bin/erl -noinput
%s
"""


@pytest.fixture(scope="module")
def booted(installed: Path) -> Iterator[Service]:
    machine = Machine(installed)
    machine.write(CONFIG, configuration((*NODES, C), tables=TABLES))
    machine.write(CREDENTIAL, SECRET + "\n")
    machine.write("/etc/sysusers.d/nodes.conf", "".join(f"u {user}\n" for user in USERS.values()))
    machine.write("/etc/systemd/system/late-address.service", ADDRESS_UNIT)
    users = Path("/usr/local/share/distsec/systemd/users.conf")
    machine.link("/etc/systemd/system/distsec.service.d/users.conf", users)
    machine.enable("distsec.service")
    machine.enable("late-address.service", target="network-online.target")
    with machine:
        yield Service(machine)


@pytest.fixture
def service(booted: Service) -> Service:
    """a and b are up, whatever the test before left."""
    booted.up()
    return booted


LOOK = """\
id -un; grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status
cat /var/lib/distsec/ca/key.pem /var/lib/distsec/nodes/{other}/key.pem /var/lib/distsec/policy.overlay
ls /var/lib/distsec /var/lib/distsec/nodes /run/credentials/distsec.service
cat /run/credentials/distsec.service/distsec-ca-passphrase
cat /proc/{main}/environ /proc/{pid}/environ; cat /proc/{main}/mem; kill -0 {main}; kill -0 {pid}
touch /etc/x /var/lib/distsec/x /usr/x; echo end"""


@pytest.mark.parametrize(("node", "other"), [(A, B), (B, A)])
def test_a_node_is_its_own_user_and_reads_nothing_of_the_others(
    service: Service, node: str, other: str
) -> None:
    pids, main = service.pids(), service.main_pid()
    seen = service.inside(node, LOOK.format(other=other, main=main, pid=pids[other]))
    lines = seen.splitlines()
    assert lines[0] == USERS[node] and lines[-1] == "end"
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert re.search(rf"^{name}:\s*0+$", seen, re.MULTILINE), seen
    assert re.search(r"^NoNewPrivs:\s*1$", seen, re.MULTILINE)
    assert len(re.findall("Permission denied|Operation not permitted|not permitted", seen)) >= 12, seen
    assert "PRIVATE KEY" not in seen and SECRET not in seen
    for place in ("/etc/x", "/var/lib/distsec/x", "/usr/x"):
        assert f"cannot touch '{place}'" in seen


def test_the_orchestrator_has_four_capabilities_and_no_other(service: Service) -> None:
    status = service.machine.run("cat", f"/proc/{service.main_pid()}/status").stdout
    sets = dict(re.findall(r"^(Cap\w+):\s*(\w+)$", status, re.MULTILINE))
    four = (1 << 0) | (1 << 5) | (1 << 6) | (1 << 7)  # CHOWN, KILL, SETGID, SETUID: capabilities(7)
    assert int(sets["CapBnd"], 16) == int(sets["CapEff"], 16) == four
    assert re.search(r"^Uid:\s*(?!0\b)\d+", status, re.MULTILINE)


def test_a_restart_and_kill_9_are_not_noticed_by_nodes_of_other_users(service: Service) -> None:
    machine, cursor = service.machine, since(service.machine)
    pids, links = service.pids(), service.links()
    machine.run("systemctl", "restart", service.unit)
    assert_untouched(service, cursor, pids, links)
    main = service.main_pid()
    machine.run("kill", "-KILL", str(main))
    wait_until(lambda: service.main_pid() not in {0, main}, "another one")
    assert_untouched(service, cursor, pids, links)


def test_the_nodes_unit_stops_nodes_of_other_users(service: Service) -> None:
    machine, pids = service.machine, service.pids()
    machine.run("systemctl", "stop", service.nodes_unit)
    service.wait_ended(pids[node] for node in NODES)
    machine.run("systemctl", "start", service.nodes_unit)
    service.wait_well()


def test_a_node_comes_up_in_a_unit_of_its_own_with_what_env_prints(service: Service) -> None:
    machine = service.machine
    lines = service.distsec("env", C, "--systemd").stdout
    assert re.search(r'^Environment="ERL_AFLAGS=', lines, re.MULTILINE)
    machine.write("/etc/systemd/system/c.service", OWN_UNIT % lines)
    machine.run("systemctl", "daemon-reload")
    assert machine.run("systemd-analyze", "verify", "c.service").stderr == ""
    try:
        machine.run("systemctl", "start", "c.service")
        wait_until(lambda: node_state(service, C) == "RUNNING", "the node to be proven")
        assert service.inside(C, "id -un") == "nodec\n"
        wait_until(lambda: {peer for node, peer in service.links() if node == C} >= set(NODES), "its links")

        pid = service.pids()[C]
        machine.run("systemctl", "restart", service.unit)
        wait_until(lambda: node_state(service, C) == "RUNNING", "the node to be known again")
        assert service.pids()[C] == pid
    finally:
        machine.run("systemctl", "stop", "c.service")


def node_state(service: Service, name: str) -> str:
    found = [node["state"] for node in service.status().get("nodes", ()) if node["name"] == name]
    return found[0] if found else ""
