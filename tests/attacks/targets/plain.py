"""Stock TLS distribution as OTP's guide "Using TLS for Erlang Distribution" has it: the comparison.

One CA, `verify_peer` and `fail_if_no_peer_cert`, a certificate for the node, a cookie. The only thing that
is not of the guide is the resolver, which stands in for epmd so that each test has ports of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path

from tests.attacks.board import DIED, LOGGED
from tests.attacks.catalogue.attack import Boot, Need
from tests.attacks.scene import DIAL, RECORDER
from tests.releases import Otp
from tests.system.beam_control import Control
from tests.system.certificates import Leaf, TestAuthority
from tests.system.cluster import free_ports
from tests.system.intruder import atom, string
from tests.waiting import PATIENCE_SECONDS, wait_until

COOKIE = "a_cookie_as_long_as_the_documentation_wants_it"

ANSWER_SECONDS = 20.0
"""What a node that lives takes to answer, at the most: a machine may be busy."""

_TOLD = re.compile(
    rb"TLS (?:server|client): In state|TLS distribution handshake failed"
    rb"|Connection attempt (?:from|to) node .* (?:rejected|cancelled)"
)
"""What OTP prints of a refusal, at level notice and above; none of it says who it was."""


def documented(leaf: Leaf) -> str:
    """The optfile of the guide's section "Specifying TLS Options"."""
    own = (
        f"{{certfile, {string(str(leaf.certificate))}}}, {{keyfile, {string(str(leaf.key))}}}, "
        f"{{cacertfile, {string(str(leaf.ca))}}}, {{verify, verify_peer}}, {{secure_renegotiate, true}}"
    )
    return f"[{{server, [{own}, {{fail_if_no_peer_cert, true}}]}}, {{client, [{own}]}}].\n"


class Plain:
    """A node that nobody manages; `inet_tls` by the book."""

    local = "127.0.0.1"
    sources = tuple(f"127.0.0.{last}" for last in range(1, 9))
    carrier = "stock inet_tls"
    abilities = frozenset({Need.CA_KEY, Need.INSIDER, Need.COOKIE, Need.INSIDE, Need.BOOT, Need.BEAM})
    name = "a@127.0.0.1"
    threads = 1  # a name that is up refuses another of that name: one attempt after the other
    heads = ("b", "c")
    boot_seconds = PATIENCE_SECONDS

    def __init__(self, otp: Otp, beams: Path) -> None:
        self.otp = str(otp.release)
        self.erlang = otp
        self._beams = beams
        self.root = Path(tempfile.mkdtemp(prefix="ds", dir="/tmp"))
        self._authority = TestAuthority.foreign("the cluster's CA")
        self._leaves: dict[tuple[str, ...], Leaf] = {}
        self.port, *peers = free_ports(1 + len(self.heads))
        self._peers = dict(zip(self.heads, peers, strict=True))
        self.log = self.root / "output.log"
        self.control = Control(self.root / "eval.sock")
        (self.root / ".erlang.cookie").write_text(COOKIE)
        (self.root / ".erlang.cookie").chmod(0o400)
        (self.root / "dist.conf").write_text(self.optfile(self.leaf(self.name)))
        self._process: subprocess.Popen[bytes] | None = None
        self._log_read = 0
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def optfile(self, leaf: Leaf) -> str:
        return documented(leaf)

    def command(self) -> list[str]:
        return [
            self.erlang.erl,
            *("-noinput", "-name", self.name, "-proto_dist", "inet_tls"),
            *("-ssl_dist_optfile", str(self.root / "dist.conf")),
            *("-start_epmd", "false", "-epmd_module", "distsec_test_epmd"),
            *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
            *Control.arguments(self._beams, self.control.path),
        ]

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.root),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "DISTSEC_TEST_LISTEN": str(self.port),
            "DISTSEC_TEST_PEERS": " ".join(f"{head}@127.0.0.1={port}" for head, port in self._peers.items()),
        }

    def start(self) -> None:
        self._launch()
        wait_until(self._booted, f"{self.carrier} on OTP {self.otp} to boot", self.boot_seconds)
        self.evaluate(RECORDER)

    def _launch(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.root,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _booted(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        return self.control.ready()

    def end(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    # ---- the target

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def authority(self) -> TestAuthority:
        return self._authority

    def leaf(self, *names: str) -> Leaf:
        if names not in self._leaves:
            self._leaves[names] = self._authority.issue(
                self.directory(), [self.identity(name) for name in names]
            )
        return self._leaves[names]

    def directory(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.root))

    def identity(self, name: str) -> str:
        head, _, host = name.partition("@")
        return f"spiffe://demo/node/{host}/{head}"

    def listed(self, which: int = 0) -> str:
        return f"{self.heads[which]}@127.0.0.1"

    def cookie(self, name: str) -> str:
        return COOKIE

    def listed_address(self, which: int = 0) -> tuple[str, int]:
        return "127.0.0.1", self._peers[self.heads[which]]

    def dial(self, name: str, times: int) -> int:
        return int(self.evaluate(DIAL.format(name=atom(name), times=times), 30 + 10 * times))

    def evaluate(self, expressions: str, seconds: float = 30.0) -> str:
        return self.control.evaluate(expressions, seconds)

    def operate(self, *arguments: str) -> None:
        raise NotImplementedError("stock OTP has no operator's commands")

    def beams(self) -> Path:
        return self._beams

    def boots(self, times: int) -> Generator[Boot, None, None]:
        try:
            for _ in range(times):
                self.end()
                self._launch()
                yield _Booting(self)
        finally:
            self.end()
            self.start()

    # ---- what it saw

    def dead(self) -> bool:
        """Whether an attack has ended the node, or its distribution."""
        try:
            socket.create_connection(self.address, 2).close()
            return self.evaluate("is_pid(whereis(test_recorder))", ANSWER_SECONDS) != "true"
        except OSError:
            return True

    def begin(self) -> None:
        if self.dead():
            self.end()
            self.start()
        self.nodeups()
        self._log_read = self.log.stat().st_size

    def nodeups(self) -> int | None:
        if self.dead():
            return None
        return int(
            self.evaluate("test_recorder ! {take, self()}, receive {seen, Nodes} -> length(Nodes) end", 60)
        )

    def evidence(self) -> Counter[str]:
        """Lines in its log. They name a fault of TLS or of the cookie, and never who it was."""
        with self.log.open("rb") as log:
            log.seek(self._log_read)
            told = Counter({LOGGED: len(_TOLD.findall(log.read()))})
        if self.dead():
            told[DIED] = 1
        return told

    def close(self) -> None:
        self.end()
        shutil.rmtree(self.root, ignore_errors=True)


class _Booting:
    def __init__(self, target: Plain) -> None:
        self._target = target
        self.address = target.address
        self.cookie = COOKIE

    def goes_on(self) -> bool:
        return not self._target.control.ready()
