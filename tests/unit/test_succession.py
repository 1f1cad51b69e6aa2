"""The files of a rotation of the CA: whole or absent at every moment, and done again wherever it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from distsec.beam.node_pairs import issue
from distsec.beam.provision import provision
from distsec.core.rotation import Phase
from distsec.errors import CaKeyUnavailable, StoreError
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import acceptance, keyring, sealed, trust
from distsec.pki.authority import Authority, key_state
from distsec.pki.keyring import Keyring, KeyState
from distsec.pki.store import Store
from distsec.supervisor.succession import StateSuccession
from tests.system.cluster import free_ports

NOW = float(int(time.time()))
A = NodeName.parse("a@127.0.0.1")
MOST_STEPS = 40


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing after it runs."""


class Mortal(Store):
    """Dies before the step number `dies_at` that changes anything; 0: never."""

    dies_at = 0

    def _step(self) -> None:
        self.dies_at -= 1
        if self.dies_at == 0:
            raise Killed

    def write(self, relative: str, content: bytes) -> None:
        self._step()
        super().write(relative, content)

    def create(self, relative: str, content: bytes) -> bool:
        self._step()
        return super().create(relative, content)

    def remove(self, relative: str) -> bool:
        self._step()
        return super().remove(relative)

    def wipe(self, relative: str) -> None:
        self._step()
        super().wipe(relative)


@pytest.fixture
def store(tmp_path: Path) -> Mortal:
    return Mortal(tmp_path / "state")


@pytest.fixture
def spec(tmp_path: Path, store: Mortal) -> ClusterSpec:
    """Provisioned, with one node."""
    (port,) = free_ports(1)
    spec = ClusterSpec(
        name="demo",
        config_file=str(tmp_path / "distsec.toml"),
        state_dir=str(tmp_path / "state"),
        mode=Mode.PRODUCTION,
        carrier=Carrier.DISTSEC,
        allowed_nodes=(A,),
        nodes=(NodeSpec(A, ("erl",), port=port),),
    )
    provision(spec, store, NOW)
    return spec


def until_it_is_done(store: Mortal, work: Callable[[], object], between: Callable[[], object]) -> int:
    """Kills `work` at its first step, then at its second, and so on, until it gets through; `between`: what
    comes before it is begun again. Returns how often it was killed.
    """
    for step in range(1, MOST_STEPS):
        store.dies_at = step
        try:
            work()
        except Killed:
            store.dies_at = 0
            between()
            continue
        store.dies_at = 0
        return step - 1
    raise AssertionError("it is never done")


def certificates(store: Store, relative: str) -> tuple[x509.Certificate, ...]:
    return acceptance.certificates_in(store.read(relative))


def prepared(store: Mortal, spec: ClusterSpec, phase: Phase = Phase.PREPARED) -> StateSuccession:
    files = StateSuccession(store)
    files.create(spec.name, NOW)
    files.save(phase, NOW)
    return files


def test_the_next_ca_is_made_wherever_its_making_is_interrupted(store: Mortal, spec: ClusterSpec) -> None:
    files = StateSuccession(store)
    files.save(Phase.CREATING, NOW)
    killed = until_it_is_done(
        store, lambda: files.create(spec.name, NOW), lambda: provision(spec, store, NOW)
    )
    assert killed == 2, "a key, and a certificate"
    old, new = (Authority.load(store, each) for each in (trust.CURRENT, trust.NEXT))
    assert new.cluster == "demo"
    assert old.certificate.subject != new.certificate.subject, "two CAs of one name are mixed up"
    files.create(spec.name, NOW)
    assert Authority.load(store, trust.NEXT).certificate == new.certificate, "it is made once"


