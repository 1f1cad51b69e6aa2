"""What lies beside a certificate: its key, the trust bundle, and whether another node has the same. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from distsec.model.text import escape
from distsec.posture.facts import CertificateFact, Facts
from distsec.posture.finding import Code, Finding, Severity
from distsec.posture.judge.parts import is_ca, issued, listed, public_der, renew, subject

PUBLIC_BUNDLE: Final = 20
"""CA certificates in one bundle above which it is a system's: whoever has a certificate of any of them is
trusted."""


def judge(facts: Facts) -> Iterator[Finding]:
    for fact in facts.certificates:
        yield from _key(fact)
        yield from _trust(fact, facts)
    yield from _shared(facts)


def _key(fact: CertificateFact) -> Iterator[Finding]:
    if fact.key_place is None:
        return
    if fact.key_missing:
        yield Finding.of(
            Severity.HIGH,
            Code.KEY_MISSING,
            what=f"the key of {fact.holder} is missing",
            where=fact.key_place,
            fix=f"restore it, or remove {escape(fact.place, 200)} as well and run `distsec init`"
            if fact.managed
            else "restore it, or correct keyfile in the option file",
        )
    elif fact.key is None:
        encrypted = "encrypted" in (fact.key_problem or "") and not fact.managed
        yield Finding.of(
            Severity.INFO if encrypted else Severity.HIGH,
            Code.KEY_UNREADABLE,
            what=f"the key of {fact.holder} {fact.key_problem}",
            where=fact.key_place,
            fix="" if encrypted else "restore it from a backup, or issue a new pair",
        )
    elif fact.chain and fact.key != public_der(fact.chain[0]):
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_KEY_MISMATCH,
            what="does not belong to the key beside it: every handshake fails",
            where=fact.place,
            fix=renew(fact),
        )


def _trust(fact: CertificateFact, facts: Facts) -> Iterator[Finding]:
    if fact.trust_place is None:
        return
    if fact.trust_problem is not None:
        yield Finding.of(
            Severity.HIGH,
            Code.TRUST_UNREADABLE,
            what=f"the trust bundle of {fact.holder} {fact.trust_problem}",
            where=fact.trust_place,
            fix="remove it and run `distsec init`" if fact.managed else "correct cacertfile",
        )
        return
    authority = facts.authority
    known = set(authority.known) if authority is not None else set()
    if fact.managed and known and (foreign := [each for each in fact.trust if each not in known]):
        yield Finding.of(
            Severity.CRITICAL,
            Code.TRUST_FOREIGN,
            what=f"trusts {len(foreign)} CA that is not the cluster's: {subject(foreign[0])}",
            where=fact.trust_place,
            fix="see who added it, then remove the file and run `distsec init`",
        )
    if len(fact.trust) >= PUBLIC_BUNDLE:
        yield Finding.of(
            Severity.CRITICAL,
            Code.TRUST_PUBLIC,
            what=f"trusts {len(fact.trust)} CAs, as a system's bundle does: a certificate of any joins",
            where=fact.trust_place,
            fix="set cacertfile to the certificate of the cluster's own CA alone",
        )
    elif plain := [each for each in fact.trust if not is_ca(each) and not issued(each, each)]:
        yield Finding.of(
            Severity.MEDIUM,
            Code.TRUST_NOT_A_CA,
            what=f"holds what is no CA's certificate: {subject(plain[0])}",
            where=fact.trust_place,
            fix="keep CA certificates in it and nothing else",
        )


def _shared(facts: Facts) -> Iterator[Finding]:
    """One certificate, or one key, on two nodes: whoever breaks into one can speak for the other."""
    by_key: dict[bytes, list[CertificateFact]] = {}
    for fact in facts.certificates:
        if fact.chain:
            by_key.setdefault(public_der(fact.chain[0]), []).append(fact)
    for group in by_key.values():
        holders = list(dict.fromkeys(fact.holder for fact in group))
        if len(holders) < 2:
            continue
        one = len({fact.chain[0] for fact in group}) == 1
        yield Finding.of(
            Severity.HIGH,
            Code.CERTIFICATE_SHARED,
            what=f"{'one certificate' if one else 'one key'} for {listed(holders)}: each can be the other",
            where=", ".join(dict.fromkeys(fact.place for fact in group)),
            fix="give each node a key and a certificate of its own",
        )
