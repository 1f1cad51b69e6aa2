"""The two secrets of a rotation on the disk, and whose cookies a node has in which phase."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distsec.core.cookie_rotation import Begun, Effect, Event, Happened, step
from distsec.errors import StoreError
from distsec.model.cookies import CookiePhase, CookieRotation
from distsec.pki import cookies
from distsec.pki.cookies import CookieSecrets
from distsec.pki.store import Store

A, B = "a@127.0.0.1", "b@127.0.0.1"
NOW = 1_800_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    cookies.create_secret(made)
    os.utime(made.path(cookies.SECRET_FILE), (NOW - 500, NOW - 500))
    return made


def drive(store: Store, event: Event) -> CookieRotation:
    """One step, and its effects on the disk."""
    secrets = CookieSecrets(store)
    rotation, effects = step(secrets.rotation(), event)
    for effect in effects:
        match effect:
            case Effect.MAKE_SECRET:
                secrets.make_next()
            case Effect.SAVE:
                secrets.save(rotation)
            case Effect.REPLACE_SECRET:
                secrets.replace()
            case Effect.DROP_SECRET:
                secrets.drop_next()
    return rotation


def test_each_phase_has_its_cookies_and_the_new_ones_take_the_place_of_the_old(store: Store) -> None:
    def of() -> tuple[bytes, bytes | None]:
        found = cookies.cookie_set(store, A, [A, B], {})
        other = cookies.cookie_set(store, B, [A, B], {})
        assert found.current.peers[B].reveal() == other.current.peers[A].reveal()
        assert set(found.current.peers) == {B}
        assert cookies.default_cookie(cookies.load_secret(store), A, {}).reveal() == (
            found.current.default.reveal()
        )
        return found.current.peers[B].reveal(), found.other and found.other.peers[B].reveal()

    old, none = of()
    assert none is None
    drive(store, Begun(NOW))
    _, new = of()
    assert of() == (old, new) and new not in (None, old)
    drive(store, Happened.ACKNOWLEDGED)
    assert of() == (new, old)
    drive(store, Happened.VERIFIED)
    assert of() == (new, None)
    assert drive(store, Happened.ACKNOWLEDGED) == CookieRotation(CookiePhase.IDLE, 4, made=NOW)
    assert of() == (new, None)
    assert not store.exists(cookies.NEXT_FILE)


def test_what_was_given_up_is_gone(store: Store) -> None:
    before = store.read(cookies.SECRET_FILE)
    drive(store, Begun(NOW))
    drive(store, Happened.GIVEN_UP)
    assert store.read(cookies.SECRET_FILE) == before
    assert not store.exists(cookies.NEXT_FILE)
    assert cookies.load_rotation(store) == CookieRotation(CookiePhase.IDLE, 2, made=NOW - 500)


def test_a_new_node_epoch_changes_the_cookies_of_both_secrets(store: Store) -> None:
    drive(store, Begun(NOW))
    before, after = (cookies.cookie_set(store, A, [B], epochs) for epochs in ({}, {B: 1}))
    assert before.other is not None and after.other is not None
    assert before.current.peers[B].reveal() != after.current.peers[B].reveal()
    assert before.other.peers[B].reveal() != after.other.peers[B].reveal()
    assert before.current.default.reveal() == after.current.default.reveal()


def test_of_a_secret_that_was_never_rotated_the_file_tells_the_age(store: Store) -> None:
    assert cookies.load_rotation(store) == CookieRotation(made=NOW - 500)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema":1,"phase":"idle","step":1,"made":1}',
        b'{"schema":1,"phase":"idle","step":-1,"made":1,"next_made":0}',
        b'{"schema":1,"phase":"idle","step":true,"made":1,"next_made":0}',
        b'{"schema":1,"phase":"soon","step":1,"made":1,"next_made":0}',
        b'{"schema":2,"phase":"idle","step":1,"made":1,"next_made":0}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_an_error_and_no_guess(store: Store, content: bytes) -> None:
    store.write(cookies.ROTATION_FILE, content)
    for read in (cookies.load_rotation, cookies.load_secret):
        with pytest.raises(StoreError) as caught:
            read(store)
        assert str(store.path(cookies.ROTATION_FILE)) in str(caught.value) and caught.value.do


def test_a_secret_that_is_missing_in_the_middle_is_named(store: Store) -> None:
    drive(store, Begun(NOW))
    store.remove(cookies.NEXT_FILE)
    with pytest.raises(StoreError) as caught:
        cookies.cookie_set(store, A, [B], {})
    assert "cookie.next" in str(caught.value)
