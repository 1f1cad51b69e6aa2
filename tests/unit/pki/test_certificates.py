"""The certificates as openssl and cryptography see them, their fields, and the errors of the CA."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsec.errors import CaKeyUnavailable, NameInvalid, StoreError
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import authority as ca
from distsec.pki import profile
from distsec.pki.authority import Authority, certificate_of
from distsec.pki.store import Store

NOW = float(int(time.time()))
NAMES = [
    "poller@127.0.0.1",
    "poller@::1",
    "poller@host",
    "poller@a.example.com",
    f"{'n' * 64}@{'h' * 60}.example",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("pki") / "state")


@pytest.fixture(scope="module")
def authority(store: Store) -> Authority:
    return Authority.create(store, "demo", NOW)


def leaf_of(authority: Authority, name: str, address: str = "127.0.0.1", days: int = 365) -> x509.Certificate:
    _, pem = authority.issue(NodeName.parse(name), address, days, NOW)
    return x509.load_pem_x509_certificate(pem)


def openssl(*arguments: str | Path, stdin: bytes = b"") -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_accepts_a_leaf_in_both_roles(
    store: Store, authority: Authority, tmp_path: Path, name: str, purpose: str
) -> None:
    (tmp_path / "leaf.pem").write_bytes(ca.pem_of(leaf_of(authority, name)))
    trusted = store.path(ca.CERTIFICATE_FILE)
    arguments = ("-x509_strict", "-purpose", purpose, "-CAfile", trusted, tmp_path / "leaf.pem")
    assert openssl("verify", *arguments).endswith("leaf.pem: OK\n")


@pytest.mark.parametrize("name", NAMES)
def test_the_verifier_of_cryptography_accepts_a_leaf_in_both_roles(authority: Authority, name: str) -> None:
    leaf, node = leaf_of(authority, name), NodeName.parse(name)
    builder = verification.PolicyBuilder().store(verification.Store([authority.certificate]))
    builder.build_client_verifier().verify(leaf, [])
    subject = x509.IPAddress(ipaddress.ip_address(node.ip)) if node.ip else x509.DNSName(node.host)
    builder.build_server_verifier(subject).verify(leaf, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_has_the_profile_and_nothing_else(authority: Authority, name: str) -> None:
    leaf, node = leaf_of(authority, name), NodeName.parse(name)
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    found = {extension.value.__class__: extension for extension in leaf.extensions}
    assert {kind.__name__: extension.critical for kind, extension in found.items()} == {
        "SubjectKeyIdentifier": False,
        "SubjectAlternativeName": False,
        "BasicConstraints": True,
        "KeyUsage": True,
        "ExtendedKeyUsage": False,
        "AuthorityKeyIdentifier": False,
    }
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [node.identity("demo")]
    assert names.get_values_for_type(x509.DNSName) == [node.host]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == list(
        dict.fromkeys([*([node.ip] if node.ip else []), "127.0.0.1"])
    )
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage == profile._key_usage(digital_signature=True)
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }


def test_openssl_shows_the_ca_profile(store: Store, authority: Authority) -> None:
    text = openssl("x509", "-noout", "-text", "-in", store.path(ca.CERTIFICATE_FILE))
    shown = re.sub(r"\s+", " ", text)
    assert "Basic Constraints: critical CA:TRUE, pathlen:0" in shown
    assert re.search(r"X509v3 Key Usage: critical Certificate Sign, CRL Sign (?!,)", shown)
    assert "ASN1 OID: prime256v1" in shown
    assert "URI:spiffe://demo" in shown
    assert "Subject: O = demo, CN = distsec CA" in shown
    assert "Extended Key Usage" not in shown
    openssl(
        "verify", "-x509_strict", "-CAfile", store.path(ca.CERTIFICATE_FILE), store.path(ca.CERTIFICATE_FILE)
    )


def test_an_ip_host_is_named_both_ways_because_otp_25_and_27_look_in_different_places(
    authority: Authority,
) -> None:
    text = openssl("x509", "-noout", "-text", stdin=ca.pem_of(leaf_of(authority, "a@127.0.0.1")))
    assert "URI:spiffe://demo/node/127.0.0.1/a, DNS:127.0.0.1, IP Address:127.0.0.1" in text


@pytest.mark.parametrize(
    ("address", "shown"),
    [("10.0.0.9", ["10.0.0.9"]), ("0.0.0.0", []), ("::", []), ("host", []), ("fe80::1%lo", [])],
)
def test_an_address_that_can_be_dialled_is_named_too(
    authority: Authority, address: str, shown: list[str]
) -> None:
    names = leaf_of(authority, "a@host", address).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == shown


def test_validity_begins_five_minutes_ago_and_ends_after_the_days_asked_for(authority: Authority) -> None:
    leaf = leaf_of(authority, "a@host", days=30)
    assert leaf.not_valid_before_utc == datetime.fromtimestamp(NOW, UTC) - timedelta(minutes=5)
    assert leaf.not_valid_after_utc == datetime.fromtimestamp(NOW, UTC) + timedelta(days=30)
    lifetime = authority.certificate.not_valid_after_utc - authority.certificate.not_valid_before_utc
    assert lifetime == timedelta(days=3650, minutes=5)


def test_a_leaf_does_not_outlive_its_ca(authority: Authority) -> None:
    leaf = leaf_of(authority, "a@host", days=100_000)
    assert leaf.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_serials_are_128_random_bits_with_the_same_text_everywhere(authority: Authority) -> None:
    serials = {leaf_of(authority, "a@host").serial_number for _ in range(20)}
    assert len(serials) == 20
    assert all(serial.bit_length() > 124 and serial.bit_length() <= 128 for serial in serials)
    assert {len(ca.serial_text(serial)) for serial in serials} == {32}
    assert profile.serial_from(b"\x0f" + b"\xff" * 15) is None
    assert ca.serial_text(0xA1B) == "0a1b"  # whole bytes, as distsec_identity:serial/1


def test_what_is_shown_of_a_certificate_agrees_with_openssl(authority: Authority) -> None:
    _, pem = authority.issue(NodeName.parse("a@127.0.0.1"), "127.0.0.1", 365, NOW)
    shown = certificate_of(pem)
    assert shown.identity == "spiffe://demo/node/127.0.0.1/a"
    assert (
        shown.serial
        == openssl("x509", "-noout", "-serial", stdin=pem).strip().removeprefix("serial=").lower()
    )
    assert shown.issuer == "CN=distsec CA,O=demo"
    assert shown.not_after == int(NOW) + 365 * 86_400


def test_a_certificate_with_two_uris_has_no_identity(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    uris = [x509.UniformResourceIdentifier(f"spiffe://demo/node/host/{name}") for name in "ab"]
    certificate = (
        x509.CertificateBuilder(
            authority.certificate.subject, authority.certificate.subject, key.public_key(), 7
        )
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName(uris), critical=False)
        .sign(key, hashes.SHA256())
    )
    assert certificate_of(ca.pem_of(certificate)).identity is None
    assert not authority.issued(certificate)


@given(
    head=st.from_regex(r"[0-9A-Za-z_][0-9A-Za-z_-]{0,63}", fullmatch=True),
    host=st.one_of(
        st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z]{1,9}){0,3}", fullmatch=True), st.ip_addresses().map(str)
    ),
    cluster=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_name_that_a_node_may_have_fits_into_a_certificate(
    authority: Authority, head: str, host: str, cluster: str
) -> None:
    try:
        node = NodeName.parse(f"{head}@{host}")
    except NameInvalid:
        return
    own = Authority(cluster, authority.certificate, authority._key)
    _, pem = own.issue(node, "127.0.0.1", 365, NOW)
    assert certificate_of(pem).identity == node.identity(cluster)
    assert authority.issued(x509.load_pem_x509_certificate(pem))


# ---- what is kept
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def test_a_second_create_keeps_key_and_certificate(fresh: Store) -> None:
    Authority.create(fresh, "demo", NOW)
    before = [fresh.read(ca.KEY_FILE), fresh.read(ca.CERTIFICATE_FILE)]
    again = Authority.create(fresh, "demo", NOW + 86_400)
    assert [fresh.read(ca.KEY_FILE), fresh.read(ca.CERTIFICATE_FILE)] == before
    assert again.bundle_pem == before[1]


def test_a_ca_whose_certificate_was_not_written_yet_is_completed_with_its_key(fresh: Store) -> None:
    fresh.create(ca.KEY_FILE, ca.new_key_pem().reveal())
    key = fresh.read(ca.KEY_FILE)
    Authority.create(fresh, "demo", NOW)
    assert fresh.read(ca.KEY_FILE) == key


def test_a_ca_without_its_key_signs_nothing_and_is_no_new_ca(fresh: Store) -> None:
    Authority.create(fresh, "demo", NOW)
    (fresh.root / ca.KEY_FILE).unlink()
    again = Authority.create(fresh, "demo", NOW)
    with pytest.raises(
        CaKeyUnavailable,
        match=r"/ca: no certificate for a@host: the CA's key is not on this host; .* renew --offline a@host",
    ):
        again.issue(NodeName.parse("a@host"), "127.0.0.1", 1, NOW)
    assert not fresh.exists(ca.KEY_FILE)


def test_the_ca_of_another_cluster_is_refused(fresh: Store) -> None:
    Authority.create(fresh, "demo", NOW)
    with pytest.raises(StoreError, match="is the CA of cluster 'demo', not of 'other'"):
        Authority.create(fresh, "other", NOW)


def test_an_expired_ca_is_refused(fresh: Store) -> None:
    Authority.create(fresh, "demo", NOW)
    with pytest.raises(StoreError, match="the CA has expired"):
        Authority.create(fresh, "demo", NOW + 3651 * 86_400)


def test_a_key_that_is_not_the_certificates_is_refused(fresh: Store) -> None:
    Authority.create(fresh, "demo", NOW)
    fresh.write(ca.KEY_FILE, ca.new_key_pem().reveal())
    with pytest.raises(StoreError, match=r"ca/certificate\.pem: does not belong to key\.pem beside it"):
        Authority.load(fresh)


def test_a_damaged_key_is_named_and_not_shown(fresh: Store) -> None:
    Authority.create(fresh, "demo", NOW)
    secret = fresh.read(ca.KEY_FILE).splitlines()[1]
    fresh.write(ca.KEY_FILE, b"-----BEGIN PRIVATE KEY-----\n" + secret)
    with pytest.raises(StoreError, match=r"ca/key\.pem: is no private key that can be read") as caught:
        Authority.load(fresh)
    assert secret.decode() not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_rsa_key_is_refused_for_what_it_is(fresh: Store, authority: Authority) -> None:
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fresh.write(ca.KEY_FILE, pem)
    with pytest.raises(StoreError, match="is no ECDSA key"):
        Authority.create(fresh, "demo", NOW)
    with pytest.raises(ValueError, match="not an ECDSA key"):
        authority.certify(Secret(pem), NodeName.parse("a@host"), "127.0.0.1", 1, NOW)


def test_private_keys_are_not_in_the_repr_of_what_holds_them(authority: Authority) -> None:
    key, _ = authority.issue(NodeName.parse("a@host"), "127.0.0.1", 1, NOW)
    assert repr(key) == "Secret(…)"
    assert "PRIVATE" not in repr(authority)
