"""The policy key and the cookies: made once, read back, and what openssl and the formulas say."""

from __future__ import annotations

import hashlib
import hmac
import re
import subprocess
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from distsec.errors import StoreError
from distsec.model.secret import Secret
from distsec.pki import authority as ca
from distsec.pki import cookies, signing
from distsec.pki.signing import PolicySigner
from distsec.pki.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def test_signatures_verify_with_the_public_key_and_no_other_text(store: Store) -> None:
    signer = PolicySigner.create(store)
    public = Ed25519PublicKey.from_public_bytes(signer.public_raw)
    public.verify(signer.sign(b"policy"), b"policy")
    with pytest.raises(InvalidSignature):
        public.verify(signer.sign(b"policy"), b"policy.")


def test_openssl_verifies_a_signature(store: Store, tmp_path: Path) -> None:
    signer = PolicySigner.create(store)
    (tmp_path / "policy").write_bytes(b"policy")
    (tmp_path / "signature").write_bytes(signer.sign(b"policy"))
    key = str(store.path(signing.KEY_FILE))
    files = ["-in", str(tmp_path / "policy"), "-sigfile", str(tmp_path / "signature")]
    subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-rawin", "-inkey", key, *files], check=True, capture_output=True
    )


def test_the_policy_key_is_made_once(store: Store) -> None:
    first = PolicySigner.create(store).public_raw
    assert PolicySigner.create(store).public_raw == first
    assert PolicySigner.load(store).public_raw == first


def test_a_policy_key_of_another_kind_is_refused(store: Store) -> None:
    store.write(signing.KEY_FILE, ca.new_key_pem().reveal())
    with pytest.raises(StoreError, match=r"ca/policy\.key: is no Ed25519 key"):
        PolicySigner.create(store)


def test_the_cookie_secret_is_made_once(store: Store) -> None:
    first = cookies.create_secret(store)
    assert cookies.create_secret(store) == first
    assert cookies.load_secret(store) == first
    assert re.fullmatch(rb"[0-9a-f]{64}\n", store.read(cookies.SECRET_FILE))


@pytest.mark.parametrize("content", [b"", b"short", b"0" * 63, b"0" * 65, b"G" * 64])
def test_a_damaged_cookie_secret_is_refused_and_not_shown(store: Store, content: bytes) -> None:
    store.write(cookies.SECRET_FILE, content)
    with pytest.raises(StoreError, match=r"cookie\.secret: does not hold 32 bytes in hex") as caught:
        cookies.load_secret(store)
    assert not content or content.decode() not in str(caught.value)


def hkdf(secret: bytes, info: bytes) -> str:
    """RFC 5869 with SHA-256, no salt, 32 bytes: one block of output, written out."""
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\1", hashlib.sha256).hex()


NAME = st.from_regex(r"[a-z]{1,8}@[a-z]{1,8}", fullmatch=True)


@given(st.binary(min_size=32, max_size=32), NAME, NAME)
def test_cookies_follow_the_documented_formulas(secret: bytes, one: str, other: str) -> None:
    first, second = sorted([one, other])
    assert cookies.default_cookie(Secret(secret), one, {}).reveal().decode() == "d" + hkdf(
        secret, b"distsec cookie default 1\0" + one.encode()
    )
    pair = cookies.pair_cookie(Secret(secret), one, other, {})
    assert pair == cookies.pair_cookie(Secret(secret), other, one, {})
    assert pair.reveal().decode() == "p" + hkdf(
        secret, b"distsec cookie pair 1\0" + first.encode() + b"\0" + second.encode()
    )


@given(st.binary(min_size=32, max_size=32), NAME, NAME, st.integers(1, 12), st.integers(0, 12))
def test_cookies_of_a_re_keyed_node_follow_the_documented_formulas(
    secret: bytes, one: str, other: str, epoch: int, others: int
) -> None:
    epochs = {other: others, one: epoch}
    first, second = sorted([one, other])
    assert cookies.default_cookie(Secret(secret), one, epochs).reveal().decode() == "d" + hkdf(
        secret, b"distsec cookie default 2\0" + one.encode() + b"\0%d" % epoch
    )
    pair = cookies.pair_cookie(Secret(secret), one, other, epochs)
    assert pair == cookies.pair_cookie(Secret(secret), other, one, epochs)
    ends = b"\0".join(name.encode() + b"\0%d" % epochs[name] for name in (first, second))
    assert pair.reveal().decode() == "p" + hkdf(secret, b"distsec cookie pair 2\0" + ends)


@given(st.lists(NAME, unique=True, min_size=3, max_size=6), st.data())
def test_no_two_pairs_or_defaults_share_a_cookie_at_any_epochs(names: list[str], data: st.DataObject) -> None:
    secret = Secret(bytes(32))
    epochs = data.draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)))
    at = [{}, dict(zip(names, epochs, strict=True))]
    changed = {name for name in names if at[1][name]}
    made = [cookies.default_cookie(secret, name, at[0]).reveal() for name in names]
    made += [cookies.default_cookie(secret, name, at[1]).reveal() for name in changed]
    pairs = [(a, b) for a in names for b in names if a < b]
    made += [cookies.pair_cookie(secret, a, b, at[0]).reveal() for a, b in pairs]
    made += [cookies.pair_cookie(secret, a, b, at[1]).reveal() for a, b in pairs if {a, b} & changed]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(rb"[dp][0-9a-f]{64}", cookie) for cookie in made)
