"""Identities: what a certificate is known by, as texts that are equal exactly when what they stand for is.

    spiffe://demo/node/127.0.0.1/a    a SPIFFE ID, the one URI of the subjectAltName
    dns:poller.example.net            a DNS name of the subjectAltName, in lower case
    dn:2.5.4.10:6f,2.5.4.3:61         the subject: `,` between its RDNs, in their order, `+` between the
                                      attributes of one, sorted; each its OID and, in hex, its value in UTF-8,
                                      whatever string type it came in

The last two are for certificates that exist already. A subject is never compared as a rendered text: the same
text may stand for several subjects (`CN=a,O=b` may be one common name) and one subject for several texts.
`distsec_identity` reads the same texts from certificates; `pki.subject` writes them from what an operator
typed (`CN=poller,O=ServiceRadar`), and `readable` leads back to that. Pure; every part is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from distsec.errors import NameInvalid

DNS: Final = "dns:"
DN: Final = "dn:"
SPIFFE: Final = "spiffe://"

MAX_SPIFFE_BYTES: Final = 2048
"""SPIFFE-ID, section 2.3."""

MAX_ATTRIBUTES: Final = 16
MAX_VALUE_BYTES: Final = 256
MAX_OID_BYTES: Final = 64
MAX_DN_BYTES: Final = 2048
"""Of one subject, of a value in UTF-8, of an OID, of the whole text; distsec_identity has the same bounds."""

_SPIFFE_ID = re.compile(r"spiffe://(?P<domain>[a-z0-9._-]{1,255})(?P<path>(/[A-Za-z0-9._-]{1,255}){1,64})")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_CANONICAL_DN = re.compile(r"dn:[0-9.]+:[0-9a-f]+([,+][0-9.]+:[0-9a-f]+)*")

_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
"""What a reader would not see, or see elsewhere: controls, bidi, zero width; as in distsec_identity."""

SHORT_NAMES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.6": "C",
    "2.5.4.9": "STREET",
    "0.9.2342.19200300.100.1.25": "DC",
    "0.9.2342.19200300.100.1.1": "UID",
}
"""RFC 4514, section 3: every program reads these; another attribute is written by its number."""


def is_certificate_name(identity: str) -> bool:
    """Whether `identity` is a DNS name or a subject, which stand beside the URI of a certificate."""
    return identity.startswith((DNS, DN))


def dns_identity(host: str) -> str:
    """`dns:` and the host, in lower case. Raises NameInvalid for what names no single host."""
    lower = host.lower() if host.isascii() else host
    labels = lower.split(".")
    if len(lower) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise NameInvalid(
            f"{host[:80]!a} is no DNS name that a certificate can be known by",
            do="write a host name of letters, digits and hyphens, without a * or a final dot",
        )
    return DNS + lower


def dn_identity(rdns: Sequence[Iterable[tuple[str, str]]]) -> str:
    """`dn:` and the subject of these RDNs, in the order of the certificate; each of (dotted OID, value).

    Raises NameInvalid for what cannot be compared, or be told from something else by a reader.
    """
    parts = [sorted(f"{_oid(oid)}:{_value(value)}" for oid, value in rdn) for rdn in map(list, rdns)]
    for part in parts:
        if len({pair.partition(":")[0] for pair in part}) < len(part):
            raise _no_subject("has the same attribute twice in one RDN")
    if not parts or not all(parts):
        raise _no_subject("is empty")
    if sum(map(len, parts)) > MAX_ATTRIBUTES:
        raise _no_subject(f"has more than {MAX_ATTRIBUTES} attributes")
    text = DN + ",".join(map("+".join, parts))
    if len(text) > MAX_DN_BYTES:
        raise _no_subject("is too long")
    return text


def spiffe_identity(text: str) -> str:
    """`text`, if it is a SPIFFE ID with a path (SPIFFE-ID, section 2). Raises NameInvalid."""
    found = _SPIFFE_ID.fullmatch(text)
    if not found or len(text) > MAX_SPIFFE_BYTES or {".", ".."} & set(found["path"].split("/")):
        raise NameInvalid(f"{text[:80]!a} is no SPIFFE ID", do="write it as spiffe://CLUSTER/node/HOST/NAME")
    return text


def canonical_identity(text: str) -> str:
    """`text`, if it is an identity as the functions above write it. Raises NameInvalid."""
    if text.startswith(DNS):
        if dns_identity(text.removeprefix(DNS)) == text:
            return text
    elif text.startswith(DN):
        if is_canonical_dn(text) and dn_identity(_rdns(text)) == text:
            return text
    else:
        return spiffe_identity(text)
    raise NameInvalid(f"{text[:80]!a} is no identity as it is kept", do="write it as `distsec allow` does")


def is_canonical_dn(text: str) -> bool:
    """Whether `text` has the form of `dn_identity`'s, which no text of RFC 4514 has: that has a `=`."""
    return len(text) <= MAX_DN_BYTES and _CANONICAL_DN.fullmatch(text) is not None


def trust_domain(identity: str) -> str | None:
    """The trust domain of a SPIFFE ID or of the beginning of one (`spiffe://demo/cli/*`), None for others."""
    if not identity.startswith(SPIFFE):
        return None
    return identity.removeprefix(SPIFFE).partition("/")[0]


def readable(identity: str) -> str:
    """`identity` for people, and as `--identity` takes it: `dn:CN=a,O=b` (RFC 4514). Not for comparing.

    What is no canonical subject is returned as it is: it may be anything, and `model.text.escape` is the
    caller's to call where it did not come from here.
    """
    if not identity.startswith(DN):
        return identity
    try:
        rdns = _rdns(canonical_identity(identity))
    except NameInvalid:
        return identity
    return DN + ",".join(
        "+".join(f"{SHORT_NAMES.get(oid, oid)}={_escaped(value)}" for oid, value in rdn)
        for rdn in reversed(rdns)
    )


def _rdns(canonical: str) -> list[list[tuple[str, str]]]:
    """The inverse of `dn_identity`; raises NameInvalid for values that are no UTF-8."""

    def pair(text: str) -> tuple[str, str]:
        oid, _, value = text.partition(":")
        try:
            return oid, bytes.fromhex(value).decode()
        except ValueError:
            raise _no_subject("holds what is no text") from None

    return [[pair(text) for text in rdn.split("+")] for rdn in canonical.removeprefix(DN).split(",")]


def _oid(text: str) -> str:
    if len(text) > MAX_OID_BYTES or not _OID.fullmatch(text):
        raise _no_subject("has an attribute whose type is no OID")
    return text


def _value(text: str) -> str:
    try:
        octets = text.encode()
    except UnicodeEncodeError:
        raise _no_subject("holds what is no text") from None
    if not octets:
        raise _no_subject("has an attribute without a value")
    if len(octets) > MAX_VALUE_BYTES:
        raise _no_subject(f"has a value of more than {MAX_VALUE_BYTES} bytes")
    if _INVISIBLE.search(text):
        raise _no_subject("holds characters that nobody can see")
    return octets.hex()


def _escaped(value: str) -> str:
    """RFC 4514, section 2.4."""
    last = len(value) - 1

    def escaped(at: int, character: str) -> bool:
        return (
            character in '"+,;<>\\'
            or (character == " " and at in {0, last})
            or (character == "#" and at == 0)
        )

    return "".join(f"\\{one}" if escaped(at, one) else one for at, one in enumerate(value))


def _no_subject(what: str) -> NameInvalid:
    return NameInvalid(f"the subject {what}", do='write it as in "CN=poller,O=Example" (RFC 4514)')
