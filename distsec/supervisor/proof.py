"""Whether a node's guard is in force: what was written for it, against what it says and what is seen from
outside.

Pure. The supervisor gathers (`machine`), this judges. *Disproven* is a difference that no waiting mends;
*unclear* is something not to be seen yet (a socket that is not open, a probe without an answer), to be tried
again. Whatever cannot be established is never "proven".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from distsec.beam.messages import Snapshot
from distsec.beam.probe import ProbeResult
from distsec.beam.proc import Listener
from distsec.model.cluster import OLDEST_RELEASE, Carrier
from distsec.model.text import escape


class Judgement(StrEnum):
    PROVEN = "proven"
    UNCLEAR = "unclear"
    DISPROVEN = "disproven"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`what` says why it is not proven; one line. `unanswered`: see core.node_status.GuardUnclear."""

    judgement: Judgement
    what: str = ""
    unanswered: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """What was written for the node. `proto_dist`: the effective carrier. Digests: lower-case hex SHA-256."""

    proto_dist: str
    address: str
    port: int
    optfile_digest: str | None
    policy_digest: str


PROVEN = Verdict(Judgement.PROVEN)


def judge(expected: Expected, snapshot: Snapshot, listeners: Iterable[Listener], beam: int) -> Verdict:
    """What hello and sockets say; `judge_probe` follows if this is PROVEN.

    `listeners`: the TCP listeners of all processes of the node; `beam`: the pid that its agent runs in.
    """
    if not snapshot.carrier:  # the agent starts before net_kernel does
        return Verdict(Judgement.UNCLEAR, "its distribution does not listen yet")
    for difference in _differences(expected, snapshot):
        return Verdict(Judgement.DISPROVEN, difference)
    at_port = [listener for listener in listeners if listener.port == expected.port]
    if not at_port:
        return Verdict(Judgement.UNCLEAR, f"nothing of the node listens on port {expected.port} yet")
    for listener in at_port:
        if not _same_address(listener.address, expected.address):
            where = f"{listener.address}:{listener.port}"
            return Verdict(Judgement.DISPROVEN, f"it listens on {where}, not on {expected.address}")
    if beam not in {listener.pid for listener in at_port}:
        return Verdict(Judgement.DISPROVEN, f"port {expected.port} is held by another process than its VM")
    if snapshot.policy_digest != expected.policy_digest:
        return Verdict(Judgement.UNCLEAR, "it has another policy in force than was written for it")
    return PROVEN


def judge_probe(carrier: Carrier, seen: ProbeResult) -> Verdict:
    """Whether a stranger gets at the port what the carrier promises, and nothing else."""
    if not carrier.encrypted:
        if seen.plaintext_distribution:
            return PROVEN
        why = f"its port did not answer the probe ({seen.error or 'no word'})"
        return Verdict(Judgement.UNCLEAR, why, unanswered=True)
    if seen.plaintext_distribution:
        return Verdict(Judgement.DISPROVEN, "its port answers a distribution handshake in plaintext")
    if seen.mutual_tls_only:
        return PROVEN
    if seen.requires_client_certificate is False:
        return Verdict(Judgement.DISPROVEN, "its port lets in a stranger without a certificate")
    if seen.tls12_refused is False:
        return Verdict(Judgement.DISPROVEN, "its port speaks TLS 1.2")
    why = f"the probe of its port settled nothing ({seen.error or 'no verdict'})"
    return Verdict(Judgement.UNCLEAR, why, unanswered=True)


def _differences(expected: Expected, snapshot: Snapshot) -> Iterable[str]:
    if snapshot.carrier != expected.proto_dist:
        yield f"its carrier is {escape(snapshot.carrier, 40)}, not {expected.proto_dist}"
    if not snapshot.otp.isascii() or not snapshot.otp.isdigit() or int(snapshot.otp) < OLDEST_RELEASE:
        yield f"its OTP release is {escape(snapshot.otp, 20)}; {OLDEST_RELEASE} is the oldest"
    if snapshot.optfile_digest != expected.optfile_digest:
        yield "its TLS options are not those that were written for it (optfile digest)"
    for listener in snapshot.listeners:
        if listener.port != expected.port or not _same_address(listener.address, expected.address):
            where = f"{escape(listener.address, 60)}:{listener.port}"
            yield f"its distribution listens on {where}, not on {expected.address}:{expected.port} alone"
    if len(snapshot.listeners) > 1:
        yield f"its distribution has {len(snapshot.listeners)} listeners"


def _same_address(found: str, wanted: str) -> bool:
    try:
        return _plain(found) == _plain(wanted)
    except ValueError:
        return found == wanted


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.strip("[]"))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
