"""A look at a distribution port from outside, as a stranger without a certificate would have it.

It proves nothing about who serves the port (it verifies no chain) and everything about what a stranger gets
there: whether TLS 1.3 is spoken, whether a client certificate is demanded, whether TLS 1.2 is refused, and
whether the port answers a distribution handshake in plaintext, which is how OTP 25 listens after a second
`-proto_dist`.

Each connection is one that the node refuses and may report. `ProbeResult.local_addresses` holds our end of
each, as the node sees it, so that the supervisor knows its own knocking. A healthy node sees two: TLS 1.3
and TLS 1.2. What is read is bounded in time and bytes; the other end may be anything.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from distsec.model.cluster import Carrier, Certificate
from distsec.model.text import escape
from distsec.pki.authority import certificate_of

T = TypeVar("T")

MAX_BYTES = 64 * 1024
"""Read per connection. A TLS 1.3 handshake of a node is about 2 KiB."""

MAX_STATUS_BYTES = 1024
"""A longer frame is no status of a handshake; the longest holds a node name (`named:`)."""

PROBE_NAME = b"distsec-probe@127.0.0.1"
"""The name in a plaintext attempt; always the same, for OTP makes an atom of it."""

TLS_SHARE, ALERT_SHARE = 0.5, 0.25
"""Of the time: the whole TLS attempt, and in it the wait for the server to say what it thinks of us."""

_CHUNK_BYTES = 4096
_TLS_HANDSHAKE = 22  # RFC 8446, section 5.1: ContentType
_FLAGS = 0x0000_0004_0707_0F94
"""What OTP 25 to 29 require (kernel/include/dist.hrl: DFLAGS_MANDATORY, MANDATORY_25_DIGEST), so hidden.

With fewer, the node logs that we cannot handle them; as it is, it says `sok`, sends its challenge and sees
us go.
"""
_SEND_NAME = struct.pack(">BQIH", ord("N"), _FLAGS, 1, len(PROBE_NAME)) + PROBE_NAME
"""send_name of the distribution protocol, version 6 (dist_util:send_name/1): flags, creation, name."""

NAME_FRAME = struct.pack(">H", len(_SEND_NAME)) + _SEND_NAME
"""As it is sent over TCP: {packet,2} (inet_tcp_dist:do_setup/8)."""

TLS_NAME_FRAME = struct.pack(">I", len(_SEND_NAME)) + _SEND_NAME
"""As it is sent over TLS: {packet,4} (inet_tls_dist:do_setup_connect/8)."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What was seen. None: not tried, or the other end did not say; `error` then tells more, in one escaped
    line."""

    address: str
    port: int
    tls: bool = False
    version: str | None = None
    cipher: str | None = None
    requires_client_certificate: bool | None = None
    tls12_refused: bool | None = None
    certificate: Certificate | None = None
    plaintext_distribution: bool | None = None
    local_addresses: tuple[str, ...] = ()
    error: str | None = None

    @property
    def mutual_tls_only(self) -> bool:
        """Whether a stranger gets nothing but TLS 1.3 that demands a certificate: all of it seen, nothing
        assumed."""
        return (
            self.version == "TLSv1.3"
            and self.requires_client_certificate is True
            and self.tls12_refused is True
            and self.plaintext_distribution is not True
        )


async def probe(
    address: str,
    port: int,
    timeout: float,  # noqa: ASYNC109  it is shared out between the attempts, and a timeout is a result
    *,
    expect: Carrier = Carrier.DISTSEC,
    opened: Callable[[str], object] = lambda local_address: None,
) -> ProbeResult:
    """Looks at `address`:`port` for at most `timeout` seconds in all.

    `expect` says what comes first: with TLS, plaintext is tried only where TLS did not work (one port speaks
    one of them); with `inet_tcp`, TLS only where plaintext was not answered. Never raises for
    what the other end does. `opened` hears our end of each connection as soon as there is one: the node may
    report its refusal before we have the result.
    """
    loop = asyncio.get_running_loop()
    attempt = _Attempt(address, port, opened)
    begun = loop.time()
    deadline, half = begun + timeout, begun + timeout * TLS_SHARE
    if not expect.encrypted:
        await attempt.plaintext(half)
        if not attempt.plaintext_distribution and attempt.reached:
            await attempt.tls13(deadline, timeout * ALERT_SHARE)
        return attempt.result()
    await attempt.tls13(half, timeout * ALERT_SHARE)
    if attempt.tls:
        await attempt.tls12(deadline)
    elif attempt.reached:
        await attempt.plaintext(deadline)
    return attempt.result()


async def look_at_certificate(
    address: str,
    port: int,
    timeout: float,  # noqa: ASYNC109  as for `probe`
    *,
    opened: Callable[[str], object] = lambda local_address: None,
) -> ProbeResult:
    """Which certificate is served there, and no more: one connection, ended as soon as that was seen."""
    attempt = _Attempt(address, port, opened)
    await attempt.certificate_alone(asyncio.get_running_loop().time() + timeout)
    return attempt.result()


class _Closed(Exception):
    """The other end closed, or sent more than `MAX_BYTES`."""


@dataclass(slots=True)
class _Stream:
    """One connection with a bound on what is read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: int = 0
    first: bytes = b""

    async def read(self) -> bytes:
        data = await self.reader.read(_CHUNK_BYTES)
        if not data:
            raise _Closed("closed the connection")
        self.received += len(data)
        if self.received > MAX_BYTES:
            raise _Closed(f"sent more than {MAX_BYTES} bytes")
        self.first = self.first or data[:1]
        return data

    async def write(self, data: bytes) -> None:
        if data:
            self.writer.write(data)
            await self.writer.drain()


