"""An orchestrator that does nothing but remember what it was asked, behind a real control server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distsec.control.http import ControlServer
from distsec.control.service import Service
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.names import NodeName
from distsec.model.shells import Operator
from distsec.observe.bus import Bus
from distsec.observe.metrics import Metrics

NODES = ("poller@127.0.0.1", "agent@127.0.0.1", "sync@127.0.0.1")
NOW = 1_763_764_000


class FakeOrchestrator:
    """`asked` holds every call; `error` is raised by the next commands; `document` is what status()
    answers."""

    def __init__(self) -> None:
        names = tuple(map(NodeName.parse, NODES))
        self.spec = ClusterSpec(
            name="demo",
            config_file="/x/distsec.toml",
            state_dir="/x/state",
            mode=Mode.PRODUCTION,
            carrier=Carrier.INET_TLS,
            allowed_nodes=names,
            nodes=tuple(NodeSpec(name, ("erl",)) for name in names),
        )
        self.bus = Bus()
        self.metrics = Metrics()
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.current: list[str] = []  # whose certificate is revoked
        self.contained: dict[str, Any] = {
            "rekeyed": [NODES[0], NODES[1]], "held": NODES[1], "tainted": [], "missing": [],
            "elsewhere": ["far@10.0.0.9"], "others": ["spiffe://demo/cli/x"], "revoked": ["0a", "0b"],
        }  # fmt: skip
        self.shell_directory = "/x/state/shells/0123456789abcdef"
        self.document: dict[str, Any] = {
            "schema": 1,
            "cluster": "demo",
            "nodes": [{"name": name, "state": "RUNNING"} for name in NODES],
            "refusals": [],
        }

    def status(self) -> dict[str, Any]:
        self._take("status")
        return self.document

    async def start(self, names: list[str]) -> None:
        self._take("start", names)

    async def stop(self, names: list[str]) -> None:
        self._take("stop", names)

    async def restart(self, names: list[str]) -> None:
        self._take("restart", names)

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        self._take("allow", name, identity)
        return {"generation": 8, "acknowledged": list(NODES)}

    async def deny(self, name: str, compromised: bool, since: float) -> dict[str, Any]:
        self._take("deny", name, compromised, since)
        return {"generation": 9, "acknowledged": [NODES[0]], **(self.contained if compromised else {})}

    async def revoke(self, what: str) -> dict[str, Any]:
        self._take("revoke", what)
        return {"serials": ["0a1b"], "generation": 9, "acknowledged": list(NODES), "current_of": self.current}

    async def certificates(self) -> dict[str, Any]:
        self._take("certificates")
        of = [(NODES[0], "0a1b", NOW + 86_400, True), (NODES[1], "0c", NOW + 40 * 86_400, False)]
        return {
            "certificates": [
                {"node": node, "identity": f"spiffe://demo/{node}", "serial": serial, "issuer": "CN=demo",
                 "not_after": not_after, "revoked": revoked}
                for node, serial, not_after, revoked in of
            ],
            "revoked": ["0a1b", "ff"],
        }  # fmt: skip

    async def reload(self) -> dict[str, Any]:
        self._take("reload")
        return {"changed": []}

    async def shell(self, name: str, operator: Operator) -> dict[str, Any]:
        self._take("shell", name, operator)
        return {
            "node": name,
            "shell": "distsec-shell-7@127.0.0.1",
            "words": ["/usr/bin/erl", "-hidden"],
            "directory": self.shell_directory,
            "uid": os.geteuid(),
            "gid": os.getegid(),
        }

    def environment(self, name: str) -> dict[str, Any]:
        self._take("environment", name)
        return {
            "env": {"ERL_AFLAGS": '-proto_dist inet_tls -x "it\'s 100% \\\\ $HOME"'},
            "files": {"certificate": "/x/certificate.pem", "key": "/x/key.pem"},
        }

    def _take(self, *call: Any) -> None:
        self.asked.append(call)
        if self.error is not None:
            raise self.error


def refusal(number: int = 0, peer: str = "x@h") -> SecurityEvent:
    return SecurityEvent(
        EventType.UNAUTHORIZED_ACCESS,
        Severity.WARNING,
        NODES[0],
        float(NOW + number),
        peer=peer,
        result="deny",
        reason="not_allowed",
        direction="in",
    )


class Running:
    """A control server in a thread of its own, as the CLI's client blocks."""

    def __init__(self, fake: FakeOrchestrator, loop: asyncio.AbstractEventLoop, failures: list[str]) -> None:
        self.fake = fake
        self.failures = failures
        self._loop = loop

    def publish(self, event: SecurityEvent) -> None:
        """As the supervisor does: in the event loop."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (self.fake.bus.publish(event), done.set()))
        assert done.wait(10)

    def close_bus(self) -> None:
        self._loop.call_soon_threadsafe(self.fake.bus.close)


@contextmanager
def running(
    state_dir: Path, fake: FakeOrchestrator | None = None, is_managed: Callable[[int], bool] = lambda _: False
) -> Iterator[Running]:
    """A control server at `state_dir`/control.sock until the block ends."""
    fake = fake or FakeOrchestrator()
    state_dir.mkdir(mode=0o700, exist_ok=True)
    failures: list[str] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ControlServer(
        Service(fake),
        state_dir / "control.sock",
        is_managed=is_managed,
        on_failure=lambda what, error: failures.append(f"{what}: {error}"),
    )
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield Running(fake, loop, failures)
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
