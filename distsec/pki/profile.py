"""What the certificates look like. Pure: keys, serial numbers and time are arguments.

One CA (the trust domain), and leaves directly below it, one for each node. A leaf's identity is the one URI
in its subjectAltName, a SPIFFE ID; nothing is ever decided by its subject. Our CA carries no URI name
constraint (docs/adr/0012): nodes would not look at it, cryptography's verifier refuses every chain with one,
and who may be whom is the policy's to say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from distsec.model.names import NodeName

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
"""What certificates are made with and for. Our own are all ECDSA on CURVE; others may be brought."""

CURVE = ec.SECP256R1
CA_DAYS = 3650
BACKDATED = timedelta(minutes=5)
"""A peer whose clock is a little behind must not refuse a certificate that was just issued."""

BACKDATED_PART = 6
"""Of a short life no more than this part comes before it: renewal reckons from the whole (core.renewal)."""

SERIAL_BITS = 128
_MAX_COMMON_NAME = 64  # ub-common-name, RFC 5280, appendix A.1


def serial_from(random: bytes) -> int | None:
    """A serial number from 16 random bytes, or None: draw again.

    RFC 5280, section 4.1.2.2 wants a positive integer of at most 20 octets. Numbers with a leading zero digit
    are not used, so that every program writes a serial with the same 32 hexadecimal digits.
    """
    serial = int.from_bytes(random[: SERIAL_BITS // 8], "big")
    return serial if serial >> (SERIAL_BITS - 4) else None


def ca_certificate(
    key: PrivateKey, cluster: str, serial: int, now: float, *, successor: bool = False
) -> x509.Certificate:
    """A self-signed CA for the trust domain `cluster`, valid for ten years from `now` (Unix seconds).

    A `successor` has a name of its own: of two CAs with the same one, verifiers and people mix up the chains.
    """
    name = _ca_name(cluster, f" {serial:032x}"[:9] if successor else "")
    public = key.public_key()
    return (
        _builder(name, name, public, serial, now, CA_DAYS)
        # SPIFFE X509-SVID, section 3.2: a signing certificate's ID is the trust domain, without a path
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{cluster}")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, digest_for(key))
    )


def leaf_certificate(
    ca_key: PrivateKey,
    ca: x509.Certificate,
    public: PublicKey,
    node: NodeName,
    address: str,
    cluster: str,
    serial: int,
    days: float,
    now: float,
) -> x509.Certificate:
    """The certificate of `node`, which listens on `address`; never valid for longer than its CA."""
    return (
        _builder(_leaf_name(node, cluster), ca.subject, public, serial, now, days, ca.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName(list(_names_of(node, address, cluster))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            # a node is dialled and dials: one certificate for both roles
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(authority_key_identifier(ca), critical=False)
        .sign(ca_key, digest_for(ca_key))
    )


def shell_certificate(
    ca_key: PrivateKey,
    ca: x509.Certificate,
    public: PublicKey,
    *,
    identity: str,
    cluster: str,
    serial: int,
    seconds: int,
    now: float,
) -> x509.Certificate:
    """The certificate of an operator's shell: it dials, for `seconds` from `now`, and serves nobody."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, "distsec shell"),
        ]
    )
    latest = min(datetime.fromtimestamp(int(now) + seconds, UTC), ca.not_valid_after_utc)
    return (
        _builder(subject, ca.subject, public, serial, now, CA_DAYS, latest)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(authority_key_identifier(ca), critical=False)
        .sign(ca_key, digest_for(ca_key))
    )


def digest_for(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """With which hash `key` signs; None for Ed25519, which has its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    wide = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256
    return hashes.SHA384() if wide else hashes.SHA256()


def authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """What names the key of `ca` in what it signs: the identifier that it carries itself, if it does."""
    try:
        own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public = ca.public_key()
        assert isinstance(public, PublicKey), "no other key signs certificates"
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def may_sign_lists(ca: x509.Certificate) -> bool:
    """Whether `ca` may sign CRLs. Without a keyUsage it may (RFC 5280, section 4.2.1.3)."""
    try:
        return ca.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def identities_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Every URI in the subjectAltName. A certificate with none, or with more than one, has no identity."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: PublicKey,
    serial: int,
    now: float,
    days: float,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(int(now), UTC)
    end = start + timedelta(days=days)
    end = end if latest is None else min(end, latest)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(start - min(BACKDATED, max(end - start, timedelta()) / BACKDATED_PART))
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _ca_name(cluster: str, mark: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, f"distsec CA{mark}"),
        ]
    )


def _leaf_name(node: NodeName, cluster: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster)]
    if len(str(node)) <= _MAX_COMMON_NAME:  # for people's eyes; a longer name stands in the URI alone
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, str(node)))
    return x509.Name(attributes)


def _names_of(node: NodeName, address: str, cluster: str) -> Iterator[x509.GeneralName]:
    yield x509.UniformResourceIdentifier(node.identity(cluster))
    # public_key:pkix_verify_hostname/3 looks for an IP-literal host among the DNS names on OTP 25, and among
    # the IP addresses on 27 and later: both.
    yield x509.DNSName(node.host)
    addresses = dict.fromkeys(ipaddress.ip_address(text) for text in (node.ip, _literal(address)) if text)
    yield from map(x509.IPAddress, addresses)


def _literal(address: str) -> str | None:
    """`address` if it is an IP address that somebody can dial, else None."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return None if parsed.is_unspecified or "%" in address else str(parsed)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