def test_the_phases_say_what_is_provisioned(store: Mortal, spec: ClusterSpec) -> None:
    old = trust.authority_certificate(store, trust.CURRENT)
    files = prepared(store, spec)
    new = trust.authority_certificate(store, trust.NEXT)
    (port,) = free_ports(1)
    later = NodeSpec(NodeName.parse("b@127.0.0.1"), ("erl",), port=port)
    for phase, bundle, issuer in [
        (Phase.PREPARED, (old, new), old),
        (Phase.ACTIVATED, (old, new), new),
        (Phase.REISSUING, (old, new), old),
    ]:
        files.save(phase, NOW)
        grown = replace(spec, nodes=(*spec.nodes, later))
        provision(grown, store, NOW)
        for name in "ab":
            assert certificates(store, f"nodes/{name}@127.0.0.1/trust.pem") == bundle
        (leaf,) = certificates(store, "nodes/b@127.0.0.1/certificate.pem")
        assert trust.issued(issuer, leaf)
        assert files.held(later).bundle == ("ca", "ca/next")
        for name in ("certificate.pem", "key.pem"):
            store.remove(f"nodes/b@127.0.0.1/{name}")
    files.save(Phase.IDLE, NOW)
    with pytest.raises(StoreError, match="does not hold the cluster's CA and nothing else"):
        provision(spec, store, NOW)


def test_a_foreign_bundle_is_refused_in_every_phase_and_left_as_it_is(
    store: Mortal, spec: ClusterSpec, tmp_path: Path
) -> None:
    files = prepared(store, spec)
    other = Store(tmp_path / "other")
    foreign = Authority.create(other, "demo", NOW).bundle_pem
    bundle = trust.trust_bundle(store) + foreign
    store.write("nodes/a@127.0.0.1/trust.pem", bundle)
    for phase in (Phase.PREPARED, Phase.ACTIVATED, Phase.PRUNING, Phase.NARROWING):
        files.save(phase, NOW)
        if phase is not Phase.PRUNING:  # there its leaf is refused before
            with pytest.raises(StoreError, match="nothing else"):
                provision(spec, store, NOW)
        with pytest.raises(StoreError, match="nothing else"):
            files.write_bundle(spec.nodes[0])
        assert store.read("nodes/a@127.0.0.1/trust.pem") == bundle


def test_a_directory_in_the_place_of_a_bundle_keeps_no_phase_waiting(store: Store, spec: ClusterSpec) -> None:
    files = prepared(store, spec, Phase.PREPARING)
    store.remove("nodes/a@127.0.0.1/trust.pem")
    store.ensure_directory("nodes/a@127.0.0.1/trust.pem/x")
    files.write_bundle(spec.nodes[0])
    assert store.read("nodes/a@127.0.0.1/trust.pem") == trust.trust_bundle(store)


