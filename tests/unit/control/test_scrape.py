"""The metrics site: GET /metrics, and nothing else, for Hosts that cannot be rebound."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from distsec.control import accepting, scrape
from distsec.control.scrape import MAX_CONNECTIONS, MetricsSite
from distsec.errors import PortInUse
from distsec.observe.metrics import Metrics
from tests.unit.control.test_accepting import ended as gone
from tests.unit.control.test_accepting import until
from tests.unit.descriptors import closed_what_is_left, open_descriptors
from tests.unit.later import later
from tests.waiting import PATIENCE_SECONDS

CONNECTION_SECONDS = 600.0
"""For a busy machine. When a test needs it to be over, it is (`later`)."""


@pytest_asyncio.fixture
async def address(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, int]]:
    monkeypatch.setattr(scrape, "CONNECTION_SECONDS", CONNECTION_SECONDS)
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
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(PATIENCE_SECONDS):
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

    def ask() -> int:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.request("GET", "/metrics")
        status = connection.getresponse().status
        connection.close()
        return status

    assert await asyncio.to_thread(ask) == 200
    await site.close()


# ---- a local user who means harm ----------


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What the site still says until it closes the connection, however it does that."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


@pytest.mark.asyncio
async def test_idle_connections_are_bounded_and_a_scrape_succeeds_once_they_are_dropped(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = closed_what_is_left()
    idle: list[socket.socket] = []
    most = 0

    def taken() -> int:
        return open_descriptors() - before - len(idle)

    try:
        for _ in range(300):
            idle.append(socket.create_connection(address, timeout=5))
            idle[-1].setblocking(False)
            await asyncio.sleep(0)
            most = max(most, taken())
        await until(lambda: all(map(gone, idle[MAX_CONNECTIONS:])), "the end of all that are too many")
        assert taken() == MAX_CONNECTIONS
        assert most <= MAX_CONNECTIONS + 1
        assert not any(map(gone, idle[:MAX_CONNECTIONS]))
        later(monkeypatch, CONNECTION_SECONDS)
        await until(lambda: taken() == 0, "the end of the others")
        assert (await get(address, "/metrics"))[0] == 200
    finally:
        for one in idle:
            one.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("begun", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_a_request_that_is_never_finished_ends_in_time(
    address: tuple[str, int], begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, accept = asyncio.Event(), asyncio.get_running_loop().connect_accepted_socket

    async def told(*given: Any) -> Any:
        answer = await accept(*given)
        made.set()
        return answer

    monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", told)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(begun)
    await made.wait()
    for _ in range(2):  # a byte now and then makes it no younger
        assert not reader.at_eof()
        later(monkeypatch, CONNECTION_SECONDS / 2)
        writer.write(b"x" if begun else b"")
        await asyncio.sleep(0.05)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await ended(reader) == b""
    writer.close()


@pytest.mark.asyncio
async def test_a_body_that_never_comes_and_an_answer_that_is_never_read_hold_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrape, "CONNECTION_SECONDS", CONNECTION_SECONDS)
    site = MetricsSite(lambda: b"x" * 32_000_000, ("127.0.0.1", 0))
    address = await site.start()
    before = closed_what_is_left()
    reader, body = await asyncio.open_connection(*address)
    body.write(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
    unread = socket.create_connection(address)
    unread.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    unread.setblocking(False)
    await until(lambda: begins(unread), "the answer to begin")
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert b" 405 " in await reader.readline()
    later(monkeypatch, CONNECTION_SECONDS)
    await until(lambda: open_descriptors() - before == 2, "only the ends of this test")
    body.close()
    unread.close()
    await site.close()


def begins(connection: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return connection.recv(1, socket.MSG_PEEK) == b"H"
    return False


@pytest.mark.asyncio
async def test_headers_are_bounded_and_nonsense_is_not_logged(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for nonsense in (
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 6000 + b"\r\n\r\n",
        b"GET /" + b"x" * 6000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100 + b"\r\n",
        b"\x16\x03\x01\x00\x80\r\n\r\n",
        b"GET /metrics HTTP/9.9.9\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(nonsense)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert b" 400 " in (await ended(reader)).partition(b"\r\n")[0]
        writer.close()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.asyncio
async def test_a_connection_serves_one_request(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await ended(reader)).count(b"HTTP/1.1 200") == 1
    writer.close()


@pytest.mark.asyncio
async def test_where_descriptors_have_run_out_it_waits_and_goes_on(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "RETRY_SECONDS", 0.05)
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, 0

    async def fails(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        failures += 1
        if failures < 5:
            raise OSError(24, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", fails)
    assert (await get(address, "/metrics"))[0] == 200  # the accept(2) that was waiting already
    assert (await get(address, "/metrics"))[0] == 200
    assert failures >= 5
