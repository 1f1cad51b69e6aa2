"""`distsec check --host` among real nodes that distsec does not run, on a host of their own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distsec.posture.finding import Code, Severity
from tests.posture.planted import Planted, options
from tests.posture.private_host import PrivateHost
from tests.releases import OTPS, Otp
from tests.system.cluster import COMMAND
from tests.waiting import PATIENCE_SECONDS, wait_until

BOOT_SECONDS = 2 * PATIENCE_SECONDS
ROOT = {Code.BEAM_RUNS_AS_ROOT}  # whoever makes namespaces is root in them
COOKIE = "5b1c7d0e9f2a4836bd"


@dataclass
class Host:
    """The private host with its nodes, and the last answer of `check --host --json`."""

    otp: Otp
    place: PrivateHost
    directory: Path
    document: dict[str, Any] = field(default_factory=dict)
    code: int = -1
    stdout: str = ""

    def start(self, name: str, *flags: str, loopback: bool = True, **environment: str) -> None:
        interface = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"] if loopback else []
        self.place.start(
            [self.otp.erl, "-noinput", "-name", f"{name}@127.0.0.1", *interface, *flags],
            {"PATH": os.environ["PATH"], "HOME": str(self.directory), **environment},
            self.directory / f"{name}.log",
        )

    def tls(self, name: str, server: str = "", client: str = "") -> list[str]:
        """Flags for TLS, with an option file and certificate of its own; see `planted.options`."""
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as made:
            node = Planted(Path(made)).node()
            for file in ("key.pem", "certificate.pem", "trust.pem"):
                shutil.copy(node / file, directory / file)
        (directory / "dist.conf").write_text(
            f"[{{server,[{options(directory, server, server=True)}]}},"
            f"{{client,[{options(directory, client, server=False)}]}}].\n"
        )
        return ["-proto_dist", "inet_tls", "-ssl_dist_optfile", str(directory / "dist.conf")]

    def check(self, *arguments: str) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8"}
        done = self.place.run([*COMMAND, "check", *arguments], environment, self.directory)
        assert "Traceback" not in done.stderr, done.stderr
        self.code, self.stdout = done.returncode, done.stdout
        if "--json" in arguments:
            self.document = json.loads(done.stdout)

    def wait_for(self, *names: str) -> None:
        """Checks until each of these nodes has been seen at its listener."""

        def seen() -> bool:
            self.check("--host", "--json")
            told = [each["what"] for each in self.findings(Code.LISTENER)]
            listen = all(any(what.startswith(f"{name}@") for what in told) for name in names)
            return listen and not self.findings(Code.LISTENER_UNCLEAR)  # a machine may be slow

        wait_until(seen, f"{names} to listen", BOOT_SECONDS, poll_seconds=0.2)

    def findings(self, code: Code) -> list[dict[str, str]]:
        return [each for each in self.document["findings"] if each["code"] == code]

    def about(self, name: str) -> set[str]:
        """The codes above info that name a node, or a file or process of its."""
        pids = {
            each["what"].partition("(process ")[2].partition(")")[0]
            for each in self.document["findings"]
            if f"{name}@127.0.0.1 (process " in each["what"] and each["what"].startswith(f"{name}@")
        }
        marks = [f"{name}@127.0.0.1 ", f"{self.directory / name}/", *(f"/proc/{pid}/" for pid in pids)]
        return {
            each["code"]
            for each in self.document["findings"]
            if each["severity"] != Severity.INFO
            and each["code"] != Code.OTP_KNOWN_HOLE
            and any(mark in each["what"] or mark in each["where"] for mark in marks)
        }


@pytest.fixture
def host(otp: Otp) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="ds", dir="/tmp") as directory, PrivateHost() as place:
        cookie = Path(directory) / ".erlang.cookie"
        cookie.write_text("JQKXVBWPLZMRTNHGFDSC")
        cookie.chmod(0o400)
        yield Host(otp, place, Path(directory))


@pytest.mark.skipif(not any(otp.release == 25 for otp in OTPS), reason="OTP 25 listens in plaintext")
@pytest.mark.parametrize("otp", [otp for otp in OTPS if otp.release == 25], ids=str)
def test_stock_nodes_are_told_as_they_are(host: Host) -> None:
    """OTP 25 alone: the smoke below has what is the same on every release."""
    host.start("good", *host.tls("good"))
    host.start(
        "lax",
        *host.tls("lax", server="{verify,verify_none};-fail_if_no_peer_cert", client="{verify,verify_none}"),
    )
    host.start("older", *host.tls("older", server="-versions", client="-versions"))
    host.start("twice", *host.tls("twice"), "-proto_dist", "inet_tls")
    host.start("plain", loopback=False)
    host.start("shown", "-setcookie", COOKIE)
    host.start("release", RELEASE_COOKIE=COOKIE + COOKIE)
    host.wait_for("good", "lax", "older", "twice", "plain", "shown", "release")

    plaintext = {Code.LISTENER_PLAINTEXT}
    weak = {Code.COOKIE_WEAK}
    assert host.about("good") == ROOT
    assert host.about("lax") == ROOT | {Code.TLS_VERIFY_NONE, Code.LISTENER_NO_CLIENT_CERTIFICATE}
    assert host.about("older") == ROOT | {Code.TLS_VERSIONS_DEFAULT, Code.LISTENER_TLS12}
    assert host.about("twice") == ROOT | plaintext | {Code.FLAG_TWICE}
    assert host.about("plain") == ROOT | plaintext | {Code.DISTRIBUTION_EXPOSED}
    assert host.about("shown") == ROOT | plaintext | weak | {Code.COOKIE_IN_ARGUMENTS}
    assert host.about("release") == ROOT | plaintext | {Code.COOKIE_IN_ENVIRONMENT}

    assert {each["where"] for each in host.findings(Code.EPMD_EXPOSED)} <= {"0.0.0.0:4369", "[::]:4369"}
    assert host.findings(Code.EPMD_EXPOSED)
    assert host.findings(Code.LISTENER_PLAINTEXT)[0]["severity"] == Severity.CRITICAL
    assert host.code == 2
    assert COOKIE not in host.stdout

    host.check("--host")
    assert max(map(len, host.stdout.splitlines())) <= 80
    assert COOKIE not in host.stdout and "\x1b" not in host.stdout


def test_a_node_with_tls_and_one_in_plaintext_are_told_apart(host: Host) -> None:
    host.start("good", *host.tls("good"))
    host.start("plain")
    host.wait_for("good", "plain")
    assert host.about("good") == ROOT
    assert host.about("plain") == ROOT | {Code.LISTENER_PLAINTEXT}
    of_good = [each for each in host.findings(Code.OTP_KNOWN_HOLE) if "good@" in each["where"]]
    assert all(each["what"].startswith(f"OTP {host.otp.release}.") for each in of_good)
    assert not [each for each in host.findings(Code.OTP_VERSION_UNKNOWN) if "good@" in each["where"]]
