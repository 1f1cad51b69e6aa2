"""Showing a port a certificate that it is to refuse, against real TLS servers."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from distsec.beam.witness import Witnessed, show_certificate
from distsec.model.names import NodeName
from distsec.pki.authority import Authority
from distsec.pki.pairs import Pair
from distsec.pki.store import Store
from tests.system.cluster import free_ports
from tests.waiting import PATIENCE_SECONDS

A = NodeName.parse("a@127.0.0.1")
NOW = time.time()
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def old(tmp_path: Path) -> Authority:
    return Authority.create(Store(tmp_path / "old"), "demo", NOW)


@pytest.fixture
def new(tmp_path: Path) -> Authority:
    return Authority.create(Store(tmp_path / "new"), "demo", NOW)


def show(
    pair: Pair, trusts: Authority, tmp_path: Path, talk: Talk, seconds: float = PATIENCE_SECONDS
) -> tuple[Witnessed, list[str]]:
    """To a server that wants a certificate of `trusts` and then does what `talk` does. `seconds`: how long it
    is waited for.
    """
    key, certificate = trusts.issue(A, "127.0.0.1", 1, NOW)
    paths = [tmp_path / name for name in ("server.key", "server.pem", "trust.pem")]
    for path, content in zip(paths, (key.reveal(), certificate, trusts.bundle_pem), strict=True):
        path.write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths[1], paths[0])
    context.load_verify_locations(paths[2])
    context.verify_mode = ssl.CERT_REQUIRED
    opened: list[str] = []

    async def main() -> Witnessed:
        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        try:
            return await show_certificate("127.0.0.1", port, pair, seconds, opened=opened.append)
        finally:
            server.close()

    return asyncio.run(main()), opened


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"welcome")
    await writer.drain()


def test_a_certificate_of_another_ca_is_refused_and_our_end_is_known(
    old: Authority, new: Authority, tmp_path: Path
) -> None:
    seen, opened = show(Pair(*old.issue(A, "127.0.0.1", 1, NOW)), new, tmp_path, silent)
    assert seen.refused is True
    assert [seen.local_address] == opened


@pytest.mark.parametrize(("talk", "seconds"), [(silent, 5.0), (talkative, PATIENCE_SECONDS)])
def test_who_admits_it_is_seen_to_whether_it_answers_or_waits(
    new: Authority, tmp_path: Path, talk: Talk, seconds: float
) -> None:
    seen, _ = show(Pair(*new.issue(A, "127.0.0.1", 1, NOW)), new, tmp_path, talk, seconds)
    assert seen.refused is False


def test_nobody_there_is_neither(new: Authority) -> None:
    port, pair = free_ports(1)[0], Pair(*new.issue(A, "127.0.0.1", 1, NOW))
    shown = show_certificate("127.0.0.1", port, pair, PATIENCE_SECONDS, opened=lambda address: None)
    assert asyncio.run(shown) == Witnessed(None, "Connection refused", None)


def test_the_key_is_on_no_disk_and_its_descriptor_is_closed(
    old: Authority, new: Authority, tmp_path: Path
) -> None:
    pair = Pair(*old.issue(A, "127.0.0.1", 1, NOW))
    show(pair, new, tmp_path, silent)
    opened = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert not [target for target in opened if "distsec-witness" in target]
    assert not any(pair.key.reveal() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
