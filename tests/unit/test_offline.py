"""A CA whose key is elsewhere: what goes there, what is signed there, and what is taken back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from distsec.beam import offline
from distsec.beam.offline import install_answer, take_requests
from distsec.beam.overlay import Overlay, save_overlay
from distsec.beam.provision import provision
from distsec.core.wanted import Taint, TaintStage
from distsec.errors import CaKeyUnavailable, NotFound, RequestRefused, StoreError
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import authority as ca
from distsec.pki import pairs, profile
from distsec.pki.authority import Authority
from distsec.pki.requests import Request, node_of, read_requests, request_for
from distsec.pki.store import Store

NOW = float(int(time.time()))
NAMES = ["a@127.0.0.1", "b@node.example", "c@2001:db8::7"]
A, B, C = map(NodeName.parse, NAMES)
KEY = ca.new_key_pem()


@pytest.fixture
def spec(tmp_path: Path) -> ClusterSpec:
    return ClusterSpec(
        name="demo",
        config_file=str(tmp_path / "distsec.toml"),
        state_dir=str(tmp_path / "state"),
        mode=Mode.PRODUCTION,
        carrier=Carrier.DISTSEC,
        allowed_nodes=(A, B, C),
        nodes=(NodeSpec(A, ("erl",)), NodeSpec(B, ("erl",), address="127.0.0.7"), NodeSpec(C, ("erl",))),
    )


@pytest.fixture
def vault(tmp_path: Path) -> Authority:
    """On the host that keeps the key."""
    return Authority.create(Store(tmp_path / "vault"), "demo", NOW)


@pytest.fixture
def store(spec: ClusterSpec, vault: Authority) -> Store:
    """On the host of the nodes, which has the CA's certificate alone."""
    here = Store(Path(spec.state_dir))
    here.create(ca.CERTIFICATE_FILE, vault.bundle_pem)
    return here


def sign(vault: Authority, asked: bytes, days: int = 30) -> bytes:
    return b"".join(
        vault.certify_public(each.public, each.name, each.address, days, NOW)
        for each in read_requests(asked, vault.cluster, "ask.pem")
    )


def pair_of(store: Store, name: NodeName) -> pairs.Pair:
    return pairs.read_pair(store, f"nodes/{name}")


# ---- there and back ----------------------------------------------------------------------------------------


