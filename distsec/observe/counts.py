"""What the metrics know of one node, and the closed sets that their labels come from. Pure."""

from __future__ import annotations

from distsec.model.cluster import NodeState
from distsec.model.events import ClockShift, SecurityEvent
from distsec.model.policy import Direction, Reason, Verdict
from distsec.observe.exact import LaunchCounter

UNLISTED = "unlisted"
UNKNOWN_DIRECTION = "unknown"

LANES = ("critical", "refusals")
ACTIONS = ("handshake_in", "handshake_out", "link_in", "link_out")
"""Where a decision is asked for; the agent's `Action` (docs/port-protocol.md, heartbeat)."""

CHECK_BOUNDS_MICROS = (5, 10, 25, 50, 100, 250, 500, 1000, 5000)
"""Upper bounds of the agent's histogram (distsec_count.erl, BOUNDS); beyond the last is infinity."""

MAX_AGENT_REASONS = 32
"""Reasons for a refused agent connection come from beam.messages.AgentRefusal, a floor above; more are
`other`."""

OTHER = "other"

DIRECTIONS = frozenset(map(str, Direction))
REASONS = frozenset(map(str, Reason))
VERDICTS = tuple(map(str, Verdict))
CHECK_KEYS = tuple((action, result) for action in ACTIONS for result in VERDICTS)
BUCKETS = (*CHECK_BOUNDS_MICROS, None)


class NodeCounts:
    """All that is known of one node. Written by Metrics, read by its collector."""

    def __init__(self) -> None:
        self.launch: str | None = None
        zero_refusals = [(str(direction), str(reason)) for direction in Direction for reason in Reason]
        self.attempts: LaunchCounter[tuple[str, str]] = LaunchCounter(
            (result, UNLISTED) for result in VERDICTS
        )
        self.refusals: LaunchCounter[tuple[str, str]] = LaunchCounter(zero_refusals)
        self.checks: LaunchCounter[tuple[str, str]] = LaunchCounter(CHECK_KEYS)
        self.check_buckets: LaunchCounter[int | None] = LaunchCounter(BUCKETS)
        self.check_micros: LaunchCounter[str] = LaunchCounter([""])
        self.dropped: LaunchCounter[str] = LaunchCounter(LANES)
        self.starts = 0
        self.rotations = 0
        self.certificates_refused = 0
        self.clock_steps = {str(shift): 0 for shift in ClockShift}
        self.agent_refused: dict[str, int] = {}
        self.state: NodeState | None = None
        self.guard_missing = False
        self.tainted = False
        self.links: dict[str, int] = dict.fromkeys(VERDICTS, 0)
        self.shells = 0
        self.agent_connected = False
        self.certificate_not_before: int | None = None
        self.certificate_not_after: int | None = None
        self.policy: dict[str, int | None] = {"wanted": None, "active": None}

    def at_launch(self, launch: str | None) -> None:
        """Counts that follow belong to `launch`; None is for what the orchestrator itself saw."""
        if launch is None or launch == self.launch:
            return
        if self.launch is not None:
            for counter in (self.attempts, self.refusals, self.checks, self.dropped):
                counter.begin_launch()
            self.check_buckets.begin_launch()
            self.check_micros.begin_launch()
        self.launch = launch


def refusal_key(event: SecurityEvent) -> tuple[str, str]:
    """The labels (direction, reason) of a refusal; a reason that is no Reason is the general one."""
    direction = event.direction if event.direction in DIRECTIONS else UNKNOWN_DIRECTION
    reason = event.reason if event.reason in REASONS else Reason.HANDSHAKE_FAILED
    return str(direction), str(reason)


def bucket(bound_micros: int | None) -> int | None:
    """The known upper bound that counts of `bound_micros` belong to: itself, or the next one above."""
    if bound_micros is None:
        return None
    return next((known for known in CHECK_BOUNDS_MICROS if bound_micros <= known), None)
