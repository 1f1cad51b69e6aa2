"""The wanted policy, and what changes it (`pushing` brings it to the nodes).

Only here are policy files written and policies pushed. One change at a time; a node that misses one gets the
wanted policy again as soon as a heartbeat shows that it has another (`ManagedNode`), and from its file when
it starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from distsec.beam.messages import Reply
from distsec.core import rollback, rollout
from distsec.core.rollout import Content
from distsec.core.wanted import Overlay, Taint, is_trusted, known_identities, listed_names, wanted_policy
from distsec.errors import DistsecError, NotAcknowledged, NotFound, StoreError, UsageError
from distsec.model.cluster import ClusterSpec
from distsec.model.identities import canonical_identity, readable
from distsec.model.names import NodeName, glob_matches
from distsec.model.text import escape
from distsec.supervisor.machine import Machine
from distsec.supervisor.pushing import Driver, Spawn, Target, Wanted, nothing
from distsec.supervisor.undecided import Undecided

CLOCK_SLACK_SECONDS = 3600.0
"""A clock that goes back by less is set right now and then."""

PUSH_SECONDS = 10.0
"""For a push outside of a rollout. The node waits up to 4 s for the links that it ends."""


class PolicyDesk:
    """Keeps the wanted policy. `targets` answers with the managed nodes of the moment, `now` with the Unix
    time that policies are stamped with.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        machine: Machine,
        targets: Callable[[], Mapping[str, Target]],
        spawn: Spawn,
        on_change: Callable[[Wanted], object] = lambda wanted: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.spec = spec
        self._now = now
        self.notes: tuple[str, ...] = ()
        """What was wrong with the overlay that was found: to be told once everything is there to tell it."""
        self.undecided = Undecided(machine.records)
        """Why the overlay may lack what was decided."""
        self.stays: str | None = None
        """Why the policy is still the one of the orchestrator before; None: it is not."""
        self._machine = machine
        self._targets = targets
        self._driver = Driver(self, machine, targets, spawn)
        self._on_change = on_change
        self._lock = asyncio.Lock()
        # A generation of its own for each orchestrator: what an earlier one pushed last is not known, only
        # that it is not above what was saved (core.rollout, 2).
        overlay, self.notes = rollback.lifted(machine.load_overlay(), machine.records.found(spec))
        self._found = overlay
        self.undecided.add(self.notes)
        if overlay.issued_at > now() + CLOCK_SLACK_SECONDS:
            ahead = f"{overlay.issued_at - now():.0f} s"
            self.notes += (f"the clock was set back: the last policy was issued {ahead} from now",)
        self.wanted = self._make(overlay.advanced())
        self.saved = False
        self._disk = threading.Lock()  # held by threads only, never by the event loop

    def save_first(self) -> None:
        """Saves that generation before anybody is told of it; not before, so that an orchestrator that cannot
        start (a port in use, no `erl`) leaves the disk as it was. Blocks; for a thread.

        Where it cannot be saved the one before does, if it is in the files of all nodes as the configuration
        would have it now: then it is the only policy of that generation that anybody was ever told of.
        """
        with self._disk:
            if self.saved:
                return
            try:
                self.undecided.save()
                self._machine.save_overlay(self.wanted.overlay)
            except StoreError as error:
                kept = self._issued(self._found)
                nodes = [target.spec for target in self._targets().values()]
                if not nodes or not all(self._machine.records.holds(node, kept.document) for node in nodes):
                    raise
                self.wanted = kept
                self.stays = str(error)
            self.saved = True

    def save(self, overlay: Overlay) -> None:
        """Blocks; for a thread. A first save that is still under way comes before it, and none after it."""
        with self._disk:
            self.undecided.save()
            self._machine.save_overlay(overlay)
            self.saved = True

    def write_files(self) -> None:
        """Brings the file of every node up to date, whether it runs or not. Raises StoreError. Blocks; for a
        thread.
        """
        self.save_first()
        for target in tuple(self._targets().values()):
            self._machine.write_policy(target.spec, self.wanted.overlay, self.wanted.document)

    @property
    def busy(self) -> bool:
        """Whether a change is on its way to the nodes."""
        return self._driver.busy

    async def push(self, target: Target, seconds: float = PUSH_SECONDS) -> Reply:
        """Sends the wanted policy to one node. Raises AgentCommandFailed, StoreError."""
        if not self.saved:
            await asyncio.to_thread(self.save_first)  # and only then is it known which it is
        return await self._driver.send(target, self.wanted, seconds)

    def node_gone(self, name: str) -> None:
        """Its process has ended: nobody waits for its answer any longer."""
        self._driver.node_gone(name)

    async def allow(self, name: str, identity: str | None) -> dict[str, Any]:
        """Two-phase. Raises NameInvalid, UsageError, NotAcknowledged (rolled back), StoreError."""
        name = str(NodeName.parse(name))
        if identity is not None and not is_trusted(self.spec, canonical_identity(identity)):
            raise UsageError(
                f"{escape(identity, 80)} is of a trust domain that this configuration does not trust",
                do="add the domain to [security.distribution] foreign_trust_domains, if you trust who issues"
                " its certificates",
            )
        async with self._lock:
            base = self.wanted
            if name in base.overlay.condemned:
                raise UsageError(
                    f"{name} is being re-keyed", do="wait until `distsec status` says that it is"
                )
            configured = name in map(str, self.spec.allowed_nodes)
            known_by = identity or known_identities(self.spec, base.overlay).get(name)
            opened = base.overlay.allowing(name, identity, configured=configured, known_by=known_by)
            lifted = sorted(base.overlay.revoked_identities - opened.revoked_identities)

            def make(content: Content, generation: int) -> Wanted:
                overlay = base.overlay if content is Content.WITHOUT else opened
                prepared = base.prepared | {name} if content is Content.PREPARED else base.prepared - {name}
                return self._make(replace(overlay, generation=generation), prepared)

            try:
                outcome = await self._drive(rollout.begin_allow, make, base.overlay.condemned)
            except DistsecError:
                if self.wanted is base:
                    raise  # nothing was saved, and nobody told
                # Saved is WITHOUT, or OPEN that nobody was told of: what is above both says WITHOUT.
                self.adopt(make(Content.WITHOUT, base.generation + rollout.ROLLBACK_OFFSET))
                raise
        if not outcome.done:
            raise NotAcknowledged(
                f"{name} is not allowed: {who(outcome.missing)}; rolled back",
                missing=tuple(outcome.missing),
                do="see to these nodes (`distsec status`) and repeat it",
            )
        return {**self._answer(name, outcome), "lifted": [readable(each) for each in lifted]}

    async def deny(self, name: str) -> dict[str, Any]:
        """Persisted first. Raises NameInvalid, NotFound, StoreError (nothing is changed), NotAcknowledged."""
        name = str(NodeName.parse(name))
        async with self._lock:
            if not self.knows(name):
                raise NotFound(
                    f"{name} is on no list and fits no rule, so nobody admits it", do="check the name"
                )
            outcome = await self._refuse(lambda overlay: overlay.denying(name), withdrawn=frozenset({name}))
        if not outcome.done:
            raise NotAcknowledged(
                f"{name} is denied, for good, but {who(outcome.missing)}",
                missing=tuple(outcome.missing),
                do="these nodes take the denial up when they answer; stop them if that cannot wait",
            )
        return self._answer(name, outcome)

    async def refuse(
        self,
        changed: Callable[[Overlay], Overlay],
        *,
        withdrawn: frozenset[str] = frozenset(),
        above: int = 0,
        kept: Callable[[], object] = nothing,
    ) -> rollout.Finish:
        """Like a denial, whatever `changed` makes of the overlay: persisted, then told to all, for good.

        `withdrawn`: names that are not being let in any more; `above`: a generation that it must exceed.
        Raises StoreError (then nothing is changed, unless `kept` was called).
        """
        async with self._lock:
            return await self._refuse(changed, withdrawn=withdrawn, above=above, kept=kept)

    async def restage(self, changed: Mapping[str, Taint | None], seen: Overlay) -> None:
        """Keeps other records of taint (Overlay.restaged); no node is told. Raises StoreError, with nothing
        changed.
        """
        async with self._lock:
            overlay = self.wanted.overlay.restaged(changed, seen)
            await asyncio.to_thread(self.save, overlay)
            self.wanted = replace(self.wanted, overlay=overlay)

    async def _refuse(
        self,
        changed: Callable[[Overlay], Overlay],
        *,
        withdrawn: frozenset[str] = frozenset(),
        above: int = 0,
        kept: Callable[[], object] = nothing,
    ) -> rollout.Finish:
        base = self.wanted
        overlay = changed(base.overlay)

        def make(content: Content, generation: int) -> Wanted:
            return self._make(replace(overlay, generation=generation), base.prepared - withdrawn)

        return await self._drive(rollout.begin_deny, make, overlay.condemned, kept, above)

    async def reconfigure(
        self, spec: ClusterSpec, newly_allowed: frozenset[str], saved: Callable[[], object]
    ) -> Mapping[str, str]:
        """A reload: denials at once; who is newly allowed is admitted when all know of it. Returns who is
        missing.

        Calls `saved` once, as soon as the new policy is kept and before anybody is told of it; an error
        before that leaves everything as it was. Those that are missing keep the newcomers closed until they
        answer (`settle`). Nothing is rolled back then: the file is what the operator wants. Raises
        StoreError.
        """
        async with self._lock:
            old, self.spec = self.spec, spec
            overlay, prepared = self.wanted.overlay, self.wanted.prepared | newly_allowed
            kept = False

            def make(content: Content, generation: int) -> Wanted:
                return self._make(replace(overlay, generation=generation), prepared)

            def keep() -> None:
                nonlocal kept
                kept = True
                saved()

            try:
                outcome = await self._drive(rollout.begin_deny, make, overlay.condemned, keep)
            finally:
                if not kept:
                    self.spec = old
            return outcome.missing if outcome.missing else await self._open()

    async def settle(self) -> None:
        """Opens what a reload has prepared as soon as everybody has it in force. Called now and then."""
        if not self.wanted.prepared or self._lock.locked():
            return
        waiting = [
            node
            for name, node in self._targets().items()
            if node.takes_policy and name not in self.wanted.overlay.condemned
        ]
        if all(node.active_digest == self.wanted.digest for node in waiting):
            async with self._lock:
                await self._open()

    async def _open(self) -> Mapping[str, str]:
        if not self.wanted.prepared:
            return {}
        overlay = self.wanted.overlay

        def make(content: Content, generation: int) -> Wanted:
            return self._make(replace(overlay, generation=generation))

        return (await self._drive(rollout.begin_deny, make, overlay.condemned)).missing

    # ---- the interpreter of rollouts

    async def _drive(
        self,
        begin: Callable[..., rollout.Result],
        make: Callable[[Content, int], Wanted],
        condemned: frozenset[str],
        saved: Callable[[], object] = nothing,
        above: int = 0,
    ) -> rollout.Finish:
        deadline = self.spec.acknowledge_deadline_seconds
        return await self._driver.drive(begin, make, condemned, deadline, saved, above)

    def _make(self, overlay: Overlay, prepared: frozenset[str] = frozenset()) -> Wanted:
        # Certificates are judged at the time of the policy at least: it never goes back.
        return self._issued(replace(overlay, issued_at=max(int(self._now()), overlay.issued_at)), prepared)

    def _issued(self, overlay: Overlay, prepared: frozenset[str] = frozenset()) -> Wanted:
        policy = wanted_policy(self.spec, overlay, self._machine.ports, overlay.issued_at, prepared)
        document = self._machine.document(policy)
        labels = (*listed_names(self.spec, overlay), *(rule.pattern for rule in policy.rules))
        return Wanted(overlay, prepared, document, hashlib.sha256(document).hexdigest(), labels)

    def adopt(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._on_change(wanted)

    def knows(self, name: str) -> bool:
        """Whether it is listed, fits a rule, or is denied already."""
        listed = listed_names(self.spec, self.wanted.overlay)
        patterns = [pattern for rule in self.spec.rules for pattern in rule.names]
        denied = self.wanted.overlay.deny
        return name in listed or name in denied or any(glob_matches(pattern, name) for pattern in patterns)

    def _answer(self, name: str, outcome: rollout.Finish) -> dict[str, Any]:
        return {
            "name": name,
            "generation": self.wanted.generation,
            "acknowledged": list(outcome.acknowledged),
            "missing": list(outcome.missing),
        }


def who(missing: Mapping[str, str]) -> str:
    said = {rollout.NO_ANSWER: "has not acknowledged"}
    return ", ".join(f"{name} {said.get(why, f'refused it ({why})')}" for name, why in missing.items())
