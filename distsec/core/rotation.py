"""How a new CA takes the place of the old one, in phases, without any two honest nodes ever refusing each
other.

Pure: `step(rotation, event)` answers with the next value and the effects, in the order in which they are to
be performed. The supervisor performs them (supervisor.ca_rotation). Each phase says what every node is to
have: whose certificates it trusts, and who issued its own (old: the CA in `ca/`; new: the one in `ca/next/`).

    phase         bundle   leaf   and to get any further
    idle          old      old
    creating      old      old    the new CA is there
    preparing     both     old    every node has it
    prepared      both     old    every node has it                          at rest
    activating    both     new    every node serves it, every link is proven with it
    activated     both     new    the same                                   at rest
    pruning       new      new    every node has it, and refuses a leaf of the old CA
    retiring      new      new    the old key is destroyed, the new CA moved to `ca/`: then idle

    rolling back  from creating → discarding; preparing, prepared → narrowing; activating, activated →
                  reissuing; pruning → widening
    widening      both     new    every node has it
    reissuing     both     old    every node serves it, every link is proven with it
    narrowing     old      old    every node has it, or its file alone
    discarding    old      old    the new CA is removed: then idle

A phase is saved before anything of it is done, and everything that is done may be done again: whoever is
interrupted goes on from the saved phase. A phase is left only by command, and forwards only after every node
has been looked at anew within that command, so that what happened since does not count.

What holds at every moment, whatever was interrupted (tests/unit/test_rotation.py stops everywhere): **each
node, as it runs and as it would start from its files, trusts the CA that issued any other one's leaf, as it
runs and from its files.** For a bundle is narrowed only when every leaf is of the CA that is left, and a
leaf is given only when every bundle has its CA. `narrowing` alone needs no answer of a node: its leaf is old
already, and it may trust one CA too many, whose key is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType


class Phase(StrEnum):
    IDLE = "idle"
    CREATING = "creating"
    PREPARING = "preparing"
    PREPARED = "prepared"
    ACTIVATING = "activating"
    ACTIVATED = "activated"
    PRUNING = "pruning"
    RETIRING = "retiring"
    WIDENING = "widening"
    REISSUING = "reissuing"
    NARROWING = "narrowing"
    DISCARDING = "discarding"


class Ca(StrEnum):
    """By the directory that it is kept in, as `pki.trust` has them."""

    OLD = "ca"
    NEW = "ca/next"


class Command(StrEnum):
    PREPARE = "prepare"
    ACTIVATE = "activate"
    PRUNE = "prune"
    ROLLBACK = "rollback"


class Check(StrEnum):
    """What must be true before a phase is left; each is brought about by the effect of its name."""

    CREATED = "created"
    NODES = "nodes"
    LINKS = "links"
    REFUSED = "refused"
    RETIRED = "retired"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every node is to have in a phase."""

    bundle: tuple[Ca, ...]
    leaf: Ca


_OLD, _BOTH, _NEW = (Ca.OLD,), (Ca.OLD, Ca.NEW), (Ca.NEW,)

WANTED: Mapping[Phase, Wanted] = MappingProxyType(
    {
        Phase.IDLE: Wanted(_OLD, Ca.OLD),
        Phase.CREATING: Wanted(_OLD, Ca.OLD),
        Phase.PREPARING: Wanted(_BOTH, Ca.OLD),
        Phase.PREPARED: Wanted(_BOTH, Ca.OLD),
        Phase.ACTIVATING: Wanted(_BOTH, Ca.NEW),
        Phase.ACTIVATED: Wanted(_BOTH, Ca.NEW),
        Phase.PRUNING: Wanted(_NEW, Ca.NEW),
        Phase.RETIRING: Wanted(_NEW, Ca.NEW),
        Phase.WIDENING: Wanted(_BOTH, Ca.NEW),
        Phase.REISSUING: Wanted(_BOTH, Ca.OLD),
        Phase.NARROWING: Wanted(_OLD, Ca.OLD),
        Phase.DISCARDING: Wanted(_OLD, Ca.OLD),
    }
)

