"""Does what a schedule says: begins each fault, ends those that last, and knows when the last one was
over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.chaos import sockets
from tests.faults.chaos.cluster import TOOLS, ChaosCluster
from tests.faults.chaos.ledger import Ledger
from tests.faults.chaos.links import Denial, Links
from tests.faults.chaos.operator import Operator
from tests.faults.chaos.schedule import Fault, Kind
from tests.system.processes import catches

FULL_GRACE_SECONDS = 10.0
"""What an orchestrator that ran already finds out of a full disk, it has found out by then."""


@dataclass(slots=True)
class Faults:
    """`done` counts what was really done, by kind: a link that is not there cannot be cut."""

    cluster: ChaosCluster
    operator: Operator
    links: Links
    ledger: Ledger
    done: dict[str, int] = field(default_factory=dict)
    last_at: float = 0.0
    """Monotonic: when the last fault was over."""
    ended: subprocess.Popen[bytes] | None = None
    """The orchestrator whose end was last our doing."""
    full_from: float = 0.0
    full_until: float = 0.0
    """Monotonic: between them the disk is full, or was a moment ago."""
    _ends: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _stopped: set[int] = field(default_factory=set)
    _denials: int = 0
    _allowing: int = 0

    def begin(self, fault: Fault) -> None:
        """Raises nothing that a fault may cause by itself."""
        _BEGIN[fault.kind](self, fault)
        self.over()

    def tick(self) -> None:
        """Ends what has lasted for long enough."""
        now = time.monotonic()
        due = [end for end in self._ends if end[0] <= now]
        self._ends = [end for end in self._ends if end[0] > now]
        for _, end in due:
            end()
            self.over()
        if now > self.full_until:
            self.ledger.fill(False)

    def away(self) -> bool:
        """Whether the orchestrator is stopped, so that it cannot answer."""
        orchestrator = self.cluster.orchestrator
        return orchestrator is not None and orchestrator.pid in self._stopped

    def found_full(self) -> bool:
        """Whether the orchestrator may say that the disk is full: now, or, begun meanwhile, whenever it has
        come to write."""
        now, begun = time.monotonic(), self.cluster.started_at
        return now < self.full_until or self.full_from <= begun < self.full_until

    @property
    def under_way(self) -> bool:
        return bool(self._ends) or self._denials > 0 or self._allowing > 0

    def over(self) -> None:
        self.last_at = time.monotonic()

    def counted(self, kind: Kind, times: int = 1) -> None:
        if times:
            self.done[kind] = self.done.get(kind, 0) + times

    def end_all(self) -> None:
        """What still lasts ends now, whatever the schedule said."""
        for _, end in self._ends:
            end()
        self._ends.clear()

    # ---- processes

    def kill_node(self, fault: Fault) -> None:
        pid = self.cluster.beam_pid(fault.target)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self.links.ended(self.cluster.node(fault.target), pid)
            self.counted(fault.kind)

    def stop_node(self, fault: Fault) -> None:
        if (pid := self.cluster.beam_pid(fault.target)) is not None:
            self._stop(pid, fault)

    def kill_orchestrator(self, fault: Fault) -> None:
        self._end_orchestrator(fault, signal.SIGKILL)

    def restart_orchestrator(self, fault: Fault) -> None:
        self._end_orchestrator(fault, signal.SIGTERM)

    def _end_orchestrator(self, fault: Fault, number: signal.Signals) -> None:
        orchestrator = self.cluster.orchestrator
        if orchestrator is not None and orchestrator.poll() is None:
            orchestrator.send_signal(number)
            self.ended = orchestrator
            self.counted(fault.kind)

    def stop_orchestrator(self, fault: Fault) -> None:
        orchestrator = self.cluster.orchestrator
        if orchestrator is not None and orchestrator.poll() is None:
            self._stop(orchestrator.pid, fault)

    def _stop(self, pid: int, fault: Fault) -> None:
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)  # by then the pid may be somebody else's
            signal.pidfd_send_signal(process, signal.SIGSTOP)
            self._stopped.add(pid)
            if fault.target:
                self.links.stopped(self.cluster.node(fault.target))
            self.counted(fault.kind)

            def go_on() -> None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGCONT)
                os.close(process)
                self._stopped.discard(pid)
                if fault.target:
                    self.links.stopped(self.cluster.node(fault.target), until=time.time())

            self._later(fault, go_on)

    # ---- sockets

    def cut_agent(self, fault: Fault) -> None:
        path = self.cluster.node_directory(fault.target) / "agent.sock"
        orchestrator = self.cluster.orchestrator
        if fault.how == "at the node":
            pid, wanted = self.cluster.beam_pid(fault.target), sockets.connected_to(path)
        else:
            pid = orchestrator.pid if orchestrator is not None else None
            wanted = sockets.accepted_at(path)
        if pid is not None:
            self.counted(fault.kind, sockets.shut(pid, wanted))

    def cut_link(self, fault: Fault) -> None:
        pid = self.cluster.beam_pid(fault.target)
        if pid is not None:
            wanted = sockets.accepted_on(self.cluster.port(fault.target))
            self.counted(fault.kind, sockets.shut(pid, wanted))

    # ---- the disk

    def full_disk(self, fault: Fault) -> None:
        disk = self.cluster.disk
        assert disk is not None, "the schedule has no full disk where there is none"
        disk.fill()
        self.ledger.fill(True)
        self.counted(fault.kind)
        self.full_from = time.monotonic()
        self.full_until = self.full_from + fault.seconds + FULL_GRACE_SECONDS
        self._later(fault, disk.free)

    # ---- what operators do

    def renew(self, fault: Fault) -> None:
        node = self.cluster.node(fault.target) if fault.target else "--all"
        self.operator.give("certs", "renew", node, again=True)
        self.counted(fault.kind)

    def rotate_ca(self, fault: Fault) -> None:
        step = self.operator.next_step(back=fault.how == "back")
        self.operator.give("certs", "rotate-ca", step, again=True)
        self.counted(fault.kind)

    def rotate_cookie(self, fault: Fault) -> None:
        self.operator.give("cookie", "rotate", again=True)
        self.counted(fault.kind)

    def deny(self, fault: Fault) -> None:
        """Until its time is over and the denial has an end of its own; then `allow`, until it is done."""
        peer = self.cluster.node(fault.target)
        denial: list[Denial] = []

        def acknowledged(at: float) -> None:
            denial.append(Denial(peer, at))
            self.links.denials.append(denial[0])

        task = self.operator.give("deny", peer, on_done=acknowledged)
        self._denials += 1

        def allow() -> None:
            if not task.over:
                self._ends.append((time.monotonic() + 0.2, allow))
                return
            self._denials -= 1
            self._allowing += 1
            if denial:
                denial[0].until = time.time()
            self.operator.give("allow", peer, insists=True, on_done=allowed)

        def allowed(_at: float) -> None:
            self._allowing -= 1
            self.over()

        self._later(fault, allow)
        self.counted(fault.kind)

    def reload(self, fault: Fault) -> None:
        """A rule goes, or comes."""
        orchestrator = self.cluster.orchestrator
        if orchestrator is None or orchestrator.poll() is not None:
            return
        distribution = self.cluster.settings["security"]["distribution"]
        distribution["rules"] = [] if distribution["rules"] else [TOOLS]
        written = self.cluster.config.with_suffix(".new")
        before, self.cluster.config = self.cluster.config, written
        self.cluster.write()
        self.cluster.config = before
        written.rename(before)
        if catches(orchestrator.pid, signal.SIGHUP):  # else, while Python itself begins, it would end it
            orchestrator.send_signal(signal.SIGHUP)
        self.counted(fault.kind)

    def _later(self, fault: Fault, end: Callable[[], None]) -> None:
        self._ends.append((time.monotonic() + fault.seconds, end))


_BEGIN: dict[Kind, Callable[[Faults, Fault], None]] = {
    Kind.KILL_NODE: Faults.kill_node,
    Kind.KILL_ORCHESTRATOR: Faults.kill_orchestrator,
    Kind.RESTART_ORCHESTRATOR: Faults.restart_orchestrator,
    Kind.STOP_ORCHESTRATOR: Faults.stop_orchestrator,
    Kind.STOP_NODE: Faults.stop_node,
    Kind.CUT_AGENT: Faults.cut_agent,
    Kind.CUT_LINK: Faults.cut_link,
    Kind.FULL_DISK: Faults.full_disk,
    Kind.RENEW: Faults.renew,
    Kind.ROTATE_CA: Faults.rotate_ca,
    Kind.ROTATE_COOKIE: Faults.rotate_cookie,
    Kind.DENY: Faults.deny,
    Kind.RELOAD: Faults.reload,
}
