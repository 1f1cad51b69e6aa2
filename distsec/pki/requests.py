"""Signing requests (PKCS#10, RFC 2986), for a CA whose key is on another host. Pure.

A request says who asks and proves that they have the key; the private half stays where it was made. What is
issued follows from the name and the address in the request and from `pki.profile`, and from nothing else that
somebody wrote into it. One file holds as many requests as wanted, the answer to it as many certificates.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from distsec.errors import NameInvalid, RequestRefused
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.model.text import escape
from distsec.pki.sealed import fingerprint

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_REQUESTS = 1000
"""Of one file: as many nodes as a configuration may have."""

CURVES = ("secp256r1", "secp384r1")
"""Of keys that every proven OTP takes for TLS 1.3, and that `profile` issues for."""

NO_ADDRESS = "0.0.0.0"  # noqa: S104 - nothing is bound: it stands for none, as in `profile`

_REQUEST = re.compile(
    rb"-----BEGIN CERTIFICATE REQUEST-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE REQUEST-----", re.ASCII
)
_NODE_ID = re.compile(r"spiffe://[^/]+/node/([^/]+)/([^/]+)")
_MOST_SHOWN = 8
_MAX_COMMON_NAME = 64  # ub-common-name, RFC 5280, appendix A.1


@dataclass(frozen=True, slots=True)
class Request:
    """Of a node of this trust domain that has proven that it has the key. `address`: where it listens.
    `ignored`: what else it asks for and does not get.
    """

    name: NodeName
    address: str
    public: ec.EllipticCurvePublicKey
    ignored: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Which key it is, to be compared by people: SHA-256 of its SubjectPublicKeyInfo, in hex."""
        return fingerprint(self.public)


def request_for(key_pem: Secret, name: NodeName, address: str, cluster: str) -> bytes:
    """A request (PEM, with a line for people before it) for the key of `name`. ValueError: no ECDSA key."""
    key = serialization.load_pem_private_key(key_pem.reveal(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an ECDSA key")
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster)]
    if len(str(name)) <= _MAX_COMMON_NAME:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, str(name)))
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name.identity(cluster))]
    with contextlib.suppress(ValueError):  # the name of a host, which the CA does not need
        names.append(x509.IPAddress(ipaddress.ip_address(address)))
    made = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(attributes))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    head = f"# {name}, key {fingerprint(key.public_key())}\n".encode()
    return head + made.public_bytes(serialization.Encoding.PEM)


def read_requests(pem: bytes, cluster: str, where: str) -> tuple[Request, ...]:
    """The requests in the file `where`, all of them good, for the CA of the trust domain `cluster`.

    Raises RequestRefused with the first that is not: none is signed then.
    """
    blocks = _REQUEST.findall(pem) if len(pem) <= MAX_FILE_BYTES else []
    if not 0 < len(blocks) <= MAX_REQUESTS or len(blocks) != pem.count(b"-----BEGIN "):
        raise RequestRefused(
            "holds no signing requests, or more than that",
            where=where,
            do="bring the file that `distsec certs renew --offline NODE --out FILE` wrote",
        )
    requests = tuple(
        _request(block, cluster, f"{where}, request {number}") for number, block in enumerate(blocks, 1)
    )
    _each_once(requests, where)
    return requests


def node_of(identity: str, cluster: str) -> NodeName:
    """The node that has the SPIFFE ID `identity` in the trust domain `cluster`. Raises NameInvalid."""
    found = _NODE_ID.fullmatch(identity)
    if found is not None:
        host, head = found.groups()
        name = NodeName.parse(f"{head}@{host.replace('_', ':')}")  # no host name has a `_`
        if name.identity(cluster) == identity:
            return name
    raise NameInvalid(f"{escape(identity, 200)} is no node of {cluster}")


def _request(block: bytes, cluster: str, where: str) -> Request:
    def refused(what: str, do: str = "make it anew: `distsec certs renew --offline`") -> RequestRefused:
        return RequestRefused(what, where=where, do=do)

    try:
        asked = x509.load_pem_x509_csr(block)
        proven, public = asked.is_signature_valid, asked.public_key()
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise refused("names nobody (no subjectAltName)") from None
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise refused("cannot be read") from None
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise refused("has extensions that cannot be read") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in CURVES:
        raise refused("is for a key of another kind than ECDSA P-256 or P-384")
    if not proven:
        raise refused("does not prove that whoever made it has the key (its signature is wrong)")
    identities = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(identities) != 1:
        raise refused(f"names {len(identities)} identities (URIs in subjectAltName), not one")
    try:
        name = node_of(identities[0], cluster)
    except NameInvalid:
        raise refused(
            f"is for {escape(identities[0], 200)}, which is no node of {cluster}",
            "see that it was brought to the CA of its own cluster",
        ) from None
    # Where it listens: of use to who has no policy to compare with (profile.leaf_certificate).
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    if len(addresses) > 1 or any("/" in each for each in addresses):
        raise refused(f"names {len(addresses)} addresses, not one")
    ignored = [each.oid for each in asked.extensions if each.oid != ExtensionOID.SUBJECT_ALTERNATIVE_NAME]
    return Request(
        name,
        addresses[0] if addresses else name.ip or NO_ADDRESS,
        public,
        ignored=tuple(escape(each._name, 60) for each in ignored[:_MOST_SHOWN]),
    )


def _each_once(requests: Sequence[Request], where: str) -> None:
    for what, values in (("node", [str(each.name) for each in requests]), ("key", list(_keys(requests)))):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise RequestRefused(
                f"asks twice for the same {what}, {escape(twice, 200)}",
                where=where,
                do="each node has one key, and a key belongs to one node: make it anew",
            )


def _keys(requests: Sequence[Request]) -> Iterator[str]:
    return (each.fingerprint for each in requests)
