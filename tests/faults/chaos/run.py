"""A run: rounds of faults, each followed by quiet in which everything is looked at."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.chaos import invariants, sockets
from tests.faults.chaos.cluster import ANSWER_SECONDS, REASONS, ChaosCluster
from tests.faults.chaos.faults import Faults
from tests.faults.chaos.ledger import Ledger
from tests.faults.chaos.levels import KIB, MIB, Levels
from tests.faults.chaos.links import Links
from tests.faults.chaos.operator import HANGS_SECONDS, Operator
from tests.faults.chaos.place import reap
from tests.faults.chaos.pressure import WHOLE_SECONDS, allowance, waited_seconds
from tests.faults.chaos.schedule import Kind, Plan, plan
from tests.faults.chaos.weighing import flood, flooded, weigh
from tests.releases import Otp

TICK_SECONDS = 0.1
READ_SECONDS = 0.2
LOOK_SECONDS = 8.0
RESTART_SECONDS = 0.3
"""After which whoever runs the orchestrator starts it again (systemd: RestartSec)."""

DISK_FULL = 73
"""What an orchestrator ends with that cannot write what it has to before it begins. Nodes go on, and systemd
tries again."""

FAULTS_END_SECONDS = 180.0
"""For an `allow` that ends a denial: with every node back, it is done at the next try."""

QUIET_SECONDS = 2 * HANGS_SECONDS
"""For rotations that were interrupted, given again. Each of them may last for as long as a command may."""

STEADY_SECONDS = 2.0
"""For which a mesh must stay whole to count: a link that was just cut is up until its ends notice."""

WELL_SECONDS = 60.0
"""For an orchestrator that was killed at last to be up, and to have proven every node, on a busy machine."""


class Violated(Exception):
    """Something that must never be. The text is the evidence."""


@dataclass(frozen=True, slots=True)
class Round:
    """What a round came to."""

    number: int
    whole_seconds: float
    allowed_seconds: float
    faults: Mapping[str, int]
    events: int
    refusals: int
    messages: int
    seconds: float


@dataclass(slots=True)
class Run:
    """`say` prints a line of progress. Raises Violated from `start` and `round`; `close` ends everything."""

    otps: Mapping[str, Otp]
    beams: Path
    seed: int
    private: bool
    say: Callable[[str], None]
    trace: Callable[[str], None]
    cluster: ChaosCluster = field(init=False)
    operator: Operator = field(init=False)
    links: Links = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    levels: Levels = field(default_factory=Levels)
    faults: Faults = field(init=False)
    plans: list[Plan] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    findings: set[tuple[str, str]] = field(default_factory=set)
    hammered: dict[str, int] = field(default_factory=dict)
    """Attempts of intruders that were replaced, by name."""
    messages: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """By launch: sent, received, missing."""
    _down_since: float | None = None
    _read_at: float = 0.0
    _looked_at: float = 0.0
    _quiet: bool = False
    _authority: str = ""

    def __post_init__(self) -> None:
        self.cluster = ChaosCluster(self.otps, self.beams, private=self.private)
        names = [self.cluster.node(name) for name in self.cluster.names]
        self.links = Links(frozenset(names))
        self.operator = Operator(self.cluster)
        self.faults = Faults(self.cluster, self.operator, self.links, self.ledger)

    @property
    def without(self) -> frozenset[Kind]:
        """What cannot be had here."""
        missing = set()
        if self.cluster.disk is None:
            missing.add(Kind.FULL_DISK)
        if not sockets.available():
            missing |= {Kind.CUT_AGENT, Kind.CUT_LINK}
        return frozenset(missing)

    def start(self) -> None:
        self.cluster.start()
        self._hammer()
        self.tick(1.0)
        self.findings = invariants.findings(self.cluster)
        self._judge()

    # ---- one round

    def round(self, number: int) -> Round:
        began, events = time.monotonic(), self.ledger.events
        refusals, done = sum(self.ledger.refusals.values()), dict(self.faults.done)
        messages = self._received()
        chosen = plan(self.seed, number, self.cluster.names, without=self.without)
        self.plans.append(chosen)
        self._quiet = False
        for fault in chosen.faults:
            self.tick(began + fault.at - time.monotonic())
            self.trace(f"round {number}  {fault}")
            self.faults.begin(fault)
        self._until(lambda: not self.faults.under_way, FAULTS_END_SECONDS, "the faults never ended")
        took, allowed = self._whole()
        self._go_on()
        self._judge()
        self._anew()
        this = Round(
            number,
            took,
            allowed,
            {kind: count - done.get(kind, 0) for kind, count in self.faults.done.items()},
            self.ledger.events - events,
            sum(self.ledger.refusals.values()) - refusals,
            self._received() - messages,
            time.monotonic() - began,
        )
        self.rounds.append(this)
        return this

    def _whole(self) -> tuple[float, float]:
        """Waits for the mesh; how long it took since the last fault, and how much of it the machine may have
        kept us waiting."""
        names = [self.cluster.node(name) for name in self.cluster.names]
        before, last = waited_seconds(self._pids()), self.faults.last_at
        since, seen = 0.0, (0, 0)
        while not since or time.monotonic() - since < STEADY_SECONDS:
            self.tick(TICK_SECONDS)
            now = time.monotonic()
            if not self.links.whole(names):
                since = 0.0
            elif not since or seen != (self.links.ups, self.links.downs):
                since, seen = now, (self.links.ups, self.links.downs)
            allowed = allowance(before, waited_seconds(self._pids()))
            passed = (since or now) - last
            if passed > WHOLE_SECONDS + allowed:
                raise Violated(
                    f"the mesh is not whole {passed:.1f} s after the last fault (the machine kept it "
                    f"waiting for {allowed:.1f} s of that); these links are missing: "
                    f"{dict(self.links.lacking(names))}"
                )
        took = max(0.0, since - last)
        self._quiet = True
        for name in self.cluster.names:  # other evidence than the witness
            links = self.cluster.within(name)["links"]
            if set(links) != set(names) - {self.cluster.node(name)}:
                raise Violated(f"{name}: nodes(connected) is {links}, and its witness says otherwise")
        return took, allowed

    def _pids(self) -> list[int]:
        found = [pid for pid in map(self.cluster.beam_pid, self.cluster.names) if pid is not None]
        if self.cluster.orchestrator is not None:
            found.append(self.cluster.orchestrator.pid)
        return found

    def _go_on(self) -> None:
        """What operators began comes to its end."""
        self._until(lambda: not self.operator.busy, QUIET_SECONDS, "a command goes on and on")
        self.operator.go_on()
        self._until(
            lambda: not self.operator.busy, QUIET_SECONDS, "what was interrupted does not come to its end"
        )

    # ---- looking at everything

    def _judge(self) -> None:
        """In the quiet."""
        cluster = self.cluster
        self._settled(lambda: invariants.status_code(cluster), WELL_SECONDS)
        cluster.pause(True)
        for stranger in cluster.intruders.values():  # what is being dialled comes to its end
            stranger.erl("distsec_test_chaos:hammered()", seconds=ANSWER_SECONDS)
        flood(cluster)
        self._settled(lambda: self._agreement(), invariants.AGREE_SECONDS)
        self._fail(list(flooded(cluster)))
        self._fail(list(invariants.intruders(cluster)))
        self._fail(self._attempted())
        self._settled(lambda: invariants.processes(cluster, self.private), invariants.ZOMBIE_SECONDS)
        self._fail(invariants.files(cluster))
        if self.findings:
            more = invariants.findings(cluster) - self.findings
            self._fail([f"distsec check finds what it did not at the start: {sorted(more)}"] if more else [])
        self._weigh()
        cluster.pause(False)

    def _agreement(self) -> list[str]:
        self._read()
        return invariants.agreement(self.cluster, self.ledger)

    def _attempted(self) -> list[str]:
        """That every stranger was refused for what it lacks, often enough: else nothing was tried."""
        seen = {reason for _, reason in self.ledger.refusals}
        return [
            f"the log has no refusal of {name} ({reason})"
            for name, reason in REASONS.items()
            if self.cluster.intruders and reason not in seen and self.rounds
        ]

    def _weigh(self) -> None:
        found, messages = weigh(self.cluster, self.levels)
        self.messages.update(messages)
        self._fail(found)

    def _received(self) -> int:
        return sum(received for _, received, _ in self.messages.values())

    # ---- intruders

    def _hammer(self) -> None:
        self._authority = self._fingerprint()
        for name, (tried, _, _) in (self.cluster.hammered() if self.cluster.intruders else {}).items():
            self.hammered[name] = self.hammered.get(name, 0) + tried
        self.cluster.hammer(list(dict.fromkeys(self.otps.values())))

    def _anew(self) -> None:
        """After a rotation the strangers' certificates are of the CA that issues now, and they know the
        cookies."""
        if self._fingerprint() != self._authority:
            self._hammer()
        else:
            self.cluster.tell_cookies()

    def _fingerprint(self) -> str:
        return hashlib.sha256((self.cluster.state / "ca" / "certificate.pem").read_bytes()).hexdigest()

    # ---- time

    def tick(self, seconds: float) -> None:
        """Lets time pass and looks after everything: at least once, however little time it is."""
        until = time.monotonic() + seconds
        while True:
            self._look_after()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(TICK_SECONDS, left))

    def _look_after(self) -> None:
        now = time.monotonic()
        if self.private:
            reap(self.cluster.children() | self.operator.pids())
        self._keep_running(now)
        self.operator.tick()
        self.faults.tick()
        if now - self._read_at >= READ_SECONDS:
            self._read_at = now
            self._read()
        if now - self._looked_at >= LOOK_SECONDS and not self._quiet:
            self._looked_at = now
            self.operator.look(self.faults.away)
        self._fail(self.operator.violations)

    def _keep_running(self, now: float) -> None:
        """As systemd would."""
        orchestrator = self.cluster.orchestrator
        assert orchestrator is not None
        if (code := orchestrator.poll()) is None:
            self._down_since = None
        elif self._down_since is None:
            full = code == DISK_FULL and self.faults.found_full() and self._says_full()
            if orchestrator is not self.faults.ended and not full:
                raise Violated(f"the orchestrator has ended by itself: {code}{self.cluster.story()}")
            self._down_since = now
        elif now - self._down_since >= RESTART_SECONDS:
            self._read()
            self.ledger.forget_run(self.cluster.runs - 1)
            self.cluster.run()
            self._down_since = None

    def _says_full(self) -> bool:
        """What cannot be written is the last that it says."""
        return any("the disk is full" in line for line in self.cluster.orchestrator_lines()[-1:])

    def _read(self) -> None:
        """What witnesses and orchestrators have written."""
        found: list[str] = []
        for name in self.cluster.names:
            for sighting in self.cluster.sightings(name):
                found += self.links.feed([sighting])
                if self._quiet and sighting.kind == "down" and sighting.peer in self.links.listed:
                    found.append(
                        f"{sighting.node} lost {sighting.peer} in the quiet, at {sighting.at:.3f}: "
                        f"{sighting.detail}"
                    )
        found += self.links.denied(time.time())
        for run, line in self.cluster.lines():
            found += self.ledger.feed(run, line)
        self._fail(found)

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not condition():
            self.tick(TICK_SECONDS)
            if time.monotonic() > until:
                busy = ", ".join(f"{task}: {task.last}" for task in self.operator.busy)
                raise Violated(f"{what} (for {seconds:g} s): {busy}")

    def _settled(self, ask: Callable[[], list[str]], seconds: float) -> None:
        self._fail(invariants.settle(ask, seconds, self.tick))

    def _fail(self, found: Sequence[str]) -> None:
        if found:
            raise Violated("\n".join(found))

    # ---- the end

    def figures(self) -> dict[str, Any]:
        """For the summary and for --json."""
        tried = dict(self.hammered)
        for name, (count, _, _) in self.cluster.hammered().items():
            tried[name] = tried.get(name, 0) + count
        whole = [each.whole_seconds for each in self.rounds]
        return {
            "rounds": len(self.rounds),
            "faults": dict(self.faults.done),
            "commands": {f"{what}: exit code {code}": n for (what, code), n in self.operator.codes.items()},
            "orchestrators": self.cluster.runs,
            "launches": len(self.ledger.launches),
            "whole_seconds": {"median": sorted(whole)[len(whole) // 2], "most": max(whole)} if whole else {},
            "stretched": sum(each.whole_seconds > WHOLE_SECONDS for each in self.rounds),
            "waited_for_a_core_seconds": max((each.allowed_seconds for each in self.rounds), default=0.0),
            "attempts": tried,
            "links_up": self.links.ups,
            "links_down": self.links.downs,
            "events": self.ledger.events,
            "repeated": self.ledger.repeated,
            "refusals": sum(self.ledger.refusals.values()),
            "messages": {
                "sent": sum(sent for sent, _, _ in self.messages.values()),
                "received": self._received(),
            },
            "orchestrator": {
                "resident_mib": round(self.levels.highest("orchestrator", "resident") / MIB, 1),
                "descriptors": self.levels.highest("orchestrator", "descriptors"),
                "rise_kib_a_round": round(self.levels.rise("orchestrator", "anonymous") / KIB, 1),
                "anonymous_mib_by_round": self.levels.by_round("orchestrator", "anonymous", MIB),
            },
            "nodes": {
                "resident_mib": round(self.levels.highest("node", "resident") / MIB, 1),
                "memory_mib": round(self.levels.highest("node", "memory") / MIB, 1),
                "descriptors": self.levels.highest("node", "descriptors"),
                "atoms": self.levels.highest("node", "atoms"),
                "memory_rise_kib_a_round": round(self.levels.rise("node", "memory") / KIB, 1),
                "memory_mib_by_round": self.levels.by_round("node", "memory", MIB),
            },
        }

    def close(self) -> None:
        self.operator.close()
        self.faults.end_all()
        self.cluster.close()
