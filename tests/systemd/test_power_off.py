"""The host is switched off: the nodes end in their own time, before the orchestrator and the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.systemd.machine import SHARE, Machine
from tests.systemd.service import ADDRESS_UNIT, NODES, Service, configuration

# What a node tells its applications: init:stop/0 shuts the kernel's safe supervisor down; neither KILL nor a
# halt does.
WITNESS = (
    "-eval",
    "spawn(fun() -> register(witness, self()), process_flag(trap_exit, true), "
    "link(whereis(kernel_safe_sup)), receive {'EXIT', _, _} -> "
    'prim_file:write_file(os:getenv(\\"WITNESS\\"), \\"ended in order\\") end end)',
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_nodes_end_in_order_when_the_host_is_switched_off(installed: Path) -> None:
    machine = Machine(installed)
    machine.share.chmod(0o777)
    command = ", ".join(f'"{word}"' for word in ("erl", "-noinput", *WITNESS))
    tables = {
        node: f'command = [{command}]\nenvironment = {{ WITNESS = "{SHARE}/{node}" }}' for node in NODES
    }
    machine.write("/etc/distsec/distsec.toml", configuration(tables=tables))
    machine.write("/etc/systemd/system/late-address.service", ADDRESS_UNIT)
    machine.write("/etc/systemd/system/distsec.service.d/share.conf", f"[Service]\nReadWritePaths={SHARE}\n")
    machine.enable("distsec.service")
    machine.enable("late-address.service", target="network-online.target")
    with machine:
        service = Service(machine)
        service.wait_well()
        machine.power_off()

        told = machine.messages()
        for node in NODES:
            assert (machine.share / node).read_text() == "ended in order"
        order = [
            "Stopping distsec-nodes.service",
            "Stopped distsec-nodes.service",
            "Stopping distsec.service",
            "Stopped distsec.service",
            "Stopped target network-online.target",
        ]
        assert sorted(order, key=told.index) == order
        # The orchestrator tells the journal by the same socket as systemd, so that it has what they say in
        # that order; what `distsec stop` prints comes by another one, and may be there a moment later.
        for node in NODES:
            assert told.index(order[0]) < told.index(f"{node}: stopped") < told.index(order[1])
            assert f"stopped {node}" in told
        assert "remains running" not in told and "timed out" not in told
