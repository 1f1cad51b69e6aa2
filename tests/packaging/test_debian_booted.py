"""The Debian package in a booted systemd: from nothing to a service, an upgrade, and back to nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import SHARE, Machine, needed
from tests.systemd.service import CONFIG, Service, assert_untouched, configuration, since

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # what is made once may take long

NODES = ("a@127.0.0.1", "b@127.0.0.1")
PACKAGE = f"{SHARE}/distsec.deb"
STATE = "/var/lib/distsec"
WANTS = "/etc/systemd/system/*.wants"


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    needed()
    made = Machine()
    shutil.copyfile(package, made.share / "distsec.deb")
    with made:
        yield made


def dpkg(machine: Machine, *words: str) -> str:
    return machine.run("dpkg", "--no-triggers", "--force-confold", *words).stdout


def state_of(machine: Machine, unit: str) -> tuple[str, str]:
    return machine.show(unit, "UnitFileState"), machine.show(unit, "ActiveState")


def test_from_nothing_through_an_upgrade_to_nothing(machine: Machine) -> None:
    # installed, and nothing started
    dpkg(machine, "-i", PACKAGE)
    assert state_of(machine, "distsec.service") == ("disabled", "inactive")
    machine.write(CONFIG, configuration(NODES))
    machine.run("systemctl", "enable", "--now", "distsec")
    machine.run("systemctl", "--quiet", "enable", "distsec@shop")
    service = Service(machine, nodes=NODES)
    service.wait_well()
    pids, links, main = service.pids(), service.links(), service.main_pid()

    # another version: nothing is ended, and it is there from the next restart on, here as the unit that may
    # switch users, before any node has one
    cursor = since(machine)
    assert "systemctl restart distsec (the nodes stay up)" in dpkg(machine, "-i", PACKAGE)
    assert service.main_pid() == main
    machine.shell(
        "mkdir /etc/systemd/system/distsec.service.d; "
        "ln -s /usr/share/distsec/systemd/users.conf /etc/systemd/system/distsec.service.d"
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "distsec")
    assert service.main_pid() != main
    assert_untouched(service, cursor, pids, links)
    machine.run("systemctl", "reload", "distsec")
    assert machine.shell(f"stat -c %a {STATE}") == "711\n", "systemd gives it the unit's mode at a reload"
    found = json.loads(service.distsec("check", "--json", check=False).stdout)["findings"]
    assert [
        each for each in found if each["code"].startswith(("directory", "file", "secret", "parent"))
    ] == []
    assert_untouched(service, cursor, pids, links)

    # gone, with the nodes, their keys and whatever would have started them
    said = dpkg(machine, "-P", "distsec")
    assert f"distsec: removed {STATE} with the CA's key and every node's" in said
    service.wait_ended(pids.values())  # they were taken over: init collects what is left, in its own time
    assert machine.shell("cat /proc/[0-9]*/comm | grep -c beam || true") == "0\n"
    left = f"ls -d {STATE} /etc/distsec /var/log/distsec /run/distsec /usr/lib/distsec {WANTS}/distsec*"
    assert machine.shell(f"{left} 2>/dev/null || true") == ""
    assert machine.shell("systemctl list-units --failed --no-legend --plain 'distsec*'") == ""
