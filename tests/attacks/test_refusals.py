"""Every kind of stranger at the door: refused, told once, with its own reason, and counted under it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.attacks.claim import claim
from tests.attacks.scene import VICTIM, Scene
from tests.system.certificates import DAY, Leaf, TestAuthority
from tests.system.intruder import refused, tcp

ATTEMPTS = 3

A = "spiffe://demo/node/127.0.0.1/a"
B = "spiffe://demo/node/127.0.0.1/b"
EVIL = "spiffe://demo/node/127.0.0.1/evil"


def look_alike(scene: Scene) -> Leaf:
    """A listed identity by a CA that has the name of the cluster's own."""
    real, fake = TestAuthority.of_cluster(scene.cluster.state), TestAuthority.foreign()
    return scene.cluster.leaf("b", authority=TestAuthority(fake.key, real.certificate))


def self_signed(scene: Scene) -> Leaf:
    authority = TestAuthority.foreign()
    return bare(scene.cluster.directory / "self-signed", authority)


def bare(directory: Path, authority: TestAuthority) -> Leaf:
    """The CA's own certificate, shown as if it were a node's."""
    directory.mkdir(exist_ok=True)
    leaf = Leaf(directory / "certificate.pem", directory / "key.pem", directory / "certificate.pem", "")
    leaf.certificate.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    leaf.key.write_bytes(
        authority.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return leaf


def signed_by_a_node(scene: Scene) -> Leaf:
    """The victim's own certificate and key, used as if they were a CA's; the chain comes along."""
    directory = scene.cluster.node_directory("a")
    key = serialization.load_pem_private_key((directory / "key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = (directory / "certificate.pem").read_bytes()
    leaf = scene.cluster.leaf("b", authority=TestAuthority(key, x509.load_pem_x509_certificate(own)))
    with leaf.certificate.open("ab") as chain:
        chain.write(own)
    return leaf


Certificates: dict[str, tuple[str, str, str | None, Callable[[Scene], Leaf | None]]] = {
    # reason, event, identity in the event, certificate
    "none": ("certificate_required", "CertificateValidationFailed", None, lambda _: None),
    "by a foreign CA": (
        "unknown_ca",
        "CertificateValidationFailed",
        B,
        lambda scene: scene.cluster.leaf("b", authority=TestAuthority.foreign()),
    ),
    "by a CA of the same name": ("unknown_ca", "CertificateValidationFailed", B, look_alike),
    "self-signed": ("unknown_ca", "CertificateValidationFailed", None, self_signed),
    "by a node as if it were a CA": ("key_usage", "CertificateValidationFailed", A, signed_by_a_node),
    "expired": (
        "expired",
        "CertificateValidationFailed",
        B,
        lambda scene: scene.cluster.leaf("b", valid_from=-3 * DAY, valid_for=DAY),
    ),
    "not yet valid": (
        "not_yet_valid",
        "CertificateValidationFailed",
        B,
        lambda scene: scene.cluster.leaf("b", valid_from=DAY, valid_for=DAY),
    ),
    "for servers only": (
        "key_usage",
        "CertificateValidationFailed",
        B,
        lambda scene: scene.cluster.leaf("b", usage=[ExtendedKeyUsageOID.SERVER_AUTH]),
    ),
    "for signing code": (
        "key_usage",
        "CertificateValidationFailed",
        B,
        lambda scene: scene.cluster.leaf("b", usage=[ExtendedKeyUsageOID.CODE_SIGNING]),
    ),
    "without identity": (
        "no_identity",
        "CertificateValidationFailed",
        None,
        lambda scene: scene.cluster.leaf(uris=[]),
    ),
    "of two identities": (
        "no_identity",
        "CertificateValidationFailed",
        B,
        lambda scene: scene.cluster.leaf("b", "c"),
    ),
    "of a node that is not listed": (
        "not_allowed",
        "UnauthorizedAccess",
        EVIL,
        lambda scene: scene.cluster.leaf("evil"),
    ),
    "of another trust domain": (
        "not_allowed",
        "UnauthorizedAccess",
        "spiffe://other/node/127.0.0.1/b",
        lambda scene: scene.cluster.leaf(uris=["spiffe://other/node/127.0.0.1/b"]),
    ),
}


@pytest.mark.parametrize("certificate", Certificates)
def test_a_wrong_certificate_is_refused_told_once_and_counted(scene: Scene, certificate: str) -> None:
    reason, kind, identity, make = Certificates[certificate]
    leaf = make(scene)
    knocks = [scene.knock(leaf) for _ in range(ATTEMPTS)]

    assert all(refused(knock.connection) for knock in knocks)
    scene.expect(reason, ATTEMPTS)
    for event, knock in zip(scene.denials(), knocks, strict=True):
        assert event["event"] == kind
        assert event["node"] == VICTIM
        assert event["direction"] == "in"
        assert event["address"] == knock.address
        assert event.get("identity") == identity
        assert leaf is None or identity in {None, A} or event["serial"] == leaf.serial
    scene.expect_nothing_happened()


def test_a_client_of_tls_1_2_is_refused_though_its_certificate_is_listed(scene: Scene) -> None:
    leaf = scene.cluster.leaf("b")
    knocks = [scene.knock(leaf, maximum=ssl.TLSVersion.TLSv1_2) for _ in range(ATTEMPTS)]

    assert all(knock.error and knock.error.reason == "TLSV1_ALERT_PROTOCOL_VERSION" for knock in knocks)
    scene.expect("protocol_version", ATTEMPTS)
    assert [event["address"] for event in scene.denials()] == [knock.address for knock in knocks]
    assert {event["event"] for event in scene.denials()} == {"NodeConnectionAttempt"}
    scene.expect_nothing_happened()


NO_TLS = {
    "noise": bytes(range(128, 256)),
    "zeros": bytes(64),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a distribution handshake in plaintext": b"\0\x15N\0\0\0\4\x07\x07\x0f\x95\0\0\0\1\0\6evil@h",
    "a TLS record of noise": b"\x16\x03\x01\0\x40" + bytes(range(128, 192)),
}


@pytest.mark.parametrize("name", NO_TLS)
def test_what_is_no_tls_is_refused_told_once_and_counted(scene: Scene, name: str) -> None:
    addresses = []
    for _ in range(ATTEMPTS):
        connection = scene.test.enter_context(tcp(scene.port))
        addresses.append("{}:{}".format(*connection.getsockname()))
        connection.sendall(NO_TLS[name])
        answer = b"".join(iter(lambda c=connection: c.recv(4096), b""))  # type: ignore[misc]
        assert answer[:1] == b"\x15"  # a TLS alert, and not a byte of the distribution
        assert len(answer) == 7

    scene.expect("malformed", ATTEMPTS)
    assert [event["address"] for event in scene.denials()] == addresses
    assert {event["event"] for event in scene.denials()} == {"NodeConnectionAttempt"}
    scene.expect_nothing_happened()


def test_a_wrong_cookie_is_refused_though_certificate_and_name_are_listed(scene: Scene) -> None:
    leaf = scene.cluster.leaf("b")
    claims = [claim(scene.port, leaf, "b@127.0.0.1", "a_guess") for _ in range(ATTEMPTS)]

    assert [(c.status, c.admitted) for c in claims] == [("ok", False)] * ATTEMPTS
    scene.expect("bad_cookie", ATTEMPTS, peer="b@127.0.0.1")
    for event, made in zip(scene.denials(), claims, strict=True):
        assert event["event"] == "UnauthorizedAccess"
        assert event["peer"] == "b@127.0.0.1"
        assert event["identity"] == B
        assert event["address"] == made.address
        assert event["serial"] == leaf.serial
    scene.expect_nothing_happened()


def test_garbage_after_tls_from_a_listed_certificate_links_nothing(scene: Scene) -> None:
    """Stock OTP tells nobody of it (docs/security-model.md), so there is no event to wait for."""
    knock = scene.knock(scene.cluster.leaf("b"))
    knock.connection.sendall(b"\0\0\0\5hello")
    knock.connection.settimeout(20)
    assert refused(knock.connection)
    scene.expect_nothing_happened()
    assert scene.denials() == []


def test_the_listed_certificate_with_its_cookie_gets_in(scene: Scene) -> None:
    """Without this every test above could pass because nobody ever gets in."""
    made = claim(scene.port, scene.cluster.leaf("b"), "b@127.0.0.1", scene.pair_cookie("b"))
    assert made.admitted
    scene.cluster.wait(lambda: scene.nodeups() == "['b@127.0.0.1']", "the nodeup of b")
    scene.cluster.wait(lambda: scene.attempts() == {("allow", "b@127.0.0.1"): 1}, "the link to be counted")
    assert scene.refusals() == {}
    made.connection.close()
    scene.wait_alone("the end of the link")
