"""An epmd on loopback alone, or why there is none. With real ones: tests/system/test_epmd.py."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from distsec.beam import epmd, proc
from distsec.beam.epmd import DEFAULT_PORT, ensure_epmd, epmd_port
from distsec.errors import ConfigError, EpmdUnavailable, PortInUse, RuntimeMissing
from distsec.pki.account import Account
from tests.waiting import PATIENCE_SECONDS

PORT = 43690


def listening(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """The machine has these listeners at PORT, and one everywhere at another port."""
    found = {("0.0.0.0", PORT + 1), *((address, PORT) for address in addresses)}
    monkeypatch.setattr(proc, "all_listening", lambda pid: found)


def ensure(erl: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
    asyncio.run(ensure_epmd(PORT, erl, environment or {}))


def program(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return path


def test_its_port_is_that_which_the_node_is_given() -> None:
    assert epmd_port({}) == DEFAULT_PORT == 4369
    assert epmd_port({"ERL_EPMD_PORT": "5000"}) == 5000


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "x", "4369 ", "٣"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ERL_EPMD_PORT"):
        epmd_port({"ERL_EPMD_PORT": text})


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "::1"], ["127.0.0.2"]])
def test_one_that_is_on_loopback_alone_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    listening(monkeypatch, *addresses)
    ensure(environment={"PATH": "/nowhere"})


@pytest.mark.parametrize("beyond", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1"])
def test_one_that_is_reached_from_elsewhere_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, beyond: str
) -> None:
    listening(monkeypatch, "127.0.0.1", beyond)
    with pytest.raises(PortInUse, match="tell strangers") as caught:
        ensure()
    assert f"{beyond}:{PORT}" in str(caught.value)
    assert "epmd.socket" in caught.value.do and "ERL_EPMD_PORT" in caught.value.do


def test_a_host_without_epmd_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    listening(monkeypatch)
    with pytest.raises(RuntimeMissing, match="there is no epmd"):
        ensure(environment={"PATH": "/nowhere"})


def test_one_that_does_not_start_says_how_to_see_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listening(monkeypatch)
    failing = program(tmp_path / "epmd", "exit 1")
    with pytest.raises(EpmdUnavailable, match="does not start") as caught:
        ensure(environment={"PATH": str(tmp_path)})
    assert str(failing) in str(caught.value)


def test_one_that_never_listens_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listening(monkeypatch)
    monkeypatch.setattr(epmd, "START_SECONDS", 0.5)
    program(tmp_path / "epmd", "exit 0")
    with pytest.raises(RuntimeMissing, match="does not start"):
        ensure(environment={"PATH": str(tmp_path)})


def test_the_one_beside_the_nodes_own_erl_is_started_on_loopback_with_nothing_of_our_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listening(monkeypatch)
    monkeypatch.setattr(epmd, "START_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setenv("SECRET", "hunter2")
    program(tmp_path / "path/epmd", "exit 1")
    erl = program(tmp_path / "otp/erl", "exit 1")
    program(tmp_path / "otp/epmd", f'echo "$@" > {tmp_path}/arguments; env > {tmp_path}/environment; exit 1')
    with pytest.raises(RuntimeMissing):
        ensure(erl, {"PATH": f"{tmp_path}/path:/usr/bin:/bin"})
    assert (tmp_path / "arguments").read_text() == f"-daemon -address 127.0.0.1 -port {PORT}\n"
    assert "hunter2" not in (tmp_path / "environment").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as somebody else")
def test_that_of_a_node_with_a_user_runs_as_that_user(monkeypatch: pytest.MonkeyPatch) -> None:
    listening(monkeypatch)
    monkeypatch.setattr(epmd, "START_SECONDS", PATIENCE_SECONDS)
    alice = Account("alice", 54321, 54331, (54331,))
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # into pytest's own no other user can look
        directory = Path(name)
        directory.chmod(0o777)
        program(directory / "epmd", f"{{ id -u; id -G; ps -o sid= $$; }} > {directory}/who; exit 1")
        with pytest.raises(RuntimeMissing):
            asyncio.run(ensure_epmd(PORT, None, {"PATH": f"{directory}:/usr/bin:/bin"}, alice))
        user, groups, session = (directory / "who").read_text().splitlines()
        assert (user, groups) == ("54321", "54331")
        assert int(session) != os.getsid(0), "it could open root's terminal, and type into it"
        directory.chmod(0o700)
        with pytest.raises(RuntimeMissing, match="there is no epmd"):
            asyncio.run(ensure_epmd(PORT, None, {"PATH": f"{directory}"}, alice))
