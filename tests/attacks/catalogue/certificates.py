"""Strangers at the door: every wrong certificate. The name and the cookie they would claim next are right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.attacks.catalogue.attack import Attack, Need, Play, Stage, Target, Try
from tests.attacks.catalogue.entry import enter
from tests.system.certificates import DAY, Leaf, TestAuthority

Dress = Callable[[Target], Leaf | None]


def showing(dress: Dress, *, name: Callable[[Target], str] | None = None, hidden: bool = True) -> Play:
    """Comes in with that certificate, and claims a listed name with its cookie; `name`: another name."""

    def play(stage: Stage) -> Iterable[Try]:
        target = stage.target
        claimed = name(target) if name else target.listed()
        cookie = target.cookie(claimed) if Need.COOKIE in target.abilities else "unknown"
        context = stage.context(dress(target))
        return stage.each(lambda _number: enter(stage, context, claimed, cookie, hidden=hidden))

    return play


def none(_target: Target) -> None:
    return None


def foreign(target: Target) -> Leaf:
    return TestAuthority.foreign().issue(target.directory(), [target.identity(target.listed())])


def look_alike(target: Target) -> Leaf:
    """By a CA that has the name of the cluster's own, and another key."""
    real, fake = target.authority(), TestAuthority.foreign()
    forger = TestAuthority(fake.key, real.certificate)
    return forger.issue(target.directory(), [target.identity(target.listed())])


def self_signed(target: Target) -> Leaf:
    """A CA's own certificate, shown as if it were a node's."""
    authority, directory = TestAuthority.foreign(), target.directory()
    leaf = Leaf(directory / "certificate.pem", directory / "key.pem", directory / "certificate.pem", "")
    leaf.certificate.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    leaf.key.write_bytes(
        authority.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return leaf


def signed_by_a_node(target: Target) -> Leaf:
    """The insider's key used as if it were a CA's; its certificate comes along as one of the chain."""
    insider = target.leaf(target.listed())
    key = serialization.load_pem_private_key(insider.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = insider.certificate.read_bytes()
    authority = TestAuthority(key, x509.load_pem_x509_certificate(own))
    leaf = authority.issue(target.directory(), [target.identity(target.listed(1))])
    with leaf.certificate.open("ab") as chain:
        chain.write(own)
    return leaf


def issued(*uris: str, **how: object) -> Dress:
    """By the victim's own CA; the listed name's identity where no URI is given."""

    def dress(target: Target) -> Leaf:
        named = list(uris) or [target.identity(target.listed())]
        return target.authority().issue(target.directory(), named, **how)  # type: ignore[arg-type]

    return dress


def without_identity(target: Target) -> Leaf:
    return target.authority().issue(target.directory(), [])


def two_identities(target: Target) -> Leaf:
    return target.leaf(target.listed(), target.listed(1))


def unlisted(target: Target) -> Leaf:
    return target.leaf("evil@127.0.0.1")


def revoked(target: Target) -> Leaf:
    """A certificate of a listed node that was revoked by its serial; elsewhere there is nothing to revoke
    with.
    """
    leaf = target.authority().issue(target.directory(), [target.identity(target.listed())])
    if Need.POLICY in target.abilities:
        target.operate("certs", "revoke", leaf.serial)
    return leaf


OTHER_DOMAIN = "spiffe://another-cluster/node/127.0.0.1/b"

_CA = frozenset({Need.CA_KEY})
_LISTED = functools.partial(lambda target: target.identity(target.listed()))


def _identity_of(name: str) -> Callable[[Target], str]:
    return lambda target: target.identity(name)


def _attack(
    name: str,
    title: str,
    dress: Dress,
    reason: str,
    identity: Callable[[Target], str | None] = _LISTED,
    needs: frozenset[Need] = _CA,
    play: Play | None = None,
) -> Attack:
    return Attack(name, title, play or showing(dress), frozenset({reason}), needs, identity=identity)


def _nobody(_target: Target) -> None:
    return None


ATTACKS = (
    _attack("no_certificate", "no certificate", none, "certificate_required", _nobody, frozenset()),
    _attack("foreign_ca", "certificate of a foreign CA", foreign, "unknown_ca", needs=frozenset()),
    _attack("look_alike_ca", "of a CA with the same name", look_alike, "unknown_ca"),
    _attack(
        "self_signed",
        "self-signed certificate",
        self_signed,
        "unknown_ca",
        lambda _target: "dn:CN=foreign CA",
        frozenset(),
    ),
    _attack(
        "signed_by_a_node",
        "signed by a listed node",
        signed_by_a_node,
        "key_usage",
        needs=frozenset({Need.INSIDER}),
    ),
    _attack("expired", "expired", issued(valid_from=-3 * DAY, valid_for=DAY), "expired"),
    _attack("not_yet_valid", "not yet valid", issued(valid_from=DAY, valid_for=DAY), "not_yet_valid"),
    _attack("revoked", "revoked by its serial", revoked, "revoked"),
    _attack(
        "for_servers", "usable by servers only", issued(usage=[ExtendedKeyUsageOID.SERVER_AUTH]), "key_usage"
    ),
    _attack(
        "without_identity",
        "without an identity",
        without_identity,
        "no_identity",
        lambda _target: "dn:CN=test leaf",
    ),
    _attack("two_identities", "with two identities", two_identities, "no_identity"),
    _attack(
        "other_domain",
        "of another trust domain",
        issued(OTHER_DOMAIN),
        "not_allowed",
        lambda _target: OTHER_DOMAIN,
    ),
    _attack(
        "unlisted_hidden",
        "unlisted certificate, hidden",
        unlisted,
        "not_allowed",
        _identity_of("evil@127.0.0.1"),
        play=showing(unlisted, name=lambda _target: "evil@127.0.0.1"),
    ),
    _attack(
        "unlisted_visible",
        "unlisted certificate, visible",
        unlisted,
        "not_allowed",
        _identity_of("evil@127.0.0.1"),
        play=showing(unlisted, name=lambda _target: "evil@127.0.0.1", hidden=False),
    ),
    _attack(
        "unlisted_claims_listed",
        "unlisted certificate, a listed name",
        unlisted,
        "not_allowed",
        _identity_of("evil@127.0.0.1"),
    ),
)
