"""What may be a node's certificate, whoever made it; beside ours the verdict of openssl, where it has one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from distsec.pki import acceptance
from distsec.pki.acceptance import Flaw, certificates_in, judge_leaf
from tests.brought import DAY, Ca, key_of, pem

ID = "spiffe://demo/node/127.0.0.1/a"
NOW = time.time()
ROOT = Ca.root()
BETWEEN = Ca.root("CN=Brought Between", above=ROOT, pathlen=0)


def judged(
    chain: tuple[x509.Certificate, ...], identity: str = ID, *, anchors: tuple[Ca, ...] = (ROOT,)
) -> Flaw | None:
    trusted = [each.certificate for each in anchors]
    found = judge_leaf(chain, trusted, identity=identity, cluster="demo", now=NOW)
    return None if found is None else found.flaw


def openssl_takes(chain: tuple[x509.Certificate, ...], directory: Path, anchor: Ca = ROOT) -> bool:
    (directory / "ca.pem").write_bytes(anchor.pem)
    (directory / "leaf.pem").write_bytes(pem(chain[0]))
    arguments = ["openssl", "verify", "-x509_strict", "-CAfile", str(directory / "ca.pem")]
    if len(chain) > 1:
        (directory / "between.pem").write_bytes(pem(*chain[1:]))
        arguments += ["-untrusted", str(directory / "between.pem")]
    verdicts = []
    for purpose in ("sslserver", "sslclient"):
        done = subprocess.run(
            [*arguments, "-purpose", purpose, str(directory / "leaf.pem")], capture_output=True, check=False
        )
        verdicts.append(done.returncode == 0)
    return all(verdicts)


# ---- what is taken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa2048", "rsa3072"])
def test_every_kind_of_key_that_links_is_taken(kind: str, tmp_path: Path) -> None:
    _, leaf = ROOT.leaf(ID, key=key_of(kind))
    assert judged((leaf,)) is None
    assert openssl_takes((leaf,), tmp_path)


@pytest.mark.parametrize("kind", ["p384", "ed25519", "rsa2048"])
def test_every_kind_of_ca_is_taken(kind: str, tmp_path: Path) -> None:
    other = Ca.root(key=key_of(kind))
    _, leaf = other.leaf(ID)
    assert judged((leaf,), anchors=(other,)) is None
    assert openssl_takes((leaf,), tmp_path, other)


def test_a_chain_is_taken_in_whatever_order_it_comes(tmp_path: Path) -> None:
    lower = Ca.root("CN=Lower", above=Ca.root("CN=Upper", above=ROOT))
    _, leaf = lower.leaf(ID)
    upper = lower.above[0]
    assert judged((leaf, lower.certificate, upper)) is None
    assert judged((leaf, upper, ROOT.certificate, lower.certificate)) is None
    assert openssl_takes((leaf, upper, lower.certificate), tmp_path)


def test_one_of_several_anchors_is_enough() -> None:
    _, leaf = BETWEEN.leaf(ID)
    assert judged((leaf, BETWEEN.certificate), anchors=(Ca.root("CN=Other"), ROOT)) is None


def test_a_node_that_is_bound_to_a_dns_name_or_a_subject_is_known_by_that() -> None:
    _, leaf = ROOT.leaf(dns=["db1.example.net"], subject="CN=db,O=Example")
    assert judged((leaf,), "dns:db1.example.net") is None
    assert judged((leaf,), "dn:2.5.4.10:4578616d706c65,2.5.4.3:6462") is None
    assert judged((leaf,), "dns:db2.example.net") is Flaw.WRONG_IDENTITY


# ---- what is refused ---------------------------------------------------------------------------------------

Make = Callable[[], tuple[x509.Certificate, ...]]


def leaf_of(issuer: Ca = ROOT, *uris: str, **how: object) -> Make:
    def make() -> tuple[x509.Certificate, ...]:
        _, leaf = issuer.leaf(*(uris or (ID,)), **how)  # type: ignore[arg-type]
        return (leaf,) if issuer is ROOT else (leaf, issuer.certificate)

    return make


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
REFUSED: dict[str, tuple[Make, Flaw, bool]] = {
    # name → (certificate, why, whether openssl refuses it too, which knows of no identities)
    "of a foreign CA": (lambda: (Ca.root("CN=Foreign").leaf(ID)[1],), Flaw.UNKNOWN_CA, True),
    "of a look-alike of the CA": (lambda: (Ca.root().leaf(ID)[1],), Flaw.UNKNOWN_CA, True),
    "without the CA between": (lambda: leaf_of(BETWEEN)()[:1], Flaw.UNKNOWN_CA, True),
    "below a leaf": (
        leaf_of(Ca.root("CN=No CA", above=ROOT, is_ca=False, granted=["digital_signature"])),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "below what is no CA, and may sign": (
        leaf_of(Ca.root("CN=No CA", above=ROOT, is_ca=False)),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "below a CA that may not sign": (
        leaf_of(Ca.root("CN=No sign", above=ROOT, granted=["crl_sign"])),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "below one CA too many": (
        lambda: (
            (lower := Ca.root("CN=Too low", above=BETWEEN)).leaf(ID)[1],
            lower.certificate,
            BETWEEN.certificate,
        ),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "below a CA that has expired": (
        leaf_of(Ca.root("CN=Old", above=ROOT, begin=-9 * DAY, end=-DAY)),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "below a CA whose time is to come": (
        leaf_of(Ca.root("CN=New", above=ROOT, begin=DAY)),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "below a CA of another trust domain": (
        leaf_of(
            Ca.root(
                "CN=Constrained",
                above=ROOT,
                constraints=x509.NameConstraints([x509.UniformResourceIdentifier("other")], None),
            )
        ),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "below a CA that may not name this trust domain": (
        leaf_of(
            Ca.root(
                "CN=Excluding",
                above=ROOT,
                constraints=x509.NameConstraints(None, [x509.UniformResourceIdentifier("demo")]),
            )
        ),
        Flaw.CHAIN_INVALID,
        True,
    ),
    "a CA's own": (
        leaf_of(is_ca=True, granted=["digital_signature", "key_cert_sign"]),
        Flaw.NOT_A_LEAF,
        False,
    ),
    "expired": (leaf_of(begin=-9 * DAY, end=-DAY), Flaw.EXPIRED, True),
    "of the future": (leaf_of(begin=DAY), Flaw.NOT_YET_VALID, True),
    "for clients only": (leaf_of(extended=[CLIENT]), Flaw.KEY_USAGE, True),
    "for servers only": (leaf_of(extended=[SERVER]), Flaw.KEY_USAGE, True),
    "for anything": (leaf_of(extended=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), Flaw.KEY_USAGE, True),
    "for nothing in particular": (leaf_of(extended=None), Flaw.KEY_USAGE, False),
    "without digitalSignature": (leaf_of(granted=["key_encipherment"]), Flaw.KEY_USAGE, False),
    "without a keyUsage": (leaf_of(granted=None), Flaw.KEY_USAGE, False),
    "of another node": (leaf_of(ROOT, "spiffe://demo/node/127.0.0.1/b"), Flaw.WRONG_IDENTITY, False),
    "of another trust domain": (leaf_of(ROOT, "spiffe://other/node/127.0.0.1/a"), Flaw.WRONG_IDENTITY, False),
    "of two identities": (leaf_of(ROOT, ID, "spiffe://demo/node/127.0.0.1/b"), Flaw.WRONG_IDENTITY, False),
    "of nobody": (lambda: (ROOT.leaf()[1],), Flaw.WRONG_IDENTITY, False),
    "on a curve that few take": (leaf_of(key=key_of("p521")), Flaw.KEY_UNSUITABLE, False),
    "of a short RSA key": (leaf_of(key=key_of("rsa1024")), Flaw.KEY_UNSUITABLE, False),
    "signed weakly": (leaf_of(weak=True), Flaw.WEAK_SIGNATURE, False),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_for_what_it_is(case: str, tmp_path: Path) -> None:
    make, flaw, openssl_too = REFUSED[case]
    chain = make()
    assert judged(chain) is flaw
    if openssl_too:
        assert not openssl_takes(chain, tmp_path)


def test_a_dns_name_does_not_count_beside_an_identity_of_this_cluster() -> None:
    _, leaf = ROOT.leaf("spiffe://demo/node/127.0.0.1/b", dns=["db1.example.net"])
    assert judged((leaf,), "dns:db1.example.net") is Flaw.WRONG_IDENTITY


def test_a_constraint_for_this_trust_domain_or_for_dns_names_is_no_obstacle() -> None:
    uri, dns = x509.UniformResourceIdentifier("demo"), x509.DNSName("other.example")
    for constraints in (x509.NameConstraints([uri], None), x509.NameConstraints([dns], None)):
        issuer = Ca.root("CN=Constrained", above=ROOT, constraints=constraints)
        _, leaf = issuer.leaf(ID)
        assert judged((leaf, issuer.certificate)) is None


def test_a_chain_that_leads_in_a_circle_or_nowhere_ends() -> None:
    one = Ca.root("CN=One")
    chain = [Ca.root(f"CN=Step {step}", above=one) for step in range(3)]
    _, leaf = chain[0].leaf(ID)
    assert judged((leaf, *(each.certificate for each in chain), one.certificate)) is Flaw.UNKNOWN_CA


def test_a_chain_is_followed_so_far_and_no_further() -> None:
    issuer = ROOT
    for step in range(acceptance.MAX_CHAIN + 2):
        issuer = Ca.root(f"CN=Step {step}", above=issuer)
    _, leaf = issuer.leaf(ID)
    assert judged((leaf, issuer.certificate, *issuer.above)) is Flaw.UNKNOWN_CA


@pytest.mark.parametrize(
    "text", [b"", b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", pem(ROOT.certificate)[:-40]]
)
def test_what_is_no_certificate_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        certificates_in(text)


def test_more_certificates_than_anybody_needs_are_refused() -> None:
    many = pem(ROOT.certificate) * (acceptance.MAX_CERTIFICATES + 1)
    with pytest.raises(ValueError, match="too many"):
        certificates_in(many)
    assert len(certificates_in(b"# for people\n" + pem(ROOT.certificate) * 2)) == 2


def test_what_is_said_is_escaped_and_short() -> None:
    _, leaf = ROOT.leaf("spiffe://demo/\x1b[31m" + "x" * 5000)
    found = judge_leaf((leaf,), [ROOT.certificate], identity=ID, cluster="demo", now=NOW)
    assert found is not None
    assert "\x1b" not in found.what
    assert len(found.what) < 800


def test_an_authority_is_judged_for_itself() -> None:
    moment = datetime.now(UTC)
    assert acceptance.judge_authority(BETWEEN.certificate, moment, "demo") is None
    why = acceptance.judge_authority(BETWEEN.certificate, moment, "demo", below=1)
    assert why is not None
    assert "pathlen" in why
