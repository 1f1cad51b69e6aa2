"""RabbitMQ as Debian packages it, started from config/examples/rabbitmq, and a publisher with confirms."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika

from tests.applications.packaged import Packaged
from tests.releases import Otp
from tests.system.cluster import HOST

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
TOOLS = Path("/usr/lib/rabbitmq/bin")
USER = "rabbitmq"
BOOT_SECONDS = 150.0
SILENT_SECONDS = 60.0


class Brokers(Packaged):
    def __init__(self, otp: Otp, beams: Path) -> None:
        super().__init__("rabbitmq", USER, otp, beams, {})
        data, configuration = self.directory / "data", self.directory / "etc"
        for made in (data, configuration):
            made.mkdir()
        shutil.copy(self.directory / "rabbitmq.conf", configuration)
        self.give(data, configuration)
        for node in self.settings["nodes"]:
            node["environment"] |= {
                "RABBITMQ_NODE_PORT": str(self.clients[node["name"].partition("@")[0]]),
                "RABBITMQ_MNESIA_BASE": str(data),
                "RABBITMQ_CONFIG_FILE": str(configuration / "rabbitmq.conf"),
                "RABBITMQ_CONF_ENV_FILE": str(configuration / "rabbitmq-env.conf"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(configuration / "enabled_plugins"),
            }

    def tool(self, name: str, *command: str, check: bool = True) -> str:
        """What a tool of RabbitMQ prints under `distsec exec`."""
        return self.run_tool(name, str(TOOLS / command[0]), *command[1:], check=check).stdout

    def booted(self, *names: str) -> None:
        words = (str(TOOLS / "rabbitmqctl"), "await_startup", "--timeout", "50")
        for name in names or self.names:  # it gives up where the node runs and RabbitMQ has not begun
            self.wait_tool(name, *words, seconds=BOOT_SECONDS)

    def join(self, name: str, to: str) -> None:
        """As an operator joins a broker with a cluster."""
        self.tool(name, "rabbitmqctl", "stop_app")
        self.tool(name, "rabbitmqctl", "join_cluster", self.node(to))
        self.tool(name, "rabbitmqctl", "start_app")

    def cluster_status(self, name: str) -> dict[str, Any]:
        said = self.tool(name, "rabbitmqctl", "cluster_status", "--formatter", "json", "--silent")
        status: dict[str, Any] = json.loads(said)
        return status

    def wait_running_nodes(self, seen_by: str, *names: str) -> None:
        """Waits until these are the running nodes, as that broker sees it."""
        wanted = {self.node(name) for name in names}
        self.wait(
            lambda: set(self.cluster_status(seen_by)["running_nodes"]) == wanted, f"{seen_by} to see {names}"
        )

    def connection(self, name: str) -> pika.BlockingConnection:
        """An AMQP connection with that broker."""
        return pika.BlockingConnection(
            pika.ConnectionParameters(HOST, self.clients[name], heartbeat=60, blocked_connection_timeout=60)
        )

    def drain(self, name: str, queue: str, expected: int) -> set[int]:
        """The numbers that are in a queue, until all below `expected` have come, or none comes any more."""
        found: set[int] = set()
        wanted = set(range(expected))
        with self.connection(name) as connection:
            channel = connection.channel()
            for frame, _, body in channel.consume(queue, inactivity_timeout=SILENT_SECONDS):
                if frame is None:
                    break
                found.add(int(body))
                channel.basic_ack(frame.delivery_tag)
                if found >= wanted:
                    break
        return found


class Publisher:
    """Publishes 0, 1, 2, … to a quorum queue, each after the one before it was confirmed."""

    def __init__(self, brokers: Brokers, name: str, queue: str) -> None:
        self.confirmed = 0
        self.error: Exception | None = None
        self._queue = queue
        self._end = threading.Event()
        self._connection = brokers.connection(name)
        self._channel = self._connection.channel()
        self._channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        self._channel.confirm_delivery()

    def _publish(self) -> None:
        persistent = pika.BasicProperties(delivery_mode=2)
        try:
            while not self._end.is_set():
                # Returns when it is confirmed, and raises where it is not.
                self._channel.basic_publish(
                    "", self._queue, b"%d" % self.confirmed, persistent, mandatory=True
                )
                self.confirmed += 1
            self._connection.close()
        except Exception as error:
            self.error = error

    @contextmanager
    def publishing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._publish, name="publisher")
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join(60)
