"""The signed lists of what is revoked, as openssl reads them; when they are made, and when they cannot be."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsec.errors import CaKeyUnavailable, StoreError
from distsec.model.names import NodeName
from distsec.pki import crl
from distsec.pki.authority import Authority, serial_text
from distsec.pki.crl import RevocationReason, Revoked
from distsec.pki.store import Store

NOW = float(int(time.time()))
DAY = 86_400.0
A, B = NodeName.parse("a@127.0.0.1"), NodeName.parse("b@127.0.0.1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    Authority.create(made, "demo", NOW)
    return made


def issue(store: Store, name: NodeName, directory: Path) -> str:
    """Writes the certificate of `name` to `<head>.pem`; its serial."""
    _, pem = Authority.load(store).issue(name, "127.0.0.1", 30, NOW)
    (directory / f"{name.head}.pem").write_bytes(pem)
    return serial_text(x509.load_pem_x509_certificate(pem).serial_number)


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)


def found(store: Store) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(store.read("ca/crl.pem"))


def test_openssl_verifies_the_list_and_refuses_by_it_whom_it_names(store: Store, tmp_path: Path) -> None:
    revoked, good = issue(store, A, tmp_path), issue(store, B, tmp_path)
    crl.note_revoked(store, [revoked], NOW, RevocationReason.KEY_COMPROMISE)
    (state,) = crl.refresh(store, {revoked}, NOW)
    assert (state.entries, state.behind) == (1, None)
    ca, listed = store.path("ca/certificate.pem"), store.path("ca/crl.pem")
    assert "verify OK" in openssl("crl", "-in", listed, "-CAfile", ca, "-noout", "-verify").stderr
    text = openssl("crl", "-in", listed, "-noout", "-text").stdout
    assert "Key Compromise" in text
    assert revoked.upper() in text and good.upper() not in text
    assert f"X509v3 CRL Number: \n                {state.number}" in text

    def verify(name: str) -> str:
        done = openssl(
            "verify", "-x509_strict", "-crl_check", "-CAfile", ca, "-CRLfile", listed, tmp_path / name
        )
        return done.stdout + done.stderr

    assert verify("b.pem").endswith("b.pem: OK\n")
    assert "certificate revoked" in verify("a.pem")
    assert "certificate revoked" not in verify("b.pem")


def test_the_first_word_on_when_and_why_stays(store: Store) -> None:
    crl.note_revoked(store, ["0a"], NOW - 50)
    crl.note_revoked(store, ["0a", "0b"], NOW, RevocationReason.SUPERSEDED)
    crl.note_revoked(store, ["0a"], NOW, RevocationReason.KEY_COMPROMISE)
    crl.refresh(store, {"0a", "0b", "0c"}, NOW + 5)
    entries = {serial_text(each.serial_number): each for each in found(store)}
    at = {serial: each.revocation_date_utc.timestamp() for serial, each in entries.items()}
    assert at == {"0a": NOW - 50, "0b": NOW, "0c": NOW + 5}
    reasons = {
        serial: [extension.value.reason.value for extension in each.extensions]
        for serial, each in entries.items()
    }
    assert reasons == {"0a": ["superseded"], "0b": ["superseded"], "0c": []}
    crl.refresh(store, {"0a", "0b", "0c", "0d"}, NOW + 50)
    again = {serial_text(each.serial_number): each.revocation_date_utc.timestamp() for each in found(store)}
    assert again["0c"] == NOW + 5


def test_a_list_is_made_anew_when_it_lacks_a_serial_or_half_of_its_time_is_over(store: Store) -> None:
    numbers = []
    for serials, at in (
        ({"0a"}, NOW),
        ({"0a"}, NOW + DAY),
        ({"0a"}, NOW + 3 * DAY),
        ({"0a"}, NOW + 4 * DAY),  # more than half of seven days
        ({"0a", "0b"}, NOW + 4 * DAY),
        ({"0b"}, NOW + 4 * DAY),  # a list may say more than is asked
    ):
        (state,) = crl.refresh(store, serials, at)
        numbers.append(state.number)
    first, later, last = numbers[0], numbers[3], numbers[4]
    assert numbers == [first, first, first, later, last, last]
    assert first is not None and later is not None and last is not None
    assert first < later < last


def test_a_number_is_above_every_one_before_also_where_the_list_was_lost(store: Store) -> None:
    (before,) = crl.refresh(store, {"0a"}, NOW)
    store.remove("ca/crl.pem")
    (after,) = crl.refresh(store, {"0a"}, NOW + 1)
    assert before.number is not None and after.number is not None
    assert after.number > before.number


@given(st.lists(st.tuples(st.integers(0, 30), st.sets(st.sampled_from(["0a", "0b", "0c"]))), max_size=6))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_only_rise_and_what_is_revoked_is_listed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, set[str]]]
) -> None:
    store = Store(tmp_path_factory.mktemp("crl") / "state")
    Authority.create(store, "demo", NOW)
    now, serials, last = NOW, set[str](), 0
    for days, more in steps:
        now, serials = now + days * DAY, serials | more
        (state,) = crl.refresh(store, serials, now)
        if not serials:
            assert state.number is None
            continue
        assert state.number is not None
        assert state.number >= last
        last = state.number
        assert crl.listed(found(store)) >= serials
        assert state.next_update is not None
        assert state.next_update > now


def test_without_the_key_the_list_is_behind_and_the_old_one_stays(store: Store) -> None:
    crl.refresh(store, {"0a"}, NOW)
    before = store.read("ca/crl.pem")
    store.remove("ca/key.pem")
    (state,) = crl.refresh(store, {"0a", "0b"}, NOW + 1)
    assert state.behind is not None
    assert "the CA's key is not on this host" in state.behind
    assert store.read("ca/crl.pem") == before
    assert crl.refresh(store, {"0a"}, NOW + 2)[0].behind is None, "it says all that there is to say"


def test_a_list_of_another_ca_or_garbage_is_made_anew(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    Authority.create(other, "demo", NOW)
    crl.refresh(other, {"0a"}, NOW)
    for content in (other.read("ca/crl.pem"), b"garbage"):
        store.write("ca/crl.pem", content)
        (state,) = crl.refresh(store, {"0a"}, NOW)
        assert state.behind is None
        assert found(store).is_signature_valid(Authority.load(store).certificate.public_key())  # type: ignore[arg-type]


def test_a_list_of_the_future_is_not_trusted_to_be_new(store: Store) -> None:
    crl.refresh(store, {"0a"}, NOW + 3 * DAY)
    (state,) = crl.refresh(store, {"0a"}, NOW)
    assert state.next_update is not None
    assert state.next_update < NOW + 8 * DAY
    assert state.number is not None and state.number > int(NOW + 3 * DAY)


def test_a_record_that_cannot_be_read_is_an_error(store: Store) -> None:
    for content in (
        b"{",
        b"[]",
        b'{"schema":2,"revoked":{}}',
        b'{"schema":1,"revoked":{"xyz":[1,"superseded"]}}',
    ):
        store.write(crl.RECORD, content)
        with pytest.raises(StoreError, match="does not say when"):
            crl.refresh(store, {"0a"}, NOW)


def test_nothing_is_written_where_nothing_is_revoked(store: Store) -> None:
    (state,) = crl.refresh(store, set(), NOW)
    assert state.number is None
    assert not store.exists("ca/crl.pem")
    assert crl.lists_pem(store) == b""


def test_the_list_of_a_locked_ca_asks_for_nothing_where_nothing_is_due(store: Store) -> None:
    crl.refresh(store, {"0a"}, NOW)

    def locked(store: Store, directory: str) -> Authority:
        raise CaKeyUnavailable("asked")

    assert crl.refresh(store, {"0a"}, NOW, locked)[0].behind is None


def test_a_serial_with_a_leading_zero_digit_is_the_same_serial(store: Store) -> None:
    authority = Authority.load(store)
    made = crl.crl(authority.private_key(), authority.certificate, [Revoked("0a1b", int(NOW))], 7, NOW)
    assert crl.listed(made) == {"0a1b"}
    assert crl.number_of(made) == 7
