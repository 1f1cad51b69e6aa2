"""`distsec certs`: which certificates the nodes have, and revoking one, wherever it is shown."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Protocol

from distsec.core.wanted import Overlay, TaintStage
from distsec.errors import NotAcknowledged, NotFound, UsageError
from distsec.model.names import NodeName
from distsec.model.text import escape
from distsec.supervisor.certificates import Held, held_certificates
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.policy import who

_SERIAL = re.compile(r"[0-9a-f]{1,40}")


class Cluster(Hub, Protocol):
    """What it needs of the supervisor."""

    nodes: dict[str, ManagedNode]


def serial_of(text: str) -> str:
    """A serial as people write it (upper case, colons, no leading zero) as policies do. Raises UsageError."""
    digits = text.strip().lower().removeprefix("0x").replace(":", "")
    if not _SERIAL.fullmatch(digits):
        raise UsageError(
            f"{escape(text, 80)} is no serial number and no node name",
            do="write 1 to 40 hexadecimal digits, as `distsec certs list` does, or a node as name@host",
        )
    digits = digits.lstrip("0") or "0"
    return digits.zfill(len(digits) + len(digits) % 2)


class Revocation:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def certificates(self) -> dict[str, Any]:
        """{"certificates": [one a managed node], "revoked": [serials], "unknown": {node: why}}; the files
        are read anew.
        """
        revoked = self._cluster.desk.wanted.overlay.revoked
        held = await self._current()
        return {
            "certificates": [
                {
                    "node": name,
                    "identity": certificate.identity,
                    "serial": certificate.serial,
                    "issuer": escape(certificate.issuer, 1024),
                    "not_after": certificate.not_after,
                    "revoked": certificate.serial in revoked,
                }
                for name, certificate in held.known.items()
            ],
            "revoked": sorted(revoked),
            "unknown": {name: escape(why, 1024) for name, why in held.unknown.items()},
        }

    async def revoke(self, what: str) -> dict[str, Any]:
        """Revokes the certificate of that serial, or those that a node has (or has shown, if it is not
        managed here, or its file cannot be read).

        Persisted first, like a denial. Raises UsageError, NameInvalid, NotFound, StoreError (nothing is
        changed), NotAcknowledged.
        """
        cluster = self._cluster
        if not cluster.spec.carrier.encrypted:
            raise UsageError(
                f"links of {cluster.spec.mode} mode show no certificate, so none can be revoked",
                do="use `distsec deny NODE`",
            )
        held = await self._current()
        name = str(NodeName.parse(what)) if "@" in what else None
        serials = frozenset({serial_of(what)}) if name is None else self._serials(name, held)
        if await asyncio.to_thread(cluster.machine.records.authority_serial) in serials:
            raise UsageError("that is the CA's own certificate", do="only a new CA takes its place")

        def changed(overlay: Overlay) -> Overlay:
            taint = overlay.taint(name) if name is not None else None
            settled = taint is not None and taint.stage is TaintStage.ELSEWHERE
            return overlay.revoking(*serials).restaged(
                {taint.name: None} if taint and settled else {}, overlay
            )

        outcome = await cluster.desk.refuse(changed)
        if not outcome.done:
            raise NotAcknowledged(
                f"{', '.join(sorted(serials))} is revoked, for good, but {who(outcome.missing)}",
                missing=tuple(outcome.missing),
                do="these nodes take the revocation up when they answer; stop them if that cannot wait",
            )
        return {
            "serials": sorted(serials),
            "generation": cluster.desk.wanted.generation,
            "acknowledged": list(outcome.acknowledged),
            "current_of": [node for node, each in held.known.items() if each.serial in serials],
            "unknown": sorted(held.unknown),
        }

    def _serials(self, name: str, held: Held) -> frozenset[str]:
        if name in held.known:
            return frozenset({held.known[name].serial})
        before = held.serial(name)
        shown = self._cluster.memory.serials(name) | ({before} if before is not None else set())
        # A node may lie about what was shown.
        others = {held.serial(each) for each in (*held.known, *held.unknown) if each != name}
        if not shown - others:
            raise NotFound(
                f"no certificate of {name} is known here", do="name its serial number, in hexadecimal"
            )
        return shown - others

    async def _current(self) -> Held:
        cluster = self._cluster
        held = await asyncio.to_thread(held_certificates, cluster.machine, tuple(cluster.nodes.values()))
        for name, why in held.unknown.items():
            cluster.note("warning", "a node's certificate cannot be read", node=name, error=why)
        return held
