"""Which certificates a node was given: all that have not ended, whatever is in its directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsec.model.names import NodeName
from distsec.pki import ledger, pairs
from distsec.pki.authority import Authority, certificate_of
from distsec.pki.pairs import Pair
from distsec.pki.store import Store

A = NodeName.parse("a@127.0.0.1")
DIRECTORY = "nodes/a@127.0.0.1"
DAY = 86400
T = 1_763_764_000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "state").mkdir(mode=0o700)
    made = Store(tmp_path / "state")
    made.ensure_directory(DIRECTORY)
    return made


def issue(authority: Authority, now: float, days: float = 1) -> Pair:
    return Pair(*authority.issue(A, "127.0.0.1", days, now))


def serial(pair: Pair) -> str:
    return certificate_of(pair.certificate).serial


def test_each_pair_that_is_installed_is_known_until_it_ends(store: Store) -> None:
    authority = Authority.create(store, "demo", T)
    first, second, third = (issue(authority, T + at) for at in (0, 100, 200))
    for pair in (first, second, third, second):
        pairs.install_pair(store, DIRECTORY, pair)
    assert ledger.serials_of(store, DIRECTORY) == {serial(first), serial(second), serial(third)}
    later = issue(authority, T + 1.5 * DAY)
    pairs.install_pair(store, DIRECTORY, later)
    assert ledger.serials_of(store, DIRECTORY) == {serial(later)}


def test_nodes_have_each_their_own(store: Store) -> None:
    authority = Authority.create(store, "demo", T)
    pair = issue(authority, T)
    pairs.install_pair(store, DIRECTORY, pair)
    assert ledger.serials_of(store, "nodes/b@127.0.0.1") == frozenset()
    assert ledger.serials_of(store, DIRECTORY) == {serial(pair)}


def test_what_cannot_be_read_of_it_is_passed_over(store: Store) -> None:
    authority = Authority.create(store, "demo", T)
    store.write("ca/pairs/a@127.0.0.1.serials", b"0a 99999999999\n\xff no line\n0b x\n0c 99999999999\n")
    pair = issue(authority, T)
    ledger.note_certificate(store, DIRECTORY, pair.certificate)
    assert ledger.serials_of(store, DIRECTORY) == {"0a", "0c", serial(pair)}


def test_their_number_is_bounded_and_the_newest_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_SERIALS", 3)
    authority = Authority.create(store, "demo", T)
    made = [issue(authority, T + at) for at in range(5)]
    for pair in made:
        ledger.note_certificate(store, DIRECTORY, pair.certificate)
    assert ledger.serials_of(store, DIRECTORY) == {serial(pair) for pair in made[2:]}
