"""RabbitMQ, the real one, with TLS between nodes as "Clustering" → "Inter-node TLS" of its documentation
sets it up.

One optfile with `verify_peer` and `fail_if_no_peer_cert` on both roles, and `-proto_dist inet_tls` in
RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS. Only the resolver is ours, as it is for `plain`. RabbitMQ of Debian 12
runs on OTP 25; its package is unpacked beside the OTP trees, nothing is installed and no service is started.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.attacks.targets.plain import Plain
from tests.releases import Otp
from tests.system.certificates import Leaf
from tests.system.cluster import free_ports
from tests.system.intruder import string
from tests.system.processes import end_all

PACKAGES = ("rabbitmq-server", "erlang-eldap", "erlang-os-mon", "erlang-xmerl")
RELEASE = 25
"""The only release that this RabbitMQ runs on."""

FETCH_SECONDS = 300


class Missing(Exception):
    """RabbitMQ is not here, and cannot be had; the text says why."""


def tree() -> Path:
    """Where RabbitMQ's package is unpacked; fetched with apt where it is not there yet. Raises Missing."""
    place = Path(os.environ.get("DISTSEC_OTP_CACHE", "/var/cache/distsec/otp")).parent / "rabbitmq"
    if not place.exists():
        if shutil.which("apt-get") is None:
            raise Missing("RabbitMQ is fetched with apt-get, which is not here")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as working:
            made = Path(working) / "tree"
            for command in (
                ["apt-get", "-q", "download", *PACKAGES],
                ["sh", "-c", f"for each in ./*.deb; do dpkg-deb -x $each {made.name}; done"],
            ):
                done = subprocess.run(
                    command, cwd=working, capture_output=True, text=True, timeout=FETCH_SECONDS
                )
                if done.returncode != 0:
                    raise Missing(f"{' '.join(command[:3])}: {done.stderr.strip()[-300:]}")
            made.rename(place)
    return place


def documented(leaf: Leaf) -> str:
    """The optfile of RabbitMQ's guide."""
    own = (
        f"{{cacertfile, {string(str(leaf.ca))}}}, {{certfile, {string(str(leaf.certificate))}}}, "
        f"{{keyfile, {string(str(leaf.key))}}}, {{secure_renegotiate, true}}, {{verify, verify_peer}}"
    )
    return f"[{{server, [{own}, {{fail_if_no_peer_cert, true}}]}}, {{client, [{own}]}}].\n"


class Rabbit(Plain):
    """A broker with one node; nothing is in it."""

    carrier = "RabbitMQ"
    boot_seconds = 120.0

    def __init__(self, otp: Otp, beams: Path) -> None:
        if otp.release != RELEASE:
            raise Missing(f"this RabbitMQ runs on OTP {RELEASE} only")
        self._tree = tree()
        (self._amqp,) = free_ports(1)
        super().__init__(otp, beams)

    def optfile(self, leaf: Leaf) -> str:
        return documented(leaf)

    def command(self) -> list[str]:
        (server,) = self._tree.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
        return [str(server)]

    def environment(self) -> dict[str, str]:
        arguments = [
            *("-pa", str(self._beams), "-proto_dist", "inet_tls"),
            *("-ssl_dist_optfile", str(self.root / "dist.conf")),
            *("-start_epmd", "false", "-epmd_module", "distsec_test_epmd", "-erl_epmd_port", str(self.port)),
            *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
            *("-run", "distsec_test_node", "start", str(self.control.path)),
        ]
        return {
            **super().environment(),
            "ERL_LIBS": str(self._tree / "usr/lib/erlang/lib"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.root / "none"),
            "RABBITMQ_ENABLED_PLUGINS": "",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.root / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.root / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.root),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.root / "pid"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._amqp),
            "RABBITMQ_DIST_PORT": str(self.port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(arguments),
        }

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        end_all(self.root)
