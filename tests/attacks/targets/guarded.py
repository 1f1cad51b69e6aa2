"""A managed node of a cluster that is made for the attack: it dials, boots and tells what it is asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distsec.control.client import ControlClient
from tests.attacks.board import DIED
from tests.attacks.catalogue.attack import THREADS, Boot, Need
from tests.attacks.scene import DIAL, LISTED, VICTIM, Scene
from tests.attacks.targets.plain import ANSWER_SECONDS
from tests.releases import Otp
from tests.system.beam_control import Control
from tests.system.certificates import Leaf, TestAuthority
from tests.system.intruder import atom, string

BOOTED = "booted@127.0.0.1"
"""A node that is listed, and that nobody runs but the attack on the boot window."""


class Guarded:
    """One cluster per carrier and release: a victim, two listed names that nobody runs, and a node to
    boot.
    """

    local = "127.0.0.1"
    sources = tuple(f"127.0.0.{last}" for last in range(1, 9))
    abilities = frozenset(Need)
    threads = THREADS

    def __init__(self, otp: Otp, beams: Path, carrier: str) -> None:
        self.carrier = f"distsec {carrier}" if carrier != "distsec" else carrier
        self.otp = str(otp.release)
        self.name = VICTIM
        self.erlang = otp
        self._beams = beams
        self._leaves: dict[tuple[str, ...], Leaf] = {}
        self._cookies: dict[str, str] = {}
        self._told_at_boot: Counter[str] = Counter()
        self._proto_dist = carrier
        self.scene = self._made()

    def _made(self) -> Scene:
        scene = Scene(self.erlang, self._beams, carrier=self._proto_dist, external=(BOOTED,))
        scene.__enter__()
        return scene

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.scene.port

    def authority(self) -> TestAuthority:
        return TestAuthority.of_cluster(self.scene.cluster.state)

    def leaf(self, *names: str) -> Leaf:
        if names not in self._leaves:
            self._leaves[names] = self.scene.cluster.leaf(*names)
        return self._leaves[names]

    def directory(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.scene.cluster.directory))

    def identity(self, name: str) -> str:
        return self.scene.cluster.identity(name)

    def listed(self, which: int = 0) -> str:
        return self.scene.cluster.node(LISTED[which])

    def cookie(self, name: str) -> str:
        if name not in self._cookies:
            head, _, _ = name.partition("@")
            own = head in LISTED and name == self.scene.cluster.node(head)
            self._cookies[name] = self.scene.pair_cookie(head) if own else self.scene.default_cookie()
        return self._cookies[name]

    def listed_address(self, which: int = 0) -> tuple[str, int]:
        return "127.0.0.1", self.scene.listed_ports[LISTED[which]]

    def dial(self, name: str, times: int) -> int:
        return int(self.evaluate(DIAL.format(name=atom(name), times=times), 30 + 10 * times))

    def evaluate(self, expressions: str, seconds: float = 30.0) -> str:
        return self.scene.erl(expressions, seconds)

    def operate(self, *arguments: str) -> None:
        done = self.scene.cluster.distsec(*arguments, check=False)
        if done.returncode != 0:  # what the victim has of it says whether it was late, or will never do it
            links = self.evaluate("{nodes(connected), distsec_links:all(), distsec_attempts:all()}")
            raise AssertionError(f"{arguments}: {done.returncode}\n{done.stderr}{links}")

    def beams(self) -> Path:
        return self._beams

    def boots(self, times: int) -> Generator[Boot, None, None]:
        cluster = self.scene.cluster
        client = ControlClient(str(cluster.state / "control.sock"))
        environment = {**cluster.environment(), **client.environment(BOOTED)["env"]}
        control = Control(cluster.directory / "booted.sock")
        log = cluster.directory / "booted.log"
        address = ("127.0.0.1", self.scene.external_ports[BOOTED])
        path = string(str(cluster.node_directory(BOOTED) / "cookie.term"))
        cookie = self.evaluate(
            f"{{ok, [{{_, #{{default := C}}}}]}} = file:consult({path}), binary_to_atom(C)"
        ).strip("'")
        for _ in range(times):
            with suppress(FileNotFoundError):
                control.path.unlink()
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [self.erlang.erl, "-noinput", *Control.arguments(self._beams, control.path)],
                    cwd=cluster.directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            try:
                yield _Booting(process, control, address, cookie)
                self._told_at_boot += _told_by(control) - _LOOKED_AT
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # ---- what it saw

    def begin(self) -> None:
        if self.dead():  # the stock carrier's own weakness: another cluster takes its place
            self.close()
            self._leaves.clear()
            self._cookies.clear()
            self.scene = self._made()
        self.scene.begin()
        self._told_at_boot.clear()

    def dead(self) -> bool:
        """Whether an attack has ended the node, or its distribution."""
        try:
            there = "is_pid(whereis(test_recorder)) andalso is_pid(whereis(net_kernel))"
            return self.evaluate(there, ANSWER_SECONDS) != "true"
        except (OSError, AssertionError):
            return True

    def nodeups(self) -> int | None:
        if self.dead():
            return None
        return int(
            self.evaluate("test_recorder ! {take, self()}, receive {seen, Nodes} -> length(Nodes) end", 60)
        )

    def evidence(self) -> Counter[str]:
        told: Counter[str] = Counter()
        if self.dead():
            told[DIED] = 1
        else:
            self.scene.settle()
        for (node, _, reason), number in self.scene.refusals().items():
            if node == VICTIM:
                told[reason] += int(number)
        return self._told_at_boot or told

    def close(self) -> None:
        self.scene.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class _Booting:
    process: subprocess.Popen[bytes]
    control: Control
    address: tuple[str, int]
    cookie: str

    def goes_on(self) -> bool:
        """The boot is over when distsec runs, and the node answers."""
        if self.process.poll() is not None:
            return False
        with suppress(OSError, AssertionError):
            return self.control.evaluate(_ALL_THERE, 2.0) != "true"
        return True


_ALL_THERE = "init:get_status() =:= {started, started} andalso whereis(distsec_agent) =/= undefined"


_LOOKED_AT = Counter(["certificate_required", "protocol_version"])


def _told_by(control: Control) -> Counter[str]:
    """What the node itself has counted, by reason; it is ended before anybody else asks. The
    orchestrator's own look at its port is among it (supervisor.proof).
    """
    text = control.evaluate("[{R, N} || {_, R, N} <- maps:get(refusals, distsec_count:report())]", 60.0)
    return Counter({reason: int(number) for reason, number in re.findall(r"\{(\w+),(\d+)\}", text)})
