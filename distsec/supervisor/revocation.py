"""`distsec certs`: which certificates there are, and revoking: a certificate wherever it is shown, or an
identity whatever certificate it comes with.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from distsec.core import renewal
from distsec.core.wanted import Overlay, TaintStage, known_identities
from distsec.errors import NotAcknowledged, NotFound, UsageError
from distsec.model.cluster import Certificate
from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.model.identities import DN, DNS, SPIFFE, is_certificate_name, readable
from distsec.model.names import NodeName
from distsec.model.text import escape
from distsec.pki.crl import RevocationReason
from distsec.pki.issued import Issued
from distsec.pki.subject import identity_from_text
from distsec.supervisor.certificates import Held, held_certificates
from distsec.supervisor.hub import Hub
from distsec.supervisor.node import ManagedNode
from distsec.supervisor.policy import who
from distsec.supervisor.revocation_lists import RevocationLists, documents

_SERIAL = re.compile(r"[0-9a-f]{1,40}")


class Cluster(Hub, Protocol):
    """What it needs of the supervisor."""

    nodes: dict[str, ManagedNode]


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be revoked: `serials`, and `identity` itself where that was named; `name`: a node's."""

    serials: frozenset[str] = frozenset()
    identity: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        parts = [readable(self.identity)] if self.identity is not None else []
        return ", ".join([*parts, *sorted(self.serials)])


@dataclass(frozen=True, slots=True)
class _Known:
    """Every certificate that is known here and still may be used. `given`: by node, the serials of what it
    was given, by our own record: its files say whatever it likes.
    """

    held: Held
    given: Mapping[str, frozenset[str]]
    issued: tuple[Issued, ...] = field(default_factory=tuple)


def serial_of(text: str) -> str:
    """A serial as people write it (upper case, colons, no leading zero) as policies do. Raises UsageError."""
    digits = text.strip().lower().removeprefix("0x").replace(":", "")
    if not _SERIAL.fullmatch(digits):
        raise UsageError(
            f"{escape(text, 80)} is no serial number, no node name and no identity",
            do="write 1 to 40 hexadecimal digits, as `distsec certs list` does, a node as name@host, or an"
            " identity: spiffe://…, dns:HOST or dn:CN=…,O=…",
        )
    digits = digits.lstrip("0") or "0"
    return digits.zfill(len(digits) + len(digits) % 2)


def state_of(
    certificate: Certificate, overlay: Overlay, known_by: str | None, rules: renewal.Rules, now: float
) -> str:
    """One of revoked, expired, not_yet_valid, expiring (due to be renewed) and valid."""
    if is_revoked(certificate, overlay, known_by):
        return "revoked"
    if certificate.not_after < now:
        return "expired"
    begin = certificate.not_before
    if begin is None:
        return "valid"
    if begin > now:
        return "not_yet_valid"
    life = renewal.Life(certificate.serial, begin, certificate.not_after)
    due = certificate.not_after - renewal.before_seconds(life, rules) <= now
    return "expiring" if due else "valid"


def is_revoked(certificate: Certificate, overlay: Overlay, known_by: str | None = None) -> bool:
    """Whether nodes refuse it: its serial, what it shows, or what the policy knows its owner by."""
    return certificate.serial in overlay.revoked or not overlay.revoked_identities.isdisjoint(
        {certificate.identity, known_by}
    )


