"""The metrics site: GET /metrics, and nothing else, for Hosts that cannot be rebound."""

from __future__ import annotations

import http.client
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from distsec.control.scrape import MetricsSite
from distsec.errors import PortInUse
from distsec.observe.metrics import Metrics


@pytest_asyncio.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    site = MetricsSite(Metrics().render, ("127.0.0.1", 0))
    yield await site.start()
    await site.close()
    await site.close()


async def get(
    address: tuple[str, int], path: str, method: str = "GET", host: str | None = None
) -> tuple[int, str, str]:
    headers = {} if host is None else {"Host": host}
    url = f"http://{address[0]}:{address[1]}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as answer:
        return answer.status, answer.headers.get("Content-Type", ""), await answer.text()


@pytest.mark.asyncio
async def test_metrics_are_served_as_prometheus_text(address: tuple[str, int]) -> None:
    status, content_type, text = await get(address, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    assert "distsec_build_info" in text


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/", "/v1/status", "/metrics/", "/metrics/x", "//metrics"])
async def test_nothing_else_is_served(address: tuple[str, int], path: str) -> None:
    assert (await get(address, path))[0] == 404


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_sent(address: tuple[str, int], method: str) -> None:
    assert (await get(address, "/metrics", method))[0] == 405


@pytest.mark.asyncio
async def test_a_rebound_name_is_refused_over_the_wire(address: tuple[str, int]) -> None:
    status, _, text = await get(address, "/metrics", host="evil.example:9911")
    assert status == 403
    assert "distsec_build_info" not in text


@pytest.mark.parametrize(
    ("listen", "host", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:9911", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST:9911", True),
        ("127.0.0.1", "[::1]:9911", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "10.0.0.7", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[::1", False),
        ("127.0.0.1", "[::1]x", False),
        ("127.0.0.1", "::1", False),
        ("10.0.0.7", "10.0.0.7:9911", True),
        ("10.0.0.7", "10.0.0.8", False),
        ("0.0.0.0", "10.0.0.8", True),
        ("0.0.0.0", "evil.example", False),
        ("::", "[fd00::7]:9911", True),
        ("10.0.0.7", "metrics.internal", True),
    ],
)
def test_hosts(listen: str, host: str, allowed: bool) -> None:
    site = MetricsSite(bytes, (listen, 9911), allowed_hosts=["metrics.internal"])
    assert site.host_allowed(host) is allowed


@pytest.mark.asyncio
async def test_a_request_without_a_host_is_refused(address: tuple[str, int]) -> None:
    import asyncio

    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(10):
        assert b"403" in await reader.readline()
    writer.close()


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port}: the port is taken; choose another"):
            await MetricsSite(bytes, ("127.0.0.1", port)).start()


@pytest.mark.asyncio
async def test_an_ipv6_address_is_served() -> None:
    site = MetricsSite(Metrics().render, ("::1", 0))
    try:
        host, port = await site.start()
    except PortInUse:
        pytest.skip("this machine has no IPv6 loopback")
    import asyncio

    def ask() -> int:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.request("GET", "/metrics")
        status = connection.getresponse().status
        connection.close()
        return status

    assert await asyncio.to_thread(ask) == 200
    await site.close()
