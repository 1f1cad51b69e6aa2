"""The probe against real TLS servers, real nodes, and things that are neither."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from distsec.beam.probe import (
    MAX_BYTES,
    NAME_FRAME,
    TLS_NAME_FRAME,
    ProbeResult,
    _Closed,
    _Stream,
    look_at_certificate,
    probe,
)
from distsec.model.cluster import Carrier
from tests.system.cluster import free_ports
from tests.waiting import wait_until

PATIENCE_SECONDS = 20.0
"""For a probe that is expected to get an answer: it returns as soon as it has one. It waits for a quarter of
this for a node that says nothing, which gives up after 7 s (net_setuptime).
"""

SHORT_SECONDS = 2.0
"""For a probe that is expected to get none."""

IDENTITY = "spiffe://probe/node/127.0.0.1/served"


@dataclass(frozen=True, slots=True)
class Served:
    """Files of a self-signed certificate, which is its own trust bundle."""

    certificate: Path
    key: Path
    serial: str
    not_after: int


@pytest.fixture
def served(tmp_path: Path) -> Served:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "served")])
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    serial = 0x0A1B2C
    alternatives: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(IDENTITY),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = Served(
        tmp_path / "certificate.pem",
        tmp_path / "key.pem",
        "0a1b2c",
        int(certificate.not_valid_after_utc.timestamp()),
    )
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(command: list[str], port: int, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server until the block ends; the block begins when something listens on `port`."""
    output = directory / "server.log"
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    with output.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_until(lambda: accepts(port) or child.poll() is not None, f"{command[0]} to listen")
        assert child.poll() is None, output.read_text()
        yield child
    finally:
        child.kill()
        child.wait()


def openssl(served: Served, port: int, *more: str) -> list[str]:
    files = ["-cert", str(served.certificate), "-key", str(served.key)]
    return ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", *files, "-quiet", *more]


def node(erl: str, port: int, served: Served | None, directory: Path, *, demands: bool = True) -> list[str]:
    """A real node on `port`, guarded by mutual TLS 1.3 where `served` is given, else in plaintext.

    `demands` False: it asks for a certificate and takes whoever shows none.
    """
    ports = ["inet_dist_listen_min", str(port), "inet_dist_listen_max", str(port)]
    command = [erl, "-noinput", "-name", "served@127.0.0.1", "-setcookie", "probe"]
    command += ["-start_epmd", "false", "-erl_epmd_port", str(port)]
    command += ["-kernel", "inet_dist_use_interface", "{127,0,0,1}", *ports]
    if served is None:
        return command
    both = (
        f'{{certfile, "{served.certificate}"}}, {{keyfile, "{served.key}"}},'
        f'{{cacertfile, "{served.certificate}"}},'
        "{verify, verify_peer}, {versions, ['tlsv1.3']}"
    )
    optfile = directory / "dist.conf"
    demand = f"{{fail_if_no_peer_cert, {str(demands).lower()}}}"
    optfile.write_text(f"[{{server, [{both}, {demand}]}}, {{client, [{both}]}}].\n")
    return [*command, "-proto_dist", "inet_tls", "-ssl_dist_optfile", str(optfile)]