class Revocation:
    """Belongs to one event loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.lists = RevocationLists(cluster)

    async def certificates(self) -> dict[str, Any]:
        """The document of `distsec certs list --json`: of the managed nodes, whose files are read anew, of
        others that were issued one here, and what is revoked.
        """
        overlay, known = self._cluster.desk.wanted.overlay, await self._known()
        identities = known_identities(self._cluster.spec, overlay)
        held = known.held
        return {
            "certificates": [
                self._document(name, certificate, overlay, identities.get(name))
                for name, certificate in held.known.items()
            ],
            "issued": [
                self._document(str(each.name), each.certificate, overlay, None) for each in known.issued
            ],
            "revoked": sorted(overlay.revoked),
            "revoked_identities": sorted(map(readable, overlay.revoked_identities)),
            "unknown": {name: escape(why, 1024) for name, why in held.unknown.items()},
            "lists": documents(await self.lists.refresh()),
        }

    async def revoke(
        self, what: str, reason: RevocationReason = RevocationReason.UNSPECIFIED
    ) -> dict[str, Any]:
        """Revokes the certificate of that serial, or those that a node has (or has shown, if it is not
        managed here, or its file cannot be read), or an identity with every certificate of it that is known.

        Persisted first, like a denial. Raises UsageError, NameInvalid, NotFound, StoreError (nothing is
        changed), NotAcknowledged.
        """
        cluster = self._cluster
        if not cluster.spec.carrier.encrypted:
            raise UsageError(
                f"links of {cluster.spec.mode} mode show no certificate, so none can be revoked",
                do="use `distsec deny NODE`",
            )
        records, known = cluster.machine.records, await self._known()
        target = self._target(what, known)
        authorities = await asyncio.to_thread(records.authority_serials)
        if target.identity is None and target.serials & authorities:
            raise UsageError(
                "that is the CA's own certificate", do="`distsec certs rotate-ca` brings a new CA"
            )
        serials = target.serials - authorities
        await asyncio.to_thread(records.note_revoked, serials, reason, time.time())

        def changed(overlay: Overlay) -> Overlay:
            taint = overlay.taint(target.name) if target.name is not None else None
            settled = taint is not None and taint.stage is TaintStage.ELSEWHERE
            identities = () if target.identity is None else (target.identity,)
            return overlay.revoking(*serials, identities=identities).restaged(
                {taint.name: None} if taint and settled else {}, overlay
            )

        outcome = await cluster.desk.refuse(changed)
        self._publish(target, serials, reason)
        lists = documents(await self.lists.refresh())
        if not outcome.done:
            raise NotAcknowledged(
                f"{target} is revoked, for good, but {who(outcome.missing)}",
                missing=tuple(outcome.missing),
                do="these nodes take the revocation up when they answer; stop them if that cannot wait",
            )
        return {
            "serials": sorted(serials),
            "identity": None if target.identity is None else readable(target.identity),
            "generation": cluster.desk.wanted.generation,
            "acknowledged": list(outcome.acknowledged),
            "current_of": self._current_of(target, known.held),
            "unknown": sorted(known.held.unknown),
            "lists": lists,
        }

    async def told_of_issue(self, serial: str) -> dict[str, Any]:
        """Has it in the events that a certificate was issued for a node that is not managed here. Raises
        NotFound unless it was: anybody who may call may say so, and the record is what counts.
        """
        records, spec = self._cluster.machine.records, self._cluster.spec
        issued = await asyncio.to_thread(records.issued, spec)
        for each in issued:
            if each.certificate.serial == serial:
                self._cluster.bus.publish(
                    SecurityEvent(
                        EventType.CERTIFICATE_ISSUED,
                        Severity.NOTICE,
                        "",
                        time.time(),
                        peer=str(each.name),
                        identity=each.certificate.identity,
                        serial=serial,
                    )
                )
                return {"node": str(each.name), "serial": serial}
        raise NotFound(f"no certificate with the serial {escape(serial, 80)} was issued here")

    # ---- what is meant

    def _target(self, what: str, known: _Known) -> Target:
        if what.startswith((SPIFFE, DNS, DN)):
            identity = identity_from_text(what)
            return Target(self._serials_of_identity(identity, known), identity)
        if "@" in what:
            name = str(NodeName.parse(what))
            return Target(self._serials_of_node(name, known), name=name)
        return Target(frozenset({serial_of(what)}))

    def _serials_of_node(self, name: str, known: _Known) -> frozenset[str]:
        """All that it was given, or has shown: one that was renewed is good until it ends. What the node's
        own file says counts where it can cost nobody else.
        """
        held = known.held
        # A node may lie about what it has, and others about what they were shown.
        others = {
            held.serial(each)
            for each in (*held.known, *held.unknown)
            if each != name and not known.given[each]
        }
        others |= {serial for each, serials in known.given.items() if each != name for serial in serials}
        others |= {each.certificate.serial for each in known.issued if str(each.name) != name}
        own = known.given.get(name, frozenset())
        own |= {each.certificate.serial for each in known.issued if str(each.name) == name}
        said = held.serial(name)
        told = self._cluster.memory.serials(name) | ({said} if said is not None else set())
        if not (own | (told - others)):
            raise NotFound(
                f"no certificate of {name} is known here", do="name its serial number, in hexadecimal"
            )
        return own | (told - others)

    def _serials_of_identity(self, identity: str, known: _Known) -> frozenset[str]:
        """Of all certificates with that identity that are known here; there may be others, or none."""
        ours = [*known.held.known.values(), *(each.certificate for each in known.issued)]
        found = {each.serial for each in ours if self._shows(each, identity)}
        names_of = known_identities(self._cluster.spec, self._cluster.desk.wanted.overlay)
        for node, serials in known.given.items():
            if names_of.get(node) == identity:
                found |= serials
        # What others say they were shown may be a lie, and must not cost somebody else's certificate.
        kept = {each.serial for each in ours} - found
        links = [link for node in self._cluster.nodes.values() for link in node.observed.links.values()]
        names = {identity, readable(identity)}  # agents show a subject as people write it
        told = {link.serial for link in links if link.identity in names and link.serial is not None}
        return frozenset(found | ((told | self._cluster.memory.shown_as(identity)) - kept))

    def _shows(self, certificate: Certificate, identity: str) -> bool:
        """As core.admission.shown_by has it."""
        if not is_certificate_name(identity):
            return certificate.identity == identity
        own = (certificate.identity or "").startswith(f"{SPIFFE}{self._cluster.spec.name}/")
        return not own and identity in certificate.names

    def _current_of(self, target: Target, held: Held) -> list[str]:
        """The managed nodes that have nothing else to show now."""
        identities = known_identities(self._cluster.spec, self._cluster.desk.wanted.overlay)
        return [
            node
            for node, each in held.known.items()
            if each.serial in target.serials
            or (target.identity is not None and target.identity in {each.identity, identities.get(node)})
        ]

    # ---- what is told

    def _document(
        self, name: str, certificate: Certificate, overlay: Overlay, known_by: str | None
    ) -> dict[str, Any]:
        spec = self._cluster.spec
        rules = renewal.Rules(spec.renew_before_seconds, spec.renew_jitter_seconds)
        return {
            "node": name,
            "identity": certificate.identity,
            "serial": certificate.serial,
            "issuer": escape(certificate.issuer, 1024),
            "not_before": certificate.not_before,
            "not_after": certificate.not_after,
            "revoked": is_revoked(certificate, overlay, known_by),
            "state": state_of(certificate, overlay, known_by, rules, time.time()),
        }

    def _publish(self, target: Target, serials: frozenset[str], reason: RevocationReason) -> None:
        identity = None if target.identity is None else escape(readable(target.identity), 512)
        each: list[str | None] = [*sorted(serials)]
        for serial in each or [None]:
            self._cluster.bus.publish(
                SecurityEvent(
                    EventType.CERTIFICATE_REVOKED,
                    Severity.NOTICE,
                    "",
                    time.time(),
                    peer=target.name,
                    reason=str(reason),
                    identity=identity,
                    serial=serial,
                )
            )

    async def _known(self) -> _Known:
        cluster = self._cluster
        held = await asyncio.to_thread(held_certificates, cluster.machine, tuple(cluster.nodes.values()))
        for name, why in held.unknown.items():
            cluster.note("warning", "a node's certificate cannot be read", node=name, error=why)
        return await asyncio.to_thread(self._recorded, held)

    def _recorded(self, held: Held) -> _Known:
        cluster, records = self._cluster, self._cluster.machine.records
        given = {name: records.given(node.spec) for name, node in tuple(cluster.nodes.items())}
        return _Known(held, given, records.issued(cluster.spec))
