"""The revoked serials as a signed list (CRL, RFC 5280 section 5), for those who do not read our policy.

Nodes need none: what is revoked they refuse by the policy, at once. A list is made for each CA that is
trusted, beside its certificate (`crl.pem`), after every revocation and again before it runs out, whenever
that CA's key can be had. Serials have 128 random bits, so a list names all that are revoked, whoever issued
them. When and why a serial was revoked is kept in `ca/revocations.json`. Time is Unix seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from distsec.errors import CaKeyUnavailable, StoreError
from distsec.pki import profile, trust
from distsec.pki.authority import Authority, serial_text
from distsec.pki.store import Store

FILE = "crl.pem"
RECORD = "ca/revocations.json"
SCHEMA = 1
LIFETIME = timedelta(days=7)
"""From a list to its nextUpdate. It is made anew when half of that is over."""

_SERIAL = re.compile(r"[0-9a-f]{1,40}")


class RevocationReason(StrEnum):
    """Why a certificate was revoked (RFC 5280, section 5.3.1); UNSPECIFIED is not written into a list."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION = "cessationOfOperation"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"


@dataclass(frozen=True, slots=True)
class Revoked:
    """One entry: `serial` in lower-case hex, `at` Unix seconds."""

    serial: str
    at: int
    reason: RevocationReason = RevocationReason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class ListState:
    """Of the list of the CA in `directory`. `behind`: why it is not what it should be, and cannot be made."""

    directory: str
    number: int | None = None
    next_update: int | None = None
    entries: int = 0
    behind: str | None = None


# ---- pure --------------------------------------------------------------------------------------------------


def crl(
    key: profile.PrivateKey, authority: x509.Certificate, revoked: Iterable[Revoked], number: int, now: float
) -> x509.CertificateRevocationList:
    """The list of `authority`, signed with its `key`; valid from `now` for LIFETIME."""
    made = datetime.fromtimestamp(int(now), UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(made - profile.BACKDATED)
        .next_update(made + LIFETIME)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(profile.authority_key_identifier(authority), critical=False)
    )
    for each in sorted(revoked, key=lambda entry: entry.serial):
        builder = builder.add_revoked_certificate(_entry(each))
    return builder.sign(key, profile.digest_for(key))


def _entry(revoked: Revoked) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(int(revoked.serial, 16))
        .revocation_date(datetime.fromtimestamp(revoked.at, UTC))
    )
    if revoked.reason is not RevocationReason.UNSPECIFIED:
        reason = x509.CRLReason(x509.ReasonFlags(str(revoked.reason)))
        builder = builder.add_extension(reason, critical=False)
    return builder.build()


def listed(found: x509.CertificateRevocationList) -> frozenset[str]:
    """The serials in a list."""
    return frozenset(serial_text(entry.serial_number) for entry in found)


def number_of(found: x509.CertificateRevocationList) -> int:
    """Its CRLNumber; 0 where it has none."""
    try:
        return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def is_due(found: x509.CertificateRevocationList, serials: Collection[str], now: float) -> bool:
    """Whether a list lacks one of `serials`, or half of its time is over, or it is of the future."""
    made, end = found.last_update_utc.timestamp(), found.next_update_utc
    if not listed(found) >= frozenset(serials) or end is None or made > now:
        return True
    return now >= (made + end.timestamp()) / 2


# ---- in the state directory --------------------------------------------------------------------------------


def note_revoked(
    store: Store, serials: Iterable[str], now: float, reason: RevocationReason = RevocationReason.UNSPECIFIED
) -> None:
    """Keeps when and why; the first word on a serial stays, but a reason where there was none. Raises
    StoreError.
    """
    known = _record(store)
    for serial in serials:
        before = known.get(serial)
        if before is None:
            known[serial] = Revoked(serial, int(now), reason)
        elif before.reason is RevocationReason.UNSPECIFIED:
            known[serial] = Revoked(serial, before.at, reason)
    document = {
        "schema": SCHEMA,
        "revoked": {each.serial: [each.at, str(each.reason)] for each in known.values()},
    }
    store.write(RECORD, json.dumps(document, indent=1).encode() + b"\n")


