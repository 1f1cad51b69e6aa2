"""A TLS 1.2 server that needs no certificate: it picks an anonymous suite that the client never offered.

CVE-2026-55953: an OTP client of TLS 1.2 (before 27.3.4.15, 28.5.0.4, 29.0.4) takes it. All that is needed
of RFC 5246 and RFC 5288 is here: TLS_DH_anon_WITH_AES_128_GCM_SHA256, the 2048-bit group of RFC 3526.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.attacks.catalogue.records import CHANGE_CIPHER_SPEC, HANDSHAKE, MAX_RECORD_BYTES, Refused, Server

SUITE = 0x00A6  # TLS_DH_anon_WITH_AES_128_GCM_SHA256
GENERATOR = 2
PRIME = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F"
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510"
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
SERVER_HELLO, SERVER_KEY_EXCHANGE, SERVER_HELLO_DONE, CLIENT_KEY_EXCHANGE, FINISHED = 2, 12, 14, 16, 20


class Anonymous(Server):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._pending = b""
        self._read: _Keys | None = None
        self._write: _Keys | None = None

    def handshake(self) -> None:
        """Raises Refused where the client ends it."""
        hello = self._message()
        theirs, ours = hello[6:38], os.urandom(32)
        private = secrets.randbits(256)
        public = pow(GENERATOR, private, PRIME).to_bytes(256)
        self._say(SERVER_HELLO, struct.pack(">H", 0x0303) + ours + b"\0" + struct.pack(">HB", SUITE, 0))
        parameters = b"".join(
            struct.pack(">H", len(part)) + part for part in (PRIME.to_bytes(256), bytes([GENERATOR]), public)
        )
        self._say(SERVER_KEY_EXCHANGE, parameters)
        self._say(SERVER_HELLO_DONE, b"")

        exchange = self._message()
        if exchange[0] != CLIENT_KEY_EXCHANGE:
            raise Refused(f"no ClientKeyExchange: {exchange[0]}")
        point = int.from_bytes(exchange[6:])
        shared = pow(point, private, PRIME)
        premaster = shared.to_bytes(
            (shared.bit_length() + 7) // 8
        )  # leading zeros are stripped (RFC 5246, 8.1.2)
        master = _prf(premaster, b"master secret", theirs + ours, 48)
        block = _prf(master, b"key expansion", ours + theirs, 40)
        self._read, write = _Keys(block[:16], block[32:36]), _Keys(block[16:32], block[36:40])
        kind, _ = self._record()
        if kind != CHANGE_CIPHER_SPEC:
            raise Refused("no ChangeCipherSpec")
        expected = _prf(master, b"client finished", hashlib.sha256(self._transcript).digest(), 12)
        if not hmac.compare_digest(self._message()[4:], expected):
            raise Refused("not the client's Finished")
        self._connection.sendall(struct.pack(">BHHB", CHANGE_CIPHER_SPEC, 0x0303, 1, 1))
        self._write = write
        self._say(FINISHED, _prf(master, b"server finished", hashlib.sha256(self._transcript).digest(), 12))

    # ---- records and messages

    def _say(self, kind: int, body: bytes) -> None:
        message = bytes([kind]) + len(body).to_bytes(3) + body
        self._transcript += message
        self._send(HANDSHAKE, message)

    def _send(self, kind: int, content: bytes) -> None:
        body = content if self._write is None else self._write.seal(kind, content)
        self._connection.sendall(struct.pack(">BHH", kind, 0x0303, len(body)) + body)

    def _message(self) -> bytes:
        """The next handshake message, and into the transcript with it."""
        while len(self._pending) < 4 or len(self._pending) < 4 + int.from_bytes(self._pending[1:4]):
            kind, content = self._record()
            if kind != HANDSHAKE:
                raise Refused(f"an alert: {content.hex()}")
            self._pending += content
        size = 4 + int.from_bytes(self._pending[1:4])
        message, self._pending = self._pending[:size], self._pending[size:]
        self._transcript += message
        return message

    def _record(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BHH", self._exactly(5))
        if length > MAX_RECORD_BYTES:
            raise Refused("no TLS")
        body = self._exactly(length)
        if self._read is not None and kind != CHANGE_CIPHER_SPEC:
            return kind, self._read.open(kind, body)
        return kind, body


class _Keys:
    """One direction's key (RFC 5288, 3), and how many records it has seen."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self._cipher = AESGCM(key)
        self._salt = salt
        self._sequence = 0

    def _next(self) -> bytes:
        number = struct.pack(">Q", self._sequence)
        self._sequence += 1
        return number

    def seal(self, kind: int, content: bytes) -> bytes:
        number = self._next()
        header = number + struct.pack(">BHH", kind, 0x0303, len(content))
        return number + self._cipher.encrypt(self._salt + number, content, header)

    def open(self, kind: int, body: bytes) -> bytes:
        header = self._next() + struct.pack(">BHH", kind, 0x0303, len(body) - 24)
        return self._cipher.decrypt(self._salt + body[:8], body[8:], header)


def _prf(secret: bytes, label: bytes, seed: bytes, length: int) -> bytes:
    """P_SHA256 (RFC 5246, 5)."""
    seed = label + seed
    output, chained = b"", seed
    while len(output) < length:
        chained = hmac.digest(secret, chained, "sha256")
        output += hmac.digest(secret, chained + seed, "sha256")
    return output[:length]
