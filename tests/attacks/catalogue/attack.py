"""What an attack is, what it needs of a target, and what came of it.

An attack is tried many times; each `Try` is told from the attacker's side alone. What the victim saw of it
(its nodeups, its events) is asked of the target, where the target can be asked.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from ssl import SSLContext
from typing import Protocol

from tests.attacks.catalogue.canary import Canary
from tests.attacks.catalogue.dialogue import trusting
from tests.releases import Otp
from tests.system.certificates import Leaf, TestAuthority

LATE_SECONDS = 0.5
"""How long after the last attempt a call of the victim's still counts."""

THREADS = 8
"""Attempts at the same time. More than that would meet the carrier's bound for one address, an attack of
its own.
"""


class Need(StrEnum):
    """What an attack takes beyond the victim's address, and who has it."""

    CA_KEY = "ca-key"  # to issue certificates that the victim's CA has signed
    INSIDER = "insider"  # a certificate of a node that the victim lists, with its key
    COOKIE = "cookie"  # what the insider, or whoever was at a node, knows
    INSIDE = "inside"  # the victim does as it is told: it dials, and says what it saw
    POLICY = "policy"  # the operator's commands: deny, allow, revoke
    BOOT = "boot"  # the victim is started again and again
    BEAM = "beam"  # a real Erlang node attacks; one must be installed


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt. `address`: our end of it. `refused_seconds`: from its first byte until the victim ended
    it; None where it did not. `linked`: the victim took the cookie, so that we believe ourselves linked.
    `claimed`: the name that was claimed, where one was.
    """

    address: str
    refused_seconds: float | None
    linked: bool = False
    executed: bool = False
    claimed: str | None = None


class Boot(Protocol):
    """One start of a node, from before it listens until it is ended by whoever made it."""

    address: tuple[str, int]
    cookie: str

    def goes_on(self) -> bool:
        """Whether the node is not yet all there."""


class Target(Protocol):
    """What is attacked: the victim, and whatever else of its cluster one may have. See
    tests.attacks.targets.
    """

    carrier: str
    otp: str
    name: str
    abilities: frozenset[Need]

    @property
    def local(self) -> str:
        """An address of this host, where the victim reaches what the attacker listens on."""

    @property
    def sources(self) -> Sequence[str | None]:
        """Addresses of this host to attack from; None: whichever it is."""

    @property
    def threads(self) -> int:
        """Attempts at the same time."""

    @property
    def address(self) -> tuple[str, int]:
        """Where the victim listens for links."""

    @property
    def erlang(self) -> Otp:
        """The release that real nodes of the attacker's run on."""

    def authority(self) -> TestAuthority:
        """The CA that the victim trusts (CA_KEY)."""

    def leaf(self, *names: str) -> Leaf:
        """A certificate of the victim's CA for these node names; the insider's own where there is no
        CA_KEY.
        """

    def directory(self) -> Path:
        """A new private directory for files of the attacker's."""

    def identity(self, name: str) -> str:
        """What the event calls the certificate of a node name."""

    def listed(self, which: int = 0) -> str:
        """A node name that the victim lists, and nobody runs: 0 is the insider's, 1 another."""

    def cookie(self, name: str) -> str:
        """What the victim asks of a peer of that name (COOKIE)."""

    def listed_address(self, which: int = 0) -> tuple[str, int]:
        """Where the victim looks for a listed name (INSIDE)."""

    def dial(self, name: str, times: int) -> int:
        """The victim dials; how often it came to a link (INSIDE)."""

    def evaluate(self, expressions: str, seconds: float = 30.0) -> str:
        """Erlang in the victim, not over the distribution (INSIDE)."""

    def operate(self, *arguments: str) -> None:
        """One of the operator's commands (POLICY). Raises where it fails."""

    def boots(self, times: int) -> Generator[Boot, None, None]:
        """Starts a node as often as that, one after the other (BOOT)."""

    def beams(self) -> Path:
        """The tests' own Erlang modules, compiled (BEAM)."""


Attempt = Callable[[int], Try]
Progress = Callable[[int, int], None]
"""Called with how many attempts of how many are done; from one thread."""