class _Tls:
    """A TLS client over a `_Stream`; the handshake and reads raise ssl.SSLError for what the server sends
    wrong."""

    def __init__(self, stream: _Stream, version: ssl.TLSVersion) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it looks, and trusts nothing that it sees
        context.minimum_version = context.maximum_version = version
        if version < ssl.TLSVersion.TLSv1_3:
            context.set_ciphers("ALL:@SECLEVEL=0")  # a refusal is the server's, not our taste in ciphers
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing)

    async def handshake(self) -> None:
        await self._run(self.object.do_handshake)

    async def read(self) -> bytes:
        return await self._run(lambda: self.object.read(_CHUNK_BYTES))

    async def write(self, data: bytes) -> None:
        await self._run(lambda: self.object.write(data))

    @property
    def accepted(self) -> bool:
        """Whether a session ticket came: one is sent only to a client that was accepted (RFC 8446, 4.6.1)."""
        session = self.object.session
        return session is not None and session.has_ticket

    async def _run(self, operation: Callable[[], T]) -> T:
        while True:
            try:
                return operation()
            except ssl.SSLWantReadError:
                pass
            finally:
                await self._stream.write(self._outgoing.read())
            self._incoming.write(await self._stream.read())


@dataclass(slots=True)
class _Attempt:
    """Collects what the connections show. Each attempt ends by its deadline (event loop time) and raises
    nothing."""

    address: str
    port: int
    opened: Callable[[str], object]
    reached: bool = False
    tls: bool = False
    version: str | None = None
    cipher: str | None = None
    requires_client_certificate: bool | None = None
    tls12_refused: bool | None = None
    certificate: Certificate | None = None
    plaintext_distribution: bool | None = None
    local_addresses: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def result(self) -> ProbeResult:
        return ProbeResult(
            address=self.address,
            port=self.port,
            tls=self.tls,
            version=self.version,
            cipher=self.cipher,
            requires_client_certificate=self.requires_client_certificate,
            tls12_refused=self.tls12_refused,
            certificate=self.certificate,
            plaintext_distribution=self.plaintext_distribution,
            local_addresses=tuple(self.local_addresses),
            error="; ".join(self.errors) or None,
        )

    async def tls13(self, deadline: float, alert_seconds: float) -> None:
        """TLS 1.3 without a certificate, and what the server says to that."""

        async def conversation(stream: _Stream) -> None:
            tls = await self._greet(stream)
            # In TLS 1.3 the client is done first: whether it was accepted shows in what comes afterwards.
            try:
                async with asyncio.timeout(alert_seconds):
                    await self._verdict(tls)
            except TimeoutError:
                await tls.write(TLS_NAME_FRAME)  # a silent server waits for us; its answer is a verdict too
                await self._verdict(tls)

        await self._connect("TLS", deadline, conversation)

    async def certificate_alone(self, deadline: float) -> None:
        async def conversation(stream: _Stream) -> None:
            await self._greet(stream)

        await self._connect("TLS", deadline, conversation)

    async def _greet(self, stream: _Stream) -> _Tls:
        tls = _Tls(stream, ssl.TLSVersion.TLSv1_3)
        await tls.handshake()
        self.tls = True
        self.version = tls.object.version()
        negotiated = tls.object.cipher()
        self.cipher = negotiated[0] if negotiated else None
        self._take_certificate(tls.object.getpeercert(binary_form=True))
        return tls

    async def _verdict(self, tls: _Tls) -> None:
        """Reads until the server has said whether it wants a certificate; raises what the connection
        raises."""
        try:
            while self.requires_client_certificate is None:
                data = await tls.read()
                if not data:
                    raise _Closed("ended TLS without a word")
                self.requires_client_certificate = False  # application data, for a stranger
        except ssl.SSLError as error:
            if "CERTIFICATE_REQUIRED" not in _reason(error):
                raise
            self.requires_client_certificate = True
        finally:
            if self.requires_client_certificate is None and tls.accepted:
                self.requires_client_certificate = False

    async def tls12(self, deadline: float) -> None:
        """TLS 1.2 alone. A ServerHello shows that it is spoken, whatever becomes of the handshake."""

        async def conversation(stream: _Stream) -> None:
            try:
                await _Tls(stream, ssl.TLSVersion.TLSv1_2).handshake()
            except (ssl.SSLError, _Closed, ConnectionError):
                self.tls12_refused = True
            finally:
                if stream.first == bytes([_TLS_HANDSHAKE]):
                    self.tls12_refused = False

        await self._connect("TLS 1.2", deadline, conversation)

    async def plaintext(self, deadline: float) -> None:
        """The first frame of a distribution handshake, without TLS. An answer with a status speaks it."""

        async def conversation(stream: _Stream) -> None:
            await stream.write(NAME_FRAME)
            answer = b""
            try:
                while len(answer) < 3:
                    answer += await stream.read()
            except (_Closed, ConnectionError):
                self.plaintext_distribution = False
                return
            # dist_util:recv_status/1: a 16-bit length, `s`, then ok, nok, alive, not_allowed, named:…
            length = int.from_bytes(answer[:2])
            self.plaintext_distribution = answer[2:3] == b"s" and 2 <= length <= MAX_STATUS_BYTES

        await self._connect("plaintext", deadline, conversation)

    async def _connect(
        self, what: str, deadline: float, conversation: Callable[[_Stream], Awaitable[None]]
    ) -> None:
        """Holds one connection for a conversation and notes how it failed, if it did."""
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout_at(deadline):
                reader, writer = await asyncio.open_connection(self.address, self.port, limit=_CHUNK_BYTES)
                self.reached = True
                self.local_addresses.append(_endpoint(writer.get_extra_info("sockname")))
                self.opened(self.local_addresses[-1])
                await conversation(_Stream(reader, writer))
        except TimeoutError:
            self._failed(what, "no answer in time")
        except ssl.SSLError as error:
            self._failed(what, _reason(error).lower().replace("_", " "))
        except (OSError, _Closed) as error:
            code = error.errno if isinstance(error, OSError) else None
            self._failed(what, os.strerror(code) if code else str(error))
        finally:
            if writer is not None:
                writer.transport.abort()  # nothing is owed to the other end, and it must not keep us

    def _failed(self, what: str, why: str) -> None:
        self.errors.append(f"{what}: {escape(why)}")

    def _take_certificate(self, der: bytes | None) -> None:
        try:
            if der is not None:
                self.certificate = certificate_of(ssl.DER_cert_to_PEM_cert(der).encode())
        except ValueError:  # also what cryptography raises for a certificate that it cannot read
            self.errors.append("TLS: the certificate cannot be read")


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's own words, as `TLSV13_ALERT_CERTIFICATE_REQUIRED`; for some Python knows no mnemonic."""
    return str(error.reason or error.args[-1]).upper().replace(" ", "_")


def _endpoint(name: tuple[str, int]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