def refresh(
    store: Store,
    serials: Collection[str],
    now: float,
    load: Callable[[Store, str], Authority] = Authority.load,
) -> tuple[ListState, ...]:
    """Makes the list of every trusted CA anew where it is due, and says how they stand. Raises StoreError.

    A key that cannot be had is no error: the list is `behind` then.
    """
    return tuple(
        _refresh(store, directory, serials, now, load) for directory in trust.standing(store).trusted
    )


def states(store: Store, serials: Collection[str], now: float) -> tuple[ListState, ...]:
    """How the lists stand, without making any. Raises StoreError."""
    return tuple(
        _state(store, directory, serials, now, _DUE if serials else None)
        for directory in trust.standing(store).trusted
    )


def lists_pem(store: Store) -> bytes:
    """Every list that there is, one after the other, in PEM. Raises StoreError."""
    names = [f"{directory}/{FILE}" for directory in trust.standing(store).trusted]
    return b"".join(store.read(name) for name in names if store.exists(name))


_DUE = "is to be made anew"


def _refresh(
    store: Store,
    directory: str,
    serials: Collection[str],
    now: float,
    load: Callable[[Store, str], Authority],
) -> ListState:
    found = _read(store, directory)
    if found is not None and not is_due(found, serials, now):
        return _state(store, directory, serials, now, None)
    if found is None and not serials:
        return ListState(directory)  # nothing to say, and nobody has asked
    try:
        authority = load(store, directory)
        key = authority.private_key()
        if not profile.may_sign_lists(authority.certificate):
            return _state(store, directory, serials, now, "the CA may not sign lists (keyUsage cRLSign)")
        # Above every number before, also where the file was lost.
        number = max((number_of(found) + 1) if found is not None else 1, int(now))
        known = _record(store)
        entries = [known.get(serial, Revoked(serial, int(now))) for serial in serials]
        made = crl(key, authority.certificate, entries, number, now)
    except CaKeyUnavailable as error:
        return _state(store, directory, serials, now, str(error))
    note_revoked(store, [entry.serial for entry in entries if entry.serial not in known], now)
    store.write(f"{directory}/{FILE}", made.public_bytes(serialization.Encoding.PEM))
    return _state(store, directory, serials, now, None)


def _state(
    store: Store, directory: str, serials: Collection[str], now: float, behind: str | None
) -> ListState:
    found = _read(store, directory)
    if found is None:
        return ListState(directory, behind=behind)
    assert found.next_update_utc is not None, "ours have one"
    current = not is_due(found, serials, now)
    return ListState(
        directory,
        number_of(found),
        int(found.next_update_utc.timestamp()),
        len(found),
        None if current else behind,
    )


def _read(store: Store, directory: str) -> x509.CertificateRevocationList | None:
    """The list of the CA in `directory`; None where there is none that its key has signed."""
    relative = f"{directory}/{FILE}"
    if not store.exists(relative):
        return None
    try:
        found = x509.load_pem_x509_crl(store.read(relative))
        public = trust.authority_certificate(store, directory).public_key()
        if found.next_update_utc is not None and found.is_signature_valid(public):  # type: ignore[arg-type]
            return found
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        pass
    return None  # of another CA, or garbage: it is made anew


def _record(store: Store) -> dict[str, Revoked]:
    if not store.exists(RECORD):
        return {}
    try:
        document = json.loads(store.read(RECORD))
        if document["schema"] != SCHEMA:
            raise ValueError("schema")
        return {serial: _revoked(serial, value) for serial, value in document["revoked"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            "does not say when certificates were revoked",
            where=str(store.path(RECORD)),
            do="restore it, or remove it: the lists then say that they were revoked now",
        ) from error


def _revoked(serial: str, value: Any) -> Revoked:
    at, reason = value
    if not _SERIAL.fullmatch(serial) or type(at) is not int or not 0 <= at < 2**40:
        raise ValueError("entry")
    return Revoked(serial, at, RevocationReason(reason))
