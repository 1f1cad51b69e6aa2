"""When the certificate of a node is to be renewed, when a failed try is repeated, and when to warn. Pure.

One `Watch` a node (and one for the CA, which is only warned of). `look` is asked every second; it answers
with the next watch and whether to renew now, and what to warn of. Certificates are judged by the same time
as in the nodes (core.clock): a wall clock that was set back revives and delays nothing, and by one that
jumped ahead what has expired is renewed at once. By the clock that nobody sets a node is never renewed twice
within a gap, whatever the wall clock does: no storm.

    CURRENT ──due──▶ DUE ──3/4, 1/2, 1/4 of the time left──▶ warned three times, severity rising
    DUE ──renewed──▶ CURRENT (another serial)     DUE ──0──▶ EXPIRED (warned once more)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from distsec.core.clock import Clocks
from distsec.model.events import Severity

MAX_BEFORE_SECONDS = 30 * 86400.0
"""Renewal begins when a third of the certificate's life is left, but not earlier than this before its end."""

CA_BEFORE_SECONDS = 365 * 86400.0
"""Likewise of the CA, whose successor somebody has to bring in by hand."""

JITTER_SHARE = 0.1
"""By how much of that time it begins earlier, at most: so that nodes that were issued together are not
renewed together."""

RETRY_FIRST_SECONDS = 1.0
RETRY_CAP_SECONDS = 3600.0
RETRY_SHARE = 0.1
"""Of the time that is left: a certificate of a minute is tried again sooner than one of a year."""

MIN_GAP_SHARE = 1 / 8
MAX_GAP_SECONDS = 600.0
MIN_GAP_SECONDS = 1.0
URGENT_GAP_SECONDS = 5.0

MAX_SET_BACK_SECONDS = 2 * 86400.0
"""A clock that was further ahead was wrong, and is followed back: certificates that last for both would be
good for long after. Nodes that believe the later time go on judging by that until they are started anew."""


@dataclass(frozen=True, slots=True)
class Clock:
    """One moment, in seconds. `now` is the time that certificates are judged by, in nodes that run and here;
    `wall` what the host's clock says, which nodes that start go by; `steady` is set by nobody.
    """

    now: float
    wall: float
    steady: float

    @classmethod
    def of(cls, clocks: Clocks, believed: float) -> Clock:
        """`believed`: core.clock.Belief.time."""
        ahead = believed - clocks.wall
        return cls(believed if 0 < ahead <= MAX_SET_BACK_SECONDS else clocks.wall, clocks.wall, clocks.steady)

    @property
    def behind(self) -> float:
        """By how many seconds the wall clock was set back. A certificate that is issued now is to last for
        so much longer: by it for those that start, and by `now` for those that run.
        """
        behind = self.now - self.wall
        return behind if behind > 1.0 else 0.0


@dataclass(frozen=True, slots=True)
class Life:
    """Of one certificate; Unix seconds. `latest`: when a new one would end at the latest (the CA's own end).

    `ours`: this cluster's CA has issued it, so it is ours to renew. What somebody else has brought (a SPIFFE
    helper, cert-manager) is theirs to renew, and only warned of.
    """

    serial: str
    not_before: float
    not_after: float
    latest: float | None = None
    ours: bool = True

    @property
    def seconds(self) -> float:
        return max(0.0, self.not_after - self.not_before)


@dataclass(frozen=True, slots=True)
class Rules:
    """`[certificates]` of the configuration, in seconds; None: chosen from the certificate's life."""

    renew_before_seconds: float | None = None
    renew_jitter_seconds: float | None = None


class State(StrEnum):
    """What `status` shows of a certificate's renewal."""

    CURRENT = "current"
    DUE = "due"
    FAILING = "failing"  # due, and the last try has failed
    ELSEWHERE = "elsewhere"  # due, and not ours to renew
    CA_ENDS = "ca_ends"  # due, and a new one would end no later: the CA does
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of one certificate's renewal. Starts empty; `serial`: which certificate it is about."""

    serial: str = ""
    failures: int = 0
    why: str = ""  # of the last failure; escaped
    retry_at: float | None = None  # steady
    renewed_at: float | None = None  # steady
    begun: float | None = None  # when it was renewed; its not_before may be long before that
    warned: int = 0  # how many of WARNINGS were told


@dataclass(frozen=True, slots=True)
class Warning:
    """Told once for each certificate. `left` in seconds."""

    severity: Severity
    left: float


WARNINGS = (
    (0.75, Severity.NOTICE),
    (0.5, Severity.WARNING),
    (0.25, Severity.CRITICAL),
    (0.0, Severity.CRITICAL),
)
"""At which share of the time between the beginning of renewal and the end; the last is the end itself. Where
renewal works, the first is never reached."""


