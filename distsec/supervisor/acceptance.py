"""Which process may be the agent of a node: whoever was started here, and later the very same; or, where
something else starts the node, or an operator has asked for it (`supervisor.adoption`), who proves itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from distsec.beam import proc
from distsec.core import node_status as life
from distsec.errors import DistsecError
from distsec.model.cluster import NodeSpec
from distsec.pki.account import find_account
from distsec.supervisor.external import Process
from distsec.supervisor.hub import Hub


@dataclass(frozen=True, slots=True)
class Window:
    """A node with a command takes one hello of a VM that was not started here. `pid`: of that process or one
    below it; None: of any of its user.
    """

    pid: int | None


class Node(Protocol):
    """The node whose agent it is."""

    hub: Hub
    name: str
    spec: NodeSpec
    status: life.NodeStatus
    process: Process | None

    def feed(self, event: life.Event) -> None: ...
    def take(self, process: Process) -> None: ...


class Acceptance:
    """Belongs to one event loop. `beam`: pid and start time of the VM that said hello last."""

    def __init__(self, node: Node) -> None:
        self.beam: tuple[int, int] | None = None
        self.window: Window | None = None
        self.refused: str | None = None
        """Why a connection to its agent socket was dropped last."""
        self._node = node

    def accept_peer(self, pid: int, uid: int) -> bool:
        """Whether that process may be this node's agent: below what was started, and later the very same.

        A VM that something else started is watched itself, so that what is below it is of the node, but never
        its agent.
        """
        node, process = self._node, self._node.process
        if node.spec.user is not None and not self._is_of_its_user(uid):
            return False
        if process is None:
            if node.status.rules.external:
                return self._is_of_its_user(uid)
            window = self.window
            return (
                window is not None
                and self._is_of_its_user(uid)
                and (window.pid is None or proc.descends_from(pid, window.pid))
            )
        if not process.contains(pid):
            return False
        if node.status.rules.external:
            return pid == process.pid
        if self.beam is not None and node.hub.machine.start_time(self.beam[0]) == self.beam[1]:
            return pid == self.beam[0]
        return True

    def take_hello(self, pid: int, started: int) -> bool:
        """Its agent has proven itself and says hello from that VM. False: it is gone already, or came too
        late.
        """
        node = self._node
        self.beam = (pid, started)
        if node.process is not None:
            return True
        try:
            if node.status.rules.external:
                node.take(node.hub.machine.watch(pid, started))
            elif self.window is not None:
                node.take(node.hub.machine.foundlings.take(node.spec, pid, started))
                self.window = None
                node.feed(life.Adopted(pid))
            else:
                self.beam = None
                return False
        except DistsecError as error:
            node.hub.note("warning", "a node cannot be taken over", node=node.name, error=str(error))
            self.beam = None
            return False
        return True

    def _is_of_its_user(self, uid: int) -> bool:
        user = self._node.spec.user
        account = find_account(user) if user is not None else None
        if user is not None and account is None:
            return False
        return uid == (os.geteuid() if account is None else account.uid)
