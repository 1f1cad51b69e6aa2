"""Prometheus and Alertmanager as the shipped configurations start them, on free ports of loopback."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.monitoring.rules import ROOT, RULES, program
from tests.system.cluster import HOST, free_ports
from tests.waiting import wait_until

CONFIGURATION = ROOT / "config" / "prometheus"
READY_SECONDS = 60.0


def replaced(text: str, **changes: tuple[str, str]) -> str:
    """`text` with each (old, new) put in place; what is not there any more fails the test."""
    for what, (old, new) in changes.items():
        assert old in text, f"the shipped configuration has no {what}: {old}"
        text = text.replace(old, new)
    return text


class Server:
    """One process that answers HTTP at `port`; ended by pid."""

    def __init__(self, directory: Path, port: int, command: Sequence[str]) -> None:
        self.port = port
        self._log = directory / "log"
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def get(self, path: str, **parameters: str) -> Any:
        """The JSON that it answers. Raises HTTPError with its words where it refuses."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}?{query}", timeout=30) as answer:
            return json.load(answer)

    def ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=30) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def __enter__(self) -> Any:
        wait_until(self.ready, "the server to be ready", READY_SECONDS, poll_seconds=0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


class Prometheus(Server):
    """With the shipped prometheus.yml; only ports and intervals differ."""

    def __init__(self, directory: Path, metrics_port: int, alertmanager_port: int) -> None:
        [port] = free_ports(1)
        text = replaced(
            (CONFIGURATION / "prometheus.yml").read_text(),
            target=("127.0.0.1:9911", f"{HOST}:{metrics_port}"),
            alertmanager=("127.0.0.1:9093", f"{HOST}:{alertmanager_port}"),
            scrape_interval=("scrape_interval: 15s", "scrape_interval: 2s"),
            scrape_timeout=("scrape_timeout: 5s", "scrape_timeout: 2s"),
            evaluation_interval=("evaluation_interval: 15s", "evaluation_interval: 1s"),
        )
        configuration = directory / "prometheus.yml"
        configuration.write_text(text)
        shutil.copy(RULES, directory)
        super().__init__(
            directory,
            port,
            [
                program("prometheus", "prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={HOST}:{port}",
            ],
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector (or matrix) that it is now. Raises HTTPError where it does not parse."""
        answer = self.get("/api/v1/query", query=expression)
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> set[tuple[str, str | None]]:
        """(alert, node) of every alert that fires now."""
        alerts = self.get("/api/v1/alerts")["data"]["alerts"]
        return {
            (each["labels"]["alertname"], each["labels"].get("node"))
            for each in alerts
            if each["state"] == "firing"
        }


class Alertmanager(Server):
    """With the shipped alertmanager.yml; only the receivers' port and the waits differ."""

    def __init__(self, directory: Path, receiver: Receiver) -> None:
        [port] = free_ports(1)
        text = replaced(
            (CONFIGURATION / "alertmanager.yml").read_text(),
            receivers=("127.0.0.1:9094", f"{HOST}:{receiver.port}"),
            group_wait=("group_wait: 10s", "group_wait: 0s"),
        )
        configuration = directory / "alertmanager.yml"
        configuration.write_text(text)
        super().__init__(
            directory,
            port,
            [
                program("prometheus-alertmanager", "prometheus-alertmanager"),
                f"--config.file={configuration}",
                f"--storage.path={directory / 'data'}",
                f"--web.listen-address={HOST}:{port}",
                "--cluster.listen-address=",
            ],
        )


class Receiver:
    """A webhook: `received` is (path, alert name, node, status) in the order of arrival."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, str | None, str]] = []
        received = self.received

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in document["alerts"]:
                    labels = alert["labels"]
                    received.append((self.path, labels["alertname"], labels.get("node"), alert["status"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
