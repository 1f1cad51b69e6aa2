"""The same attacks where nothing of distsec stands in their way: they work. Else the catalogue would prove
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.catalogue import BY_NAME
from tests.attacks.catalogue.attack import carry_out
from tests.attacks.targets.guarded import Guarded
from tests.attacks.targets.plain import Plain
from tests.releases import Otp

ATTEMPTS = 10

WORKING = (
    "revoked",
    "unlisted_hidden",
    "unlisted_visible",
    "insider_claims_listed",
    "insider_claims_many",
    "race_cast",
    "race_spawn",
    "race_send",
    "race_link",
    "race_monitor",
    "impostor_unlisted",
    "beam_hidden",
    "relay_in",
    "relay_out",
)
"""On stock OTP with TLS as its guide sets it up, each of these has its way every time."""


@pytest.fixture(scope="module")
def plain(otp: Otp, beams: Path) -> Iterator[Plain]:
    target = Plain(otp, beams)
    try:
        yield target
    finally:
        target.close()


@pytest.mark.parametrize("name", WORKING)
def test_the_attack_runs_code_on_stock_otp_every_time(plain: Plain, name: str) -> None:
    plain.begin()
    outcome = carry_out(BY_NAME[name], plain, ATTEMPTS)
    assert len(outcome.tries) >= ATTEMPTS
    assert outcome.executed == len(outcome.tries)
    assert plain.nodeups()


@pytest.mark.parametrize("name", ["no_certificate", "foreign_ca", "expired", "wrong_cookie"])
def test_what_stock_otp_does_stop_is_no_attack_of_the_catalogues_own_making(plain: Plain, name: str) -> None:
    plain.begin()
    outcome = carry_out(BY_NAME[name], plain, ATTEMPTS)
    assert (outcome.executed, plain.nodeups()) == (0, 0)


@pytest.fixture(scope="module")
def stock_carrier(otp: Otp, beams: Path) -> Iterator[Guarded]:
    target = Guarded(otp, beams, "inet_tls")
    try:
        yield target
    finally:
        target.close()


def test_a_server_that_shows_no_certificate_gets_in_by_cve_2026_89422_where_otp_is_not_patched(
    stock_carrier: Guarded,
) -> None:
    """With `inet_tls` only OTP's own patch stands against it, and no event tells of it. test_catalogue has
    the same attack on the carrier, which refuses it on every release."""
    stock_carrier.begin()
    outcome = carry_out(BY_NAME["unsolicited_psk"], stock_carrier, ATTEMPTS)
    patched = stock_carrier.erlang.release > 27
    assert outcome.executed == (0 if patched else len(outcome.tries))


def test_an_anonymous_suite_gets_in_by_cve_2026_55953_where_otp_is_not_patched(plain: Plain) -> None:
    plain.begin()
    outcome = carry_out(BY_NAME["anonymous_suite"], plain, ATTEMPTS)
    patched = plain.erlang.release > 25
    assert outcome.executed == (0 if patched else len(outcome.tries))
