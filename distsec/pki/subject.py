"""Identities from what an operator typed, and from certificates (`model.identities` has the texts)."""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.x509.oid import NameOID

from distsec.errors import NameInvalid
from distsec.model.identities import (
    DN,
    DNS,
    canonical_identity,
    dn_identity,
    dns_identity,
    is_canonical_dn,
    spiffe_identity,
)

MAX_DNS_NAMES = 16
"""Of one certificate: with more, none of its names counts (distsec_identity has the same bound)."""

MAX_TEXT = 4096
"""Characters that are parsed at all."""

_BER = re.compile(r"(^|(?<!\\)(\\\\)*[,+])[A-Za-z0-9.-]+=#")
"""A value in BER (RFC 4514, section 2.4), of which cryptography reads the bytes as if they were the text.
What follows an escaped comma is no value of its own.
"""

_ALSO_READ = {
    # Not in RFC 4514, but what `openssl x509 -subject -nameopt RFC2253` prints.
    "emailAddress": NameOID.EMAIL_ADDRESS,
    "serialNumber": NameOID.SERIAL_NUMBER,
    "GN": NameOID.GIVEN_NAME,
    "SN": NameOID.SURNAME,
    "title": NameOID.TITLE,
    "street": NameOID.STREET_ADDRESS,
    "postalCode": NameOID.POSTAL_CODE,
    "organizationIdentifier": NameOID.ORGANIZATION_IDENTIFIER,
    "dnQualifier": NameOID.DN_QUALIFIER,
}


def subject_identity(text: str) -> str:
    """`dn:…` of a subject as RFC 4514 writes it, the most specific part first: `CN=poller,O=ServiceRadar`.

    Raises NameInvalid.
    """
    try:
        if len(text) > MAX_TEXT or _BER.search(text):
            raise ValueError
        name = x509.Name.from_rfc4514_string(text, attr_name_overrides=_ALSO_READ)
    except (ValueError, KeyError, NotImplementedError):
        # the error's own text may be long, and says little
        raise NameInvalid(
            f"{text[:80]!a} is no subject of a certificate",
            do='write it as in "CN=poller,O=Example" (RFC 4514): the most specific part first, '
            "no space beside = and comma, a comma in a value as \\,",
        ) from None
    return _identity_of(name)


def identity_from_text(text: str) -> str:
    """The identity that an operator wrote: `spiffe://…`, `dns:NAME` or `dn:CN=…,O=…`. Raises NameInvalid."""
    if text.startswith(DNS):
        return dns_identity(text.removeprefix(DNS))
    if text.startswith(DN):
        return canonical_identity(text) if is_canonical_dn(text) else subject_identity(text.removeprefix(DN))
    return spiffe_identity(text)


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """What a certificate is known by beside its URI, as distsec_identity:of_certificate/1 reads it."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        hosts = extension.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        hosts = []
    if len(hosts) > MAX_DNS_NAMES:
        return ()
    names: set[str] = set()
    for host in hosts:
        try:
            names.add(dns_identity(host))
        except NameInvalid:
            continue
    try:
        return (*sorted(names), _identity_of(certificate.subject))
    except (NameInvalid, ValueError):
        return tuple(sorted(names))


def _identity_of(name: x509.Name) -> str:
    return dn_identity([[(each.oid.dotted_string, _text(each.value)) for each in rdn] for rdn in name.rdns])


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):  # x500UniqueIdentifier is a bit string
        raise NameInvalid("the subject holds what is no text", do="name it by another attribute")
    return value
