"""Planted misconfigurations of certificates and the CA: each is found under its code, and nothing else is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from distsec.model.secret import Secret
from distsec.pki import sealed
from distsec.pki.authority import serial_text
from distsec.posture.finding import Code
from tests.posture.planted import (
    A,
    B,
    Corpus,
    Plant,
    Planted,
    ca,
    check_planted,
    issue,
    key_pem,
    load_certificate,
    load_key,
    pem,
    told,
)

CASES = Corpus()
plants = CASES.plants

# ---- certificates ----------


@plants(Code.CERTIFICATE_MISSING)
def certificate_removed(clean: Planted) -> None:
    (clean.node() / "certificate.pem").unlink()


@plants(Code.CERTIFICATE_UNREADABLE)
def certificate_garbage(clean: Planted) -> None:
    clean.rewrite(clean.node() / "certificate.pem", lambda text: text.replace("M", "?"))


@plants(Code.CERTIFICATE_EXPIRED)
def certificate_expired(clean: Planted) -> None:
    clean.certify(begins=timedelta(days=-30), days=29)


@plants(Code.CERTIFICATE_NOT_YET_VALID)
def certificate_of_the_future(clean: Planted) -> None:
    clean.certify(begins=timedelta(days=1))


@plants(Code.CERTIFICATE_EXPIRES_SOON)
def certificate_almost_over(clean: Planted) -> None:
    clean.certify(begins=timedelta(days=-190), days=200)


@plants(Code.CERTIFICATE_LONG_LIVED)
def certificate_for_ten_years(clean: Planted) -> None:
    clean.certify(days=3650)


@plants(Code.CERTIFICATE_CHAIN_INVALID)
def certificate_of_a_foreign_ca(clean: Planted) -> None:
    key, certificate = ca("distsec CA")
    leaf = issue(
        public=load_key(clean.node() / "key.pem").public_key(),
        issuer=certificate,
        issuer_key=key,
        uris=["spiffe://demo/node/127.0.0.1/a"],
    )
    (clean.node() / "certificate.pem").write_bytes(pem(leaf))


@plants(Code.CERTIFICATE_KEY_MISMATCH)
def another_key(clean: Planted) -> None:
    (clean.node() / "key.pem").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))


@plants(Code.KEY_MISSING)
def key_removed(clean: Planted) -> None:
    (clean.node() / "key.pem").unlink()


@plants(Code.KEY_UNREADABLE)
def key_garbage(clean: Planted) -> None:
    (clean.node() / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


@plants(Code.CERTIFICATE_KEY_USAGE)
def no_digital_signature(clean: Planted) -> None:
    clean.certify(digital_signature=False)


@plants(Code.CERTIFICATE_EXTENDED_KEY_USAGE)
def server_only(clean: Planted) -> None:
    clean.certify(usage=[ExtendedKeyUsageOID.SERVER_AUTH])


@plants(Code.CERTIFICATE_EXTENDED_KEY_USAGE)
def no_extended_key_usage(clean: Planted) -> None:
    clean.certify(usage=None)


@plants(Code.CERTIFICATE_IS_CA)
def leaf_that_may_sign(clean: Planted) -> None:
    clean.certify(is_ca=True)


@plants(Code.CERTIFICATE_WEAK_KEY)
def short_rsa_key(clean: Planted) -> None:
    key = rsa.generate_private_key(65537, 1024)
    (clean.node() / "key.pem").write_bytes(key_pem(key))
    clean.certify(public=key.public_key())


@plants(Code.CERTIFICATE_WEAK_SIGNATURE)
def signed_with_sha1(clean: Planted) -> None:
    """By openssl: cryptography makes no such signature any more."""
    names = "subjectAltName=URI:spiffe://demo/node/127.0.0.1/a,DNS:127.0.0.1"
    usage = "extendedKeyUsage=serverAuth,clientAuth"
    (clean.directory / "extensions").write_text(f"{names}\nkeyUsage=digitalSignature\n{usage}\n")
    certificate, key = clean.state / "ca/certificate.pem", clean.state / "ca/key.pem"
    request = ["openssl", "req", "-new", "-key", str(clean.node() / "key.pem"), "-subj", "/CN=a"]
    signed = ["openssl", "x509", "-req", "-sha1", "-days", "300", "-CA", str(certificate), "-CAkey", str(key)]
    signed += ["-extfile", str(clean.directory / "extensions"), "-out", str(clean.node() / "certificate.pem")]
    made = subprocess.run(request, check=True, capture_output=True)
    subprocess.run(signed, input=made.stdout, check=True, capture_output=True)


@plants(Code.CERTIFICATE_IDENTITY)
def certificate_of_another_node(clean: Planted) -> None:
    clean.certify(uris=["spiffe://demo/node/127.0.0.1/c"])


@plants(Code.CERTIFICATE_IDENTITY)
def two_identities(clean: Planted) -> None:
    clean.certify(uris=["spiffe://demo/node/127.0.0.1/a", "spiffe://demo/node/127.0.0.1/b"])


@plants(Code.CERTIFICATE_LOCALHOST)
def for_localhost(clean: Planted) -> None:
    clean.certify(dns=["127.0.0.1", "localhost"])


@plants(Code.CERTIFICATE_WILDCARD)
def for_every_host(clean: Planted) -> None:
    clean.certify(dns=["127.0.0.1", "*.example.net"])


@plants(Code.CERTIFICATE_SHARED)
def one_key_on_two_nodes(clean: Planted) -> None:
    (clean.node(B) / "key.pem").write_bytes((clean.node(A) / "key.pem").read_bytes())
    clean.certify(B)


@plants(Code.CERTIFICATE_REVOKED)
def revoked_and_in_use(clean: Planted) -> None:
    serial = serial_text(load_certificate(clean.node() / "certificate.pem").serial_number)
    clean.overlay(revoked=[serial])


@plants(Code.TRUST_FOREIGN)
def a_second_ca_is_trusted(clean: Planted) -> None:
    trust = clean.node() / "trust.pem"
    trust.write_bytes(trust.read_bytes() + pem(ca("another")[1]))


@plants(Code.TRUST_UNREADABLE)
def empty_trust_bundle(clean: Planted) -> None:
    (clean.node() / "trust.pem").write_bytes(b"")


# ---- the authority ----------


def new_ca(clean: Planted, **how: object) -> None:
    """Another CA, which has issued every node's certificate."""
    key, certificate = ca("distsec CA", **how)  # type: ignore[arg-type]
    (clean.state / "ca/key.pem").write_bytes(key_pem(key))
    (clean.state / "ca/certificate.pem").write_bytes(pem(certificate))
    for name in (A, B):
        (clean.node(name) / "trust.pem").write_bytes(pem(certificate))
        clean.certify(name)


