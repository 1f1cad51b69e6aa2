"""The victim dials, and somebody else answers. Who listens at a listed node's address has its certificate
to show.

The victim is told to dial again and again; each connection that comes is one attempt.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag

from tests.attacks.catalogue import dialogue
from tests.attacks.catalogue.attack import Attack, Need, Play, Stage, Target, Try
from tests.attacks.catalogue.canary import Canary
from tests.attacks.catalogue.dialogue import Wire
from tests.attacks.catalogue.entry import CALL_SECONDS
from tests.attacks.catalogue.listening import Listening
from tests.attacks.catalogue.records import Refused
from tests.attacks.catalogue.terms import Speaker
from tests.attacks.catalogue.tls12 import Anonymous
from tests.attacks.catalogue.tls13 import Unsolicited
from tests.system.certificates import TestAuthority

BATCH = 25
"""Dials that the victim is told at once, so that progress is seen."""


class Secured(Protocol):
    """What of a socket a distribution handshake needs."""

    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, size: int, /) -> bytes: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


Secure = Callable[[socket.socket], Secured]
"""Does the server's side of TLS, and returns what sends and receives through it. Raises OSError or
ValueError.
"""


class Impostor(Listening):
    """Listens where a listed node should."""

    def __init__(self, stage: Stage, secure: Secure, *, knows_cookie: bool) -> None:
        self._stage, self._secure, self._knows_cookie = stage, secure, knows_cookie
        self.name = stage.target.listed()
        host, port = stage.target.listed_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(socket.create_server((host, port), family=family, backlog=128), "impostor")

    def take(self, accepted: socket.socket) -> Try:
        address, canary = dialogue.text_of(accepted.getsockname()), self._stage.canary()
        linked = executed = False
        began = time.monotonic()
        ends: Secured = accepted
        try:
            ends = self._secure(accepted)
            wire = Wire(ends, address)
            cookie = self._stage.target.cookie(self.name) if self._knows_cookie else None
            speaker = Speaker(self.name, 1, self._stage.target.name, 0, canary.address)
            words = (speaker.spawn(), speaker.cast(), speaker.send())
            dialogue.accept_handshake(wire, self.name, cookie, words=words)
            linked = True  # as far as we can tell: the victim judges our answer to its challenge after that
            executed = _called(ends, canary)
        except (OSError, ValueError, struct.error):  # refused
            pass
        ended = time.monotonic() - began
        ends.close()
        return Try(address, None if executed else ended, linked and executed, executed, claimed=self.name)


def _called(link: Secured, canary: Canary) -> bool:
    """Waits for the victim's call, or for the end of the connection, which comes first where we are
    refused; whether there was a call. Of both at once it is the call that counts.
    """
    poll = select.poll()
    poll.register(link.fileno(), select.POLLRDHUP)
    poll.register(canary.fileno(), select.POLLIN)
    poll.poll(CALL_SECONDS * 1000)
    return canary.heard() > 0


def dialled(secure: Callable[[Stage], Secure], *, knows_cookie: bool = True) -> Play:
    """The victim dials as often as wanted."""

    def play(stage: Stage) -> Iterable[Try]:
        with Impostor(stage, secure(stage), knows_cookie=knows_cookie) as impostor:
            for done in range(0, stage.attempts, BATCH):
                if stage.over():
                    break
                stage.target.dial(impostor.name, min(BATCH, stage.attempts - done))
                stage.progress(min(done + BATCH, stage.attempts), stage.attempts)
        return impostor.tries

    return play


# ---- what it shows


def shown(
    dress: Callable[[Target], Any], maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Callable[[Stage], Secure]:
    """A certificate, by a server that trusts every client."""

    def of(stage: Stage) -> Secure:
        leaf = dress(stage.target)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = maximum
        context.load_cert_chain(leaf.certificate, leaf.key)

        def secure(raw: socket.socket) -> ssl.SSLSocket:
            with raw:  # wrapping takes the descriptor away from it; where that fails it is closed
                return context.wrap_socket(raw, server_side=True)

        return secure

    return of


def unsolicited(_stage: Stage) -> Secure:
    return _by_hand(Unsolicited)


def anonymous(_stage: Stage) -> Secure:
    return _by_hand(Anonymous)


def _by_hand(server: type[Unsolicited] | type[Anonymous]) -> Secure:
    def secure(raw: socket.socket) -> Unsolicited | Anonymous:
        made = server(raw)
        try:
            made.handshake()
        except InvalidTag as error:  # a record that is not for our keys
            raise Refused("no record of ours") from error
        return made

    return secure


def plaintext(_stage: Stage) -> Secure:
    """No TLS at all: a node that speaks inet_tcp, and takes whatever came for a first frame."""

    def secure(raw: socket.socket) -> Secured:
        raw.recv(65536)
        for frame in (b"sok", b"N" + bytes(18)):
            raw.sendall(struct.pack(">H", len(frame)) + frame)
        raw.recv(65536)
        raise Refused("it does not speak plaintext")

    return secure


def _unlisted(target: Target) -> Any:
    return target.leaf("evil@127.0.0.1")


def _other_insider(target: Target) -> Any:
    return target.leaf(target.listed(1))


def _foreign(target: Target) -> Any:
    return TestAuthority.foreign().issue(target.directory(), [target.identity(target.listed())])


def _itself(target: Target) -> Any:
    return target.leaf(target.listed())


_NEEDS = frozenset({Need.INSIDE, Need.COOKIE})


def _attack(
    name: str,
    title: str,
    play: Play,
    *reasons: str,
    identity: Callable[[Target], str | None] = lambda _target: None,
    needs: frozenset[Need] = frozenset({Need.CA_KEY}),
) -> Attack:
    return Attack(name, title, play, frozenset(reasons), _NEEDS | needs, "out", identity)


ATTACKS = (
    _attack(
        "impostor_unlisted",
        "dialled: an unlisted certificate answers",
        dialled(shown(_unlisted)),
        "name_not_in_certificate",
        identity=lambda target: target.identity("evil@127.0.0.1"),
    ),
    _attack(
        "impostor_insider",
        "dialled: another listed node answers",
        dialled(shown(_other_insider)),
        "name_not_in_certificate",
        identity=lambda target: target.identity(target.listed(1)),
    ),
    _attack(
        "impostor_foreign",
        "dialled: a foreign CA's node answers",
        dialled(shown(_foreign)),
        "unknown_ca",
        identity=lambda target: target.identity(target.listed()),
        needs=frozenset(),
    ),
    _attack(
        "impostor_cookie",
        "dialled: right certificate, wrong cookie",
        dialled(shown(_itself), knows_cookie=False),
        "bad_cookie",
        identity=lambda target: target.identity(target.listed()),
    ),
    _attack(
        "impostor_tls_1_2",
        "dialled: a server of TLS 1.2",
        dialled(shown(_itself, ssl.TLSVersion.TLSv1_2)),
        "protocol_version",
        "handshake_failed",
        "refused_by_peer",
    ),
    _attack(
        "impostor_plaintext",
        "dialled: a node without TLS",
        dialled(plaintext),
        "malformed",
        "closed",
        "handshake_failed",
        needs=frozenset(),
    ),
    _attack(
        "unsolicited_psk",
        "dialled: CVE-2026-89422",
        dialled(unsolicited),
        "certificate_required",
        "handshake_failed",
        "malformed",
        needs=frozenset(),
    ),
    _attack(
        "anonymous_suite",
        "dialled: CVE-2026-55953",
        dialled(anonymous),
        "protocol_version",
        "certificate_required",
        "handshake_failed",
        "malformed",
        needs=frozenset(),
    ),
)
