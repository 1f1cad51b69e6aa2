"""GET /metrics, for Prometheus; nothing else is served at that address.

No secret is in the metrics, but they name the nodes, so a page in somebody's browser must not read them by
DNS rebinding: the Host header has to be a name that cannot be rebound (loopback, an IP literal that is
listened on).

Any local user may connect, and the file descriptors are those that the nodes are supervised with. So there
are few connections; one too many is closed at once, and each serves one request and lives for seconds,
whatever is sent.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from distsec.control.accepting import Acceptor
from distsec.errors import PortInUse
from distsec.observe.metrics import CONTENT_TYPE

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound to by this line

MAX_CONNECTIONS = 32
"""At a time. A few servers scrape, each for a moment; the least that RLIMIT_NOFILE usually is, 1024, leaves
the rest to the nodes."""

CONNECTION_SECONDS = 5.0
"""From accept(2) to the end of the answer: what is rendered in milliseconds needs no longer to be asked for
and read (Prometheus gives up after 10)."""

MAX_HEADER_BYTES = 4096
"""Of the request line, and of each header; Prometheus sends less than 500 in all."""

MAX_HEADERS = 32

BACKLOG = 128


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
        self._accepting: Acceptor | None = None

    async def start(self) -> tuple[str, int]:
        """Listens, and returns where. Raises PortInUse."""
        listener = _bind(*self._listen)
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.add_routes([web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_logger(),
            shutdown_timeout=1.0,
            keepalive_timeout=CONNECTION_SECONDS,
            lingering_time=0.0,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._accepting = Acceptor(listener, server, most=MAX_CONNECTIONS, seconds=CONNECTION_SECONDS)
        bound = listener.getsockname()
        return str(bound[0]), int(bound[1])

    async def close(self) -> None:
        """Ends it. May be called twice."""
        if self._accepting is not None:
            await self._accepting.close()
            self._accepting = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], object]
    ) -> web.StreamResponse:
        response: web.StreamResponse
        if not self.host_allowed(request.headers.get("Host", "")):
            response = web.Response(status=403, text="distsec: this Host is not served here\n")
        else:
            try:
                response = await handler(request)  # type: ignore[misc]  # aiohttp's is untyped
            except web.HTTPException as error:
                text = f"distsec: {error.reason}; try GET /metrics\n"
                response = web.Response(status=error.status, text=text)
        response.force_close()
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


def _logger() -> logging.Logger:
    """For what aiohttp has to say, but for requests that are none: anybody can send as many as he likes."""
    logger = logging.getLogger("distsec.scrape")
    logger.addFilter(_worth_a_line)
    return logger


def _worth_a_line(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
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
