"""What the generator of the systemd units opens because of other hosts and of Tailscale."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from distsec.config.tailscale import RANGES
from distsec.pki.hosts import save_hosts
from distsec.pki.store import Store
from tests.releases import ROOT
from tests.unit.hosts.test_elsewhere import HOST

CONFIG = '[security.distribution]\nallowed_nodes = ["a@10.0.0.1"]\n'


def opened(tmp_path: Path, text: str) -> list[str]:
    etc, out = tmp_path / "etc", tmp_path / "out"
    etc.mkdir(exist_ok=True)
    (etc / "distsec.toml").write_text(text)
    subprocess.run(
        [str(ROOT / "config/systemd/distsec-addresses"), str(out)],
        env={"DISTSEC_ETC": str(etc)},
        check=True,
        timeout=30,
    )
    lines = (out / "distsec.service.d/50-addresses.conf").read_text().splitlines()
    return [line.removeprefix("IPAddressAllow=") for line in lines if line.startswith("IPAddressAllow=")]


def test_the_nodes_of_hosts_that_were_imported_are_reached(tmp_path: Path) -> None:
    text = f'[cluster]\nstate_dir = "{tmp_path}/state"\n{CONFIG}'
    assert opened(tmp_path, text) == ["10.0.0.1"]
    save_hosts(Store(tmp_path / "state"), (HOST,))
    assert opened(tmp_path, text) == ["10.0.0.1", "192.0.2.2"]


def test_what_the_service_can_write_is_read_as_addresses_and_nothing_else(tmp_path: Path) -> None:
    """The generator runs as root, and hosts.json is in a directory of the service's user: a line of its own
    in the drop-in would be a command for root, and a symbolic link can lead to a device.
    """
    text = f'[cluster]\nstate_dir = "{tmp_path}/state"\n{CONFIG}'
    save_hosts(Store(tmp_path / "state"), (HOST,))
    hosts = tmp_path / "state" / "hosts.json"
    evil = json.dumps("fe80::1%x\nExecStartPre=+reboot")
    hosts.write_text(hosts.read_text().replace('"192.0.2.2"', evil))
    assert evil in hosts.read_text()
    assert opened(tmp_path, text) == ["10.0.0.1"]
    assert "ExecStartPre" not in (tmp_path / "out/distsec.service.d/50-addresses.conf").read_text()
    good = tmp_path / "good.json"
    good.write_text(hosts.read_text().replace(evil, '"192.0.2.2"'))
    plants: tuple[Callable[[], None], ...] = (
        lambda: hosts.symlink_to(good),
        lambda: os.mkfifo(hosts),
        lambda: hosts.symlink_to("/dev/null"),
    )
    for plant in plants:
        hosts.unlink()
        plant()
        (tmp_path / "out/distsec.service.d/50-addresses.conf").write_text("")
        assert opened(tmp_path, text) == []


def test_what_is_bound_is_opened_and_for_tailscale_its_ranges(tmp_path: Path) -> None:
    assert opened(tmp_path, CONFIG + 'bind = "fd00::5"\n') == ["10.0.0.1", "fd00::5"]
    ranges = [str(each) for each in RANGES]
    assert opened(tmp_path, CONFIG + 'bind = "tailscale"\n') == ["10.0.0.1", *ranges]
    metrics = '[metrics]\nlisten = "tailscale:9911"\n'
    assert opened(tmp_path, CONFIG + metrics) == ["10.0.0.1", *ranges]