@dataclass(slots=True)
class Stage:
    """One run of one attack: the target, how often, and what ends with it."""

    target: Target
    attempts: int
    progress: Progress = lambda _done, _of: None
    deadline: float | None = None  # time.monotonic() from which on nothing new is tried
    ends: ExitStack = field(default_factory=ExitStack)
    _local: threading.local = field(default_factory=threading.local)
    _canaries: list[Canary] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def canary(self) -> Canary:
        """This thread's own, so that a call is counted for the attempt that it belongs to."""
        own: Canary | None = getattr(self._local, "canary", None)
        if own is None:
            with self._lock:
                own = self.ends.enter_context(Canary(self.target.local))
                self._canaries.append(own)
            self._local.canary = own
        return own

    def fresh_canary(self) -> Canary:
        """This thread's from now on, of which no victim has heard yet. The caller closes it."""
        own: Canary = Canary(self.target.local)
        self._local.canary = own
        return own

    def late(self) -> int:
        """How many canaries were called after their attempt had been judged."""
        return sum(canary.heard(LATE_SECONDS / max(1, len(self._canaries))) > 0 for canary in self._canaries)

    def context(self, leaf: Leaf | None, **how: object) -> SSLContext:
        """A client's TLS for that certificate."""
        if leaf is None:
            return trusting(**how)  # type: ignore[arg-type]
        return trusting(str(leaf.certificate), str(leaf.key), **how)  # type: ignore[arg-type]

    def source(self, number: int) -> str | None:
        """Whence attempt `number` comes: spread, so that the carrier's bound for one address is not met."""
        return self.target.sources[number % len(self.target.sources)]

    def each(self, attempt: Attempt, *, threads: int | None = None) -> Iterator[Try]:
        """Tries it as often as wanted, several at a time, and yields what came of each in the order of its
        end.
        """
        numbers = iter(range(self.attempts))
        width = threads or self.target.threads
        with ThreadPoolExecutor(width, thread_name_prefix="attack") as pool:
            running: set[Future[Try]] = set()
            done = 0
            for number in numbers:
                if self.over():
                    break
                running.add(pool.submit(_tried, attempt, number))
                if len(running) >= 2 * width:
                    ready, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ready:
                        done += 1
                        yield future.result()
                    self.progress(done, self.attempts)
            for future in running:
                yield future.result()

    def over(self) -> bool:
        """Whether the time that this attack was given has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def _tried(attempt: Attempt, number: int) -> Try:
    try:
        return attempt(number)
    except OSError:  # nobody listens there any more
        return Try("", None)


Play = Callable[[Stage], Iterable[Try]]


@dataclass(frozen=True, slots=True)
class Attack:
    """`reasons`: how the carrier `distsec` calls it, each a value of model.policy.Reason. `identity` tells
    whose certificate an event of it names; None: no certificate was shown, or none that is ours to predict.
    `limit`: the number of attempts that is tried at most, where each takes long. `counts_links`: what came
    up is told by the attacker, since links of honest nodes come up at the same time, or in another node.
    `disturbs`: the victim's other peers may notice it; on somebody's own cluster it is tried only where it
    was asked for by name.
    """

    name: str
    title: str
    play: Play
    reasons: frozenset[str]
    needs: frozenset[Need] = frozenset()
    direction: str = "in"
    identity: Callable[[Target], str | None] = lambda _target: None
    limit: int | None = None
    counts_links: bool = False
    disturbs: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one attack on one target, from the attacker's side."""

    attack: Attack
    tries: Sequence[Try]
    late: int = 0

    @property
    def executed(self) -> int:
        return min(len(self.tries), sum(each.executed for each in self.tries) + self.late)

    @property
    def linked(self) -> int:
        """Attempts that the attacker believes had a link."""
        return sum(each.linked for each in self.tries)

    @property
    def median_refusal_ms(self) -> float | None:
        times = [each.refused_seconds for each in self.tries if each.refused_seconds is not None]
        return round(1000 * statistics.median(times), 1) if times else None

    def claimed(self) -> Counter[str]:
        return Counter(each.claimed for each in self.tries if each.claimed is not None)


def carry_out(
    attack: Attack,
    target: Target,
    attempts: int,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> Outcome:
    """Tries `attack` on `target` as often as that, or as its limit or the time allows."""
    wanted = min(attempts, attack.limit) if attack.limit else attempts
    deadline = None if seconds is None else time.monotonic() + seconds
    with ExitStack() as ends:
        stage = Stage(target, wanted, progress or (lambda _done, _of: None), deadline, ends)
        tries: list[Try] = []
        with suppress(OSError):  # the victim is gone: what was tried until then counts
            tries.extend(attack.play(stage))
        return Outcome(attack, tries, stage.late())
