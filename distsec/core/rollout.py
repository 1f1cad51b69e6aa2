"""How a change of the policy reaches every node: an `allow` in two phases, a `deny` at once and for good.

Pure: `begin_allow`/`begin_deny` and `step(rollout, event, now)` answer with the next value and the effects,
in the order in which they are to be performed. The supervisor performs them; time is an argument, in seconds.

An allow begins at generation g, with the nodes whose process lives as its targets:

    PREPARING     save g+3 without the entry · write and push g+1, the entry `prepared`
    OPENING       all have acknowledged: save g+2 with the entry · write and push g+2, the entry `open`
    ROLLING_BACK  somebody refused, or was silent at the deadline: save, write and push g+3 without the entry

A denial saves and writes g+1 before anybody is told, is pushed to all, and is never taken back.

What holds after every single effect, so that an interruption anywhere is harmless (the supervisor that starts
next takes the saved overlay at its generation + 1 and pushes that; tests/unit/test_rollout.py stops at every
step):

1. Nobody opens before all have prepared. A peer that only some nodes admit makes overlapping-partition
   prevention cut honest pairs (prevent_overlapping_partitions of global(3erl)).
2. The saved generation + 1 is above every generation that was ever pushed (an agent takes only a higher one).
3. A denial that anybody was told of is saved: a restart cannot forget it.
4. What is saved says `open` only while OPENING or after success: an interrupted or failed allow ends as none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType


class Stage(StrEnum):
    PREPARING = "preparing"
    OPENING = "opening"
    ROLLING_BACK = "rolling_back"
    DENYING = "denying"
    DONE = "done"


class Content(StrEnum):
    """What a policy of this rollout says of the name that the rollout is about."""

    WITHOUT = "without"  # as before the rollout began
    PREPARED = "prepared"
    OPEN = "open"
    DENIED = "denied"


PREPARE_OFFSET, OPEN_OFFSET, ROLLBACK_OFFSET, DENY_OFFSET = 1, 2, 3, 1
"""Generations above the one that a rollout begins at."""

NO_ANSWER = "no_answer"
"""Why a node is missing that neither acknowledged nor refused."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A change on its way. `acknowledged`: of this stage. `missing`: node → why, of the stage that failed."""

    base: int
    targets: tuple[str, ...]
    stage: Stage
    due: float
    deadline_seconds: float
    acknowledged: frozenset[str] = frozenset()
    prepared: frozenset[str] = frozenset()  # who acknowledged any generation above the base
    missing: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def generation(self) -> int:
        """The one that is being pushed in this stage (or was, at the end)."""
        return self.base + _OFFSET[self.stage]


_OFFSET = MappingProxyType(
    {
        Stage.PREPARING: PREPARE_OFFSET,
        Stage.OPENING: OPEN_OFFSET,
        Stage.ROLLING_BACK: ROLLBACK_OFFSET,
        Stage.DENYING: DENY_OFFSET,
        Stage.DONE: 0,
    }
)


# ---- what has happened -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledged:
    node: str
    generation: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The node answered, and did not take it: `reason` is the agent's."""

    node: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class NodeGone:
    """Its process ended: it needs no answer, since its file is what it starts with."""

    node: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A Push is done: only now do the nodes' seconds begin, however long the disk took before it."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Acknowledged | Refused | NodeGone | Asked | Tick


# ---- what is to be done ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Persist the overlay at this generation, with this content."""

    generation: int
    content: Content


@dataclass(frozen=True, slots=True)
class WriteFiles:
    """Write the document into the directory of every node, whether it runs or not."""

    generation: int
    content: Content


@dataclass(frozen=True, slots=True)
class Push:
    """Send the document to `nodes`; answer each with Acknowledged or Refused."""

    generation: int
    content: Content
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """It is over. `done`: everybody has it (a denial that somebody misses stays, and is not done)."""

    done: bool
    acknowledged: tuple[str, ...]
    missing: Mapping[str, str]


Effect = Save | WriteFiles | Push | Finish
Result = tuple[Rollout, tuple[Effect, ...]]


def begin_allow(generation: int, targets: Iterable[str], now: float, deadline_seconds: float) -> Result:
    """The first phase of an allow, from `generation`, for the living nodes `targets`."""
    rollout = Rollout(generation, tuple(targets), Stage.PREPARING, now + deadline_seconds, deadline_seconds)
    reserve = Save(generation + ROLLBACK_OFFSET, Content.WITHOUT)
    return _proceed(rollout, (reserve, *_send(rollout, Content.PREPARED)), now)


