"""What is above a CA that was brought from elsewhere, and whom it is the CA of.

A CA that distsec made is a root that names its trust domain in its own certificate. One that was imported may
be neither: then `chain.pem` beside its certificate holds the CAs above it, the nearest first, and
`imported.json` the trust domain. Nodes trust the *anchor*, the last of them, and show what is between (OTP
takes only a root for an anchor). Everything below the anchor, whoever else issues there, is thereby trusted
to name nodes: who may be whom is still the policy's to say.
"""

from __future__ import annotations

import json

from cryptography import x509

from distsec.errors import NameInvalid, StoreError
from distsec.model.names import check_trust_domain
from distsec.pki import profile
from distsec.pki.acceptance import certificates_in, signed
from distsec.pki.store import Store

CHAIN = "chain.pem"
IMPORTED = "imported.json"
SCHEMA = 1


def chain_above(store: Store, directory: str) -> tuple[x509.Certificate, ...]:
    """The CAs above the one in `directory`, the nearest first; none above a root. Raises StoreError."""
    relative = f"{directory}/{CHAIN}"
    if not store.exists(relative):
        return ()
    try:
        return certificates_in(store.read(relative))
    except ValueError:
        raise StoreError(
            "does not hold the CAs above this one", where=str(store.path(relative)), do="import the CA again"
        ) from None


def anchor(store: Store, directory: str, authority: x509.Certificate) -> x509.Certificate:
    """Whom the nodes trust for what `authority`, the CA in `directory`, has issued. Raises StoreError."""
    return (*(authority, *chain_above(store, directory)),)[-1]


def presented(store: Store, directory: str, authority: x509.Certificate) -> tuple[x509.Certificate, ...]:
    """What a node shows after its own certificate: all of the chain but the anchor. Raises StoreError."""
    return (authority, *chain_above(store, directory))[:-1]


def trust_domain(store: Store, directory: str, authority: x509.Certificate) -> str:
    """Whose CA it is. Raises StoreError if nobody has said so."""
    identities = profile.identities_of(authority)
    relative = f"{directory}/{IMPORTED}"
    if store.exists(relative):
        try:
            document = json.loads(store.read(relative))
            if document["schema"] != SCHEMA:
                raise ValueError("schema")
            return check_trust_domain(document["cluster"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, NameInvalid):
            raise StoreError(
                "does not say whose CA this is", where=str(store.path(relative)), do="import the CA again"
            ) from None
    if len(identities) != 1:
        raise StoreError(
            "names no trust domain (one spiffe:// URI), so it is no CA of distsec",
            where=str(store.path(f"{directory}/certificate.pem")),
            do="restore it from a backup, or bring it in with `distsec certs import --ca-certificate`",
        )
    return identities[0].removeprefix("spiffe://")


def record(cluster: str) -> bytes:
    """The content of `imported.json`."""
    return json.dumps({"schema": SCHEMA, "cluster": cluster}).encode() + b"\n"


def is_root(certificate: x509.Certificate) -> bool:
    """Whether it has signed itself."""
    return certificate.issuer == certificate.subject and signed(certificate, certificate)
