"""Looks at one node as a stranger, and as its orchestrator: the proof that its guard is in force, and what
its port shows. `supervisor.proof` judges what is gathered here; `supervisor.node` owns it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from distsec.beam.messages import Command, Snapshot
from distsec.beam.probe import ProbeResult
from distsec.beam.witness import Witnessed
from distsec.core import node_status as life
from distsec.errors import DistsecError
from distsec.model.cluster import NodeSpec
from distsec.pki.pairs import Pair
from distsec.supervisor import listening
from distsec.supervisor.external import Process
from distsec.supervisor.proof import Judgement, Verdict, judge, judge_probe


class Node(listening.Node, Protocol):
    """The node that is looked at. `launched`: what its process was started with."""

    process: Process | None
    launched: NodeSpec
    listener: listening.Listener


class Proving:
    """Belongs to one event loop."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def prove(self, attempt: int) -> None:
        """Feeds the node what came of it. Never raises."""
        node = self._node
        try:
            verdict = await self._judge()
        except (DistsecError, OSError) as error:
            verdict = Verdict(Judgement.UNCLEAR, str(error))
        except Exception as error:
            node.hub.note("error", "proof failed unexpectedly", node=node.name, error=repr(error))
            verdict = Verdict(Judgement.UNCLEAR, f"unexpected {type(error).__name__}")
        match verdict.judgement:
            case Judgement.PROVEN:
                node.feed(life.GuardProven(attempt))
            case Judgement.UNCLEAR:
                node.feed(life.GuardUnclear(attempt, verdict.what, verdict.unanswered))
            case Judgement.DISPROVEN:
                node.feed(life.GuardDisproven(attempt, verdict.what))

    async def _judge(self) -> Verdict:
        """A fresh snapshot, the sockets as the kernel has them, and the port as a stranger finds it."""
        node, hub = self._node, self._node.hub
        process, beam = node.process, node.server.pid
        if process is None or beam is None:
            return Verdict(Judgement.UNCLEAR, "no hello from its agent")
        reply = await node.server.command(Command.STATUS, {}, listening.COMMAND_SECONDS)
        snapshot: Snapshot = reply.fields["snapshot"]
        node.listener.show(snapshot)
        wanted = hub.desk.wanted
        if snapshot.policy_digest != wanted.digest and not hub.desk.busy:
            pushed = await hub.desk.push(node)
            snapshot = replace(snapshot, policy_digest=pushed.fields["digest"])
            wanted = hub.desk.wanted
        listeners = await asyncio.to_thread(process.listeners)
        expected = hub.machine.expected(node.launched, wanted.digest)
        verdict = judge(expected, snapshot, listeners, beam)
        if verdict.judgement is not Judgement.PROVEN:
            return verdict
        installed = hub.renewal.installed(node.name)
        seen = await hub.machine.probe(node.launched, self._knocked)
        if hub.renewal.installed(node.name) == installed:  # else it is being told, or was
            hub.renewal.saw(node, seen.certificate)
        return judge_probe(hub.spec.carrier, seen)

    async def served(self) -> ProbeResult:
        """What its port shows to whoever connects, as we do."""
        return await self._node.hub.machine.served(self._node.launched, self._knocked)

    async def shown(self, pair: Pair) -> Witnessed:
        """What becomes of whoever shows it the certificate of `pair`, which it is to refuse."""
        node, loop = self._node, asyncio.get_running_loop()
        return await node.hub.machine.show_certificate(
            node.launched, pair, lambda address: node.observed.showed_a_witness(address, loop.time())
        )

    def _knocked(self, address: str) -> None:
        self._node.observed.knocked(address, asyncio.get_running_loop().time())
