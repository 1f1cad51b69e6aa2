"""An epmd for nodes that register with one (`epmd = "loopback"`): it listens on loopback alone.

Nobody of ours asks it; it is for tools that find a node's port by its name. So that it tells nobody else, one
that is there already is taken only if no other address reaches it; else there is an error that says how to
end it. Where there is none, one is started that outlives the orchestrator and, like any epmd, its nodes. It
runs as the node that wants it: it is the node's own, which its user may have written, and whoever listens for
years needs no right of the orchestrator's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from distsec.beam import proc
from distsec.errors import ConfigError, EpmdUnavailable, PortInUse, Problem, RuntimeMissing
from distsec.model.text import escape
from distsec.pki.account import Account, acting_as

DEFAULT_PORT = 4369
"""EPMD_PORT_NO in erts/epmd/src/epmd.h; another one is given by ERL_EPMD_PORT."""

START_SECONDS = 5.0
_POLL_SECONDS = 0.02


def epmd_port(environment: Mapping[str, str]) -> int:
    """The port of the epmd that a node with this environment registers with. Raises ConfigError."""
    text = environment.get("ERL_EPMD_PORT", str(DEFAULT_PORT))
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65_536):
        raise ConfigError("", [Problem("nodes.environment.ERL_EPMD_PORT", 0, "is no port", "use 1 to 65535")])
    return int(text)


async def ensure_epmd(
    port: int, erl: Path | None, environment: Mapping[str, str], account: Account | None = None
) -> None:
    """Returns when an epmd listens at `port` of loopback and nowhere else; starts one if there is none, as
    `account`.

    `erl`: the node's own, if it is known, beside which its epmd is; else that of the PATH in `environment`.
    Raises PortInUse if what listens there can be reached from elsewhere, RuntimeMissing if there is no epmd,
    EpmdUnavailable if it does not start.
    """
    if _listens(port):
        return
    with acting_as(account):
        program = _find(erl, environment)
    # -daemon: it leaves us for good. To whatever -address names, those of loopback are added (epmd(1)).
    command = [str(program), "-daemon", "-address", "127.0.0.1", "-port", str(port)]
    started = await asyncio.to_thread(_run, command, environment.get("PATH", ""), account)
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while not _listens(port):
        if not started or asyncio.get_running_loop().time() > deadline:
            raise EpmdUnavailable(
                f"epmd does not start at port {port} of 127.0.0.1",
                where=escape(str(program), 1024),
                do=f"run it by hand to see why: epmd -d -address 127.0.0.1 -port {port}",
            )
        await asyncio.sleep(_POLL_SECONDS)


def _run(command: Sequence[str], path: str, account: Account | None) -> bool:
    """Whether it has gone into the background."""
    try:
        done = subprocess.run(
            command,
            cwd="/",
            env={"PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=START_SECONDS,
            start_new_session=True,  # away from our terminal: the node may have written it
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else account.groups,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _listens(port: int) -> bool:
    """Whether anything listens at `port`. Raises PortInUse where that is reached from beyond loopback."""
    addresses = sorted(address for address, number in proc.all_listening(os.getpid()) if number == port)
    beyond = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    if beyond:
        raise PortInUse(
            "an epmd that is not on loopback alone would tell strangers the nodes' names and ports",
            where=f"{beyond[0]}:{port}",
            do="end it (on Debian: systemctl disable --now epmd.socket epmd.service), or give the nodes "
            "another ERL_EPMD_PORT in [nodes.environment]",
        )
    return bool(addresses)


def _find(erl: Path | None, environment: Mapping[str, str]) -> Path:
    beside = [erl.with_name("epmd"), erl.resolve().with_name("epmd")] if erl is not None else []
    for candidate in beside:
        if os.access(candidate, os.X_OK, effective_ids=True):
            return candidate
    if found := shutil.which("epmd", path=environment.get("PATH", os.defpath)):
        return Path(found)
    raise RuntimeMissing(
        'there is no epmd, which epmd = "loopback" needs',
        do='install Erlang\'s (Debian: erlang-base), or set epmd = "none"',
    )