def test_a_whole_cluster_gets_its_first_certificates_from_elsewhere(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    with pytest.raises(CaKeyUnavailable, match=rf"renew --offline {' '.join(NAMES)} --out FILE"):
        provision(spec, store, NOW)
    answer = sign(vault, take_requests(spec, store, NAMES))
    done = install_answer(spec, store, answer, "answer.pem", NOW)
    assert [(each.node, each.before) for each in done] == [(name, False) for name in NAMES]
    provision(spec, store, NOW)
    assert not store.exists(ca.KEY_FILE)
    for name in (A, B, C):
        assert pair_of(store, name).is_whole()


def test_the_old_pair_stays_in_use_until_the_answer_is_back(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    install_answer(spec, store, sign(vault, take_requests(spec, store, NAMES)), "answer.pem", NOW)
    before = pair_of(store, A)
    asked = take_requests(spec, store, [str(A)])
    assert pair_of(store, A) == before
    install_answer(spec, store, sign(vault, asked), "answer.pem", NOW)
    assert pair_of(store, A).key != before.key
    assert pair_of(store, A).is_whole()


def test_a_request_that_is_made_again_is_for_the_same_key_and_an_earlier_answer_fits(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    first = take_requests(spec, store, [str(A)])
    again = take_requests(spec, store, [str(A), str(B)])
    keys = [
        {str(each.name): each.fingerprint for each in read_requests(pem, "demo", "x")}
        for pem in (first, again)
    ]
    assert keys[0][str(A)] == keys[1][str(A)]
    install_answer(spec, store, sign(vault, first), "answer.pem", NOW)
    assert pair_of(store, A).is_whole()


def test_an_answer_that_is_installed_again_changes_nothing(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    answer = sign(vault, take_requests(spec, store, [str(A)]))
    install_answer(spec, store, answer, "answer.pem", NOW)
    before = pair_of(store, A)
    (again,) = install_answer(spec, store, answer, "answer.pem", NOW)
    assert again.before
    assert pair_of(store, A) == before


class Died(Exception):
    """kill -9, between two changes of the state directory."""


@pytest.mark.parametrize("changes", range(8))
def test_whenever_it_is_killed_the_same_again_finishes(
    spec: ClusterSpec, store: Store, vault: Authority, changes: int
) -> None:
    install_answer(spec, store, sign(vault, take_requests(spec, store, NAMES)), "answer.pem", NOW)
    answer = sign(vault, take_requests(spec, store, [str(A), str(B)]))
    dying, left = Store(Path(spec.state_dir)), [changes]

    def counted(change: Callable[..., object]) -> Callable[..., object]:
        def made(*arguments: object) -> object:
            if not left[0]:
                raise Died
            left[0] -= 1
            return change(*arguments)

        return made

    for method in ("create", "write", "remove"):
        setattr(dying, method, counted(getattr(dying, method)))
    with pytest.raises(Died):
        install_answer(spec, dying, answer, "answer.pem", NOW)
    done = install_answer(spec, store, answer, "answer.pem", NOW)
    serials = {str(certificate.serial_number) for certificate in x509.load_pem_x509_certificates(answer)}
    assert {str(int(each.serial, 16)) for each in done} == serials
    for name in (A, B):
        pair = pair_of(store, name)
        assert pair.is_whole()
        assert str(x509.load_pem_x509_certificate(pair.certificate).serial_number) in serials
        assert not store.exists(f"{offline.PENDING}/{name}.key")


def test_the_new_key_waits_where_its_node_cannot_read_it(spec: ClusterSpec, store: Store) -> None:
    take_requests(spec, store, [str(A)])
    assert store.exists(f"ca/pending/{A}.key")
    assert not store.exists(f"nodes/{A}/key.pem")


# ---- what is signed ----------------------------------------------------------------------------------------


def request(
    uris: list[str] | None = None,
    *,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    extensions: tuple[x509.ExtensionType, ...] = (),
    names: tuple[x509.GeneralName, ...] = (),
) -> bytes:
    """One that somebody else made."""
    listed = [x509.UniformResourceIdentifier(uri) for uri in (uris or [A.identity("demo")])]
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([*listed, *names]), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    made = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("name", "address"), [(A, "127.0.0.1"), (B, "127.0.0.7"), (B, "0.0.0.0"), (C, "::1")]
)
def test_what_is_signed_is_what_the_ca_would_have_issued_itself(
    vault: Authority, name: NodeName, address: str
) -> None:
    answer = sign(vault, request_for(KEY, name, address, "demo"))
    itself = vault.certify(KEY, name, address, 30, NOW)
    ours, theirs = map(x509.load_pem_x509_certificate, (answer, itself))
    assert list(ours.extensions) == list(theirs.extensions)
    assert (ours.subject, ours.not_valid_after_utc) == (theirs.subject, theirs.not_valid_after_utc)


def test_what_a_request_wants_beyond_its_name_it_does_not_get_and_is_shown(vault: Authority) -> None:
    asked = request(
        extensions=(
            x509.BasicConstraints(ca=True, path_length=None),
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING]),
        ),
        names=(x509.DNSName("*"), x509.DNSName("localhost")),
    )
    (read,) = read_requests(asked, "demo", "ask.pem")
    assert read.ignored == ("basicConstraints", "extendedKeyUsage")
    leaf = x509.load_pem_x509_certificate(sign(vault, asked))
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["127.0.0.1"]


def tampered(pem: bytes) -> bytes:
    asked = x509.load_pem_x509_csr(pem)
    der = bytearray(asked.public_bytes(serialization.Encoding.DER))
    der[der.index(b"node/127")] ^= 0  # the signature is the last thing in it
    der[-1] ^= 1
    import base64

    body = base64.encodebytes(bytes(der))
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: b"", "holds no signing requests"),
        (
            lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "cannot be read",
        ),
        (lambda: request() + KEY.reveal(), "or more than that"),
        (lambda: tampered(request()), "does not prove that whoever made it has the key"),
        (lambda: request([A.identity("other")]), "is for spiffe://other/node/.*, which is no node of demo"),
        (lambda: request(["spiffe://demo"]), "is for spiffe://demo, which is no node of demo"),
        (lambda: request(["spiffe://demo/shell/h/x.ab"]), "which is no node of demo"),
        (lambda: request(["spiffe://demo/node/127.0.0.1/a/b"]), "which is no node of demo"),
        (lambda: request([A.identity("demo"), B.identity("demo")]), "names 2 identities"),
        (lambda: request(key=rsa.generate_private_key(65537, 2048)), "another kind than ECDSA"),
        (lambda: request(key=ec.generate_private_key(ec.SECP256K1())), "another kind than ECDSA"),
        (lambda: request() + request(), "asks twice for the same node"),
    ],
    ids=range(12),
)
def test_a_request_that_is_not_in_order_is_refused(made: Callable[[], bytes], why: str) -> None:
    with pytest.raises(RequestRefused, match=why) as caught:
        read_requests(made(), "demo", "ask.pem")
    assert caught.value.exit_code == 65
    assert "ask.pem" in str(caught.value)


def test_one_key_for_two_nodes_is_refused() -> None:
    asked = request_for(KEY, A, "127.0.0.1", "demo") + request_for(KEY, B, "127.0.0.1", "demo")
    with pytest.raises(RequestRefused, match="asks twice for the same key"):
        read_requests(asked, "demo", "ask.pem")


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=400), at=st.integers(0, 600))
def test_bytes_of_a_stranger_are_refused_or_read_and_nothing_else(noise: bytes, at: int) -> None:
    asked = request_for(KEY, A, "127.0.0.1", "demo")
    content = asked[:at] + noise + asked[at + len(noise) :]
    try:
        found: tuple[Request, ...] = read_requests(content, "demo", "ask.pem")
    except RequestRefused:
        return
    assert [str(each.name) for each in found] == [str(A)]


