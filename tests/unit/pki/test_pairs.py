"""A node's key and certificate are swapped together, wherever whoever does it is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsec.errors import StoreError
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import ledger, pairs
from distsec.pki.authority import Authority
from distsec.pki.pairs import Pair
from distsec.pki.store import Store

NODE = "nodes/a@127.0.0.1"
NOW = 1_763_764_000.0
WRITES = 6
"""Steps: the serial is noted, next.pem, the accepted copy, key, certificate, and next.pem is removed."""


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing after it runs."""


class Mortal(Store):
    """Dies before the step number `dies_at`, or, with `after`, right after it."""

    def __init__(self, root: Path, dies_at: int, *, after: bool = False) -> None:
        super().__init__(root)
        self.left, self.after = dies_at, after

    def _step(self) -> Iterator[None]:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        yield
        if self.left == 0:
            raise Killed

    def write(self, relative: str, content: bytes) -> None:
        for _ in self._step():
            super().write(relative, content)

    def remove(self, relative: str) -> bool:
        removed = False
        for _ in self._step():
            removed = super().remove(relative)
        return removed


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(Store(tmp_path_factory.mktemp("authority") / "state"), "demo", NOW)


@pytest.fixture
def old(authority: Authority) -> Pair:
    return issued(authority)


@pytest.fixture
def new(authority: Authority) -> Pair:
    return issued(authority)


def issued(authority: Authority) -> Pair:
    return Pair(*authority.issue(NodeName.parse("a@127.0.0.1"), "127.0.0.1", 1, NOW))


def test_what_is_installed_is_what_is_read_and_what_is_gone_back_to(store: Store, new: Pair) -> None:
    pairs.install_pair(store, NODE, new)
    assert pairs.read_pair(store, NODE) == new
    assert pairs.accepted_pair(store, NODE) == new
    assert {path.name for path in store.path(NODE).iterdir()} == {"certificate.pem", "key.pem"}
    assert not pairs.complete_pair(store, NODE)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, WRITES + 1))
def test_a_pair_that_fits_is_there_wherever_the_writer_is_killed(
    store: Store, old: Pair, new: Pair, step: int, after: bool
) -> None:
    pairs.install_pair(store, NODE, old)
    with pytest.raises(Killed):
        pairs.install_pair(Mortal(store.root, step, after=after), NODE, new)
    pairs.complete_pair(store, NODE)
    begun = step > 2 or (step == 2 and after)  # next.pem is there
    assert pairs.read_pair(store, NODE) == (new if begun else old)
    assert pairs.accepted_pair(store, NODE) == (new if begun else old)
    assert not store.exists(f"{NODE}/next.pem")


@pytest.mark.parametrize("second", range(1, WRITES + 1))
@pytest.mark.parametrize("first", range(3, WRITES + 1))
def test_whoever_completes_it_may_be_killed_as_well(
    store: Store, old: Pair, new: Pair, first: int, second: int
) -> None:
    pairs.install_pair(store, NODE, old)
    with pytest.raises(Killed):
        pairs.install_pair(Mortal(store.root, first), NODE, new)
    try:
        pairs.complete_pair(Mortal(store.root, second), NODE)
    except Killed:
        assert pairs.complete_pair(store, NODE) or second == WRITES - 2
    assert pairs.read_pair(store, NODE) == new
    assert not store.exists(f"{NODE}/next.pem")


def test_a_key_and_a_certificate_of_two_pairs_are_not_installed(store: Store, old: Pair, new: Pair) -> None:
    pairs.install_pair(store, NODE, old)
    with pytest.raises(StoreError, match="no pair"):
        pairs.install_pair(store, NODE, Pair(old.key, new.certificate))
    with pytest.raises(StoreError, match="no pair"):
        pairs.install_pair(store, NODE, Pair(new.key, new.certificate + b"\n" * pairs.MAX_PEM_BYTES))
    assert pairs.read_pair(store, NODE) == old
    assert not store.exists(f"{NODE}/next.pem")


def test_a_whole_pair_that_the_node_itself_left_to_be_finished_is_removed(
    store: Store, old: Pair, new: Pair
) -> None:
    """It can write there, whatever serial it likes: nothing of it is accepted or noted."""
    pairs.install_pair(store, NODE, old)
    given = ledger.serials_of(store, NODE)
    store.write(f"{NODE}/next.pem", new.key.reveal() + new.certificate)
    assert not pairs.complete_pair(store, NODE)
    assert (pairs.read_pair(store, NODE), pairs.accepted_pair(store, NODE)) == (old, old)
    assert ledger.serials_of(store, NODE) == given
    assert not store.exists(f"{NODE}/next.pem")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=300))
def test_what_install_pair_did_not_write_is_removed_and_changes_nothing(
    store: Store, old: Pair, garbage: bytes
) -> None:
    pairs.install_pair(store, NODE, old)
    store.write(f"{NODE}/next.pem", garbage)
    assert not pairs.complete_pair(store, NODE)
    assert pairs.read_pair(store, NODE) == old
    assert not store.exists(f"{NODE}/next.pem")


def test_the_accepted_pair_comes_back_whatever_was_put_in_its_place(
    store: Store, old: Pair, new: Pair, tmp_path: Path
) -> None:
    pairs.install_pair(store, NODE, old)
    aside = tmp_path / "aside.pem"
    aside.write_bytes(new.certificate)
    store.path(f"{NODE}/certificate.pem").unlink()
    store.path(f"{NODE}/certificate.pem").symlink_to(aside)
    store.path(f"{NODE}/key.pem").write_bytes(b"garbage")
    store.write(f"{NODE}/next.pem", new.key.reveal() + new.certificate)
    assert pairs.restore_pair(store, NODE)
    assert pairs.read_pair(store, NODE) == old
    assert aside.read_bytes() == new.certificate  # the link was replaced, not what it led to
    assert not store.exists(f"{NODE}/next.pem")


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "next.pem"])
def test_a_directory_in_the_place_of_a_file_is_moved_aside_unread_and_keeps_nobody_waiting(
    store: Store, old: Pair, new: Pair, name: str
) -> None:
    def obstruct() -> None:
        store.remove(f"{NODE}/{name}")
        store.ensure_directory(f"{NODE}/{name}")
        store.path(f"{NODE}/{name}/x").write_bytes(b"kept")

    pairs.install_pair(store, NODE, old)
    obstruct()
    assert pairs.restore_pair(store, NODE)
    assert pairs.read_pair(store, NODE) == old
    obstruct()
    pairs.install_pair(store, NODE, new)
    assert pairs.read_pair(store, NODE) == new
    aside = sorted(store.path(NODE).glob(".distsec-spoiled-*"))
    assert [(each / "x").read_bytes() for each in aside] == [b"kept", b"kept"]
    if name == "next.pem":
        obstruct()
        assert not pairs.complete_pair(store, NODE)
        assert pairs.read_pair(store, NODE) == new


def test_without_an_accepted_pair_nothing_is_taken_back(store: Store, old: Pair) -> None:
    store.write(f"{NODE}/key.pem", b"garbage")
    assert not pairs.restore_pair(store, NODE)
    assert store.read(f"{NODE}/key.pem") == b"garbage"
    pairs.accept_pair(store, NODE, old)
    assert pairs.restore_pair(store, NODE)
    assert pairs.read_pair(store, NODE) == old


def test_no_key_shows_in_a_pair(old: Pair) -> None:
    assert "PRIVATE" not in repr(old)
    assert isinstance(old.key, Secret)
