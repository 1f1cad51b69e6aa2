"""What we issue, judged by others: openssl and cryptography take it, and refuse what they should."""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification

from distsec.model.names import NodeName
from distsec.pki import authority as ca
from distsec.pki import lineage, trust
from distsec.pki.authority import Authority, pem_of
from distsec.pki.store import Store
from tests.brought import HOST, Ca, key_pem, pem

DAY_SECONDS = 86_400
NODE = NodeName.parse("a@127.0.0.1")
SERVER, CLIENT = "sslserver", "sslclient"
BOTH = (SERVER, CLIENT)


def now() -> float:
    """Of the clock that the verifiers go by: a module is loaded long before its last test has begun."""
    return time.time()


@dataclass(frozen=True, slots=True)
class Shown:
    """What a peer shows (its certificate, and the CAs after it) to somebody who trusts `anchor`."""

    chain: tuple[x509.Certificate, ...]
    anchor: x509.Certificate

    @classmethod
    def of(cls, content: bytes, store: Store) -> Shown:
        (anchor,) = trust.trusted_authorities(store)
        return cls(tuple(x509.load_pem_x509_certificates(content)), anchor)


def openssl_takes(shown: Shown, purpose: str, directory: Path) -> bool:
    (directory / "anchor.pem").write_bytes(pem(shown.anchor))
    (directory / "leaf.pem").write_bytes(pem(shown.chain[0]))
    (directory / "between.pem").write_bytes(pem(*shown.chain[1:]) or pem(shown.anchor))
    done = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", purpose),
            *("-CAfile", str(directory / "anchor.pem"), "-untrusted", str(directory / "between.pem")),
            str(directory / "leaf.pem"),
        ],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def cryptography_takes(shown: Shown, purpose: str) -> bool:
    builder = verification.PolicyBuilder().store(verification.Store([shown.anchor]))
    try:
        if purpose == CLIENT:
            builder.build_client_verifier().verify(shown.chain[0], list(shown.chain[1:]))
        else:
            host = x509.IPAddress(ipaddress.ip_address(HOST))
            builder.build_server_verifier(host).verify(shown.chain[0], list(shown.chain[1:]))
    except verification.VerificationError:
        return False
    return True


def verdicts(shown: Shown, directory: Path, purposes: tuple[str, ...] = BOTH) -> set[bool]:
    """Of both verifiers in these roles."""
    return {
        verdict
        for purpose in purposes
        for verdict in (openssl_takes(shown, purpose, directory), cryptography_takes(shown, purpose))
    }


def create(store: Store) -> Authority:
    return Authority.create(store, "demo", now())


def below_an_intermediate(store: Store) -> Authority:
    """As `certs import --ca-certificate` leaves it."""
    between = Ca.root("CN=Between", above=Ca.root())
    store.create(ca.KEY_FILE, key_pem(between.key))
    store.create(ca.CERTIFICATE_FILE, pem(between.certificate))
    store.create(f"ca/{lineage.CHAIN}", pem(*between.above))
    store.create(f"ca/{lineage.IMPORTED}", lineage.record("demo"))
    return Authority.load(store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


# ---- taken -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [create, below_an_intermediate])
def test_a_nodes_certificate_is_taken_in_both_roles(
    store: Store, tmp_path: Path, make: Callable[[Store], Authority]
) -> None:
    _, content = make(store).issue(NODE, HOST, 30, now())
    assert verdicts(Shown.of(content, store), tmp_path) == {True}


@pytest.mark.parametrize("make", [create, below_an_intermediate])
def test_a_shells_certificate_is_taken_from_a_client_and_from_nobody_else(
    store: Store, tmp_path: Path, make: Callable[[Store], Authority]
) -> None:
    authority = make(store)
    _, shell = authority.issue_shell("spiffe://demo/cli/shell/x", 600, now())
    shown = Shown.of(pem_of(shell) + authority.chain_pem, store)
    assert verdicts(shown, tmp_path, (CLIENT,)) == {True}
    assert verdicts(shown, tmp_path, (SERVER,)) == {False}


# ---- refused -----------------------------------------------------------------------------------------------


def test_what_another_ca_has_issued_is_refused_though_it_has_the_same_name(
    store: Store, tmp_path: Path
) -> None:
    create(store)
    _, content = create(Store(tmp_path / "other")).issue(NODE, HOST, 30, now())
    assert verdicts(Shown.of(content, store), tmp_path) == {False}


def test_what_has_expired_is_refused(store: Store, tmp_path: Path) -> None:
    authority = Authority.create(store, "demo", now() - 40 * DAY_SECONDS)
    _, content = authority.issue(NODE, HOST, 30, now() - 40 * DAY_SECONDS)
    assert verdicts(Shown.of(content, store), tmp_path) == {False}


def test_what_is_not_valid_yet_is_refused(store: Store, tmp_path: Path) -> None:
    _, content = create(store).issue(NODE, HOST, 30, now() + DAY_SECONDS)
    assert verdicts(Shown.of(content, store), tmp_path) == {False}


def test_a_node_issues_for_nobody(store: Store, tmp_path: Path) -> None:
    """A node's key signs another certificate, as if it were a CA."""
    key, content = create(store).issue(NODE, HOST, 30, now())
    node = x509.load_pem_x509_certificate(content)
    private = serialization.load_pem_private_key(key.reveal(), None)
    _, forged = Ca(private, node).leaf("spiffe://demo/node/127.0.0.1/b")  # type: ignore[arg-type]
    shown = Shown.of(pem_of(forged) + content, store)
    assert verdicts(shown, tmp_path) == {False}


def test_our_ca_has_no_cas_below_it(store: Store, tmp_path: Path) -> None:
    authority = create(store)
    ours = Ca(authority.private_key(), authority.certificate)
    lower = Ca.root("CN=Lower", above=ours)
    _, leaf = lower.leaf("spiffe://demo/node/127.0.0.1/a")
    shown = Shown((leaf, lower.certificate), authority.certificate)
    assert verdicts(shown, tmp_path) == {False}


# ---- docs/adr/0012 -----------------------------------------------------------------------------------------


def test_no_verifier_but_openssl_gains_by_a_constraint_on_the_root(tmp_path: Path) -> None:
    """If cryptography has learnt of URI constraints, docs/adr/0012 is to be thought over."""
    permitted = x509.NameConstraints([x509.UniformResourceIdentifier("demo")], None)
    root = Ca.root(constraints=permitted)
    own, foreign = (
        Shown((root.leaf(f"spiffe://{domain}/node/127.0.0.1/a")[1],), root.certificate)
        for domain in ("demo", "other")
    )
    assert [openssl_takes(each, CLIENT, tmp_path) for each in (own, foreign)] == [True, False]
    assert [cryptography_takes(each, CLIENT) for each in (own, foreign)] == [False, False]
