"""`tailscale status --json`: what real ones print (ipnstate.Status), and what a hostile one might.

The program itself cannot be had here, so a script of that name on PATH prints what it is told to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.config import tailscale
from distsec.config.tailscale import ask_tailscale, is_tailnet, status_addresses
from distsec.errors import AddressUnavailable
from tests.waiting import wait_until

SELF: dict[str, Any] = {
    "ID": "nQRJBE7CNTRL",
    "PublicKey": "nodekey:" + "0" * 64,
    "HostName": "shop-1",
    "DNSName": "shop-1.tail1234.ts.net.",
    "OS": "linux",
    "UserID": 42,
    "TailscaleIPs": ["100.101.102.103", "fd7a:115c:a1e0::1"],
    "AllowedIPs": ["100.101.102.103/32", "fd7a:115c:a1e0::1/128"],
    "Addrs": ["192.0.2.10:41641"],
    "CurAddr": "",
    "Relay": "fra",
    "RxBytes": 0,
    "TxBytes": 0,
    "Created": "2026-01-02T03:04:05.678901Z",
    "LastSeen": "0001-01-01T00:00:00Z",
    "Online": True,
    "ExitNode": False,
    "InNetworkMap": True,
    "InMagicSock": False,
    "InEngine": False,
}
RUNNING: dict[str, Any] = {
    "Version": "1.76.1",
    "TUN": True,
    "BackendState": "Running",
    "HaveNodeKey": True,
    "AuthURL": "",
    "TailscaleIPs": ["100.101.102.103", "fd7a:115c:a1e0::1"],
    "Self": SELF,
    "Health": [],
    "MagicDNSSuffix": "tail1234.ts.net",
    "CurrentTailnet": {"Name": "shop.example", "MagicDNSSuffix": "tail1234.ts.net", "MagicDNSEnabled": True},
    "CertDomains": None,
    "Peer": {
        "nodekey:1": {"HostName": "shop-2", "TailscaleIPs": ["100.64.0.2"], "Online": False, "OS": "linux"}
    },
    "User": {"42": {"ID": 42, "LoginName": "ops@shop.example", "DisplayName": "Ops"}},
    "ClientVersion": None,
}
NEEDS_LOGIN: dict[str, Any] = {
    "Version": "1.98.8-t1241b225b-g0520dfda5",
    "TUN": True,
    "BackendState": "NeedsLogin",
    "AuthURL": "",
    "TailscaleIPs": None,
    "Self": {"ID": "", "HostName": "shop-1", "DNSName": "", "TailscaleIPs": None, "Online": False},
    "Health": ["Tailscale is stopped."],
    "CurrentTailnet": None,
    "Peer": None,
    "User": None,
}
"""As tailscaled 1.98 says it of a host that was never logged in."""


def running(**fields: Any) -> bytes:
    return json.dumps({**RUNNING, **fields}).encode()


def of_self(*addresses: Any) -> bytes:
    return running(Self={**SELF, "TailscaleIPs": list(addresses)}, TailscaleIPs=None)


def test_a_host_that_is_in_its_tailnet_has_both_families_ipv4_first() -> None:
    assert status_addresses(running()) == ("100.101.102.103", "fd7a:115c:a1e0::1")
    assert status_addresses(of_self("fd7a:115c:a1e0::1", "100.101.102.103"))[0] == "100.101.102.103"


def test_one_family_alone_is_enough() -> None:
    assert status_addresses(of_self("100.64.0.1")) == ("100.64.0.1",)
    assert status_addresses(of_self("fd7a:115c:a1e0:0:0::0F")) == ("fd7a:115c:a1e0::f",)


def test_what_stands_beside_self_counts_where_self_has_none() -> None:
    assert status_addresses(running(Self=None)) == ("100.101.102.103", "fd7a:115c:a1e0::1")
    assert status_addresses(running(Self={**SELF, "TailscaleIPs": None}))[0] == "100.101.102.103"


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (NEEDS_LOGIN, "logged in to no tailnet"),
        ({**RUNNING, "BackendState": "Stopped"}, "Tailscale is stopped"),  # it keeps its addresses
        ({**RUNNING, "BackendState": "Starting"}, "still starting"),
        ({**RUNNING, "BackendState": "NoState"}, "still starting"),
        ({**RUNNING, "BackendState": "NeedsMachineAuth"}, "waits to be approved"),
        ({**RUNNING, "BackendState": "Dreaming"}, "is in the state Dreaming"),
    ],
)
def test_a_tailnet_that_is_not_up_has_no_address(status: dict[str, Any], what: str) -> None:
    with pytest.raises(AddressUnavailable, match=what) as caught:
        status_addresses(json.dumps(status).encode())
    assert caught.value.do


@pytest.mark.parametrize(
    "addresses",
    [
        (),
        ("192.0.2.1",),
        ("0.0.0.0",),
        ("::",),
        ("100.63.255.255",),
        ("100.128.0.0",),
        ("fd7a:115c:a1e1::1",),
        ("fe80::1%tailscale0",),
        ("fd7a:115c:a1e0::1%eth0",),
        ("::ffff:100.64.0.1",),
        (None, 7, {}, [], "x" * 100_000, "100.64.0.1/32", " 100.64.0.1", "100.64.00.1"),
        ("nobody",) * 100 + ("100.64.0.1",),
    ],
)
def test_only_addresses_of_a_tailnet_count(addresses: tuple[Any, ...]) -> None:
    with pytest.raises(AddressUnavailable, match="has no address in its tailnet"):
        status_addresses(of_self(*addresses))


@pytest.mark.parametrize(
    "address", ["100.64.0.0", "100.127.255.255", "fd7a:115c:a1e0::", "fd7a:115c:a1e0:ffff::"]
)
def test_the_edges_of_the_ranges_are_in_them(address: str) -> None:
    assert is_tailnet(address)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"not JSON",
        b"\xff\xfe",
        b'{"BackendState": null}',
        b'{"BackendState": ["Running"]}',
        b"[" * 100_000,
        b"1" * 10_000,
        running(Self="me", TailscaleIPs="100.64.0.1"),
        running(Self=[SELF], TailscaleIPs={"100.64.0.1": 1}),
    ],
)
def test_what_cannot_be_understood_gives_no_address(output: bytes) -> None:
    with pytest.raises(AddressUnavailable):
        status_addresses(output)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=14), inner, max_size=3),
        max_leaves=8,
    )
)
def test_no_document_does_anything_but_be_refused(value: Any) -> None:
    for document in (value, {**RUNNING, "Self": value}, {**RUNNING, "BackendState": value}):
        try:
            found = status_addresses(json.dumps(document).encode())
        except AddressUnavailable as error:
            assert all(character.isprintable() for character in str(error))
            continue
        assert found == ("100.101.102.103", "fd7a:115c:a1e0::1")


# ---- the program


Program = Callable[[str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a `tailscale` that is this shell script first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(script: str) -> None:
        path = tmp_path / "tailscale"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def test_the_program_on_path_is_asked(program: Program, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(running())
    program(f'test "$*" = "status --json" && cat {tmp_path}/status.json')
    assert ask_tailscale() == ("100.101.102.103", "fd7a:115c:a1e0::1")


def test_a_host_that_is_logged_out_is_told_from_one_without_tailscaled(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "status.json").write_text(json.dumps(NEEDS_LOGIN))
    program(f"cat {tmp_path}/status.json; exit 1")
    with pytest.raises(AddressUnavailable, match="logged in to no tailnet"):
        ask_tailscale()
    program("echo 'failed to connect to local tailscaled; it does not appear to be running' >&2; exit 1")
    with pytest.raises(AddressUnavailable, match="has said nothing: failed to connect") as caught:
        ask_tailscale()
    assert "systemctl start tailscaled" in caught.value.do


def test_no_program_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AddressUnavailable, match="is not installed, or not on PATH"):
        ask_tailscale()


def test_a_program_that_cannot_be_run_is_named(program: Program, tmp_path: Path) -> None:
    program("")
    (tmp_path / "tailscale").write_bytes(b"\x7fELF nothing")
    with pytest.raises(AddressUnavailable, match="cannot be run"):
        ask_tailscale()


def test_a_program_that_does_not_answer_is_ended_with_all_that_it_started(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(f"sleep 300 & echo $! > {tmp_path}/made; mv {tmp_path}/made {tmp_path}/pid; wait")
    for seconds in (0.5, 5.0, 30.0):
        monkeypatch.setattr(tailscale, "SECONDS", seconds)
        began = time.monotonic()
        with pytest.raises(AddressUnavailable, match="has not answered within"):
            ask_tailscale()
        assert time.monotonic() - began < seconds + 20
        if (tmp_path / "pid").exists():
            break  # else it was ended before it had begun
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    wait_until(lambda: _has_ended(child), "the program's own child to be gone")


def _has_ended(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_program_that_never_ends_its_answer_is_cut_off(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailscale, "MAX_BYTES", 100_000)
    program("yes")
    with pytest.raises(AddressUnavailable, match="more than 100000 bytes"):
        ask_tailscale()


def test_what_it_says_is_shown_without_its_control_characters(program: Program) -> None:
    program(r"printf '\033[2Jgone\007' >&2; exit 1")
    with pytest.raises(AddressUnavailable) as caught:
        ask_tailscale()
    assert str(caught.value).isprintable()
