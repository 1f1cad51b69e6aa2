"""Strangers: raw Erlang nodes with hand-made flags, and raw TLS and TCP clients."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.releases import Otp
from tests.system.beam_control import Control
from tests.system.certificates import Leaf
from tests.waiting import PATIENCE_SECONDS, wait_until

BOOT_SECONDS = 60.0
DIAL_MILLISECONDS = 10_000


class Intruder:
    """An `erl` that nobody manages. It trusts everybody, and is controlled over a Unix socket.

    `leaf` None: no certificate. `cookie`: one it has learned. `listen`: a port, as of a victim that is down.
    `carrier` "inet_tcp": plaintext. `host`: the address that it listens on and where its peers are. `enter`:
    what its command begins with, to be on another host.
    """

    def __init__(
        self,
        otp: Otp,
        beams: Path,
        directory: Path,
        name: str,
        *,
        leaf: Leaf | None,
        peers: Mapping[str, int],
        cookie: str = "",
        hidden: bool = False,
        listen: int = 0,
        versions: Sequence[str] = ("tlsv1.3",),
        carrier: str = "inet_tls",
        host: str = "127.0.0.1",
        flags: Sequence[str] = (),
        enter: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.control = Control(directory / "eval.sock")
        (directory / ".erlang.cookie").write_text("an_intruder_s_own_cookie")
        (directory / ".erlang.cookie").chmod(0o400)
        optfile = directory / "dist.conf"
        optfile.write_text(_optfile(leaf, versions))
        six = ":" in host
        proto_dist = carrier.replace("inet_", "inet6_") if six else carrier
        interface = "{0,0,0,0,0,0,0,1}" if six else "{127,0,0,1}"
        command = [
            *enter,
            otp.erl,
            *("-noinput", "-name", name, "-proto_dist", proto_dist, "-start_epmd", "false"),
            *("-epmd_module", "distsec_test_epmd", "-kernel", "inet_dist_use_interface", interface),
            *(("-ssl_dist_optfile", str(optfile)) if carrier == "inet_tls" else ()),
            *(("-hidden",) if hidden else ()),
            *flags,
            *Control.arguments(beams, self.control.path),
        ]
        environment = {
            "HOME": str(directory),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "DISTSEC_TEST_LISTEN": str(listen),
            "DISTSEC_TEST_PEERS": " ".join(f"{peer}={port}" for peer, port in peers.items()),
        }
        self.log = directory / "output.log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self._booted, f"the intruder {name} to boot", BOOT_SECONDS)
        if cookie:
            self.erl(f"erlang:set_cookie({atom(cookie)})")

    def _booted(self) -> bool:
        assert self.process.poll() is None, (
            f"the intruder ended:\n{self.log.read_text(errors='replace')[-2000:]}"
        )
        return self.control.ready()

    def erl(self, expressions: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Evaluates Erlang in the intruder; the value as text."""
        return self.control.evaluate(expressions, seconds)

    def connect(self, victim: str) -> bool:
        """Dials `victim` once; whether a link came up."""
        return self.erl(f"net_kernel:connect_node({atom(victim)})") == "true"

    def execute(self, victim: str, marker: Path) -> bool:
        """Tries to have `victim` write the file `marker`; whether it did. Dials if there is no link."""
        self.erl(
            f"catch erpc:call({atom(victim)}, file, write_file, [{string(str(marker))}, <<>>], "
            f"{DIAL_MILLISECONDS})"
        )
        return marker.exists()

    def links(self) -> str:
        """All its links, hidden ones too, as Erlang prints the list."""
        return self.erl("lists:sort(nodes(connected))")

    def stop(self) -> None:
        """Ends it at once, by pid."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _optfile(leaf: Leaf | None, versions: Sequence[str]) -> str:
    own = f"{{certfile,{string(str(leaf.certificate))}}},{{keyfile,{string(str(leaf.key))}}}," if leaf else ""
    spoken = ",".join(f"'{version}'" for version in versions)
    options = f"{own}{{verify,verify_none}},{{versions,[{spoken}]}}"
    return f"[{{server,[{options}]}},{{client,[{options}]}}].\n"


def atom(text: str) -> str:
    """Erlang source of an atom."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def string(text: str) -> str:
    """Erlang source of a string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def tcp(port: int, host: str = "127.0.0.1", seconds: float = 30.0) -> socket.socket:
    """A plain TCP connection."""
    return socket.create_connection((host, port), seconds)


def tls(
    port: int,
    leaf: Leaf | None = None,
    *,
    maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    host: str = "127.0.0.1",
    seconds: float = 30.0,
) -> ssl.SSLSocket:
    """A TLS connection that trusts every server. Raises ssl.SSLError where the handshake is refused.

    With TLS 1.3 a server refuses the client's certificate after the client is done: read to see it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = maximum
    if leaf:
        context.load_cert_chain(leaf.certificate, leaf.key)
    raw = tcp(port, host, seconds)
    try:
        return context.wrap_socket(raw)
    except BaseException:
        raw.close()
        raise


def refused(connection: socket.socket) -> bool:
    """Whether the other side ends the connection (an alert, a reset or a close) before it sends anything."""
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:  # ssl.SSLError is one
        return True
