"""The addresses of this host in its tailnet, as `tailscale status --json` says (ipnstate.Status).

`status_addresses` is pure; `ask_tailscale` runs the program that is on PATH, for some seconds at most and
reading some megabytes at most: what it prints is somebody else's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from typing import IO, Any

from distsec.errors import AddressUnavailable
from distsec.model.text import escape

PROGRAM = "tailscale"
SECONDS = 5.0
MAX_BYTES = 16 * 1024 * 1024
"""A tailnet of ten thousand peers, of about 1.5 KB each, has as much."""

MAX_ADDRESSES = 16
RANGES = (
    ipaddress.ip_network("100.64.0.0/10"),  # RFC 6598; tsaddr.CGNATRange
    ipaddress.ip_network("fd7a:115c:a1e0::/48"),  # tsaddr.TailscaleULARange
)
_UP = "`tailscale up`, then try again; or bind another address of this host"
_STATES = {
    "NeedsLogin": ("this host is logged in to no tailnet", _UP),
    "NeedsMachineAuth": ("this host waits to be approved in its tailnet", "approve it in the admin console"),
    "Stopped": ("Tailscale is stopped", _UP),
    "Starting": ("Tailscale is still starting", "try again in a moment"),
    "NoState": ("Tailscale is still starting", "try again in a moment"),
    "InUseOtherUser": ("Tailscale is in use by another user of this host", _UP),
}
"""ipn.State.String()."""


def is_tailnet(address: str) -> bool:
    """Whether `address` is in one of the ranges that Tailscale gives addresses from."""
    parsed = ipaddress.ip_address(address)
    return any(parsed.version == each.version and parsed in each for each in RANGES)


def status_addresses(output: bytes) -> tuple[str, ...]:
    """The addresses of this host, IPv4 first. Raises AddressUnavailable where Tailscale is not running, or
    says nothing that can be understood.
    """
    try:
        status = json.loads(output)
    except (ValueError, RecursionError):
        raise _unclear("no JSON") from None
    if not isinstance(status, dict) or not isinstance(status.get("BackendState"), str):
        raise _unclear("no BackendState")
    state = status["BackendState"]
    if state != "Running":
        what, do = _STATES.get(state, (f"Tailscale is in the state {escape(state, 40)}", _UP))
        raise AddressUnavailable(what, where=PROGRAM, do=do)
    found = [text for text in _own(status) if is_tailnet(text)]
    if not found:
        raise AddressUnavailable(
            "this host has no address in its tailnet", where=PROGRAM, do="see `tailscale ip`"
        )
    return tuple(sorted(found, key=lambda text: ":" in text))


def ask_tailscale() -> tuple[str, ...]:
    """See `status_addresses`, of the program on PATH."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise AddressUnavailable(
            "is not installed, or not on PATH",
            where=PROGRAM,
            do="install it, or bind an address of this host by its number",
        )
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    try:
        process = subprocess.Popen(
            [program, "status", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    except OSError as error:
        raise AddressUnavailable(
            f"cannot be run: {(error.strerror or 'unusable').lower()}", where=program, do="see to it"
        ) from None
    try:
        assert process.stdout is not None and process.stderr is not None
        output, said = _read(process.stdout, process.stderr)
        # Of a host that is logged out it ends with 1 and says so in JSON all the same.
        if not output.strip():
            raise AddressUnavailable(
                f"has said nothing{': ' + escape(said, 200) if said else ''}",
                where=f"{PROGRAM} status --json",
                do="is tailscaled running? `systemctl start tailscaled`",
            )
        return status_addresses(output)
    finally:
        _end(process)


def _read(stdout: IO[bytes], stderr: IO[bytes]) -> tuple[bytes, str]:
    """All of the output, and the beginning of what is on stderr. Raises AddressUnavailable."""
    deadline = time.monotonic() + SECONDS
    found = {stdout: bytearray(), stderr: bytearray()}
    with selectors.DefaultSelector() as waiting:
        for stream in found:
            os.set_blocking(stream.fileno(), False)
            waiting.register(stream, selectors.EVENT_READ)
        while waiting.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise AddressUnavailable(
                    f"has not answered within {SECONDS:g} s",
                    where=f"{PROGRAM} status --json",
                    do="is tailscaled running?",
                )
            for key, _ in waiting.select(left):
                stream = stdout if key.fileobj is stdout else stderr
                data = os.read(key.fd, 65536)
                if not data:
                    waiting.unregister(stream)
                elif stream is stdout or len(found[stderr]) < 1000:
                    found[stream] += data
                if len(found[stdout]) > MAX_BYTES:
                    raise _unclear(f"more than {MAX_BYTES} bytes")
    lines = found[stderr].decode("utf-8", "replace").strip().splitlines()
    return bytes(found[stdout]), lines[0] if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """With whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _own(status: dict[str, Any]) -> list[str]:
    """What it says of this host, in their shortest form; whatever is no address is passed over."""
    itself = status.get("Self")
    told = itself.get("TailscaleIPs") if isinstance(itself, dict) else None
    if not isinstance(told, list) or not told:
        told = status.get("TailscaleIPs")
    found = []
    for each in (told if isinstance(told, list) else [])[:MAX_ADDRESSES]:
        if isinstance(each, str):
            try:
                found.append(str(ipaddress.ip_address(each)))
            except ValueError:
                continue
    return [text for text in found if "%" not in text]


def _unclear(what: str) -> AddressUnavailable:
    return AddressUnavailable(
        f"cannot be understood ({what})",
        where=f"{PROGRAM} status --json",
        do="bind an address of this host by its number",
    )