def test_the_new_ca_takes_the_place_wherever_that_is_interrupted(
    store: Mortal, spec: ClusterSpec, tmp_path: Path
) -> None:
    old_key = store.read("ca/key.pem")
    os.link(store.path("ca/key.pem"), tmp_path / "what the disk keeps")
    old = trust.authority_certificate(store, trust.CURRENT)
    files = prepared(store, spec, Phase.ACTIVATED)
    pair = issue(spec, store, spec.nodes[0], NOW)
    store.write("nodes/a@127.0.0.1/key.pem", pair.key.reveal())
    store.write("nodes/a@127.0.0.1/certificate.pem", pair.certificate)
    files.save(Phase.PRUNING, NOW)
    files.write_bundle(spec.nodes[0])
    files.save(Phase.RETIRING, NOW)
    new = trust.authority_certificate(store, trust.NEXT)

    def start() -> None:
        """The orchestrator finds everything that it needs, whatever the old CA's files look like."""
        provision(spec, store, NOW)
        assert certificates(store, "nodes/a@127.0.0.1/trust.pem") == (new,)
        assert issue(spec, store, spec.nodes[0], NOW)

    assert until_it_is_done(store, files.retire, start) >= 5
    files.save(Phase.IDLE, NOW)
    until_it_is_done(store, files.discard, files.tidy)
    assert Authority.load(store).certificate == new
    assert not store.exists("ca/next/key.pem")
    assert [path.name for path in store.path("ca/old").iterdir()] == [f"{trust.fingerprint(old)[:16]}.pem"]
    assert certificates(store, f"ca/old/{trust.fingerprint(old)[:16]}.pem") == (old,)
    assert not any(old_key in path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    assert set((tmp_path / "what the disk keeps").read_bytes()) == {0}, "the old key was overwritten"
    provision(spec, store, NOW)


def test_what_an_interruption_left_in_next_is_not_taken_for_a_new_ca(
    store: Mortal, spec: ClusterSpec
) -> None:
    files = StateSuccession(store)
    for name in ("key.pem", "certificate.pem"):
        store.ensure_directory("ca/next")
        store.write(f"ca/next/{name}", store.read(f"ca/{name}"))
    files.tidy()
    assert not store.exists("ca/next/certificate.pem")
    assert store.exists("ca/key.pem")


def test_a_sealed_key_has_a_sealed_successor(
    store: Mortal, spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap = sealed.Cost(memory_kib=sealed.LEAST_MEMORY_KIB, iterations=1, lanes=1)
    monkeypatch.setattr(keyring, "seal", lambda key, phrase, random: sealed.seal(key, phrase, random, cheap))
    store.keyring = Keyring(lambda: Secret(b"correct horse battery staple"))
    from distsec.pki.custody import seal_keys

    seal_keys(store)
    files = prepared(store, spec, Phase.RETIRING)
    assert key_state(store, trust.NEXT) is KeyState.SEALED
    files.retire()
    assert key_state(store, trust.CURRENT) is KeyState.SEALED
    assert not store.exists("ca/key.pem")
    assert Authority.load(store).private_key() is not None


def test_where_the_key_is_elsewhere_the_next_ca_is_brought_and_the_witness_is_kept(
    store: Mortal, spec: ClusterSpec, tmp_path: Path
) -> None:
    store.remove("ca/key.pem")
    files = StateSuccession(store)
    with pytest.raises(CaKeyUnavailable, match="not made here either; make it where the keys are kept"):
        files.create(spec.name, NOW)
    vault = Store(tmp_path / "vault")
    alike = Authority.create(vault, "demo", NOW)
    store.write("ca/next/certificate.pem", alike.bundle_pem)
    with pytest.raises(StoreError, match="is called like the CA of now"):
        files.create(spec.name, NOW)
    made = Authority.create(Store(tmp_path / "next"), "demo", NOW, successor=True)
    store.write("ca/next/certificate.pem", made.bundle_pem)
    files.create(spec.name, NOW)
    files.save(Phase.ACTIVATING, NOW)
    before = store.read("nodes/a@127.0.0.1/certificate.pem")
    with pytest.raises(CaKeyUnavailable, match="certs renew --offline"):
        issue(spec, store, spec.nodes[0], NOW)
    files.keep_witness(spec.nodes[0])
    assert files.witness(spec.nodes[0], NOW).certificate == before
    files.save(Phase.RETIRING, NOW)
    files.retire()
    assert not store.exists("ca/old/witness.pem")
    assert key_state(store) is KeyState.ELSEWHERE


def test_a_file_that_says_nothing_that_makes_sense_is_an_error(store: Mortal, spec: ClusterSpec) -> None:
    files = prepared(store, spec)
    good = store.read("ca/rotation.json")
    for bad in (
        b"",
        b"[]",
        b"[" * 5000,
        good.replace(b"prepared", b"finished"),
        good.replace(b'"issuing": "ca"', b'"issuing": "ca/next"'),
        good.replace(b'"trusted": ["ca", "ca/next"]', b'"trusted": ["ca"]'),
        good.replace(b'["ca", "ca/next"]', b'["ca", "/etc"]'),
        good.replace(b'"schema": 1', b'"schema": 2'),
    ):
        assert bad != good
        store.write("ca/rotation.json", bad)
        with pytest.raises(StoreError, match="how far the rotation of the CA has come"):
            files.rotation()
