"""Knocks at a distribution port as a stranger without a certificate would, and tells what it got.

What the guard needs to know `beam.probe` finds out: TLS 1.3, whether a certificate is demanded, whether TLS
1.2 or plaintext is answered. Where an older TLS is spoken, it is looked at more closely here: there the
certificate, the request for ours and the cipher are in plaintext, so that they are known of a handshake that
fails, too. A node that is well gets two knocks, which it refuses and reports; any other up to five.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
import warnings
from dataclasses import dataclass, replace
from typing import Final

from distsec.beam.probe import MAX_BYTES, ProbeResult, probe
from distsec.model.cluster import Carrier, Certificate
from distsec.model.text import escape
from distsec.pki.authority import certificate_of
from distsec.posture.facts import Served

SECONDS: Final = 6.0
"""For the whole of one listener, twice: the probe, and the closer look where there is one."""

_WEAK: Final = "aNULL:eNULL:RC4:3DES:DES:EXPORT:@SECLEVEL=0"
_ALL: Final = "ALL:@SECLEVEL=0"
_HANDSHAKE: Final = 22
_VERSIONS: Final = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
}
_SERVER_HELLO, _CERTIFICATE, _CERTIFICATE_REQUEST, _DONE = 2, 11, 13, 14  # RFC 5246, section 7.4


def reachable(address: str) -> str:
    """Where a listener at `address` is reached from this host."""
    ip = ipaddress.ip_address(address)
    if not ip.is_unspecified:
        return address
    return "127.0.0.1" if ip.version == 4 else "::1"


async def look(address: str, port: int, *, expect: Carrier, seconds: float = SECONDS) -> Served:
    """What a listener serves. Never raises for what the other end does; ends within about twice `seconds`."""
    found = await probe(reachable(address), port, seconds, expect=expect)
    served = _served(found)
    closer = served.tls12 or (served.reached and not served.tls and served.plaintext is not True)
    if not closer:
        return served
    return await asyncio.to_thread(_older, served, reachable(address), port, time.monotonic() + seconds)


def _served(found: ProbeResult) -> Served:
    return Served(
        reached=bool(found.local_addresses),
        tls=found.tls,
        version=found.version,
        cipher=found.cipher,
        demands_certificate=found.requires_client_certificate,
        tls12=None if found.tls12_refused is None else not found.tls12_refused,
        plaintext=found.plaintext_distribution,
        certificate=found.certificate,
        error=found.error,
    )


def _older(served: Served, address: str, port: int, deadline: float) -> Served:
    """Completes `served` with what TLS 1.2 and older show."""
    tls12 = _attempt(address, port, deadline, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, _ALL)
    if tls12 is not None:
        served = replace(served, tls12=True)
        if served.tls:  # a peer takes the weaker of two ways in
            demands = served.demands_certificate
            served = replace(served, demands_certificate=demands and tls12.demands_certificate)
        else:
            served = replace(
                served,
                tls=True,
                version=tls12.version,
                cipher=tls12.cipher,
                demands_certificate=tls12.demands_certificate,
                certificate=tls12.certificate,
                error=None,
            )
        weak = _attempt(address, port, deadline, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, _WEAK)
        served = replace(served, weak_cipher=weak.cipher if weak else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that they are deprecated is the point
        oldest, newest = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        old = _attempt(address, port, deadline, oldest, newest, _ALL)
    if old is not None:
        served = replace(served, old_tls=old.version)
        if not served.tls:
            served = replace(
                served,
                tls=True,
                version=old.version,
                cipher=old.cipher,
                demands_certificate=old.demands_certificate,
                certificate=old.certificate,
                error=None,
            )
    return served


@dataclass(frozen=True, slots=True)
class _Answer:
    version: str
    cipher: str
    demands_certificate: bool
    certificate: Certificate | None


def _attempt(
    address: str, port: int, deadline: float, low: ssl.TLSVersion, high: ssl.TLSVersion, ciphers: str
) -> _Answer | None:
    """One handshake; None where no ServerHello came. With `CERT_NONE`: it looks, and trusts nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        return None  # this OpenSSL has none of them
    context.minimum_version, context.maximum_version = low, high
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    names = {cipher["id"] & 0xFFFF: str(cipher["name"]) for cipher in context.get_ciphers()}
    seen, completed = b"", False
    try:
        with socket.create_connection((address, port), _left(deadline)) as connection:
            while not completed and len(seen) <= MAX_BYTES:
                try:
                    tls.do_handshake()
                    completed = True
                except ssl.SSLWantReadError:
                    pass
                finally:
                    connection.settimeout(_left(deadline))
                    if data := outgoing.read():
                        connection.sendall(data)
                if not completed:
                    data = connection.recv(4096)
                    if not data:
                        break
                    seen += data
                    incoming.write(data)
    except (OSError, ValueError):  # ssl.SSLError is one: refused, which is an answer too
        pass
    answer = _read_flight(seen, names, completed)
    if answer is None or not low.value <= _VERSIONS[answer.version].value <= high.value:
        return None  # a server that knows nothing newer says so, although nobody offered that
    return answer


def _left(deadline: float) -> float:
    return max(0.05, deadline - time.monotonic())


def _read_flight(seen: bytes, names: dict[int, str], completed: bool) -> _Answer | None:
    """What the server's first flight says (RFC 5246, section 7.4), which nothing hides yet."""
    version = cipher = certificate = None
    requested = False
    for kind, body in _messages(seen):
        if kind == _SERVER_HELLO and len(body) > 37:
            version = {1: "TLSv1", 2: "TLSv1.1", 3: "TLSv1.2"}.get(body[1])
            at = 35 + body[34]
            number = int.from_bytes(body[at : at + 2])
            cipher = names.get(number, f"0x{number:04x}")
        elif kind == _CERTIFICATE and len(body) > 6:
            certificate = _certificate(body[6 : 6 + int.from_bytes(body[3:6])])
        elif kind == _CERTIFICATE_REQUEST:
            requested = True
        elif kind == _DONE:
            break
    if version is None:
        return None
    return _Answer(version, escape(cipher or "", 60), requested and not completed, certificate)


def _messages(seen: bytes) -> list[tuple[int, bytes]]:
    """The handshake messages of the records in `seen`, whole ones only."""
    stream, at = b"", 0
    while len(seen) - at >= 5 and seen[at] == _HANDSHAKE:
        length = int.from_bytes(seen[at + 3 : at + 5])
        stream += seen[at + 5 : at + 5 + length]
        at += 5 + length
    found, at = [], 0
    while len(stream) - at >= 4:
        length = int.from_bytes(stream[at + 1 : at + 4])
        if len(stream) - at - 4 < length:
            break
        found.append((stream[at], stream[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def _certificate(der: bytes) -> Certificate | None:
    try:
        return certificate_of(ssl.DER_cert_to_PEM_cert(der).encode())
    except ValueError:
        return None
