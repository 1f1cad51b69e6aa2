"""Cookies: how strong, how old, whose, and where others may read them. Pure; it knows measures only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from distsec.config.check_unbuilt import SHORTEST_COOKIE
from distsec.posture.facts import CookieFact, Facts, Source
from distsec.posture.finding import Code, Finding, Severity

FEWEST_DISTINCT: Final = 8
"""Characters that differ: of 20 random letters at least 8 do, but in one of 380,000 draws."""

OLD_SECONDS: Final = 365 * 86_400


def judge(facts: Facts) -> Iterator[Finding]:
    for fact in facts.cookies:
        yield from _strength(fact)
        yield from _place(fact)
        if fact.age_seconds is not None and fact.age_seconds > OLD_SECONDS:
            yield Finding.of(
                Severity.LOW,
                Code.COOKIE_OLD,
                what=f"the cookie of {fact.holder} is {round(fact.age_seconds / 86_400)} days old",
                where=fact.place,
                fix="distsec cookie rotate" if fact.source is Source.STATE else _change(fact),
            )
    yield from _shared(facts)


def described(fact: CookieFact) -> str:
    """All that is told of a cookie."""
    strength = "well-known" if fact.well_known else "weak" if _is_weak(fact) else "strong"
    return f"{fact.length} characters, {strength}"


def _is_weak(fact: CookieFact) -> bool:
    return fact.length < SHORTEST_COOKIE or fact.distinct < FEWEST_DISTINCT


def _strength(fact: CookieFact) -> Iterator[Finding]:
    if fact.well_known:
        yield Finding.of(
            Severity.HIGH if fact.encrypted else Severity.CRITICAL,
            Code.COOKIE_WELL_KNOWN,
            what=f"{fact.holder} has a cookie that attackers try first ({fact.length} characters)",
            where=fact.place,
            fix=_change(fact),
        )
    elif _is_weak(fact):
        yield Finding.of(
            Severity.MEDIUM if fact.encrypted else Severity.HIGH,
            Code.COOKIE_WEAK,
            what=f"{fact.holder} has a cookie that can be guessed: {fact.length} characters,"
            f" {fact.distinct} of them different",
            where=fact.place,
            fix=_change(fact),
        )


def _place(fact: CookieFact) -> Iterator[Finding]:
    if fact.source is Source.ARGUMENTS:
        yield Finding.of(
            Severity.HIGH if fact.encrypted else Severity.CRITICAL,
            Code.COOKIE_IN_ARGUMENTS,
            what=f"{fact.holder} shows its cookie to every user of this host ({described(fact)})",
            where=fact.place,
            fix="take -setcookie out; put a new cookie into a file of mode 0400 (~/.erlang.cookie)",
        )
    elif fact.source is Source.ENVIRONMENT:
        yield Finding.of(
            Severity.MEDIUM,
            Code.COOKIE_IN_ENVIRONMENT,
            what=f"{fact.holder} has a cookie in its environment, as its children do ({described(fact)})",
            where=fact.place,
            fix="take the variable out; put a new cookie into a file of mode 0400 (~/.erlang.cookie)",
        )


def _shared(facts: Facts) -> Iterator[Finding]:
    """The same default cookie in two nodes' own files; of a pair there is one for both."""
    by_digest: dict[str, list[CookieFact]] = {}
    for fact in facts.cookies:
        if fact.source is Source.STATE and fact.place.endswith("(default)"):
            by_digest.setdefault(fact.digest, []).append(fact)
    for group in by_digest.values():
        holders = list(dict.fromkeys(fact.holder for fact in group))
        if len(holders) > 1:
            yield Finding.of(
                Severity.MEDIUM,
                Code.COOKIE_SHARED,
                what=f"one default cookie for {', '.join(holders[:4])}: who has one has the other",
                where=", ".join(fact.place for fact in group[:4]),
                fix="restart the nodes, which have the file written anew",
            )


def _change(fact: CookieFact) -> str:
    if fact.source is Source.STATE:
        return "distsec cookie rotate"
    return "make another, on every node of that cluster: openssl rand -hex 32"
