"""Debian's RabbitMQ in the service's sandbox: under the user rabbitmq alone, and as a node with a user."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applications.packaged import need_package
from tests.systemd.machine import Machine
from tests.systemd.service import CONFIG, Service, configuration
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first one boots the machine

NODE = "rabbit@127.0.0.1"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
TABLE = f"""\
command = ["{SERVER}"]
environment = {{ RABBITMQ_NODENAME = "{NODE}", RABBITMQ_USE_LONGNAME = "true", RABBITMQ_LOGS = "-" }}
"""
VARIANTS = {
    "alone": ("rabbitmq.conf", "rabbitmq-user.conf"),
    "switching": ("rabbitmq.conf", "users.conf"),
}


@pytest.fixture(scope="module", params=VARIANTS)
def broker(request: pytest.FixtureRequest, installed: Path) -> Iterator[Service]:
    need_package(SERVER)
    machine = Machine(installed)
    user = 'user = "rabbitmq"\n' if request.param == "switching" else ""
    machine.write(CONFIG, configuration((NODE,), tables={NODE: user + TABLE}))
    shared = Path("/usr/local/share/distsec/systemd")
    for drop_in in VARIANTS[request.param]:
        machine.link(f"/etc/systemd/system/distsec.service.d/{drop_in}", shared / drop_in)
    if request.param == "alone":
        own = "/etc/systemd/system/distsec-nodes.service.d/rabbitmq-user.conf"
        machine.link(own, shared / "rabbitmq-user.conf")
        machine.write("/etc/tmpfiles.d/rabbitmq.conf", f"z {CONFIG} 0640 root rabbitmq\n")
    for place in ("var/lib/rabbitmq/mnesia", "etc/rabbitmq"):  # nothing of the host's own broker
        (machine.directory / "layer" / place).mkdir(parents=True)
        shutil.chown(machine.directory / "layer" / place, "rabbitmq", "rabbitmq")
        os.setxattr(machine.directory / "layer" / place, "trusted.overlay.opaque", b"y")
    shutil.chown(machine.directory / "layer/var/lib/rabbitmq", "rabbitmq", "rabbitmq")
    machine.enable("distsec.service")
    with machine:
        yield Service(machine, nodes=(NODE,))


def test_the_broker_runs_in_the_sandbox_and_outlives_a_restart_and_stops(broker: Service) -> None:
    machine = broker.machine
    broker.wait_well()
    wait_until(lambda: is_running(broker), "the broker", 180)
    found = broker.evaluate(
        NODE,
        '{os:cmd("id -un"), vm_memory_monitor:get_total_memory() > 0, '
        "filelib:is_dir(rabbit_mnesia:dir()), length(rabbit_networking:active_listeners()) > 0}",
    )
    assert "".join(found.split()) == '{"rabbitmq\\n",true,true,true}'
    assert machine.run("stat", "-c", "%U", "/var/lib/rabbitmq/mnesia").stdout == "rabbitmq\n"

    pids = broker.pids()
    machine.run("systemctl", "restart", broker.unit)
    assert broker.pids() == pids
    assert broker.evaluate(NODE, "rabbit:is_running()") == "true"

    machine.run("systemctl", "stop", broker.nodes_unit)
    log = machine.run("cat", f"/var/lib/distsec/nodes/{NODE}/log/output.log").stdout
    assert re.search("Message store for directory .* is stopped", log)  # in order, as it does last
    assert "failed to bind" not in log


def is_running(broker: Service) -> bool:
    """False also where the node cannot be asked yet."""
    words = ("shell", NODE, "--eval", "rabbit:is_running()")
    printed: str = broker.distsec(*words, check=False).stdout
    return printed.strip() == "true"
