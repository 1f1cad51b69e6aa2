"""What shells need of this host (`supervisor.shells.Place`): their files, their certificates, an `erl`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from distsec.beam import proc, provision, shell_directory
from distsec.beam.agent import ebin_directory
from distsec.beam.runtime import find_erl, find_libraries, find_program
from distsec.beam.shell import DIRECTORY, ShellFields, shell_files, shell_policy, shell_words
from distsec.beam.shell_directory import ShellRecord
from distsec.beam.tool import tool_files, tool_flags
from distsec.core.wanted import Overlay, wanted_policy
from distsec.errors import CommandFailed
from distsec.model.cluster import NodeSpec
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.model.shells import SESSION_SECONDS
from distsec.pki import trust
from distsec.pki.account import acting_as, may_replace
from distsec.pki.authority import Authority, pem_of
from distsec.supervisor.machine import LocalMachine


class _Tls(TypedDict):
    key: Secret | None
    certificate: bytes | None
    trust: bytes | None


class LocalShells:
    """`machine` knows the configuration of the moment; `base` is the orchestrator's own environment."""

    def __init__(self, machine: LocalMachine, base: Mapping[str, str]) -> None:
        self._machine = machine
        self._base = base

    def begin_shell(self, record: ShellRecord, node: NodeSpec, overlay: Overlay) -> dict[str, Any]:
        """Makes all that the shell needs. Returns {"words", "directory", "uid", "gid"}: what its process is
        to run, where, and as whom; of a tool {"env", …}: in which environment. Blocks; for a thread.
        """
        spec, store, now = self._machine.spec, self._machine.store, time.time()
        policy = wanted_policy(spec, overlay, self._machine.ports, max(int(now), overlay.issued_at))
        others = [peer for peer in policy.peers if peer.name in record.others and peer.address is not None]
        target = next((peer for peer in policy.peers if peer.name == record.node), None)
        if target is None or target.address is None:
            raise CommandFailed(
                f"{record.node} is not on the list of allowed nodes, so nobody links with it",
                do=f"`distsec allow {record.node}`",
            )
        fields = ShellFields(
            cluster=spec.name,
            # A tool makes up its name; its files need one.
            name=NodeName.parse(record.name.replace("*", "exec")),
            target=target,
            carrier=spec.carrier,
            directory=str(store.path(f"{DIRECTORY}/{record.token}").resolve()),
            ebin=str(ebin_directory()),
            erl=str(self._erl(node)),
        )
        key = certificate = bundle = None
        if spec.carrier.encrypted:
            authority = Authority.load(store, trust.issuing_directory(store))
            key, issued = authority.issue_shell(record.identity, SESSION_SECONDS, now)
            certificate, bundle = pem_of(issued) + authority.chain_pem, trust.trust_bundle(store)
        shown = shell_policy(policy, target, others)
        tls: _Tls = {"key": key, "certificate": certificate, "trust": bundle}
        answer = {"directory": fields.directory, "uid": os.geteuid(), "gid": os.getegid()}
        if record.program is None:
            cookie = provision.default_cookie(store, record.node)
            shell_directory.write(store, record, shell_files(fields, shown, cookie=cookie, **tls))
            return {"words": shell_words(fields), **answer}
        cookies = {peer.name: provision.default_cookie(store, peer.name) for peer in shown.peers}
        shell_directory.write(store, record, tool_files(fields, shown, cookies=cookies, **tls))
        flags = tool_flags(fields, find_libraries(Path(node.otp_libraries)) if node.otp_libraries else ())
        account = self._machine.users.of(node)
        if account is None:
            return {"env": {**node.environment, "ERL_AFLAGS": flags}, **answer}
        shell_directory.entrust(store, record.token, account.gid)
        home = self._machine.users.home(node) or account.home
        own = {"HOME": home, "USER": account.name, "LOGNAME": account.name}
        return {
            "env": {**own, **node.environment, "ERL_AFLAGS": flags},
            **answer,
            "uid": account.uid,
            "gid": account.gid,
            "groups": list(account.groups),
        }

    def start_time(self, pid: int) -> int | None:
        return proc.start_time(pid)

    def shell_records(self) -> list[ShellRecord]:
        return shell_directory.records(self._machine.store)

    def remove_shell(self, record: ShellRecord) -> None:
        shell_directory.remove(self._machine.store, record.token)

    def _erl(self, node: NodeSpec) -> Path:
        """The node's own, or, where only running its command would tell, the one on its PATH: of a BEAM that
        runs nothing is asked, since what it says of itself the operator would execute. Nor is a program run
        that the node's own user could have put there.
        """
        environment = {**self._base, **node.environment}
        directory = Path(node.working_directory or Path(self._machine.spec.config_file).parent)
        account = self._machine.users.of(node)
        with acting_as(account):
            own = find_erl(node.command, environment, directory) if node.command else None
        if account is None:
            return own or find_program("erl", environment, directory)
        for each in (own, find_program("erl", self._base, directory)):
            if each is not None and not may_replace(account, each):
                return each
        raise CommandFailed(
            f"every erl here can be replaced by {account.name}, the user of {node.name}",
            do="put an erl that belongs to root on the orchestrator's PATH",
        )
