"""Every kind of stranger at the door: refused, told once, with its own reason, and counted under it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
OTHER = "spiffe://other/node/127.0.0.1/b"


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


@dataclass(frozen=True, slots=True)
class Wrong:
    """A certificate to come with, the reason for its refusal, and the identity that the event names."""

    make: Callable[[Scene], Leaf | None]
    reason: str
    identity: str | None
    event: str = "CertificateValidationFailed"


def of_cluster(*names: str, **how: Any) -> Callable[[Scene], Leaf]:
    """A certificate by the cluster's own CA."""
    return lambda scene: scene.cluster.leaf(*names, **how)


CERTIFICATES = {
    "none": Wrong(lambda _: None, "certificate_required", None),
    "by a foreign CA": Wrong(
        lambda scene: scene.cluster.leaf("b", authority=TestAuthority.foreign()), "unknown_ca", B
    ),
    "by a CA of the same name": Wrong(look_alike, "unknown_ca", B),
    "self-signed": Wrong(self_signed, "unknown_ca", "dn:CN=foreign CA"),
    "by a node as if it were a CA": Wrong(signed_by_a_node, "key_usage", A),
    "expired": Wrong(of_cluster("b", valid_from=-3 * DAY, valid_for=DAY), "expired", B),
    "not yet valid": Wrong(of_cluster("b", valid_from=DAY, valid_for=DAY), "not_yet_valid", B),
    "for servers only": Wrong(of_cluster("b", usage=[ExtendedKeyUsageOID.SERVER_AUTH]), "key_usage", B),
    "for signing code": Wrong(of_cluster("b", usage=[ExtendedKeyUsageOID.CODE_SIGNING]), "key_usage", B),
    "without identity": Wrong(of_cluster(uris=[]), "no_identity", "dn:CN=test leaf"),
    "of two identities": Wrong(of_cluster("b", "c"), "no_identity", B),
    "of a node that is not listed": Wrong(of_cluster("evil"), "not_allowed", EVIL, "UnauthorizedAccess"),
    "of another trust domain": Wrong(of_cluster(uris=[OTHER]), "not_allowed", OTHER, "UnauthorizedAccess"),
}


@pytest.mark.parametrize("wrong", CERTIFICATES.values(), ids=CERTIFICATES)
def test_a_wrong_certificate_is_refused_told_once_and_counted(scene: Scene, wrong: Wrong) -> None:
    leaf = wrong.make(scene)
    knocks = [scene.knock(leaf) for _ in range(ATTEMPTS)]

    assert all(refused(knock.connection) for knock in knocks)
    scene.expect(wrong.reason, ATTEMPTS)
    for event in scene.denials():
        assert event["event"] == wrong.event
        assert event["node"] == VICTIM
        assert event["direction"] == "in"
        assert event.get("identity") == wrong.identity
        if leaf and leaf.serial and wrong.identity != A:  # A: the fault is in the certificate above it
            assert event["serial"] == leaf.serial
    assert addresses(scene) == {knock.address for knock in knocks}
    scene.expect_nothing_happened()


def addresses(scene: Scene) -> set[str]:
    """Where the denied came from, as the log says it."""
    return {event["address"] for event in scene.denials()}


def test_a_client_of_tls_1_2_is_refused_though_its_certificate_is_listed(scene: Scene) -> None:
    leaf = scene.cluster.leaf("b")
    knocks = [scene.knock(leaf, maximum=ssl.TLSVersion.TLSv1_2) for _ in range(ATTEMPTS)]

    assert all(knock.error and knock.error.reason == "TLSV1_ALERT_PROTOCOL_VERSION" for knock in knocks)
    scene.expect("protocol_version", ATTEMPTS)
    assert addresses(scene) == {knock.address for knock in knocks}
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
    ours = set()
    for _ in range(ATTEMPTS):
        connection = scene.test.enter_context(tcp(scene.port))
        ours.add("{}:{}".format(*connection.getsockname()))
        connection.sendall(NO_TLS[name])
        answer = b""
        while more := connection.recv(4096):
            answer += more
        assert answer[:1] == b"\x15"  # a TLS alert, and not a byte of the distribution
        assert len(answer) == 7

    scene.expect("malformed", ATTEMPTS)
    assert addresses(scene) == ours
    assert {event["event"] for event in scene.denials()} == {"NodeConnectionAttempt"}
    scene.expect_nothing_happened()


def test_a_wrong_cookie_is_refused_though_certificate_and_name_are_listed(scene: Scene) -> None:
    leaf = scene.cluster.leaf("b")
    claims = [claim(scene.port, leaf, "b@127.0.0.1", "a_guess") for _ in range(ATTEMPTS)]

    assert [(c.status, c.admitted) for c in claims] == [("ok", False)] * ATTEMPTS
    scene.expect("bad_cookie", ATTEMPTS, peer="b@127.0.0.1")
    for event in scene.denials():
        assert event["event"] == "UnauthorizedAccess"
        assert event["peer"] == "b@127.0.0.1"
        assert event["identity"] == B
        assert event["serial"] == leaf.serial
    assert addresses(scene) == {made.address for made in claims}
    scene.expect_nothing_happened()


def test_garbage_after_tls_from_a_listed_certificate_links_nothing(scene: Scene) -> None:
    """Stock OTP tells nobody of it (docs/security-model.md), so there is no event to wait for."""
    knock = scene.knock(scene.cluster.leaf("b"))
    knock.connection.sendall(b"\0\0\0\5hello")
    knock.connection.settimeout(60)
    assert refused(knock.connection)
    scene.expect_nothing_happened()
    scene.settle()
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
