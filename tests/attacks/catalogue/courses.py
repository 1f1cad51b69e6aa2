"""Attacks with a course of their own: real nodes that attack, hammering at a node that starts, and by one
that is denied."""

from __future__ import annotations

import functools
import itertools
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

from tests.attacks.catalogue.attack import Attack, Boot, Need, Play, Stage, Target, Try
from tests.attacks.catalogue.canary import Canary
from tests.attacks.catalogue.entry import CALL_SECONDS, enter
from tests.system.certificates import Leaf
from tests.system.intruder import Intruder, atom

BATCH = 25

# ---- real nodes that attack

_BEAM = """
process_flag(trap_exit, true),
Victim = {victim},
Call = {call},
Say = fun(0) -> rpc:cast(Victim, gen_tcp, connect, Call);
         (1) -> spawn(Victim, gen_tcp, connect, Call);
         (2) -> {{rex, Victim}} ! {{'$gen_cast', {{cast, gen_tcp, connect, Call, self()}}}};
         (3) -> spawn_link(Victim, gen_tcp, connect, Call);
         (4) -> spawn_opt(Victim, gen_tcp, connect, Call, [monitor])
      end,
Now = fun() -> erlang:monotonic_time(microsecond) end,
Await = fun Await(Began) ->
            receive
                {{nodedown, Victim}} -> Now() - Began
            after {patience} ->
                case lists:member(Victim, nodes(connected)) of
                    true ->
                        true = monitor_node(Victim, false),
                        erlang:disconnect_node(Victim),
                        up;
                    false -> Await(Began) % net_kernel gives up a dial after net_setuptime
                end
            end
        end,
Try = fun(N) ->
          Began = Now(),
          true = monitor_node(Victim, true),
          Say(N rem 5),
          Took = Await(Began),
          (fun Flush() -> receive _ -> Flush() after 0 -> ok end end)(),
          Took
      end,
[Try(N) || N <- lists:seq({first}, {last})]
"""
"""Each dials once: the dial that monitor_node/2 begins carries what is said right after it."""

BOTH = ("tlsv1.3", "tlsv1.2")

PATIENCE_MILLISECONDS = 1000


@contextmanager
def beam(
    stage: Stage, name: str, leaf: Leaf | None, peers: Mapping[str, int], **how: Any
) -> Iterator[Intruder]:
    """A real node that nobody manages, with its peers' ports."""
    target = stage.target
    node = Intruder(
        target.erlang,
        target.beams(),
        target.directory(),
        name,
        leaf=leaf,
        peers=peers,
        host=target.address[0],
        **{"versions": BOTH, **how},
    )
    try:
        yield node
    finally:
        node.stop()


def by_beam(name: Callable[[Target], str], dress: Callable[[Target], Leaf | None], **how: Any) -> Play:
    """A real node that casts, spawns, sends and monitors; everything that it says is the first thing of a
    link.
    """

    def play(stage: Stage) -> Iterable[Try]:
        target = stage.target
        own = name(target)
        port = target.address[1]
        canary = stage.canary()
        place = "{" + ",".join(canary.address[0].split(".")) + "}"
        known = {"cookie": target.cookie(own), **how}
        with beam(stage, own, dress(target), {target.name: port}, **known) as node:
            for first in range(0, stage.attempts, BATCH):
                if stage.over():
                    break
                last = min(first + BATCH, stage.attempts)
                text = _BEAM.format(
                    victim=atom(target.name),
                    call=f"[{place}, {canary.address[1]}, []]",
                    patience=PATIENCE_MILLISECONDS,
                    first=first,
                    last=last - 1,
                )
                took = node.erl(text, 30 + 2 * BATCH).strip("[]").split(",")
                heard = canary.heard()
                while heard < took.count("up") and (more := canary.heard(CALL_SECONDS)):
                    heard += more  # the victim may still be at it
                for number, one in enumerate(took):
                    ended = None if one == "up" else float(one) / 1e6
                    yield Try("", ended, one == "up", number < heard, claimed=own)
                stage.progress(last, stage.attempts)

    return play


# ---- a node that starts


def boot_window(stage: Stage) -> Iterable[Try]:
    """Hammers at a node from before it listens until it is all there, boot after boot; an insider, and a
    stranger.
    """
    target = stage.target
    stranger = stage.context(target.leaf("evil@127.0.0.1"))
    insider = stage.context(target.leaf(target.listed()))
    boots = max(1, min(stage.attempts, BOOTS))
    with closing(target.boots(boots)) as started:
        for number, boot in enumerate(started, 1):
            tries: list[Try] = []
            with _hammering(functools.partial(_at_boot, stage, boot, (stranger, insider)), tries):
                while boot.goes_on():
                    time.sleep(LOOK_SECONDS)
            stage.progress(number, boots)
            yield from tries
            if stage.over():
                break


BOOTS = 50
HAMMERS = 4
LOOK_SECONDS = 0.02
"""Between two looks whether the boot is over, and whether anybody listens yet."""


