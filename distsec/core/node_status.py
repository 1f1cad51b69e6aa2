"""The words of `core.lifecycle`: a node's status, what can happen to it, and what is to be done about it.

Values only. Events are in the past tense, effects in the imperative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from distsec.model.cluster import NodeSpec, NodeState, RestartPolicy
from distsec.model.events import EventType, Severity


class Why(StrEnum):
    """Why a node is not RUNNING; what `status` shows beside STOPPED, BACKOFF and FATAL."""

    NOT_STARTED = "not_started"
    OPERATOR = "operator"
    COMPROMISED = "compromised"  # ended by `deny --compromised`
    EXITED = "exited"
    CARRIER_NOT_IN_FORCE = "carrier_not_in_force"
    FLAPPING = "flapping"
    START_FAILED = "start_failed"
    EXTERNAL_GONE = "external_gone"  # a node that something else starts is not there


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about one node's life. `external`: something else starts it. Seconds."""

    external: bool = False
    restart: RestartPolicy = RestartPolicy.ALWAYS
    restart_intensity: int = 5
    restart_period_seconds: float = 60.0
    start_deadline_seconds: float = 30.0
    stop_deadline_seconds: float = 20.0

    @classmethod
    def of(cls, node: NodeSpec, *, start_deadline_seconds: float, stop_deadline_seconds: float) -> Rules:
        return cls(
            external=not node.command,
            restart=node.restart,
            restart_intensity=node.restart_intensity,
            restart_period_seconds=node.restart_period_seconds,
            start_deadline_seconds=start_deadline_seconds,
            stop_deadline_seconds=stop_deadline_seconds,
        )


class StopStage(StrEnum):
    """How far a stop has got; each stage has a deadline, after which the next one follows."""

    ASKED = "asked"  # init:stop/0 through the agent
    TERMINATED = "terminated"  # TERM to the process group
    KILLED = "killed"  # KILL to the process group


class Then(StrEnum):
    """What a node that is STOPPING becomes when its process is gone."""

    STOPPED = "stopped"
    START = "start"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Everything that decides what a node does next. Times are seconds of the clock of `now`."""

    rules: Rules = Rules()
    state: NodeState = NodeState.STOPPED
    pid: int | None = None  # of the process that lives; None in STARTING: a start is under way
    agent: bool = False  # whether its agent is connected
    proven: bool = False  # whether the last proof of its guard succeeded (RUNNING: a re-proof may be pending)
    attempt: int = 0  # number of the proof that was asked for last; a result with another number is stale
    unclear: bool = False  # the last proof settled nothing and is to be tried again
    unanswered: bool = False  # of that proof all agreed but the probe of the port, which had no answer
    overdue: bool = False  # STARTING beyond its deadline: the proof is unanswered, or cannot be asked for
    adopted: bool = False  # the process was not started by this orchestrator
    other_version: bool = False  # its agent speaks another version of the port than this orchestrator
    due: float | None = None  # when Tick has something to do
    stage: StopStage | None = None
    then: Then = Then.STOPPED
    restarts: tuple[float, ...] = ()  # when it was restarted, within the restart period
    failures: int = 0  # starts that failed one after the other, so that there was no process
    started: float | None = None  # when its process began, or was adopted
    why: Why | None = Why.NOT_STARTED
    detail: str = ""  # remote text is possible: escape before printing

    @property
    def waits(self) -> bool:
        """Whether something keeps it from starting that may pass by itself; it is tried again."""
        return self.state is NodeState.BACKOFF and self.why is Why.START_FAILED


Condition = Callable[[NodeStatus], bool]


# ---- what has happened (past tense) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartRequested:
    """By the operator, or at the orchestrator's start."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """By the operator, or at the orchestrator's end."""


@dataclass(frozen=True, slots=True)
class Condemned:
    """What runs in it is not to be trusted: it is killed, and not asked (`deny --compromised`)."""


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    pid: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """`lasting`: trying again cannot help (no such command); then `why` it is FATAL. Else it is tried until
    it starts, however often: what is in the way (a port, a full disk) is nothing that the node did.
    """

    text: str
    lasting: bool = True
    why: Why = Why.START_FAILED


@dataclass(frozen=True, slots=True)
class FoundUnfit:
    """There is nothing to start it with (no such program, an OTP too old); found out before it was tried."""

    text: str


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """`code`: exit status, negative for a signal, None where it cannot be known (an adopted process)."""

    pid: int
    code: int | None = None

    def __str__(self) -> str:
        if self.code is None:
            return "exited, status unknown"
        return f"ended by signal {-self.code}" if self.code < 0 else f"exited with status {self.code}"


@dataclass(frozen=True, slots=True)
class Adopted:
    """A process of an earlier orchestrator was found: same pid, same start time."""

    pid: int


@dataclass(frozen=True, slots=True)
class AgentConnected:
    """The agent proved itself and sent its snapshot. `pid`: of the BEAM it runs in, from SO_PEERCRED."""

    pid: int


@dataclass(frozen=True, slots=True)
class AgentLost:
    pass


@dataclass(frozen=True, slots=True)
class GuardProven:
    """Hello, sockets and probe agree with what was written for the node."""

    attempt: int


@dataclass(frozen=True, slots=True)
class GuardUnclear:
    """Nothing speaks against the guard, but it is not proven yet; to be tried again.

    `unanswered`: hello, sockets and digests agree, and the port gave the probe no answer. Whoever reaches the
    port can bring that about by keeping it busy, so it is no reason to end a node.
    """

    attempt: int
    what: str
    unanswered: bool = False


@dataclass(frozen=True, slots=True)
class GuardDisproven:
    """Something differs from what was written: `what`."""

    attempt: int
    what: str


@dataclass(frozen=True, slots=True)
class GuardRefused:
    """The node halted itself and said why (`guard.refused`)."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class AgentOfOtherVersion:
    """Its agent was refused, because it speaks a version of the port that is not spoken here: `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class ForbiddenFlagFound:
    """A BEAM of the process `pid` was given a flag that takes the guard out of force: `text`."""

    pid: int
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `status.due` says whether that means anything."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The orchestrator itself did not run for so long (SIGSTOP, a debugger), and heard nobody meanwhile."""

    after_seconds: float


Event = (
    StartRequested
    | StopRequested
    | Condemned
    | ProcessStarted
    | StartFailed
    | FoundUnfit
    | ProcessExited
    | Adopted
    | AgentConnected
    | AgentLost
    | GuardProven
    | GuardUnclear
    | GuardDisproven
    | GuardRefused
    | AgentOfOtherVersion
    | ForbiddenFlagFound
    | Tick
    | Resumed
)


# ---- what is to be done (imperative) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Write the node's files anew and start its command; answer ProcessStarted or StartFailed."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Compare snapshot, sockets and the port itself; answer GuardProven, GuardUnclear or GuardDisproven."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AskAgentToStop:
    pass


@dataclass(frozen=True, slots=True)
class SendTerm:
    pass


@dataclass(frozen=True, slots=True)
class SendKill:
    pass


@dataclass(frozen=True, slots=True)
class ForgetProcess:
    """It is gone, and all that was below it: remove the record of it."""

    pid: int


@dataclass(frozen=True, slots=True)
class ScheduleTick:
    at: float


@dataclass(frozen=True, slots=True)
class Publish:
    """A security event about this node; who and when is stamped by the interpreter."""

    type: EventType
    severity: Severity
    reason: str | None = None
    detail: str | None = None


Effect = StartProcess | Probe | AskAgentToStop | SendTerm | SendKill | ForgetProcess | ScheduleTick | Publish
