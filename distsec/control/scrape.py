"""GET /metrics, for Prometheus; nothing else is served at that address.

No secret is in the metrics, but they name the nodes, so a page in somebody's browser must not read them by
DNS rebinding: the Host header has to be a name that cannot be rebound (loopback, an IP literal that is
listened on).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable

from aiohttp import web

from distsec.errors import PortInUse
from distsec.observe.metrics import CONTENT_TYPE

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound to by this line


class MetricsSite:
    """Serves `render()` at `listen` (host, port; port 0: assigned by the system). `allowed_hosts` are
    further names under which it may be asked for."""

    def __init__(
        self, render: Callable[[], bytes], listen: tuple[str, int], *, allowed_hosts: Iterable[str] = ()
    ) -> None:
        self._render = render
        self._listen = listen
        self._hosts = LOOPBACK_NAMES | {listen[0].lower()} | {host.lower() for host in allowed_hosts}
        self._runner: web.AppRunner | None = None

    async def start(self) -> tuple[str, int]:
        """Listens, and returns where. Raises PortInUse."""
        host, port = self._listen
        listener = _bind(host, port)
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.add_routes([web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=30.0, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        bound = listener.getsockname()
        return str(bound[0]), int(bound[1])

    async def close(self) -> None:
        """Ends it. May be called twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], object]
    ) -> web.StreamResponse:
        if not self.host_allowed(request.headers.get("Host", "")):
            return web.Response(status=403, text="distsec: this Host is not served here\n")
        try:
            response: web.StreamResponse = await handler(request)  # type: ignore[misc]  # aiohttp's is untyped
        except web.HTTPException as error:
            return web.Response(status=error.status, text=f"distsec: {error.reason}; try GET /metrics\n")
        return response

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._render(), headers={"Content-Type": CONTENT_TYPE})

    def host_allowed(self, header: str) -> bool:
        """Whether a request with this Host header is answered."""
        host = _host_of(header)
        if host is None:
            return False
        if host in self._hosts:
            return True
        # Listening everywhere, one is reached by any address of this machine; a literal cannot be rebound.
        return self._listen[0] in _WILDCARDS and _is_literal(host)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        raise PortInUse(
            "the port is taken" if taken else f"cannot listen: {error.strerror}",
            where=f"[metrics] listen = {host}:{port}",
            do="choose another, or port 0 to have one assigned",
        ) from None
    return listener


def _host_of(header: str) -> str | None:
    """The host of a Host header, lower-case, without port and brackets; None if it is none."""
    if header.startswith("["):
        host, bracket, port = header[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
        return host.lower()
    host, _, port = header.partition(":")
    return None if ":" in port or not host else host.lower()


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
