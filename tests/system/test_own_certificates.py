"""Certificates that somebody brings, on real nodes: every kind of key that is taken makes links, below an
intermediate CA; and a revoked identity does not come back with a certificate that nobody has seen yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.brought import Ca, Key, key_of, key_pem, pem
from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf
from tests.system.cluster import Cluster
from tests.system.intruder import atom
from tests.system.of_module import meshed, of_module

KINDS = {"a": "p384", "b": "ed25519", "c": "rsa2048"}
"""Of the key of each node: every pair has two kinds."""

DNS = "a.example.net"


otp = of_module(OTPS)


def write(cluster: Cluster, name: str, content: bytes) -> str:
    path = cluster.directory / name
    path.write_bytes(content)
    path.chmod(0o600)
    return str(path)


def bring(cluster: Cluster, name: str, key: Key, *chain: x509.Certificate) -> None:
    """`certs import`, with a passphrase on the key."""
    cluster.distsec(
        *("certs", "import", "--node", cluster.node(name)),
        *("--certificate", write(cluster, f"{name}.pem", pem(*chain))),
        *("--key", write(cluster, f"{name}.key", key_pem(key, b"a key of mine"))),
        *("--key-passphrase-file", write(cluster, "passphrase", b"a key of mine\n")),
    )


def serial(certificate: x509.Certificate) -> str:
    digits = f"{certificate.serial_number:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    """Nodes below an intermediate CA of ECDSA P-384 that is itself below an RSA root: both were brought, and
    issue for `b`; `a` and `c` bring their own, `a` known by its DNS name.
    """
    root = Ca.root(key=key_of("rsa2048"))
    between = Ca.root("CN=Brought Between", above=root, key=key_of("p384"), pathlen=0)
    with Cluster(otp, beams) as cluster:
        rules = [{"names": [cluster.node("a")], "kind": "node", "dns": DNS}]
        cluster.settings["security"]["distribution"]["rules"] = rules
        cluster.write()
        cluster.init()
        cluster.distsec(
            *("certs", "import", "--replace"),
            *("--ca-certificate", write(cluster, "ca.pem", between.pem)),
            *("--ca-key", write(cluster, "ca.key", key_pem(between.key))),
        )
        own, leaf = between.leaf(dns=[DNS], key=key_of(KINDS["a"]))
        bring(cluster, "a", own, leaf, between.certificate)
        own, leaf = between.leaf(cluster.identity("c"), key=key_of(KINDS["c"]))
        bring(cluster, "c", own, leaf, root.certificate, between.certificate)
        cluster.run()
        cluster.wait_running()
        yield cluster


cluster = meshed()


def authority(cluster: Cluster) -> Ca:
    """The CA that the cluster has now."""
    state = cluster.state / "ca"
    key = serialization.load_pem_private_key((state / "key.pem").read_bytes(), None)
    certificate = x509.load_pem_x509_certificate((state / "certificate.pem").read_bytes())
    above = x509.load_pem_x509_certificates((state / "chain.pem").read_bytes())
    return Ca(key, certificate, tuple(above))  # type: ignore[arg-type]


def linked(cluster: Cluster, one: str, other: str) -> bool:
    peers: str = cluster.erl(one, "nodes(connected)")
    return cluster.node(other) in peers


def test_nodes_with_keys_and_cas_that_were_brought_are_meshed(cluster: Cluster) -> None:
    shown = {link["peer"]: (link["identity"], link["serial"]) for link in cluster.status_of("b")["links"]}
    assert {peer: identity for peer, (identity, _) in shown.items()} == {
        cluster.node(
            "a"
        ): "dn:CN=brought leaf",  # without a URI the subject is shown, whatever it is bound by
        cluster.node("c"): cluster.identity("c"),
    }
    for name in ("a", "c"):
        leaf = x509.load_pem_x509_certificate((cluster.node_directory(name) / "certificate.pem").read_bytes())
        assert shown[cluster.node(name)][1] == serial(leaf)
    cluster.wait_well()


def test_a_running_node_takes_up_what_is_brought_and_keeps_its_links(cluster: Cluster) -> None:
    between = authority(cluster)
    key, leaf = between.leaf(cluster.identity("b"), key=key_of(KINDS["b"]))
    downs = len(cluster.events("NodeDown"))
    bring(cluster, "b", key, leaf, between.certificate)
    # It has returned, so it is served, and proven on every link: nothing is waited for.
    for name in ("a", "c"):
        assert f'<<"{serial(leaf)}">>' in cluster.erl(name, "distsec_links:all()")
    assert cluster.status_of("b")["certificate"]["serial"] == serial(leaf)

    def shown(name: str) -> str:
        links = {link["peer"]: link["serial"] for link in cluster.status_of(name)["links"]}
        return str(links[cluster.node("b")])

    for name in ("a", "c"):  # each of them tells of it in its own time
        cluster.wait(lambda name=name: shown(name) == serial(leaf), f"{name} to tell of it")
    assert len(cluster.events("NodeDown")) == downs


def test_a_pair_that_is_not_the_nodes_changes_nothing(cluster: Cluster) -> None:
    before = cluster.status_of("c")["certificate"]["serial"]
    key, leaf = authority(cluster).leaf(cluster.identity("b"))
    done = cluster.distsec(
        *("certs", "import", "--node", cluster.node("c")),
        *("--certificate", write(cluster, "x.pem", pem(leaf))),
        *("--key", write(cluster, "x.key", key_pem(key))),
        check=False,
    )
    assert done.returncode == 65
    assert f"is for {cluster.identity('b')}, not for {cluster.identity('c')}" in done.stderr
    assert cluster.status_of("c")["certificate"]["serial"] == before
    assert linked(cluster, "a", "c")


def test_a_revoked_identity_is_out_with_whatever_certificate_until_it_is_allowed(cluster: Cluster) -> None:
    between = authority(cluster)
    old = cluster.status_of("c")["certificate"]["serial"]
    told = cluster.distsec("certs", "revoke", cluster.identity("c"), "--reason", "keyCompromise")
    # It has returned, so the links are down.
    assert not linked(cluster, "a", "c") and not linked(cluster, "b", "c")
    assert f"known here: {old}" in told.stdout
    assert f"{cluster.node('c')} is known by that identity" in told.stderr
    event = cluster.wait_event("CertificateRevoked", serial=old)
    assert event["identity"] == cluster.identity("c")

    # A certificate that nobody has seen before, from the right CA, as from one that was misled.
    cluster.distsec("stop", cluster.node("c"))
    key, leaf = between.leaf(cluster.identity("c"))
    unseen = Leaf(
        Path(write(cluster, "unseen.pem", pem(leaf, between.certificate))),
        Path(write(cluster, "unseen.key", key_pem(key))),
        cluster.state / "ca/chain.pem",
        serial(leaf),
    )
    thief = cluster.intruder("c", leaf=unseen, hidden=True)
    assert not thief.connect(cluster.node("a"))
    refusal = cluster.wait_event(
        "CertificateValidationFailed", node=cluster.node("a"), reason="revoked", serial=unseen.serial
    )
    assert refusal["identity"] == cluster.identity("c")
    thief.stop()
    cluster.distsec("start", cluster.node("c"))
    cluster.wait_answering("c")

    # A restart of everything revives nothing.
    cluster.kill()
    cluster.run()
    cluster.wait_running()
    assert not linked(cluster, "a", "c")
    listed = json.loads(cluster.distsec("certs", "list", "--json").stdout)
    assert listed["revoked_identities"] == [cluster.identity("c")]
    states = {each["node"]: each["state"] for each in listed["certificates"]}
    assert states == {cluster.node("a"): "valid", cluster.node("b"): "valid", cluster.node("c"): "revoked"}
    (crl,) = listed["lists"]
    assert (crl["behind"], crl["entries"]) == (None, len(listed["revoked"]))
    exported = x509.load_pem_x509_crl(cluster.distsec("certs", "export", "--crl").stdout.encode())
    assert exported.get_revoked_certificate_by_serial_number(int(old, 16)) is not None

    # Allowed again it is let in, with another certificate than the revoked one.
    told = cluster.distsec("allow", cluster.node("c"))
    assert f"{cluster.identity('c')} is no longer revoked" in told.stdout
    assert cluster.erl("a", f"net_kernel:connect_node({atom(cluster.node('c'))})", 30) == "false"
    bring(cluster, "c", *between.leaf(cluster.identity("c")), between.certificate)
    cluster.wait_meshed()
    cluster.wait_well()


def test_without_the_cas_key_a_revocation_is_in_force_and_the_list_is_behind(
    cluster: Cluster,
) -> None:
    key = cluster.state / "ca/key.pem"
    away = key.rename(cluster.directory / "away.key")
    told = cluster.distsec("certs", "revoke", "0a1b")
    assert "0a1b is revoked: policy generation " in told.stdout
    assert "acknowledged by 3 nodes" in told.stdout
    assert "the list ca/crl.pem (CRL) is behind; the nodes are not" in told.stderr
    away.rename(key)
    listed = json.loads(cluster.distsec("certs", "list", "--json").stdout)
    (crl,) = listed["lists"]
    assert (crl["behind"], crl["entries"]) == (None, len(listed["revoked"]))
    assert "0a1b" in listed["revoked"]
