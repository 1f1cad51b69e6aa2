"""Coming in: TLS, a name, a cookie, and then whatever would run code in the victim. One function, one
attempt.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.attacks.catalogue import dialogue
from tests.attacks.catalogue.attack import Stage, Try
from tests.attacks.catalogue.dialogue import HIDDEN, VISIBLE, Wire
from tests.attacks.catalogue.terms import ANSWERS, Speaker, operation

CALL_SECONDS = 10.0
"""How long an attacker that is linked waits for the victim to do as it was told: whom the victim throws out
need not wait, and a machine may be busy.
"""

Say = Callable[[Speaker], Sequence[bytes]]


def everything(speaker: Speaker) -> Sequence[bytes]:
    return speaker.everything()


def enter(
    stage: Stage,
    context: ssl.SSLContext,
    name: str | bytes,
    cookie: str,
    *,
    hidden: bool = True,
    flags: int = 0,
    say: Say = everything,
    pipelined: bool = True,
    address: tuple[str, int] | None = None,
    **about: Any,
) -> Try:
    """One attempt to come in as `name`, at the target's own address or another. `flags`: more than usual.
    `pipelined`: what would run is sent together with the cookie, so that it stands in the victim's buffers
    before anybody decides. `about`: fields of the Try.
    """
    raw = name if isinstance(name, bytes) else name.encode()
    wire = dialogue.tls(address or stage.target.address, context)
    try:
        dialogue.handshake(wire)
        _, challenge = dialogue.introduce(wire, raw, (HIDDEN if hidden else VISIBLE) | flags)
        if challenge is None:
            return Try(wire.address, wire.until_end(), **about)
        return attempt_to_run(stage, wire, raw, challenge, cookie, say, pipelined, about)
    except OSError:  # refused; ssl.SSLError is one
        return Try(wire.address, wire.until_end(), **about)
    finally:
        wire.close()


def attempt_to_run(
    stage: Stage,
    wire: Wire,
    name: bytes,
    challenge: dialogue.Challenge,
    cookie: str,
    say: Say,
    pipelined: bool,
    about: dict[str, Any],
) -> Try:
    """From the challenge on: the cookie, what shall run, and whether it did."""
    canary = stage.canary()
    speaker = Speaker(name, 1, challenge.name, challenge.creation, canary.address)
    reply = dialogue.reply_frame(cookie, challenge.number)
    words = say(speaker)
    wire.socket.sendall(wire.framed(reply, *words) if pipelined else wire.framed(reply))
    linked = executed = False
    ended: float | None = None
    try:
        linked = wire.receive()[:1] == b"a"
        if linked:
            if not pipelined:
                wire.socket.sendall(wire.framed(*words))
            until = time.monotonic() + CALL_SECONDS
            while not executed and wire.wait(canary.fileno(), max(0.0, until - time.monotonic())):
                executed = canary.heard() > 0 or operation(wire.receive()) in ANSWERS
    except OSError:  # ended; ssl.SSLError is one
        ended = wire.until_end()
    return Try(wire.address, ended, linked, executed or canary.heard() > 0, **about)
