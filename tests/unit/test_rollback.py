"""An overlay that was put back, and what is found that is newer: nothing that was refused is forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from distsec.beam.document import read_document
from distsec.beam.render import policy_document
from distsec.core.rollback import MAX_LEAP, Found, lifted
from distsec.core.wanted import Allowed, Overlay, Recovered, wanted_policy
from distsec.errors import StoreError
from distsec.pki.signing import PolicySigner
from tests.unit.test_overlay import OVERLAYS, PORTS, SPEC

SIGNER = PolicySigner(Ed25519PrivateKey.generate())
X, Y = "x@127.0.0.1", "y@127.0.0.1"

RECOVERED = st.builds(
    Recovered,
    generation=st.integers(1, 60),
    issued_at=st.integers(0, 100),
    denied=st.frozensets(st.sampled_from([X, Y])),
    revoked=st.frozensets(st.sampled_from(["0a", "0b"])),
    revoked_identities=st.frozensets(st.sampled_from(["spiffe://d/a", "dns:h.example"])),
    epochs=st.dictionaries(st.sampled_from([X, Y]), st.integers(0, 5)).map(
        lambda d: tuple(sorted(d.items()))
    ),
)
FOUND = st.lists(
    st.builds(Found, st.sampled_from("abc"), st.none() | RECOVERED, st.none() | st.integers(0, 2 * MAX_LEAP)),
    max_size=4,
)


@given(OVERLAYS.map(lambda overlay: replace(overlay, generation=overlay.generation % 50 + 1)), FOUND)
def test_what_a_newer_policy_refused_is_refused_again_and_nothing_is_admitted(
    overlay: Overlay, found: list[Found]
) -> None:
    after, notes = lifted(overlay, found)
    newer = [each.signed for each in found if each.signed and each.signed.generation > overlay.generation]
    for signed in newer:
        assert after.generation > signed.generation
        assert after.deny >= signed.denied
        assert after.revoked >= signed.revoked
        assert after.revoked_identities >= signed.revoked_identities
        assert all(after.epoch(name) >= epoch for name, epoch in signed.epochs)
    assert after.deny >= overlay.deny
    assert after.revoked >= overlay.revoked
    assert after.revoked_identities >= overlay.revoked_identities
    assert set(after.allow) <= set(overlay.allow)
    assert bool(notes) is (bool(newer) or any((each.mark or 0) > overlay.generation for each in found))
    if not notes:
        assert after == overlay


def test_a_policy_that_is_not_newer_changes_nothing() -> None:
    overlay = Overlay(generation=7)
    assert lifted(overlay, [Found("a", Recovered(7, denied=frozenset({X})), 7)]) == (overlay, ())


def test_an_allow_that_a_newer_policy_denied_is_gone() -> None:
    identities = frozenset({"dns:h.example"})
    overlay = Overlay(generation=5, allow=(Allowed(X), Allowed(Y)))
    after, (note,) = lifted(
        overlay,
        [
            Found(
                "a",
                Recovered(9, denied=frozenset({X}), revoked=frozenset({"0a"}), revoked_identities=identities),
            )
        ],
    )
    assert (after.generation, after.allow, after.deny) == (10, (Allowed(Y),), frozenset({X}))
    assert f"denied again: {X}" in note
    assert "revoked again: 1 certificates; revoked again: dns:h.example" in note
    assert after.revoked_identities == identities


def test_a_mark_is_followed_and_says_that_something_is_not_known() -> None:
    after, (note,) = lifted(Overlay(generation=5), [Found("a", None, 9)])
    assert after == Overlay(generation=10)
    assert "repeat your denials" in note


def test_a_mark_beyond_everything_is_not_followed() -> None:
    """A compromised node may write any number, and must not use up all that there are."""
    overlay = Overlay(generation=5)
    after, (note,) = lifted(overlay, [Found("a", None, 2**62)])
    assert after == overlay
    assert "not followed" in note


# ---- reading a document back -------------------------------------------------------------------------------


@given(OVERLAYS, st.integers(0, 2**40), st.dictionaries(st.sampled_from([X, Y]), st.integers(1, 99)))
def test_a_document_is_read_back_as_it_was_signed(
    overlay: Overlay, issued: int, epochs: dict[str, int]
) -> None:
    overlay = replace(overlay, epochs=tuple(sorted(epochs.items())))
    document = policy_document(wanted_policy(SPEC, overlay, PORTS, issued), SIGNER.sign)
    assert read_document(document, SIGNER.verifies, SPEC.name) == Recovered(
        overlay.generation,
        issued,
        overlay.deny,
        overlay.revoked,
        overlay.epochs,
        overlay.revoked_identities,
    )


def test_what_is_not_signed_by_our_key_is_not_looked_at() -> None:
    document = policy_document(wanted_policy(SPEC, Overlay(generation=9), PORTS, 0), SIGNER.sign)
    other = PolicySigner(Ed25519PrivateKey.generate())
    for bad in (
        document.replace(b"generation => 9", b"generation => 8"),
        document[:-30],
        b"",
        document + b"x",
    ):
        with pytest.raises(StoreError):
            read_document(bad, SIGNER.verifies, SPEC.name)
    with pytest.raises(StoreError, match="not signed with the policy key"):
        read_document(document, other.verifies, SPEC.name)
    with pytest.raises(StoreError, match="another cluster"):
        read_document(document, SIGNER.verifies, "other")


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error_and_nothing_worse(content: bytes) -> None:
    with pytest.raises(StoreError):
        read_document(content, SIGNER.verifies, SPEC.name)
    with pytest.raises(StoreError):
        read_document(content + b'\n{signature, <<"AAAA">>}.\n', lambda signature, message: True, SPEC.name)