@plants(Code.CA_MISSING)
def ca_removed(clean: Planted) -> None:
    (clean.state / "ca/certificate.pem").unlink()


@plants(Code.CA_EXPIRED)
def ca_expired(clean: Planted) -> None:
    new_ca(clean, begins=timedelta(days=-400), days=399)


@plants(Code.CA_EXPIRES_SOON)
def ca_almost_over(clean: Planted) -> None:
    new_ca(clean, begins=timedelta(days=-3000), days=3060)


@plants(Code.CA_KEY_USAGE)
def ca_that_may_not_sign(clean: Planted) -> None:
    new_ca(clean, is_ca=False)


@plants(Code.CA_KEY_MISMATCH)
def key_of_another_ca(clean: Planted) -> None:
    (clean.state / "ca/key.pem").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))


@plants(Code.CA_KEY_BESIDE_SEALED)
def sealed_and_plain(clean: Planted) -> None:
    (clean.state / "ca/key.sealed").write_bytes(b"{}")
    (clean.state / "ca/key.sealed").chmod(0o600)


@plants(Code.CA_KEY_DAMAGED)
def sealed_key_cut_off(clean: Planted) -> None:
    seal_ca(clean, lambda content: content[:-10])


@plants(Code.CA_KEY_DAMAGED)
def sealed_key_empty(clean: Planted) -> None:
    seal_ca(clean, lambda content: b"")


@plants(Code.CA_KEY_MISMATCH)
def sealed_key_of_another_ca(clean: Planted) -> None:
    (clean.state / "ca/key.pem").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))
    seal_ca(clean, lambda content: content)


def seal_ca(clean: Planted, change: Callable[[bytes], bytes]) -> None:
    plain, sealed_file = clean.state / "ca/key.pem", clean.state / "ca/key.sealed"
    cost = sealed.Cost(memory_kib=sealed.LEAST_MEMORY_KIB, iterations=1, lanes=1)
    word, random = Secret(b"correct horse battery staple"), bytes(sealed.RANDOM_BYTES)
    sealed_file.write_bytes(change(sealed.seal(Secret(plain.read_bytes()), word, random, cost)))
    sealed_file.chmod(0o600)
    plain.unlink()


def test_a_sealed_key_in_good_order_is_nothing_to_tell(clean: Planted) -> None:
    seal_ca(clean, lambda content: content)
    assert told(clean.check()) == set()


@pytest.mark.parametrize(("code", "plant"), CASES, ids=[plant.__name__ for _, plant in CASES])
def test_what_is_planted_is_found_and_nothing_else(clean: Planted, code: Code, plant: Plant) -> None:
    check_planted(clean, code, plant)


def test_where_the_key_is_elsewhere_the_fix_is_a_request(clean: Planted) -> None:
    def fix() -> str:
        [found] = [each for each in clean.check() if each.code is Code.CERTIFICATE_EXPIRED]
        return found.fix

    certificate_expired(clean)
    assert fix() == f"distsec certs renew {A}"
    (clean.state / "ca/key.pem").unlink()
    assert fix() == f"distsec certs renew --offline {A} --out FILE, and have it signed (docs/hosts.md)"


def test_a_key_that_is_elsewhere_and_a_new_release_are_told_and_no_more(clean: Planted) -> None:
    (clean.state / "ca/key.pem").unlink()
    root = clean.directory / "otp"
    (root / "releases/28").mkdir(parents=True)
    (root / "releases/start_erl.data").write_text("16.4 28")
    (root / "releases/28/OTP_VERSION").write_text("28.99")
    clean.beam("-distsec_dir", str(clean.node()), "-name", A, root=str(root))
    findings = clean.check()
    assert {Code.CA_KEY_OFFLINE, Code.OTP_UNPROVEN} <= {each.code for each in findings}
    assert told(findings) == {Code.LISTENER_MISSING}