@contextlib.asynccontextmanager
async def answering(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server of our own on a free port."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


@contextlib.asynccontextmanager
async def own_time() -> AsyncIterator[Callable[[], float]]:
    """For how many seconds this process has run since. Where it stands still its deadlines come all the same,
    and that is none of this time.
    """
    passed = 0.0

    async def count() -> None:
        nonlocal passed
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic()
            passed, before = passed + min(now - before, 0.1), now

    counting = asyncio.create_task(count())
    try:
        yield lambda: passed
    finally:
        counting.cancel()


def look(port: int, seconds: float = PATIENCE_SECONDS, **more: Any) -> ProbeResult:
    return asyncio.run(probe("127.0.0.1", port, seconds, **more))


# ---- openssl -----------------------------------------------------------------------------------------


def test_reads_what_a_tls_13_server_serves_and_that_it_demands_a_certificate(
    served: Served, port: int, tmp_path: Path
) -> None:
    with running(openssl(served, port, "-tls1_3", "-Verify", "1"), port, tmp_path):
        result = look(port)
    assert result.tls and result.version == "TLSv1.3"
    assert result.cipher and result.cipher.startswith("TLS_")
    assert result.requires_client_certificate is True
    assert result.tls12_refused is True
    assert result.certificate is not None
    assert result.certificate.serial == served.serial
    assert result.certificate.identity == IDENTITY
    assert result.certificate.issuer == "CN=served"
    assert result.certificate.not_after == served.not_after
    assert result.error is None
    assert result.mutual_tls_only


def test_sees_that_a_server_takes_clients_without_a_certificate(
    served: Served, port: int, tmp_path: Path
) -> None:
    with running(openssl(served, port, "-tls1_3"), port, tmp_path):
        result = look(port)
    assert result.tls and result.requires_client_certificate is False
    assert not result.mutual_tls_only


def test_sees_that_a_certificate_is_asked_for_but_not_demanded(
    served: Served, port: int, tmp_path: Path
) -> None:
    with running(openssl(served, port, "-tls1_3", "-verify", "1"), port, tmp_path):
        result = look(port)
    assert result.requires_client_certificate is False


def test_sees_that_tls_12_is_spoken_besides_tls_13(served: Served, port: int, tmp_path: Path) -> None:
    with running(openssl(served, port, "-Verify", "1"), port, tmp_path):
        result = look(port)
    assert result.version == "TLSv1.3" and result.requires_client_certificate is True
    assert result.tls12_refused is False
    assert not result.mutual_tls_only


def test_a_server_of_tls_12_only_is_no_tls_13_server(served: Served, port: int, tmp_path: Path) -> None:
    with running(openssl(served, port, "-tls1_2", "-Verify", "1"), port, tmp_path):
        result = look(port)
    assert not result.tls and result.version is None
    assert result.error is not None and "protocol version" in result.error
    assert not result.mutual_tls_only


# ---- real nodes --------------------------------------------------------------------------------------


def test_sees_a_node_that_is_guarded_by_mutual_tls(
    otp: Any, served: Served, port: int, tmp_path: Path
) -> None:
    with running(node(otp.erl, port, served, tmp_path), port, tmp_path):
        result = look(port)
    assert result.mutual_tls_only, result
    assert result.certificate is not None and result.certificate.serial == served.serial
    assert result.plaintext_distribution is None, "it spoke TLS, so plaintext need not be tried"
    assert len(result.local_addresses) == 2


@pytest.mark.parametrize("expect", [Carrier.DISTSEC, Carrier.INET_TCP])
def test_sees_a_node_that_speaks_distribution_in_plaintext(
    otp: Any, expect: str, port: int, tmp_path: Path
) -> None:
    with running(node(otp.erl, port, None, tmp_path), port, tmp_path):
        # The node takes our TLS for an unfinished frame, so that attempt costs its whole share of the time.
        result = look(port, 12.0, expect=expect)
    assert result.plaintext_distribution is True, result
    assert not result.tls and not result.mutual_tls_only
    assert len(result.local_addresses) == (1 if expect is Carrier.INET_TCP else 2)


def test_a_tls_node_is_not_taken_for_plaintext_where_plaintext_is_expected(
    otp: Any, served: Served, port: int, tmp_path: Path
) -> None:
    with running(node(otp.erl, port, served, tmp_path), port, tmp_path):
        result = look(port, expect=Carrier.INET_TCP)
    assert result.plaintext_distribution is False
    assert result.tls and result.requires_client_certificate is True


# ---- neither -----------------------------------------------------------------------------------------


def test_nobody_listens(port: int) -> None:
    result = look(port)
    assert result.error == "TLS: Connection refused"
    assert result.local_addresses == ()
    assert not result.mutual_tls_only and result.plaintext_distribution is None


def test_a_look_at_the_certificate_takes_one_connection_and_no_verdict(
    served: Served, port: int, tmp_path: Path
) -> None:
    opened: list[str] = []
    with running(openssl(served, port, "-tls1_3", "-Verify", "1"), port, tmp_path):
        look = look_at_certificate("127.0.0.1", port, PATIENCE_SECONDS, opened=opened.append)
        result = asyncio.run(look)
    assert result.certificate is not None
    assert result.certificate.serial == served.serial
    assert list(result.local_addresses) == opened
    assert len(opened) == 1
    assert result.requires_client_certificate is None
    gone = asyncio.run(look_at_certificate("127.0.0.1", port, PATIENCE_SECONDS))
    assert (gone.certificate, gone.error) == (None, "TLS: Connection refused")


@pytest.mark.asyncio
async def test_a_silent_listener_costs_no_more_than_the_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with answering(silent) as port, own_time() as passed:
        result = await probe("127.0.0.1", port, SHORT_SECONDS)
        assert passed() < SHORT_SECONDS * 2
    assert result.error == "TLS: no answer in time; plaintext: no answer in time"
    assert not result.tls and result.plaintext_distribution is None and not result.mutual_tls_only


@pytest.mark.asyncio
async def test_every_connection_is_listed_as_the_server_saw_it() -> None:
    seen: list[str] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("peername")
        seen.append(f"{host}:{port}")
        writer.close()

    opened: list[str] = []
    async with answering(note) as port:
        result = await probe("127.0.0.1", port, PATIENCE_SECONDS, opened=opened.append)
    assert list(result.local_addresses) == seen == opened
    assert len(seen) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("expect", [Carrier.DISTSEC, Carrier.INET_TCP])
@pytest.mark.parametrize("answer", [b"\x1b]0;owned\x07HTTP/1.0 418 teapot\r\n\r\n", b"\0\3nok", b"\0\1s"])
async def test_garbage_is_neither_tls_nor_distribution(expect: Any, answer: bytes) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with answering(garbage) as port:
        result = await probe("127.0.0.1", port, PATIENCE_SECONDS, expect=expect)
    assert not result.tls and result.plaintext_distribution is False
    assert result.error is not None and result.error.isprintable()


@pytest.mark.asyncio
async def test_an_endless_answer_is_cut_off() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        # Handshake records that promise a huge ServerHello: OpenSSL would go on collecting them.
        record = b"\x16\x03\x03\x40\x00" + b"\x02\xff\xff\xff" + b"\0" * (0x4000 - 4)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(record)
                await writer.drain()
                sent += len(record)

    async with answering(endless) as port:
        result = await probe("127.0.0.1", port, PATIENCE_SECONDS)
    assert not result.mutual_tls_only and result.error is not None
    assert sent < MAX_BYTES + 16 * 1024 * 1024  # what socket buffers hold, and no more


@pytest.mark.asyncio
async def test_no_more_than_the_limit_is_read_even_of_what_tls_would_take() -> None:
    received = asyncio.StreamReader()
    received.feed_data(b"x" * (MAX_BYTES + 1))
    stream = _Stream(received, cast(asyncio.StreamWriter, None))
    with pytest.raises(_Closed, match="more than"):
        while True:
            await stream.read()
    assert stream.received == MAX_BYTES + 1


@pytest.mark.asyncio
async def test_a_server_that_dribbles_is_ended_by_the_deadline() -> None:
    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)

    async with answering(dribble) as port, own_time() as passed:
        result = await probe("127.0.0.1", port, SHORT_SECONDS)
        assert passed() < SHORT_SECONDS * 2
    assert not result.mutual_tls_only


def test_a_node_that_takes_strangers_answers_the_frame_that_is_sent_over_tls(
    otp: Any, served: Served, port: int, tmp_path: Path
) -> None:
    """It says nothing by itself, so only a frame that it can read, {packet,4}, shows what it does."""
    with running(node(otp.erl, port, served, tmp_path, demands=False), port, tmp_path):
        result = look(port)
    assert result.requires_client_certificate is False, result
    assert not result.mutual_tls_only


def test_the_name_frame_is_what_dist_util_reads() -> None:
    assert len(NAME_FRAME[2:]).to_bytes(4) + NAME_FRAME[2:] == TLS_NAME_FRAME
    length = int.from_bytes(NAME_FRAME[:2])
    assert length == len(NAME_FRAME) - 2
    name_length = int.from_bytes(NAME_FRAME[15:17])
    assert NAME_FRAME[2:3] == b"N" and NAME_FRAME[17:] == b"distsec-probe@127.0.0.1"
    assert name_length == len(NAME_FRAME[17:])
    flags = int.from_bytes(NAME_FRAME[3:11])
    assert flags & 1 == 0, "PUBLISHED: the probe must not look like a visible node"