def begin_deny(generation: int, targets: Iterable[str], now: float, deadline_seconds: float) -> Result:
    """A denial, from `generation`, for the living nodes `targets`."""
    rollout = Rollout(generation, tuple(targets), Stage.DENYING, now + deadline_seconds, deadline_seconds)
    save = Save(rollout.generation, Content.DENIED)
    return _proceed(rollout, (save, *_send(rollout, Content.DENIED)), now)


def step(rollout: Rollout, event: Event, now: float) -> Result:
    """What `event` leads to. A late answer (another generation, a node that is no target) changes nothing."""
    if rollout.stage is Stage.DONE:
        return rollout, ()
    match event:
        case Acknowledged(node, generation) if node in rollout.targets and generation == rollout.generation:
            missing = {name: why for name, why in rollout.missing.items() if name != node}
            after = replace(
                rollout,
                acknowledged=rollout.acknowledged | {node},
                prepared=rollout.prepared | {node},
                missing=missing if rollout.stage is Stage.DENYING else rollout.missing,
            )
            return _proceed(after, (), now)
        case Refused(node, generation, why) if node in rollout.targets and generation == rollout.generation:
            return _refused(rollout, node, why, now)
        case NodeGone(node) if node in rollout.targets:
            rest = tuple(name for name in rollout.targets if name != node)
            return _proceed(replace(rollout, targets=rest), (), now)
        case Asked():
            return replace(rollout, due=now + rollout.deadline_seconds), ()
        case Tick() if now >= rollout.due:
            return _overdue(rollout, now)
    return rollout, ()


def _send(rollout: Rollout, content: Content) -> tuple[Effect, ...]:
    written = WriteFiles(rollout.generation, content)
    return (written, Push(rollout.generation, content, rollout.targets)) if rollout.targets else (written,)


def _proceed(rollout: Rollout, effects: tuple[Effect, ...], now: float) -> Result:
    """To the next stage where everybody that is waited for has answered."""
    waiting = set(rollout.targets) - rollout.acknowledged
    match rollout.stage:
        case Stage.PREPARING if not waiting:
            after = replace(
                rollout, stage=Stage.OPENING, due=now + rollout.deadline_seconds, acknowledged=frozenset()
            )
            save = Save(after.generation, Content.OPEN)
            return _proceed(after, (*effects, save, *_send(after, Content.OPEN)), now)
        case Stage.OPENING if not waiting:
            return _finish(rollout, effects, done=True)
        case Stage.ROLLING_BACK if not waiting & rollout.prepared:
            return _finish(rollout, effects, done=False)
        case Stage.DENYING if not waiting - set(rollout.missing):
            return _finish(rollout, effects, done=not rollout.missing)
    return rollout, effects


def _refused(rollout: Rollout, node: str, reason: str, now: float) -> Result:
    match rollout.stage:
        case Stage.PREPARING | Stage.OPENING:
            return _roll_back(rollout, {node: reason}, now)
        case Stage.DENYING:
            return _proceed(replace(rollout, missing={**rollout.missing, node: reason}), (), now)
    return rollout, ()


def _overdue(rollout: Rollout, now: float) -> Result:
    silent = {node: NO_ANSWER for node in rollout.targets if node not in rollout.acknowledged}
    match rollout.stage:
        case Stage.PREPARING | Stage.OPENING:
            return _roll_back(rollout, silent, now)
        case Stage.DENYING:
            return _finish(replace(rollout, missing={**silent, **rollout.missing}), (), done=False)
    return _finish(rollout, (), done=False)


def _roll_back(rollout: Rollout, missing: Mapping[str, str], now: float) -> Result:
    """Pushed to all targets: one that is silent may have taken it nevertheless. Waited for: who had it."""
    after = replace(
        rollout,
        stage=Stage.ROLLING_BACK,
        due=now + rollout.deadline_seconds,
        acknowledged=frozenset(),
        missing=MappingProxyType(dict(missing)),
    )
    save = Save(after.generation, Content.WITHOUT)
    return _proceed(after, (save, *_send(after, Content.WITHOUT)), now)


def _finish(rollout: Rollout, effects: tuple[Effect, ...], *, done: bool) -> Result:
    missing = {name: why for name, why in rollout.missing.items() if name in rollout.targets}
    acknowledged = tuple(sorted(rollout.acknowledged - set(missing)))
    gone_wrong = rollout.missing if rollout.stage is Stage.ROLLING_BACK else missing
    over = replace(rollout, stage=Stage.DONE)
    return over, (*effects, Finish(done, acknowledged, MappingProxyType(dict(gone_wrong))))
