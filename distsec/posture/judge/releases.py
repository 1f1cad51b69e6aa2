"""Releases of OTP: known holes, support, and how old the list of holes is. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from distsec.model.cluster import OLDEST_RELEASE, PROVEN_RELEASES
from distsec.posture.facts import Facts, ReleaseFact
from distsec.posture.finding import Code, Finding, Severity
from distsec.posture.holes import Hole, KnownHoles, known_holes, version_of

BACKPORTS: Final = "distributions backport fixes without another number: see their own tracker"
_SHOWN: Final = 4


def judge(facts: Facts) -> Iterator[Finding]:
    yield from judge_with(facts, known_holes())


def judge_with(facts: Facts, known: KnownHoles) -> Iterator[Finding]:
    """With another list than this release's own."""
    for fact in facts.releases:
        yield from _support(fact, of_cluster=facts.spec is not None)
        version = version_of(fact.version or "")
        for hole in known.holes:
            if version is not None and hole.is_in(version):
                yield _hole(fact, hole)
    if facts.releases and known.outdated(facts.now):
        yield Finding.of(
            Severity.LOW,
            Code.OTP_LIST_OUTDATED,
            what=f"the list of known holes is of {known.as_of}, more than a year old",
            where="distsec",
            fix="install a newer release of distsec",
        )


def _hole(fact: ReleaseFact, hole: Hole) -> Finding:
    stopped = hole.carrier_stops_it and fact.on_carrier
    condition = f", where {hole.condition}" if hole.condition else ""
    note = "; links of the carrier distsec are not reached by it" if stopped else ""
    return Finding.of(
        _severity(hole, stopped),
        Code.OTP_KNOWN_HOLE,
        what=f"OTP {fact.version}: {hole.id}{condition}: {hole.what}{note}",
        where=_users(fact),
        fix=f"install OTP {hole.fixes} or later ({hole.link}); {BACKPORTS}",
    )


def _severity(hole: Hole, stopped: bool) -> Severity:
    """Of one that matters on a condition which cannot be seen from here, medium at most."""
    if stopped:
        return Severity.LOW
    return (
        max(hole.severity, Severity.MEDIUM, key=lambda each: each.rank) if hole.condition else hole.severity
    )


def _support(fact: ReleaseFact, *, of_cluster: bool) -> Iterator[Finding]:
    if fact.version is None:
        known = f"OTP {fact.release}" if fact.release else "its OTP"
        yield Finding.of(
            Severity.INFO,
            Code.OTP_VERSION_UNKNOWN,
            what=f"the patch level of {known} is not known, so neither are its holes",
            where=_users(fact),
            fix="see the release's build for the version of OTP",
        )
    if fact.release is None:
        return
    if fact.release < OLDEST_RELEASE:
        yield Finding.of(
            Severity.HIGH,
            Code.OTP_TOO_OLD,
            what=f"OTP {fact.release} gets no fixes any more",
            where=_users(fact),
            fix=f"install OTP {max(PROVEN_RELEASES)}",
        )
    elif of_cluster and fact.release not in PROVEN_RELEASES:
        yield Finding.of(
            Severity.INFO,
            Code.OTP_UNPROVEN,
            what=f"the test-suite of distsec does not run on OTP {fact.release}",
            where=_users(fact),
            fix=f"proven are OTP {', '.join(map(str, sorted(PROVEN_RELEASES)))}",
        )


def _users(fact: ReleaseFact) -> str:
    users = ", ".join(fact.users[:_SHOWN])
    return f"{users} and {len(fact.users) - _SHOWN} more" if len(fact.users) > _SHOWN else users
