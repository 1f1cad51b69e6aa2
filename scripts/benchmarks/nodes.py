"""Nodes that measure (distsec_bench_node.erl): how they start without distsec, and how they are asked."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.system.cluster import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = Path(__file__).with_name("distsec_bench_node.erl")
MODULE = SOURCE.stem
HOST = "127.0.0.1"
READY_SECONDS = 60.0
ANSWER_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Release:
    """An Erlang/OTP to measure with (scripts/otp)."""

    number: int
    erl: str
    erlc: str

    def __str__(self) -> str:
        return f"OTP {self.number}"


def releases() -> list[Release]:
    """Those that are here, oldest first."""
    listed = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "otp"), "--list", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [Release(each["release"], each["erl"], each["erlc"]) for each in json.loads(listed.stdout)]


def compile_module(found: Sequence[Release], into: Path) -> Path:
    """Compiles the module with the oldest release, for all of them."""
    subprocess.run([found[0].erlc, "-o", str(into), str(SOURCE)], check=True)
    return into


def command(release: Release, beams: Path, control: Path, *, alone: bool) -> list[str]:
    """Starts a node that measures: for distsec.toml, or with the flags of a carrier behind it.

    `alone`: a link comes up where the measurement asks for it and nowhere else, and OTP's `global` keeps no
    mesh (it would dial after a disconnection, and cut links that leave a mesh incomplete).
    """
    kept = ["-kernel", "dist_auto_connect", "never", "-connect_all", "false"] if alone else []
    return [release.erl, "-noinput", "-pa", str(beams), *kept, "-run", MODULE, "start", str(control)]


class Failed(Exception):
    """An expression raised in a node; the text is the exception."""


class Control:
    """One node's socket."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.pid = 0
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_SECONDS)

    @property
    def atom(self) -> str:
        return f"'{self.name}'"

    def connect(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until the node listens. Raises SystemExit if `process` has ended."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self._socket.connect(str(self._path))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"bench: {self.name} does not answer") from None
                time.sleep(0.02)
        self.pid = int(self.ask("list_to_integer(os:getpid())"))

    def begin(self, expression: str) -> None:
        """Sends it, and does not wait."""
        source = f"{expression}.".encode()
        self._socket.sendall(struct.pack(">I", len(source)) + source)

    def answer(self) -> str:
        (length,) = struct.unpack(">I", self._read(4))
        text = self._read(length).decode()
        if not text.startswith("o"):
            raise Failed(f"{self.name}: {text[1:]}")
        return text[1:]

    def ask(self, expression: str) -> str:
        self.begin(expression)
        return self.answer()

    def integers(self, expression: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", self.ask(expression))]

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise Failed(f"{self.name}: the node has ended")
            data += more
        return data


def start_bare(
    stack: ExitStack, commands: Mapping[str, list[str]], flags: Mapping[str, Sequence[str]]
) -> list[Control]:
    """Starts nodes without distsec: name@host → command, and → the flags of its carrier. They know each
    other's ports, share a cookie, and are ended with `stack`.
    """
    ports = dict(zip(commands, free_ports(len(commands)), strict=True))
    known = " ".join(f"{name.partition('@')[0]} {port}" for name, port in ports.items())
    environment = {**os.environ, "BENCH_PORTS": known, "ERL_CRASH_DUMP_SECONDS": "0"}
    controls = []
    for name, words in commands.items():
        named = ["-name", name, "-setcookie", "bench", "-epmd_module", MODULE, "-start_epmd", "false"]
        listening = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
        listening += ["inet_dist_listen_min", str(ports[name]), "inet_dist_listen_max", str(ports[name])]
        process = subprocess.Popen(
            [*words[:2], *named, *listening, *flags[name], *words[2:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # as distsec does, so that Linux gives both the same share of a busy CPU
        )
        stack.callback(end, process)
        controls.append((Control(name, control_path(words)), process))
    for control, process in controls:
        stack.callback(control.close)
        control.connect(process)
    return [control for control, _ in controls]


def control_path(words: Sequence[str]) -> Path:
    """Of a `command`."""
    return Path(words[-1])


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
