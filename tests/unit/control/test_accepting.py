"""What anybody on this host may connect to: so many at a time, for so long, and not with the last
descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from distsec.control import accepting, http
from distsec.control.accepting import Acceptor
from distsec.control.client import ControlClient
from tests.unit.control.fake_orchestrator import running
from tests.unit.descriptors import closed_what_is_left
from tests.unit.later import later
from tests.waiting import PATIENCE_SECONDS, wait_until

MOST = 8


@contextlib.asynccontextmanager
async def accepts(
    seconds: float = 60.0, welcome: Callable[[socket.socket], bool] = lambda _: True
) -> AsyncIterator[tuple[Acceptor, web.Server, Callable[[], socket.socket]]]:
    """The acceptor, aiohttp's server, and a way to connect."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    server = web.Server(answer, access_log=None)
    acceptor = Acceptor(listener, server, most=MOST, seconds=seconds, welcome=welcome)
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(socket.create_connection(listener.getsockname(), timeout=10))
        made[-1].setblocking(False)
        return made[-1]

    try:
        yield acceptor, server, connect
    finally:
        await acceptor.close()
        await acceptor.close()
        await server.shutdown(1.0)
        for each in made:
            each.close()


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.asyncio
async def test_one_too_many_is_closed_at_once_and_the_others_stay() -> None:
    async with accepts() as (_, server, connect):
        held = [connect() for _ in range(MOST)]
        await until(lambda: len(server.connections) == MOST, "all of them")
        more = [connect() for _ in range(3)]
        await until(lambda: all(map(ended, more)), "the end of those")
        assert not any(map(ended, held))


@pytest.mark.asyncio
async def test_a_connection_ends_after_its_time_unless_it_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    async with accepts(seconds=600.0) as (acceptor, server, connect):
        asked = connect()
        await until(lambda: len(server.connections) == 1, "the first")
        acceptor.spare(server.connections[0].transport)
        silent = connect()
        await until(lambda: len(server.connections) == 2, "the other one")
        later(monkeypatch, 600.0)
        await until(lambda: ended(silent), "the end of the other one")
        assert not ended(asked)
        await until(lambda: len(server.connections) == 1, "the first to be left")
        again = connect()
        await until(lambda: len(server.connections) == 2, "the next")
        later(monkeypatch, 600.0)
        await until(lambda: ended(again), "the end of the next")
        await until(lambda: len(server.connections) == 1, "the first to be left")
        assert not ended(asked)


@pytest.mark.asyncio
async def test_nothing_is_kept_of_connections_that_have_ended() -> None:
    async with accepts() as (acceptor, server, connect):
        for _ in range(10 * MOST):
            one = connect()
            await until(lambda: len(server.connections) == 1, "it")
            one.close()
            await until(lambda: not server.connections, "the end of it")
        assert len(acceptor._due) <= 2 * MOST + 1


@pytest.mark.asyncio
async def test_who_is_not_welcome_gets_no_more_than_half_of_the_places() -> None:
    welcome = True
    async with accepts(welcome=lambda _: welcome) as (_, server, connect):
        welcome = False
        held = [connect() for _ in range(MOST)]
        await until(lambda: all(map(ended, held[MOST // 2 :])), "the end of the other half")
        assert not any(map(ended, held[: MOST // 2]))
        welcome = True
        more = [connect() for _ in range(MOST // 2)]
        await until(lambda: len(server.connections) == MOST, "those that are")
        assert not any(map(ended, more))


@pytest.fixture
def soft_limit() -> Iterator[Callable[[int], None]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    closed_what_is_left()  # a descriptor that becomes free below the limit would be the next that is taken
    yield lambda number: resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.asyncio
async def test_the_last_descriptors_are_kept_and_that_is_told_once(
    soft_limit: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with accepts() as (_, server, connect):
        soft_limit(512)
        first = connect()
        await until(lambda: len(server.connections) == 1, "the first")
        taken = [os.open("/dev/null", os.O_RDONLY)]
        try:
            while taken[-1] < 512 - accepting.RESERVED_DESCRIPTORS:
                taken.append(os.dup(taken[0]))
            with caplog.at_level(logging.ERROR):
                refused = [connect() for _ in range(3)]
                await until(lambda: all(map(ended, refused)), "the end of those")
            assert [each.getMessage() for each in caplog.records] == [
                "connections are refused: file descriptors are running out, and the last are kept for the "
                "nodes"
            ]
        finally:
            for each in taken:
                os.close(each)
        connect()
        await until(lambda: len(server.connections) == 2, "another one")
        assert not ended(first)


@pytest.mark.asyncio
async def test_a_bug_about_one_connection_keeps_nobody_else_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "RETRY_SECONDS", 0.01)

    def broken(_: socket.socket) -> bool:
        raise ValueError("a bug")

    async with accepts(welcome=broken) as (_, server, connect):
        for _ in range(MOST // 2):
            connect()
        await until(lambda: len(server.connections) == MOST // 2, "the first half")
        with caplog.at_level(logging.ERROR):
            refused = [connect() for _ in range(3)]
            await until(lambda: all(map(ended, refused)), "the end of those")
        assert ["a bug" in each.getMessage() for each in caplog.records] == [True]
        await server.shutdown(1.0)
        connect()
        await until(lambda: len(server.connections) == 1, "another one")


def test_of_a_small_limit_a_quarter_is_kept(soft_limit: Callable[[int], None]) -> None:
    soft_limit(128)
    assert accepting._most_descriptors() == 96


# ---- the control socket ----------


def test_a_caller_that_asks_for_nothing_is_ended_and_one_that_waits_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.3)
    path = tmp_path / "state" / "control.sock"
    with running(tmp_path / "state"), contextlib.ExitStack() as stack:

        def call(request: bytes) -> socket.socket:
            made = stack.enter_context(socket.socket(socket.AF_UNIX))
            made.connect(str(path))
            made.sendall(request)
            made.setblocking(False)
            return made

        follows = call(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        silent, half = call(b""), call(b"GET /v1/sta")
        wait_until(lambda: ended(silent) and ended(half), "their end")
        assert not ended(follows)
        slow = call(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        wait_until(lambda: not ended(slow) and b"does not come" in peek(slow), "the answer")
        assert ControlClient(str(path)).status()["schema"] == 1


def peek(connection: socket.socket) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return connection.recv(4096, socket.MSG_PEEK)
    return b""
