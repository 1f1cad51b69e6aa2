"""The CA's key at rest: sealed files, the keyring that opens them, passphrases, and back to plain."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from distsec.errors import CaKeyUnavailable, CaKeyUnreadable, PassphraseWrong, StoreError, UsageError
from distsec.model.names import NodeName
from distsec.model.secret import Secret
from distsec.pki import authority as ca
from distsec.pki import custody, keyring, passphrase, sealed
from distsec.pki.authority import Authority, key_state
from distsec.pki.keyring import Keyring, KeyState
from distsec.pki.store import Store

NOW = float(int(time.time()))
RIGHT = Secret(b"correct horse battery staple")
WRONG = Secret(b"incorrect horse battery staple")
CHEAP = sealed.Cost(memory_kib=sealed.LEAST_MEMORY_KIB, iterations=1, lanes=1)
RANDOM = bytes(range(sealed.RANDOM_BYTES))
KEY = ca.new_key_pem()
FILE = sealed.seal(KEY, RIGHT, RANDOM, CHEAP)
A = NodeName.parse("a@127.0.0.1")


def opened(content: bytes, with_passphrase: Secret = RIGHT) -> Secret:
    return sealed.open_sealed(sealed.read_sealed(content, "ca/key.sealed"), with_passphrase, "ca/key.sealed")


# ---- the file ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=12, max_size=200),
    random=st.binary(min_size=sealed.RANDOM_BYTES, max_size=sealed.RANDOM_BYTES),
)
def test_what_is_sealed_is_opened_by_its_passphrase_and_by_no_other(text: str, random: bytes) -> None:
    content = sealed.seal(KEY, Secret(text.encode()), random, CHEAP)
    assert opened(content, Secret(text.encode())) == KEY
    with pytest.raises(PassphraseWrong):
        opened(content, Secret(text.encode() + b"."))


def test_the_file_says_which_key_it_is_and_holds_no_byte_of_it() -> None:
    key = serialization.load_pem_private_key(KEY.reveal(), password=None)
    assert sealed.read_sealed(FILE, "x").public == sealed.fingerprint(key.public_key())
    body = KEY.reveal().splitlines()[1:-1]
    assert not any(line in FILE for line in body)
    assert RIGHT.reveal() not in FILE


def test_the_form_is_that_of_the_manual() -> None:
    lines = FILE.decode().splitlines()
    assert lines[:3] == [
        "distsec-sealed-key 1",
        f"kdf argon2id memory_kib=19456 iterations=1 lanes=1 salt={RANDOM[:16].hex()}",
        f"cipher aes-256-gcm nonce={RANDOM[16:].hex()}",
    ]
    assert [line.split()[0] for line in lines[3:]] == ["public", "sealed", "check"]


def test_a_new_file_costs_what_rfc_9106_recommends() -> None:
    cost = sealed.read_sealed(sealed.seal(KEY, RIGHT, RANDOM), "x").cost
    assert cost == sealed.Cost(memory_kib=65536, iterations=3, lanes=4)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(FILE) - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_is_damage_and_costs_no_passphrase(at: int, bit: int) -> None:
    content = bytearray(FILE)
    content[at] ^= 1 << bit
    with pytest.raises(StoreError):
        sealed.read_sealed(bytes(content), "ca/key.sealed")


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, len(FILE) - 1))
def test_a_file_that_was_cut_off_is_damage(cut: int) -> None:
    with pytest.raises(StoreError, match="is no sealed key, or a damaged one"):
        sealed.read_sealed(FILE[:cut], "ca/key.sealed")


def with_check(content: bytes) -> bytes:
    """`content` with a `check` that fits, as somebody would write it who wants it to be taken."""
    import hashlib

    body = content[: content.index(b"check ")]
    return body + b"check " + hashlib.sha256(body).hexdigest().encode() + b"\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"iterations=1", b"iterations=2"),
        (b"memory_kib=19456", b"memory_kib=20480"),
        (RANDOM[:16].hex().encode(), bytes(16).hex().encode()),
        (RANDOM[16:].hex().encode(), bytes(12).hex().encode()),
        (sealed.read_sealed(FILE, "x").public.encode(), b"0" * 64),
    ],
    ids=["iterations", "memory", "salt", "nonce", "public"],
)
def test_every_word_before_the_ciphertext_is_authenticated(old: bytes, new: bytes) -> None:
    forged = with_check(FILE.replace(old, new))
    assert forged != FILE
    with pytest.raises(PassphraseWrong, match="or somebody has changed the file"):
        opened(forged)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"memory_kib=19456", b"memory_kib=16777216"),
        (b"memory_kib=19456", b"memory_kib=9999999999"),
        (b"memory_kib=19456", b"memory_kib=1024"),
        (b"iterations=1", b"iterations=999999"),
        (b"iterations=1", b"iterations=17"),
        (b"lanes=1", b"lanes=4096"),
        (b"memory_kib=19456 iterations=1", b"memory_kib=1048576 iterations=16"),
    ],
)
def test_a_file_that_asks_for_more_than_is_spent_is_refused_before_anything_is(
    old: bytes, new: bytes
) -> None:
    began = time.process_time()  # of this process: what it spends, and not for how long it stood still
    with pytest.raises(StoreError, match="asks Argon2id for"):
        opened(with_check(FILE.replace(old, new)))
    assert time.process_time() - began < 1.0


def test_a_later_form_is_said_to_be_one() -> None:
    with pytest.raises(StoreError, match=r"sealed by a later distsec \(version 2 of the format\)"):
        sealed.read_sealed(FILE.replace(b"-key 1\n", b"-key 2\n"), "ca/key.sealed")


@pytest.mark.parametrize("short", [b"", b"x", b"eleven char", "é".encode() * 11])
def test_a_passphrase_that_is_found_by_trying_seals_nothing(short: bytes) -> None:
    with pytest.raises(UsageError, match="shorter than 12 characters"):
        sealed.seal(KEY, Secret(short), RANDOM, CHEAP)


def test_an_error_names_neither_key_nor_passphrase() -> None:
    with pytest.raises(PassphraseWrong) as caught:
        opened(FILE, WRONG)
    assert WRONG.reveal().decode() not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert caught.value.exit_code == CaKeyUnavailable.exit_code == 66


# ---- the keyring -------------------------------------------------------------------------------------------


def test_many_who_need_the_key_at_once_pay_for_it_once() -> None:
    asked: list[int] = []

    def ask() -> Secret:
        asked.append(1)
        return RIGHT

    ring, found = Keyring(ask), []
    threads = [
        threading.Thread(target=lambda: found.append(ring.open(FILE, "ca/key.sealed"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [KEY] * 8
    assert len(asked) == 1


def test_a_wrong_passphrase_is_not_remembered() -> None:
    answers = iter([WRONG, RIGHT])
    ring = Keyring(lambda: next(answers))
    with pytest.raises(PassphraseWrong):
        ring.open(FILE, "ca/key.sealed")
    assert ring.open(FILE, "ca/key.sealed") == KEY


def test_a_wrong_passphrase_costs_its_price_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Secret] = []
    open_it = keyring.open_sealed  # type: ignore[attr-defined]

    def counted(content: sealed.SealedKey, word: Secret, where: str) -> Secret:
        tries.append(word)
        opened: Secret = open_it(content, word, where)
        return opened

    monkeypatch.setattr(keyring, "open_sealed", counted)
    words = iter([WRONG, WRONG, WRONG, RIGHT])
    ring = Keyring(lambda: next(words))
    for _ in range(3):
        with pytest.raises(PassphraseWrong):
            ring.open(FILE, "ca/key.sealed")
    assert ring.open(FILE, "ca/key.sealed") == KEY
    assert tries == [WRONG, RIGHT]


def test_a_key_that_is_forgotten_is_opened_again() -> None:
    asked: list[int] = []
    ring = Keyring(lambda: asked.append(1) or RIGHT)  # type: ignore[func-returns-value]
    ring.open(FILE, "ca/key.sealed")
    ring.forget()
    ring.open(FILE, "ca/key.sealed")
    assert len(asked) == 2


def test_without_a_passphrase_the_error_says_where_one_could_come_from() -> None:
    with pytest.raises(CaKeyUnavailable, match="sealed, and no passphrase was given; give it with") as caught:
        Keyring().open(FILE, "/state/ca/key.sealed")
    assert caught.value.where == "/state/ca/key.sealed"
    assert "passphrase_file" in caught.value.do


# ---- the CA ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its least: what is tested here is not its cost."""
    monkeypatch.setattr(keyring, "seal", lambda key, word, random: sealed.seal(key, word, random, CHEAP))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state"


