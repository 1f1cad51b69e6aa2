"""An orchestrator that does nothing but remember what it was asked, behind a real control server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distsec.control.http import ControlServer
from distsec.control.service import Service
from distsec.core.rotation import Command
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.names import NodeName
from distsec.model.shells import Operator
from distsec.observe.bus import Bus
from distsec.observe.metrics import Metrics
from distsec.pki.crl import RevocationReason
from tests.waiting import PATIENCE_SECONDS

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
        self.lists: list[dict[str, Any]] = []
        self.listed: dict[str, Any] | None = None  # what `certs list` is told; None: the usual
        self.contained: dict[str, Any] = {
            "rekeyed": [NODES[0], NODES[1]], "held": NODES[1], "tainted": [], "missing": [],
            "elsewhere": ["far@10.0.0.9"], "others": ["spiffe://demo/cli/x"], "revoked": ["0a", "0b"],
        }  # fmt: skip
        self.reloaded: dict[str, Any] = {"changed": []}
        self.cookies = FakeCookies(self)
        self.authority = FakeAuthority(self)
        self.renewal = FakeRenewal(self)
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

    async def adopt(self, name: str, pid: int | None, seconds: float | None) -> dict[str, Any]:
        self._take("adopt", name, pid, seconds)
        return {"node": name, "pid": pid or 4711, "command": False}

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        self._take("allow", name, identity)
        return {"generation": 8, "acknowledged": list(NODES)}

    async def deny(self, name: str, compromised: bool, since: float) -> dict[str, Any]:
        self._take("deny", name, compromised, since)
        return {"generation": 9, "acknowledged": [NODES[0]], **(self.contained if compromised else {})}

    async def revoke(self, what: str, reason: RevocationReason) -> dict[str, Any]:
        given = () if reason is RevocationReason.UNSPECIFIED else (str(reason),)
        self._take("revoke", what, *given)
        return {
            "serials": ["0a1b"],
            "identity": what if what.startswith("spiffe://") else None,
            "generation": 9,
            "acknowledged": list(NODES),
            "current_of": self.current,
            "lists": self.lists,
        }

    async def serve(self, names: list[str]) -> dict[str, Any]:
        self._take("serve", *names)
        return {"done": True, "nodes": [{"node": name, "done": True, "why": None} for name in names]}

    async def told_of_issue(self, serial: str) -> dict[str, Any]:
        self._take("told_of_issue", serial)
        return {"node": "far@10.0.0.9", "serial": serial}

    async def certificates(self) -> dict[str, Any]:
        self._take("certificates")
        if self.listed is not None:
            return self.listed
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
        return self.reloaded

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

    async def tool(self, name: str, operator: Operator, program: str) -> dict[str, Any]:
        self._take("tool", name, operator, program)
        return {
            "node": name,
            "shell": "*@127.0.0.1",
            "env": {"ERL_AFLAGS": "-dist_listen false", "RABBITMQ_NODENAME": name},
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


class FakeCookies:
    """Implements control.service.Cookies; `state` is what `status` answers."""

    def __init__(self, fake: FakeOrchestrator) -> None:
        self._fake = fake
        self.state: dict[str, Any] = {
            "phase": "idle", "step": 4, "made": NOW, "age_seconds": 3 * 86_400 + 5, "under_way": False,
            "acknowledged": [], "waiting": [],
        }  # fmt: skip
        self.elsewhere: list[str] = []

    async def status(self) -> dict[str, Any]:
        return self.state

    async def rotate(self, elsewhere: bool) -> dict[str, Any]:
        self._fake._take("rotate cookies", elsewhere)
        return {"phase": "idle", "given_up": False, "acknowledged": list(NODES), "links": 3,
                "elsewhere": self.elsewhere}  # fmt: skip

    async def give_up(self) -> dict[str, Any]:
        self._fake._take("give up cookies")
        return {"phase": "idle", "given_up": True, "acknowledged": list(NODES), "links": 0, "elsewhere": []}


class FakeAuthority:
    """Implements control.service.Authority: a rotation that is at rest in `prepared`."""

    def __init__(self, fake: FakeOrchestrator) -> None:
        self._fake = fake
        self.answer: dict[str, Any] = {
            "phase": "activated", "rolled_back": False, "nodes": list(NODES), "behind": {}, "next": "prune",
            "elsewhere": [],
        }  # fmt: skip
        ca = {"not_after": 4_000_000_000, "subject": "CN=distsec CA,O=demo", "fingerprint": "ab" * 32}
        self.state: dict[str, Any] = {
            "phase": "prepared", "step": "prepared", "since": NOW, "next": "activate", "under_way": None,
            "waiting": [], "elsewhere": [],
            "authorities": [
                {**ca, "role": "current", "serial": "0a" * 16, "trusted": True, "issuing": True},
                {**ca, "role": "next", "serial": "0b" * 16, "trusted": True, "issuing": False},
            ],
            "nodes": [
                {"node": name, "running": True, "serial": "0c", "leaf": "current",
                 "trusts": ["current", "next"], "why": None}
                for name in NODES
            ],
        }  # fmt: skip

    async def status(self) -> dict[str, Any]:
        return self.state

    async def command(self, command: Command, elsewhere: bool) -> dict[str, Any]:
        self._fake._take("rotate the CA", str(command), elsewhere)
        return self.answer


class FakeRenewal:
    """Implements control.service.Renewals; `why` is, by node, what keeps it from being done."""

    def __init__(self, fake: FakeOrchestrator) -> None:
        self._fake = fake
        self.why: dict[str, str] = {}
        self.fields: dict[str, Any] = {}

    async def renew(self, names: list[str], recycle: bool) -> dict[str, Any]:
        self._fake._take("renew", names, recycle)
        nodes = [
            {"node": name, "done": name not in self.why, "served": name not in self.why, "serial": "0d",
             "not_after": NOW, "running": True, "links_proven": ["x", "y"], "links_left": {},
             "why": self.why.get(name), **self.fields}
            for name in names
        ]  # fmt: skip
        return {"done": not self.why, "nodes": nodes}


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
        self.loop = loop

    def publish(self, event: SecurityEvent) -> None:
        """As the supervisor does: in the event loop."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (self.fake.bus.publish(event), done.set()))
        assert done.wait(10)

    def close_bus(self) -> None:
        self.loop.call_soon_threadsafe(self.fake.bus.close)


async def nothing() -> None:
    """It has begun already."""


@contextmanager
def running(
    state_dir: Path,
    fake: FakeOrchestrator | None = None,
    is_managed: Callable[[int], bool] = lambda _: False,
    begun: Callable[[], Awaitable[object]] = nothing,
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
        begun=begun,
        on_failure=lambda what, error: failures.append(f"{what}: {error}"),
    )
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(PATIENCE_SECONDS)
        yield Running(fake, loop, failures)
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(PATIENCE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)
        loop.close()