@pytest.mark.parametrize("name", NAMES)
def test_a_node_is_found_by_its_identity(name: str) -> None:
    assert str(node_of(NodeName.parse(name).identity("demo"), "demo")) == name


# ---- what is taken back ------------------------------------------------------------------------------------


def test_the_answer_of_another_ca_is_refused(spec: ClusterSpec, store: Store, tmp_path: Path) -> None:
    asked = take_requests(spec, store, [str(A)])
    other = Authority.create(Store(tmp_path / "other"), "demo", NOW)
    with pytest.raises(RequestRefused, match="does not lead to a CA that the nodes trust"):
        install_answer(spec, store, sign(other, asked), "answer.pem", NOW)


def test_a_certificate_for_a_key_that_nobody_asked_with_is_refused(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    take_requests(spec, store, [str(A)])
    answer = sign(vault, request_for(ca.new_key_pem(), A, "127.0.0.1", "demo"))
    with pytest.raises(RequestRefused, match="is for a key that was not asked for here, or not lately"):
        install_answer(spec, store, answer, "answer.pem", NOW)
    assert not store.exists(f"nodes/{A}/certificate.pem")


def test_one_bad_certificate_and_none_is_installed(spec: ClusterSpec, store: Store, vault: Authority) -> None:
    asked = take_requests(spec, store, [str(A), str(B)])
    good, bad = sign(vault, asked).split(b"-----END CERTIFICATE-----\n")[:2]
    late = vault.certify_public(
        read_requests(asked, "demo", "x")[1].public, B, "127.0.0.7", 1, NOW - 3 * 86_400
    )
    answer = good + b"-----END CERTIFICATE-----\n" + late
    with pytest.raises(RequestRefused, match=r"the certificate for b@node\.example has expired"):
        install_answer(spec, store, answer, "answer.pem", NOW)
    assert not store.exists(f"nodes/{A}/certificate.pem")
    assert bad


def test_a_certificate_of_a_node_that_is_not_here_is_refused(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    answer = sign(vault, request_for(KEY, NodeName.parse("z@127.0.0.1"), "127.0.0.1", "demo"))
    with pytest.raises(RequestRefused, match=r"for nobody here: z@127\.0\.0\.1: no such managed node"):
        install_answer(spec, store, answer, "answer.pem", NOW)
    with pytest.raises(NotFound):
        take_requests(spec, store, ["z@127.0.0.1"])


def test_a_certificate_that_was_revoked_on_the_way_is_refused(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    answer = sign(vault, take_requests(spec, store, [str(A)]))
    serial = ca.serial_text(x509.load_pem_x509_certificate(answer).serial_number)
    save_overlay(store, Overlay(generation=2, revoked=frozenset({serial})))
    with pytest.raises(RequestRefused, match="is revoked; ask for another"):
        install_answer(spec, store, answer, "answer.pem", NOW)


def test_a_condemned_node_is_neither_asked_for_nor_given_anything(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    answer = sign(vault, take_requests(spec, store, [str(A)]))
    taint = Taint(str(A), TaintStage.CONDEMNED, 0, False, str(A))
    save_overlay(store, Overlay(generation=2, tainted=(taint,)))
    for attempt in (
        lambda: take_requests(spec, store, [str(A)]),
        lambda: install_answer(spec, store, answer, "answer.pem", NOW),
    ):
        with pytest.raises(StoreError, match="is condemned and has not been re-keyed yet"):
            attempt()


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_answer_is_refused(spec: ClusterSpec, store: Store, content: bytes) -> None:
    with pytest.raises(RequestRefused, match="certificate"):
        install_answer(spec, store, content, "answer.pem", NOW)


def test_a_chain_after_its_leaf_is_kept_with_it(spec: ClusterSpec, store: Store, vault: Authority) -> None:
    answer = sign(vault, take_requests(spec, store, [str(A), str(B)]))
    first, second = x509.load_pem_x509_certificates(answer)
    chained = b"".join(map(ca.pem_of, (first, vault.certificate, second, vault.certificate)))
    install_answer(spec, store, chained, "answer.pem", NOW)
    assert pair_of(store, A).certificate == ca.pem_of(first) + vault.bundle_pem
    assert profile.identities_of(x509.load_pem_x509_certificate(pair_of(store, B).certificate)) == (
        B.identity("demo"),
    )


def test_nothing_secret_is_in_what_is_carried_around(
    spec: ClusterSpec, store: Store, vault: Authority
) -> None:
    asked = take_requests(spec, store, [str(A)])
    key = Secret(store.read(f"ca/pending/{A}.key"))
    body = b"".join(key.reveal().splitlines()[1:-1])
    assert b"PRIVATE" not in asked + sign(vault, asked)
    assert not re.search(re.escape(body[:20]), asked)