def with_passphrase(root: Path, word: Secret = RIGHT) -> Store:
    return Store(root, Keyring(lambda: word))


def test_a_sealed_ca_is_made_and_issues_and_its_plain_key_is_never_on_disk(root: Path) -> None:
    written: list[str] = []
    store = with_passphrase(root)
    create = store.create
    store.create = lambda relative, content: written.append(relative) or create(relative, content)  # type: ignore[method-assign, func-returns-value]
    authority = Authority.create(store, "demo", NOW, seal=True)
    assert authority.key_state is KeyState.SEALED
    assert written == [ca.SEALED_FILE, ca.CERTIFICATE_FILE]
    again = Authority.load(with_passphrase(root))
    _, pem = again.issue(A, "127.0.0.1", 1, NOW)
    assert pem.startswith(b"-----BEGIN CERTIFICATE-----")


def test_a_sealed_ca_is_loaded_and_trusted_without_its_passphrase_and_signs_nothing(root: Path) -> None:
    made = Authority.create(with_passphrase(root), "demo", NOW, seal=True)
    locked = Authority.create(Store(root), "demo", NOW)
    assert locked.bundle_pem == made.bundle_pem
    with pytest.raises(CaKeyUnavailable, match=r"no certificate for a@127\.0\.0\.1: the CA's key is sealed"):
        locked.issue(A, "127.0.0.1", 1, NOW)
    with pytest.raises(CaKeyUnavailable, match="no shell: the CA's key is sealed"):
        locked.issue_shell("spiffe://demo/shell/h/x.ab", 60, NOW)
    assert Authority.load(Store(root), unlock=Keyring(lambda: RIGHT)).private_key()


