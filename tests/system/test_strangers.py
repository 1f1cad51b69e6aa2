"""The strangers of the other tests do harm where nobody is on guard; else a refusal would prove nothing."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.releases import Otp
from tests.system.certificates import Leaf, TestAuthority
from tests.system.cluster import free_ports
from tests.system.intruder import Intruder, refused, tcp, tls
from tests.system.processes import belonging_to, end_all
from tests.waiting import wait_until

VICTIM = "victim@127.0.0.1"
COOKIE = "what_the_victim_uses"


class Scene:
    """A victim without any guard, and a place for strangers."""

    def __init__(self, otp: Otp, beams: Path, directory: Path, stack: ExitStack) -> None:
        self.otp, self.beams, self.directory, self.stack = otp, beams, directory, stack
        (self.port,) = free_ports(1)
        self.leaf: Leaf = TestAuthority.foreign().issue(
            directory / "leaf", ["spiffe://demo/node/127.0.0.1/x"]
        )
        self.victim = self.add(VICTIM, listen=self.port, cookie=COOKIE)

    def add(self, name: str, *, listen: int = 0, cookie: str, hidden: bool = False) -> Intruder:
        stranger = Intruder(
            self.otp,
            self.beams,
            self.directory / name.partition("@")[0],
            name,
            leaf=self.leaf,
            peers={VICTIM: self.port},
            cookie=cookie,
            hidden=hidden,
            listen=listen,
        )
        self.stack.callback(stranger.stop)
        return stranger


@pytest.fixture
def scene(otp: Otp, beams: Path) -> Iterator[Scene]:
    with TemporaryDirectory(prefix="ds", dir="/tmp") as directory, ExitStack() as stack:
        yield Scene(otp, beams, Path(directory), stack)


@pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "visible"])
def test_a_stranger_with_the_cookie_runs_code_in_a_node_that_nobody_guards(
    scene: Scene, hidden: bool
) -> None:
    evil = scene.add("evil@127.0.0.1", cookie=COOKIE, hidden=hidden)
    assert evil.connect(VICTIM)
    wait_until(lambda: "evil@127.0.0.1" in scene.victim.links(), "the victim to show the link")
    assert evil.execute(VICTIM, scene.directory / "marker")


def test_a_stranger_with_a_wrong_cookie_does_not_even_there(scene: Scene) -> None:
    evil = scene.add("evil@127.0.0.1", cookie="another")
    assert not evil.connect(VICTIM)
    assert not evil.execute(VICTIM, scene.directory / "marker")


def test_raw_clients_reach_a_node_that_nobody_guards(scene: Scene) -> None:
    with tls(scene.port, scene.leaf) as connection:
        assert connection.version() == "TLSv1.3"
        connection.settimeout(0.5)
        assert not refused(connection)
    with pytest.raises(ssl.SSLError), tls(scene.port, scene.leaf, maximum=ssl.TLSVersion.TLSv1_2):
        pass
    with tcp(scene.port) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(4096):
                pass  # an alert, and then the end


def test_every_process_is_found_by_the_directory_it_was_started_for_and_ended(scene: Scene) -> None:
    pid = int(scene.victim.erl("list_to_integer(os:getpid())"))
    assert pid in belonging_to(scene.directory)
    end_all(scene.directory)
    assert belonging_to(scene.directory) == []
