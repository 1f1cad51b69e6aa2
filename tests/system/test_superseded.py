"""A renewal leaves the certificate before it good until it ends: whoever took its key is revoked with its
node."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf
from tests.system.cluster import Cluster
from tests.system.intruder import refused, tls


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def cluster(request: pytest.FixtureRequest, agent_ebin: Path, beams: Path) -> Iterator[Cluster]:
    """One release: what is revoked is the orchestrator's to know."""
    otp: Otp = request.param
    with Cluster(otp, beams, ["a", "b"]) as made:
        made.start()
        yield made


def stolen(cluster: Cluster, name: str, place: Path) -> Leaf:
    """A copy of the pair that a node has now."""
    place.mkdir(mode=0o700)
    for file in ("key.pem", "certificate.pem", "trust.pem"):
        shutil.copyfile(cluster.node_directory(name) / file, place / file)
    serial = cluster.status_of(name)["certificate"]["serial"]
    return Leaf(place / "certificate.pem", place / "key.pem", place / "trust.pem", serial)


def test_a_key_from_before_the_last_renewal_is_refused_once_its_node_is_revoked(
    cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    request.node.user_properties.append(("otp", next(iter(cluster.otps.values())).stands_for))
    old = stolen(cluster, "b", cluster.directory / "stolen")
    cluster.distsec("certs", "renew", cluster.node("b"))
    new = cluster.status_of("b")["certificate"]["serial"]
    # What the node has in its directory decides nothing: it is a's there.
    shutil.copyfile(
        cluster.node_directory("a") / "certificate.pem", cluster.node_directory("b") / "certificate.pem"
    )
    answer = cluster.distsec("certs", "revoke", cluster.node("b")).stdout
    assert old.serial in answer
    assert new in answer
    assert cluster.status_of("a")["certificate"]["serial"] not in answer
    with tls(cluster.port("a"), old) as connection:
        assert refused(connection)
    cluster.wait_event(
        "CertificateValidationFailed", node=cluster.node("a"), reason="revoked", serial=old.serial
    )

    incoming = cluster.node_directory("b") / "incoming"
    incoming.mkdir(mode=0o700, exist_ok=True)
    for file in (old.key, old.certificate):  # each whole at once: half of one is refused for another reason
        new_file = incoming / f"{file.name}.new"
        new_file.touch(mode=0o600)
        new_file.write_bytes(file.read_bytes())
        new_file.rename(incoming / file.name)
    cluster.wait_event("CertificateRefused", node=cluster.node("b"), reason="revoked")
    cluster.distsec("certs", "renew", cluster.node("b"))
    cluster.wait_meshed()