def _at_boot(stage: Stage, boot: Boot, contexts: Sequence[ssl.SSLContext], number: int) -> Try | None:
    """None: nobody listens yet."""
    context = contexts[number % len(contexts)]
    try:
        return enter(
            stage, context, "ghost@127.0.0.1", boot.cookie, address=boot.address, claimed="ghost@127.0.0.1"
        )
    except ConnectionRefusedError:
        return None


@contextmanager
def _hammering(attempt: Callable[[int], Try | None], tries: list[Try]) -> Iterator[None]:
    """In several threads, until the block ends."""
    over = threading.Event()

    def hammer(number: int) -> None:
        while not over.is_set():
            with suppress(OSError):
                came = attempt(number)
                if came is not None:
                    tries.append(came)
                else:
                    over.wait(LOOK_SECONDS / 10)

    threads = [threading.Thread(target=hammer, args=(n,), name="hammer", daemon=True) for n in range(HAMMERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


# ---- a node that is denied while it hammers


def revocation_churn(stage: Stage) -> Iterable[Try]:
    """A listed node comes in as fast as it can, right in everything, while it is denied and allowed in turns.

    Tried is what began after a denial was acknowledged and ended before the next allow: none of it may
    come up.
    """
    target = stage.target
    b = target.listed()
    context = stage.context(target.leaf(b))
    cookie = target.cookie(b)  # now: a node forgets that of one whom it denies
    denial: int | None = None  # the number of the denial that is in force; None: allowed
    tries: list[Try] = []
    window: list[tuple[Try, Canary | None]] = []

    def attempt(_number: int) -> None:
        # Of its own: what was let in before the denial may call back late.
        canary = stage.fresh_canary()
        began_in = denial
        came = enter(stage, context, b, cookie, claimed=b)
        if began_in is not None and began_in == denial:  # and not allowed in between
            window.append((came, canary))
        else:
            canary.close()

    with _hammering(attempt, []):
        for number in itertools.count():
            if len(tries) >= stage.attempts or stage.over():
                break
            target.operate("deny", b)
            denial = number
            up = target.evaluate(f"lists:member({atom(b)}, nodes(connected))")
            if up != "false":
                window.append((Try("", None, linked=True, claimed=b), None))
            least = len(window) + min(CHURN_TRIES, stage.attempts)
            deadline = time.monotonic() + CHURN_SECONDS
            while len(window) < least and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
            denial = None
            ended, window = window, []
            for came, canary in ended:
                tries.append(
                    replace(came, executed=came.executed or (canary is not None and canary.heard() > 0))
                )
                if canary is not None:
                    canary.close()
            stage.progress(min(len(tries), stage.attempts), stage.attempts)
            target.operate("allow", b)
    return tries


CHURN_TRIES = 50
CHURN_SECONDS = 10.0


def _unlisted(target: Target) -> Leaf:
    return target.leaf("evil@127.0.0.1")


def _insider(target: Target) -> Leaf:
    return target.leaf(target.listed())


def _evil(_target: Target) -> str:
    return "evil@127.0.0.1"


def _other(target: Target) -> str:
    return target.listed(1)


_BEAM_NEEDS = frozenset({Need.BEAM, Need.COOKIE})
_NAME = frozenset({"name_not_in_certificate"})

ATTACKS = (
    Attack(
        "beam_hidden",
        "a real hidden node, unlisted",
        by_beam(_evil, _unlisted, hidden=True),
        frozenset({"not_allowed"}),
        _BEAM_NEEDS | {Need.CA_KEY},
        identity=lambda target: target.identity("evil@127.0.0.1"),
    ),
    Attack(
        "beam_visible",
        "a real visible node, unlisted",
        by_beam(_evil, _unlisted),
        frozenset({"not_allowed"}),
        _BEAM_NEEDS | {Need.CA_KEY},
        identity=lambda target: target.identity("evil@127.0.0.1"),
    ),
    Attack(
        "beam_insider",
        "a real node that claims another's name",
        by_beam(_other, _insider, hidden=True),
        _NAME,
        _BEAM_NEEDS | {Need.INSIDER},
        identity=lambda target: target.identity(target.listed()),
    ),
    Attack(
        "beam_plaintext",
        "a real node with -proto_dist inet_tcp",
        by_beam(_other, lambda _target: None, carrier="inet_tcp"),
        frozenset({"malformed", "closed"}),
        _BEAM_NEEDS,
    ),
    Attack(
        "boot_window",
        "hammering while a node starts, 50 boots",
        boot_window,
        frozenset({"not_allowed", "name_not_in_certificate"}),
        frozenset({Need.BOOT, Need.CA_KEY, Need.COOKIE, Need.INSIDER}),
        counts_links=True,
    ),
    Attack(
        "revocation_churn",
        "hammering while it is denied",
        revocation_churn,
        frozenset({"denied"}),
        frozenset({Need.POLICY, Need.INSIDER, Need.COOKIE, Need.INSIDE}),
        identity=lambda target: target.identity(target.listed()),
        counts_links=True,
    ),
)