CHECKS: Mapping[Phase, tuple[Check, ...]] = MappingProxyType(
    {
        Phase.IDLE: (),
        Phase.CREATING: (Check.CREATED,),
        Phase.PREPARING: (Check.NODES,),
        Phase.PREPARED: (Check.NODES,),
        Phase.ACTIVATING: (Check.NODES, Check.LINKS),
        Phase.ACTIVATED: (Check.NODES, Check.LINKS),
        Phase.PRUNING: (Check.NODES, Check.REFUSED),
        Phase.RETIRING: (Check.RETIRED,),
        Phase.WIDENING: (Check.NODES,),
        Phase.REISSUING: (Check.NODES, Check.LINKS),
        Phase.NARROWING: (Check.NODES,),
        Phase.DISCARDING: (Check.DISCARDED,),
    }
)

AFTER: Mapping[Phase, Phase] = MappingProxyType(
    {
        Phase.IDLE: Phase.CREATING,
        Phase.CREATING: Phase.PREPARING,
        Phase.PREPARING: Phase.PREPARED,
        Phase.PREPARED: Phase.ACTIVATING,
        Phase.ACTIVATING: Phase.ACTIVATED,
        Phase.ACTIVATED: Phase.PRUNING,
        Phase.PRUNING: Phase.RETIRING,
        Phase.RETIRING: Phase.IDLE,
        Phase.WIDENING: Phase.REISSUING,
        Phase.REISSUING: Phase.NARROWING,
        Phase.NARROWING: Phase.DISCARDING,
        Phase.DISCARDING: Phase.IDLE,
    }
)

BACK: Mapping[Phase, Phase] = MappingProxyType(
    {
        Phase.CREATING: Phase.DISCARDING,
        Phase.PREPARING: Phase.NARROWING,
        Phase.PREPARED: Phase.NARROWING,
        Phase.ACTIVATING: Phase.REISSUING,
        Phase.ACTIVATED: Phase.REISSUING,
        Phase.PRUNING: Phase.WIDENING,
    }
)
"""Where a rollback begins. Out of RETIRING there is none: the old key may be gone."""

ROLLING_BACK = frozenset({Phase.WIDENING, Phase.REISSUING, Phase.NARROWING, Phase.DISCARDING})

FROM: Mapping[Command, frozenset[Phase]] = MappingProxyType(
    {
        Command.PREPARE: frozenset({Phase.IDLE, Phase.CREATING, Phase.PREPARING, Phase.PREPARED}),
        Command.ACTIVATE: frozenset({Phase.PREPARED, Phase.ACTIVATING, Phase.ACTIVATED}),
        Command.PRUNE: frozenset({Phase.ACTIVATED, Phase.PRUNING, Phase.RETIRING}),
        Command.ROLLBACK: frozenset({*BACK, *ROLLING_BACK}),
    }
)
"""The phases that a command may be given in."""

GOAL: Mapping[Command, Phase] = MappingProxyType(
    {
        Command.PREPARE: Phase.PREPARED,
        Command.ACTIVATE: Phase.ACTIVATED,
        Command.PRUNE: Phase.IDLE,
        Command.ROLLBACK: Phase.IDLE,
    }
)


class NotNow(ValueError):
    """The command does not fit the phase; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How far it has come. Only `phase` outlives the orchestrator: the rest belongs to the command that is
    being carried out (`goal`), and is looked at anew by the next one. `nodes`: those of now; `confirmed`,
    `missing` (node → why not) and `done` (NODES: who there is): what is known of this phase; `behind`: nodes
    that have only the files of a phase that could be left without them.
    """

    phase: Phase = Phase.IDLE
    goal: Phase | None = None
    nodes: frozenset[str] = frozenset()
    confirmed: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    done: frozenset[Check] = frozenset()
    behind: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def word(self) -> str:
        """The phase as operators know it."""
        return "rolling_back" if self.phase in ROLLING_BACK else str(self.phase)


# ---- what has happened: each effect that asks for an answer gets exactly one -------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """The operator wants it, for the nodes of now."""

    command: Command
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Brought:
    """The answer to Bring. `confirmed`: have what the phase wants, their files and they themselves (or nobody
    who runs); `missing`: have not, or nobody can tell; `written`: of these, whose files are as they are to
    be. `nodes`: the nodes of now, of which some may have been added or removed since.
    """

    phase: Phase
    nodes: frozenset[str]
    confirmed: frozenset[str]
    missing: Mapping[str, str]
    written: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Passed:
    """The answer to Attain: that holds, for the nodes of now."""

    check: Check
    phase: Phase
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Failed:
    """It does not. `missing`: whose fault it is → why."""

    check: Check
    phase: Phase
    missing: Mapping[str, str]


Event = Asked | Brought | Passed | Failed