def test_the_sealed_key_of_another_ca_is_noticed_without_a_passphrase(root: Path) -> None:
    Authority.create(with_passphrase(root), "demo", NOW, seal=True)
    Store(root).write(ca.SEALED_FILE, FILE)
    with pytest.raises(StoreError, match=r"does not belong to key\.sealed beside it"):
        Authority.load(Store(root))


@pytest.mark.parametrize("content", [b"", b"garbage", FILE[:-9]], ids=["empty", "garbage", "cut"])
def test_a_damaged_sealed_key_keeps_nobody_from_the_certificate_and_signs_nothing(
    root: Path, content: bytes
) -> None:
    made = Authority.create(with_passphrase(root), "demo", NOW, seal=True)
    Store(root).write(ca.SEALED_FILE, content)
    loaded = Authority.create(with_passphrase(root), "demo", NOW)
    assert loaded.bundle_pem == made.bundle_pem
    with pytest.raises(
        CaKeyUnreadable, match=r"no certificate for a@127\.0\.0\.1: is no sealed key, or"
    ) as told:
        loaded.issue(A, "127.0.0.1", 1, NOW)
    assert (told.value.exit_code, told.value.where) == (73, str(root / ca.SEALED_FILE))


def test_a_file_that_claims_to_be_the_cas_key_and_is_another_signs_nothing(root: Path) -> None:
    authority = Authority.create(with_passphrase(root), "demo", NOW, seal=True)
    other = ca.new_key_pem()
    claimed = sealed.fingerprint(authority.certificate.public_key())
    honest = sealed.fingerprint(
        serialization.load_pem_private_key(other.reveal(), password=None).public_key()
    )
    ring = Keyring(lambda: RIGHT)
    content = ring.seal(other)
    forged = with_check(content.replace(honest.encode(), claimed.encode()))
    Store(root).write(ca.SEALED_FILE, forged)
    with pytest.raises(PassphraseWrong):
        Authority.load(with_passphrase(root)).private_key()