@dataclass(frozen=True, slots=True)
class Look:
    """The answer of `look`."""

    watch: Watch
    state: State
    renew: bool = False
    warning: Warning | None = None


def before_seconds(life: Life, rules: Rules) -> float:
    """How long before its end a certificate is due. Never more than half its life, whatever is configured:
    it would be due again as soon as it is renewed.
    """
    chosen = rules.renew_before_seconds
    if chosen is None:
        return min(life.seconds / 3, MAX_BEFORE_SECONDS)
    return min(chosen, life.seconds / 2)


def due_at(life: Life, rules: Rules, chance: float) -> float:
    """When it is to be renewed: Unix seconds. `chance`, in [0, 1): this certificate's part of the jitter."""
    before = before_seconds(life, rules)
    jitter = before * JITTER_SHARE if rules.renew_jitter_seconds is None else rules.renew_jitter_seconds
    return life.not_after - before - min(jitter, life.seconds / 8) * chance


def look(watch: Watch, life: Life, rules: Rules, clock: Clock, chance: float) -> Look:
    """What is to be done about the certificate `life` now."""
    now = clock.now
    if watch.serial != life.serial:  # another one is in its place, whoever brought it
        watch = Watch(life.serial, renewed_at=watch.renewed_at)
    # Issued while the clock was ahead: who starts now finds it not yet valid.
    too_early = clock.wall < life.not_before
    if watch.begun is not None and life.not_before <= watch.begun < life.not_after:
        life = replace(life, not_before=watch.begun)
    watch, warning = _warned(watch, life, before_seconds(life, rules), now)
    expired = now >= life.not_after
    due = too_early or expired or now >= due_at(life, rules, chance)
    if not due:
        return Look(watch, State.CURRENT, warning=warning)
    if not life.ours:
        return Look(watch, State.EXPIRED if expired else State.ELSEWHERE, warning=warning)
    if life.latest is not None and life.latest <= life.not_after:
        return Look(watch, State.EXPIRED if expired else State.CA_ENDS, warning=warning)
    state = State.EXPIRED if expired else State.FAILING if watch.failures else State.DUE
    gap = max(MIN_GAP_SECONDS, life.seconds * MIN_GAP_SHARE)
    # With what is not valid now a node makes no new link: that does not wait.
    gap = min(URGENT_GAP_SECONDS if too_early or expired else MAX_GAP_SECONDS, gap)
    resting = watch.renewed_at is not None and clock.steady < watch.renewed_at + gap
    waiting = watch.retry_at is not None and clock.steady < watch.retry_at
    return Look(watch, state, renew=not (resting or waiting), warning=warning)


def renewed(serial: str, clock: Clock, *, issued_now: bool = True) -> Watch:
    """It has been, and `serial` is the new one's."""
    return Watch(serial, renewed_at=clock.steady, begun=clock.now if issued_now else None)


def failed(watch: Watch, life: Life, why: str, clock: Clock, chance: float) -> Watch:
    """A try has failed. The next one follows after a pause that doubles, but is short where little time is
    left; half of it by `chance`.
    """
    left = max(0.0, life.not_after - clock.now) * RETRY_SHARE
    cap = min(RETRY_CAP_SECONDS, max(RETRY_FIRST_SECONDS, left))
    pause = min(cap, RETRY_FIRST_SECONDS * 2.0 ** min(watch.failures, 16)) * (0.5 + 0.5 * chance)
    return replace(watch, failures=watch.failures + 1, why=why, retry_at=clock.steady + pause)


def look_at_ca(watch: Watch, life: Life, now: float) -> Look:
    """The same about the CA: nothing is renewed, only warned of."""
    if watch.serial != life.serial:
        watch = Watch(life.serial)
    before = min(life.seconds / 3, CA_BEFORE_SECONDS)
    watch, warning = _warned(watch, life, before, now)
    if now >= life.not_after:
        return Look(watch, State.EXPIRED, warning=warning)
    due = now >= life.not_after - before
    return Look(watch, State.DUE if due else State.CURRENT, warning=warning)


def _warned(watch: Watch, life: Life, before: float, now: float) -> tuple[Watch, Warning | None]:
    """One warning at most: of those that were missed (a clock that jumped, an orchestrator that was away)
    the gravest.
    """
    left = life.not_after - now
    reached = sum(left <= before * share for share, _ in WARNINGS)
    if reached <= watch.warned:
        return watch, None
    return replace(watch, warned=reached), Warning(WARNINGS[reached - 1][1], left)