# ---- what is to be done ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Persist the phase, and with it who is trusted and who issues from now on."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Bring:
    """Give each of `nodes` what the phase wants, files first. None: see who was added before it was saved."""

    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Attain:
    """Bring about a check beside NODES."""

    check: Check


@dataclass(frozen=True, slots=True)
class Reached:
    """The rotation has come to rest in `phase`, by a rollback or not: for the record."""

    phase: Phase
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """The command is over. `missing`: who kept it from its goal, and why; `behind`: see Rotation."""

    done: bool
    missing: Mapping[str, str]
    behind: Mapping[str, str]


Effect = Save | Bring | Attain | Reached | Finish
Result = tuple[Rotation, tuple[Effect, ...]]


def step(rotation: Rotation, event: Event) -> Result:
    """What `event` leads to. A late answer (of another phase, of nobody's command) changes nothing. Raises
    NotNow for a command that does not fit.
    """
    if isinstance(event, Asked):
        return _begin(rotation.phase, event)
    if rotation.goal is None or event.phase is not rotation.phase:
        return rotation, ()
    match event:
        case Brought(_, nodes, confirmed, missing, written):
            left = {name: why for name, why in missing.items() if name in nodes}
            tolerated = left if rotation.phase is Phase.NARROWING and written >= left.keys() else {}
            after = replace(
                rotation,
                nodes=nodes,
                confirmed=(rotation.confirmed | confirmed | tolerated.keys()) & nodes,
                missing=MappingProxyType({} if tolerated else left),
                done=rotation.done | {Check.NODES},
                behind=MappingProxyType({**rotation.behind, **tolerated}),
            )
        case Passed(check, _, nodes):
            added = nodes - rotation.nodes  # nobody has looked at these
            done = frozenset[Check]() if added else rotation.done | {check}
            after = replace(rotation, nodes=nodes, confirmed=rotation.confirmed & nodes, done=done)
        case Failed(_, _, missing):
            return _finish(replace(rotation, missing=MappingProxyType(dict(missing))), ())
    return _advance(after, ())


def _begin(phase: Phase, event: Asked) -> Result:
    if phase not in FROM[event.command]:
        raise NotNow(_refusal(event.command, Rotation(phase)))
    asked = Rotation(phase, GOAL[event.command], event.nodes)
    if event.command is Command.ROLLBACK and phase in BACK:
        return _enter(asked, BACK[phase], ())
    if phase is Phase.IDLE:
        return _enter(asked, AFTER[phase], ())
    return _advance(asked, ())


def _advance(rotation: Rotation, effects: tuple[Effect, ...]) -> Result:
    """To the next check, the next phase, or the end of the command."""
    if rotation.missing:
        return _finish(rotation, effects)
    for check in CHECKS[rotation.phase]:
        if check is Check.NODES:
            if (left := rotation.nodes - rotation.confirmed) or check not in rotation.done:
                return rotation, (*effects, Bring(left))
        elif check not in rotation.done:
            return rotation, (*effects, Attain(check))
    if rotation.phase is rotation.goal:  # it was there already, and it holds
        return _finish(rotation, effects)
    return _enter(rotation, AFTER[rotation.phase], effects)


def _enter(rotation: Rotation, phase: Phase, effects: tuple[Effect, ...]) -> Result:
    """Nothing of the new phase is known yet."""
    after = Rotation(phase, rotation.goal, rotation.nodes, behind=rotation.behind)
    effects = (*effects, Save(phase))
    if phase is not rotation.goal:
        return _advance(after, effects)
    return _finish(after, (*effects, Reached(phase, rotation.phase in ROLLING_BACK)))


def _finish(rotation: Rotation, effects: tuple[Effect, ...]) -> Result:
    over = replace(rotation, goal=None)
    return over, (*effects, Finish(not rotation.missing, rotation.missing, rotation.behind))


def _refusal(command: Command, rotation: Rotation) -> str:
    phase, word = rotation.phase, "roll back" if command is Command.ROLLBACK else str(command)
    if command is Command.ROLLBACK and phase is Phase.RETIRING:
        return "the old CA's key is being destroyed: there is no way back any more"
    if phase is Phase.IDLE:
        return f"no rotation of the CA is under way, so there is nothing to {word}"
    if phase in ROLLING_BACK:
        return f"the rotation of the CA is being rolled back, so there is nothing to {word}"
    return f"the rotation of the CA is {rotation.word}, so there is nothing to {word} now"
