"""What shells need of this host (`supervisor.shells.Place`): their files, their certificates, an `erl`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distsec.beam import proc, provision, shell_directory
from distsec.beam.agent import ebin_directory
from distsec.beam.runtime import find_erl, find_program
from distsec.beam.shell import DIRECTORY, ShellFields, shell_files, shell_policy, shell_words
from distsec.beam.shell_directory import ShellRecord
from distsec.core.wanted import Overlay, wanted_policy
from distsec.errors import CommandFailed
from distsec.model.cluster import NodeSpec
from distsec.model.names import NodeName
from distsec.model.shells import SESSION_SECONDS
from distsec.pki import trust
from distsec.pki.authority import Authority, pem_of
from distsec.supervisor.machine import LocalMachine


class LocalShells:
    """`machine` knows the configuration of the moment; `base` is the orchestrator's own environment."""

    def __init__(self, machine: LocalMachine, base: Mapping[str, str]) -> None:
        self._machine = machine
        self._base = base

    def begin_shell(self, record: ShellRecord, node: NodeSpec, overlay: Overlay) -> dict[str, Any]:
        """Makes all that the shell needs. Returns {"words", "directory", "uid", "gid"}: what its process is
        to run, where, and as whom. Blocks; for a thread.
        """
        spec, store, now = self._machine.spec, self._machine.store, time.time()
        policy = wanted_policy(spec, overlay, self._machine.ports, max(int(now), overlay.issued_at))
        target = next((peer for peer in policy.peers if peer.name == record.node), None)
        if target is None or target.address is None:
            raise CommandFailed(
                f"{record.node} is not on the list of allowed nodes, so nobody links with it",
                do=f"`distsec allow {record.node}`",
            )
        fields = ShellFields(
            cluster=spec.name,
            name=NodeName.parse(record.name),
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
        files = shell_files(
            fields,
            shell_policy(policy, target),
            cookie=provision.default_cookie(store, record.node),
            key=key,
            certificate=certificate,
            trust=bundle,
        )
        shell_directory.write(store, record, files)
        return {
            "words": shell_words(fields),
            "directory": fields.directory,
            "uid": os.geteuid(),
            "gid": os.getegid(),
        }

    def start_time(self, pid: int) -> int | None:
        return proc.start_time(pid)

    def shell_records(self) -> list[ShellRecord]:
        return shell_directory.records(self._machine.store)

    def remove_shell(self, record: ShellRecord) -> None:
        shell_directory.remove(self._machine.store, record.token)

    def _erl(self, node: NodeSpec) -> Path:
        """The node's own, or, where only running its command would tell, the one on its PATH: of a BEAM that
        runs nothing is asked, since what it says of itself the operator would execute.
        """
        environment = {**self._base, **node.environment}
        directory = Path(node.working_directory or Path(self._machine.spec.config_file).parent)
        own = find_erl(node.command, environment, directory) if node.command else None
        return own or find_program("erl", environment, directory)
