"""Whoever holds a listed certificate, and every cookie, and wants to be somebody else.

The insider is the listed node `b`; `c` is listed too; `ghost` is not. On stock OTP each of these runs code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.attacks.catalogue import dialogue
from tests.attacks.catalogue.attack import Attack, Need, Play, Stage, Target, Try
from tests.attacks.catalogue.entry import Say, enter, everything
from tests.attacks.catalogue.terms import Speaker

Named = Callable[[Target, int], str | bytes]

GHOST = "ghost@127.0.0.1"


def claiming(
    named: Named,
    *,
    hidden: bool = True,
    flags: int = 0,
    say: Say = everything,
    cookie: str | None = None,
    alone: bool = False,
) -> Play:
    """With the insider's certificate, and the cookie that goes with the name unless another is given.
    `alone`: one attempt after the other, since the victim lets a later one of the same name take the
    earlier one's place.
    """

    def play(stage: Stage) -> Iterable[Try]:
        target = stage.target
        context = stage.context(target.leaf(target.listed()))

        def attempt(number: int) -> Try:
            name = named(target, number)
            text = name if isinstance(name, str) else name.decode(errors="replace")
            known = cookie or target.cookie(text)
            return enter(stage, context, name, known, hidden=hidden, flags=flags, say=say, claimed=text)

        return stage.each(attempt, threads=1 if alone else None)

    return play


def ghost(_target: Target, _number: int) -> str:
    return GHOST


def another(target: Target, _number: int) -> str:
    return target.listed(1)


def itself(target: Target, _number: int) -> str:
    return target.listed()


def victim(target: Target, _number: int) -> str:
    return target.name


def many(_target: Target, number: int) -> str:
    return f"ghost-{number}@127.0.0.1"


HOSTILE = (
    b"",
    b"@",
    b"b",
    b"b@",
    b"@127.0.0.1",
    b"b@127.0.0.1@127.0.0.1",
    b"b\x00@127.0.0.1",
    b"b@127.0.0.1\x00",
    b"\x00" * 20,
    b"b@127.0.0.1\n",
    b"b@127.0.0.1 ",
    b"\x1b[2Jb@127.0.0.1",
    "b\u202e@127.0.0.1".encode(),
    b"\xff\xfe@127.0.0.1",
    b"\xc0\x80@127.0.0.1",
    b"\xed\xa0\x80@127.0.0.1",
    b"undefined",
    b"undefined@127.0.0.1",
    b"nonode@nohost",
    b"B@127.0.0.1",
    b"b@localhost",
    b"b@127.0.0.01",
    b"*@127.0.0.1",
    b"x" * 245 + b"@127.0.0.1",
    b"x" * 246 + b"@127.0.0.1",
    b"x" * 4096 + b"@127.0.0.1",
    b"x" * 60000 + b"@127.0.0.1",
)
"""Names that no list holds: NUL, controls, bidi, invalid and overlong UTF-8, 255 bytes and more,
`undefined`.
"""


def hostile(_target: Target, number: int) -> bytes:
    return HOSTILE[number % len(HOSTILE)]


def dynamic(target: Target, _number: int) -> str:
    """Only the host: the acceptor makes up the rest (DFLAG_NAME_ME)."""
    return target.name.partition("@")[2]


def old_frame(stage: Stage) -> Iterable[Try]:
    """Version 5's first frame, and versions that never were."""
    target = stage.target
    context = stage.context(target.leaf(target.listed()))

    def attempt(number: int) -> Try:
        wire = dialogue.tls(target.address, context)
        name = target.listed(1)
        try:
            dialogue.handshake(wire)
            wire.send(dialogue.old_name_frame(name.encode()))
            wire.receive()
            wire.receive()
            wire.send(dialogue.reply_frame(target.cookie(name), number))
        except OSError:
            pass
        ended = wire.until_end()
        wire.close()
        return Try(wire.address, ended, claimed=name)

    return stage.each(attempt)


_INSIDER = frozenset({Need.INSIDER, Need.COOKIE})
_NAME = frozenset({"name_not_in_certificate"})


def _identity(target: Target) -> str:
    return target.identity(target.listed())


def _attack(name: str, title: str, play: Play, reasons: frozenset[str] = _NAME) -> Attack:
    return Attack(name, title, play, reasons, _INSIDER, identity=_identity)


def _race(name: str, title: str, say: Callable[[Speaker], bytes]) -> Attack:
    """One message right behind the cookie, in the same write."""
    return _attack(name, title, claiming(ghost, say=lambda speaker: [say(speaker)]))


ATTACKS = (
    _attack("insider_claims_listed", "listed certificate, another listed name", claiming(another)),
    _attack("insider_claims_unlisted", "listed certificate, an unlisted name", claiming(ghost)),
    _attack("insider_claims_visible", "the same, visible", claiming(ghost, hidden=False)),
    _attack("insider_claims_victim", "listed certificate, the victim's name", claiming(victim)),
    _attack("insider_claims_many", "listed certificate, ever new names", claiming(many)),
    _attack(
        "hostile_names",
        "names: NUL, bidi, 255 bytes, undefined …",
        claiming(hostile),
        # Of a frame that is longer than any may be ssl both tells and ends the session: `closed` where the
        # end is noticed first, as with `oversized_frame`.
        frozenset({"name_not_in_certificate", "unsafe_name", "malformed", "not_allowed", "closed"}),
    ),
    _attack(
        "dynamic_name",
        "asks to be named by the victim",
        claiming(dynamic, flags=dialogue.NAME_ME),
        frozenset({"name_not_in_certificate", "unsafe_name", "malformed"}),
    ),
    _attack(
        "old_protocol",
        "version 5's first frame, another name",
        old_frame,
        frozenset({"name_not_in_certificate", "malformed"}),
    ),
    _attack(
        "wrong_cookie",
        "wrong cookie",
        claiming(itself, cookie="a_guess", alone=True),
        frozenset({"bad_cookie"}),
    ),
    _attack(
        "wrong_cookie_at_once",
        "wrong cookies, several at a time",
        claiming(itself, cookie="a_guess"),
        frozenset({"bad_cookie", "closed"}),
    ),
    _race("race_cast", "one-shot cast", Speaker.cast),
    _race("race_spawn", "one-shot spawn", Speaker.spawn),
    _race("race_send", "one-shot send", Speaker.send),
    _race("race_link", "one-shot link", Speaker.link),
    _race("race_monitor", "one-shot monitor", Speaker.monitor),
)
