"""What one node's agent says, and whether it says anything at all. `supervisor.node` owns it.

Nothing that an agent says decides more than its own node's fate.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from distsec.beam.link import AgentCommandFailed
from distsec.beam.messages import (
    AgentRefusal,
    Command,
    EventKind,
    Heartbeat,
    LaneEvent,
    Message,
    Opened,
    Snapshot,
)
from distsec.beam.security_events import agent_refused
from distsec.core import node_status as life
from distsec.core.node_silence import Silence
from distsec.supervisor.acceptance import Acceptance
from distsec.supervisor.hub import Hub
from distsec.supervisor.observed import Observed
from distsec.supervisor.pushing import Target

COMMAND_SECONDS = 5.0
VERSION_AGAIN_SECONDS = 300.0
"""An agent of another version is told of this often."""

PUSH_AGAIN_SECONDS = 3.0
"""A node whose policy differs is sent the wanted one at most this often."""


class Node(Target, Protocol):
    """The node whose agent is listened to."""

    hub: Hub
    status: life.NodeStatus
    observed: Observed
    acceptance: Acceptance

    def feed(self, event: life.Event) -> None: ...
    def take_hello(self, pid: int, started: int) -> bool: ...


class Listener:
    """Belongs to one event loop. Its `on_…` are the callbacks of AgentServer (beam.link)."""

    def __init__(self, node: Node) -> None:
        self.closed = False
        """Set where it is we who leave: the connection that then ends is not lost."""
        self._node = node
        self._silence = Silence()
        self._pushed_at = 0.0
        self._version_told_at = -VERSION_AGAIN_SECONDS

    def tick(self, now: float) -> None:
        """Once a second: drops the connection of an agent that is silent; it comes back by itself."""
        node = self._node
        self._silence = self._silence.tick(now, connected=node.status.agent)
        if self._silence.lost:
            why = f"nothing was heard of it for {self._silence.seconds:.0f} s"
            node.hub.note("warning", "the connection of an agent is dropped", node=node.name, why=why)
            self._silence = self._silence.heard(now)
            node.server.drop(why)

    def show(self, snapshot: Snapshot) -> None:
        """What it says of itself is what is known of it from now on."""
        node = self._node
        node.observed.show(snapshot)
        node.hub.memory.all_up(node.name, node.observed.links.values())
        self.show_policy()

    def show_policy(self) -> None:
        node = self._node
        node.hub.metrics.set_policy(node.name, node.hub.desk.wanted.generation, node.observed.generation)

    # ---- callbacks of its server

    def on_message(self, name: str, message: Message) -> None:
        self._silence = self._silence.heard(asyncio.get_running_loop().time())
        match message:
            case Opened(launch):
                self._node.observed.opened(launch, asyncio.get_running_loop().time())
            case Snapshot():
                self._hello(message)
            case LaneEvent():
                self._on_event(message)
            case Heartbeat():
                self._on_heartbeat(message)

    def on_lost(self, name: str, why: str) -> None:
        if not self.closed:
            self._node.feed(life.AgentLost())

    def on_refused(self, name: str, reason: str, detail: str) -> None:
        node, now = self._node, asyncio.get_running_loop().time()
        node.hub.metrics.agent_refused(node.name, reason)
        node.acceptance.refused = detail
        if reason == AgentRefusal.VERSION:
            how = f"`distsec restart {node.name}` gives it the agent of this orchestrator"
            node.feed(life.AgentOfOtherVersion(f"{detail}; {how}"))
            # It comes again every 2 s for as long as it lives; `status` and the metric say so all the while.
            if now - self._version_told_at < VERSION_AGAIN_SECONDS:
                return
            self._version_told_at = now
        node.hub.bus.publish(agent_refused(node.name, reason, detail, time.time()))

    def _hello(self, snapshot: Snapshot) -> None:
        node = self._node
        pid = node.server.pid
        started = node.hub.machine.start_time(pid) if pid is not None else None
        # `present` last: the start time is then that of the process that connected, not of one with its pid.
        present = pid is not None and started is not None and node.server.present()
        if pid is None or started is None or not present or not node.take_hello(pid, started):
            return  # it is gone already; its connection is about to be lost
        node.hub.rollbacks.restarted(node.name, node.observed.generation, snapshot.policy_generation)
        self.show(snapshot)
        self._look_ahead()
        node.feed(life.AgentConnected(pid))

    def _on_event(self, message: LaneEvent) -> None:
        node = self._node
        node.observed.event(message, asyncio.get_running_loop().time())
        if message.link is not None:
            remember = node.hub.memory.down if message.kind is EventKind.LINK_DOWN else node.hub.memory.up
            remember(node.name, message.link)
        if message.kind is EventKind.GUARD:
            what = message.detail or "its agent says that the guard has changed"
            node.feed(life.GuardDisproven(node.status.attempt, what))

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        node, now = self._node, asyncio.get_running_loop().time()
        if node.observed.heartbeat(heartbeat, now):
            node.hub.spawn(self._refresh(), f"links of {node.name}")
        self.show_policy()
        self._look_ahead()
        desk = node.hub.desk
        differs = node.active_digest != desk.wanted.digest
        if differs and not desk.busy and now - self._pushed_at >= PUSH_AGAIN_SECONDS:
            self._pushed_at = now
            node.hub.spawn(self._push_again(), f"policy to {node.name}")

    def _look_ahead(self) -> None:
        node, generation = self._node, self._node.observed.generation
        if generation is not None and node.hub.rollbacks.is_ahead(
            node.name, generation, node.observed.digest
        ):
            node.hub.spawn(node.hub.rollbacks.learn_from(node, generation), f"policy of {node.name}")

    async def _push_again(self) -> None:
        node = self._node
        try:
            await node.hub.desk.push(node)
        except AgentCommandFailed as error:
            node.hub.note("warning", "the node did not take the policy", node=node.name, why=error.reason)

    async def _refresh(self) -> None:
        try:
            reply = await self._node.server.command(Command.STATUS, {}, COMMAND_SECONDS)
        except AgentCommandFailed:
            return  # the next heartbeats ask again
        self.show(reply.fields["snapshot"])
