"""The users that nodes run as: whose directory is whose, and what is left from another one.

A part of `supervisor.machine`, by itself for its size. What a user is comes from `beam.privileges`, who owns
what in the state directory from `pki.forms`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from distsec.beam import privileges, proc, provision, session
from distsec.beam.agent import ebin_directory
from distsec.beam.logs import OutputLog
from distsec.beam.node import RunRecord, boot_id, leftovers, read_run
from distsec.errors import StoreError
from distsec.model.cluster import ClusterSpec, NodeSpec
from distsec.pki.account import Account, account_of_uid, home_of
from distsec.pki.store import Store

END_GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for a node that runs as the user of before."""


class Users(Protocol):
    """What the supervisor needs of them."""

    async def settle(self, node: NodeSpec, note: Callable[..., None]) -> None: ...
    def entrust(self, node: NodeSpec) -> bool: ...


class NodeUsers:
    """`accounts`: name of a node → its user, of those that have one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.accounts: Mapping[str, Account] = {}
        self._used = False

    def use(self, spec: ClusterSpec) -> None:
        """Raises ConfigError, PermissionRefused: see privileges.node_accounts."""
        self.accounts = privileges.node_accounts(spec)
        know(self._store, self.accounts)
        if not self.accounts and not self._used:  # later a node of before may still be on its way out
            self._store.close_way()
        self._used = True

    def of(self, node: NodeSpec) -> Account | None:
        """Whom it runs as; None: as ourselves."""
        return self.accounts.get(str(node.name))

    def home(self, node: NodeSpec) -> str | None:
        """HOME of a node with a user: where the runtime keeps a cookie of its own, which it must be able to
        make. That is its user's if it is there, else the node's directory.
        """
        account = self.of(node)
        return None if account is None else home_of(account) or str(self.directory(node))

    def directory(self, node: NodeSpec) -> Path:
        """Of its files."""
        return self._store.path(provision.node_directory(node.name))

    async def settle(self, node: NodeSpec, note: Callable[..., None]) -> None:
        """Sees to it that nothing of `node` runs as anybody else than its user, and gives that user its
        directory. `note` hears what there was to do: a line of the log.

        Raises StoreError; PermissionRefused where the user cannot get at what the node needs.
        """
        account = self.of(node)
        run = self._run(node)
        wanted = None if account is None else account.uid
        said = None
        if run is not None and run.boot_id == boot_id() and run.uid != wanted:
            ended = await self._end(run, OutputLog(self.directory(node) / "log" / "output.log", 0))
            self._store.remove(f"{provision.node_directory(node.name)}/run.json")
            if ended:
                said = f"ended what ran as {_who(run.uid)}: the node is to run as {_who(wanted)}"
        moved = await asyncio.to_thread(self.entrust, node)
        if moved and said is None:
            said = f"its directory is for {_who(wanted)} now"
        if said is not None:
            note("notice", said, node=str(node.name))

    def entrust(self, node: NodeSpec) -> bool:
        """See Store.entrust; PermissionRefused as for `settle`. Blocks."""
        account = self.of(node)
        moved = self._store.entrust(provision.node_directory(node.name), account)
        if account is not None:
            agent = ebin_directory() / "distsec_epmd.beam"
            privileges.check_reach(account, str(node.name), agent, self.directory(node) / "agent.key")
        return moved

    async def _end(self, run: RunRecord, log: OutputLog) -> int:
        """How many processes there were. Raises StoreError for those that stay."""
        before = None if run.uid is None else account_of_uid(run.uid)
        leader = session.Member(run.pid, run.start_time)
        left = await asyncio.to_thread(leftovers, run, log, before)
        owner = os.geteuid() if run.uid is None else run.uid
        if proc.owner(run.pid) == owner and session.lives(leader):  # nobody else's, whatever the record says
            left.insert(0, leader)
        if left and (staying := await session.end(left, END_GRACE_SECONDS)):
            pids = ", ".join(str(member.pid) for member in staying)
            raise StoreError(f"processes that run as {_who(run.uid)} cannot be ended: {pids}")
        return len(left)

    def _run(self, node: NodeSpec) -> RunRecord | None:
        relative = f"{provision.node_directory(node.name)}/run.json"
        try:
            return read_run(self._store.read(relative)) if self._store.exists(relative) else None
        except StoreError:
            return None  # `LocalMachine.adopt` looks for what lives of it


def know(store: Store, accounts: Mapping[str, Account]) -> None:
    """Tells the store whose each node's directory is."""
    store.accounts = {provision.node_directory(name): account for name, account in accounts.items()}


def _who(uid: int | None) -> str:
    return "the orchestrator's own user" if uid is None else account_of_uid(uid).name