def test_a_sealed_ca_whose_certificate_was_not_written_yet_is_completed(root: Path) -> None:
    store = with_passphrase(root)
    store.create(ca.SEALED_FILE, store.keyring.seal(KEY))
    assert Authority.create(with_passphrase(root), "demo", NOW, seal=True).key_state is KeyState.SEALED
    assert not store.exists(ca.KEY_FILE)


def test_a_plain_key_is_not_sealed_on_the_way(root: Path) -> None:
    Authority.create(Store(root), "demo", NOW)
    with pytest.raises(UsageError, match=r"is not sealed; seal it with `distsec certs seal`"):
        Authority.create(with_passphrase(root), "demo", NOW, seal=True)


# ---- from one form to the other ----------------------------------------------------------------------------


class Died(Exception):
    """kill -9, between two changes of the state directory."""


def killed_after(store: Store, changes: int) -> None:
    """From now on `store` makes that many changes, and then none."""
    left = [changes]

    def counted(change: Callable[..., object]) -> Callable[..., object]:
        def made(*arguments: object) -> object:
            if not left[0]:
                raise Died
            left[0] -= 1
            return change(*arguments)

        return made

    for name in ("create", "write", "remove", "wipe"):
        setattr(store, name, counted(getattr(store, name)))


@pytest.mark.parametrize("changes", range(3))
@pytest.mark.parametrize("sealing", [True, False], ids=["seal", "unseal"])
def test_whenever_it_is_killed_the_key_is_there_and_the_same_again_finishes(
    root: Path, sealing: bool, changes: int
) -> None:
    before = Authority.create(with_passphrase(root), "demo", NOW, seal=not sealing)
    change = custody.seal_keys if sealing else custody.unseal_keys
    dying = with_passphrase(root)
    killed_after(dying, changes)
    if changes < 2:
        with pytest.raises(Died):
            change(dying)
    else:
        change(dying)
    between = Authority.load(with_passphrase(root))
    assert ca.same_public_key(between.private_key().public_key(), before.certificate.public_key())
    change(with_passphrase(root))
    assert key_state(Store(root)) is (KeyState.SEALED if sealing else KeyState.PLAIN)
    kept, gone = (ca.SEALED_FILE, ca.KEY_FILE) if sealing else (ca.KEY_FILE, ca.SEALED_FILE)
    assert Store(root).exists(kept) and not Store(root).exists(gone)
    assert Authority.load(with_passphrase(root)).private_key()


def test_a_key_is_sealed_only_if_what_was_written_can_be_opened(root: Path) -> None:
    Authority.create(Store(root), "demo", NOW)
    store = with_passphrase(root)
    write = store.write
    store.write = lambda relative, content: write(relative, content[:-1])  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="damaged"):
        custody.seal_keys(store)
    assert Authority.load(Store(root)).private_key()


def test_a_key_that_is_sealed_is_proven_with_the_passphrase_that_is_given(root: Path) -> None:
    Authority.create(with_passphrase(root), "demo", NOW, seal=True)
    assert custody.seal_keys(with_passphrase(root), prove=True) == [ca.SEALED_FILE]
    with pytest.raises(PassphraseWrong, match=r"sealed already.*`distsec certs seal --change`"):
        custody.seal_keys(with_passphrase(root, WRONG), prove=True)
    assert custody.seal_keys(Store(root)) == [ca.SEALED_FILE], "nobody is asked for one"
    Store(root).write(ca.SEALED_FILE, FILE[:-9])
    with pytest.raises(CaKeyUnreadable):
        custody.seal_keys(Store(root))


def test_a_wrong_passphrase_unseals_nothing(root: Path) -> None:
    Authority.create(with_passphrase(root), "demo", NOW, seal=True)
    with pytest.raises(PassphraseWrong):
        custody.unseal_keys(with_passphrase(root, WRONG))
    assert not Store(root).exists(ca.KEY_FILE)


def test_another_passphrase_takes_the_place_of_the_first(root: Path) -> None:
    Authority.create(with_passphrase(root), "demo", NOW, seal=True)
    new = Secret(b"another twelve characters")
    custody.change_passphrase(Store(root, Keyring(lambda: RIGHT, lambda: new)))
    with pytest.raises(PassphraseWrong):
        Authority.load(with_passphrase(root)).private_key()
    assert Authority.load(with_passphrase(root, new)).private_key()


def test_the_ca_that_a_rotation_brings_is_sealed_with_the_present_one(root: Path) -> None:
    Authority.create(Store(root), "demo", NOW)
    Authority.create(Store(root), "demo", NOW, custody.NEXT_DIRECTORY)
    assert custody.seal_keys(with_passphrase(root)) == ["ca/key.sealed", "ca/next/key.sealed"]


def test_a_key_that_is_elsewhere_is_neither_sealed_nor_unsealed_here(root: Path) -> None:
    Authority.create(Store(root), "demo", NOW)
    (root / ca.KEY_FILE).unlink()
    for change in (custody.seal_keys, custody.unseal_keys, custody.change_passphrase):
        with pytest.raises(CaKeyUnavailable, match="run it where the key is"):
            change(with_passphrase(root))


# ---- passphrases -------------------------------------------------------------------------------------------


def a_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_file_holds_one_line(tmp_path: Path, end: bytes) -> None:
    path = a_file(tmp_path / "passphrase", b"correct horse " + end)
    assert passphrase.from_file(path)() == Secret(b"correct horse ")


def test_the_same_letters_of_another_keyboard_are_the_same_passphrase(tmp_path: Path) -> None:
    composed = a_file(tmp_path / "one", "élan vital élan".encode())
    apart = a_file(tmp_path / "two", "e\u0301lan vital e\u0301lan".encode())
    assert passphrase.from_file(composed)() == passphrase.from_file(apart)()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"one\ntwo\n", "more than one line"),
        (b"tab\there", "control character"),
        (b"\xff\xfe secret", "no UTF-8"),
        (b"x" * 2000, "more than 1024 bytes"),
    ],
)
def test_what_is_no_passphrase_is_refused_and_not_shown(tmp_path: Path, content: bytes, why: str) -> None:
    path = a_file(tmp_path / "passphrase", content)
    with pytest.raises(CaKeyUnavailable, match=f"no passphrase: .*{re.escape(why)}") as caught:
        passphrase.from_file(path)()
    assert "secret" not in str(caught.value)


def test_a_passphrase_that_others_can_read_is_none(tmp_path: Path) -> None:
    path = a_file(tmp_path / "passphrase", RIGHT.reveal(), 0o644)
    with pytest.raises(CaKeyUnavailable, match=r"can be reached by other users \(mode 0644\)"):
        passphrase.from_file(path)()
    link = tmp_path / "link"
    link.symlink_to(a_file(tmp_path / "other", RIGHT.reveal()))
    with pytest.raises(CaKeyUnavailable, match="is a symbolic link"):
        passphrase.from_file(link)()
    with pytest.raises(CaKeyUnavailable, match="does not exist"):
        passphrase.from_file(tmp_path / "none")()
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(CaKeyUnavailable, match="not a regular file"):
        passphrase.from_file(tmp_path / "fifo")()


def test_a_descriptor_is_read_once_and_closed() -> None:
    readable, writable = os.pipe()
    os.write(writable, RIGHT.reveal() + b"\n")
    os.close(writable)
    ask = passphrase.from_descriptor(readable)
    assert ask() == ask() == RIGHT
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(readable)


def test_a_descriptor_that_is_not_open_is_said_to_be_so() -> None:
    readable, writable = os.pipe()
    os.close(readable)
    os.close(writable)
    with pytest.raises(CaKeyUnavailable, match=f"descriptor {readable}: no passphrase: bad file descriptor"):
        passphrase.from_descriptor(readable)()


def test_the_orchestrator_takes_the_configured_file_before_the_credential(tmp_path: Path) -> None:
    credential = a_file(tmp_path / passphrase.CREDENTIAL, b"of the credential", 0o440)
    configured = a_file(tmp_path / "configured", b"of the configuration")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    both = passphrase.of_service(environment, str(configured))
    alone = passphrase.of_service(environment, None)
    assert both is not None and both() == Secret(b"of the configuration")
    assert alone is not None and alone() == Secret(b"of the credential")
    credential.unlink()
    assert passphrase.of_service(environment, None) is None
    assert passphrase.of_service({}, None) is None
