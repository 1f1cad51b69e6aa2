"""`scripts/attack` as an operator runs it: what it prints, what it exits with, and what it does not do
unasked.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.board import COLUMNS, Row, heading, line, page
from tests.attacks.catalogue import CATALOGUE
from tests.attacks.targets.guarded import Guarded
from tests.attacks.targets.plain import COOKIE, Plain
from tests.releases import OTPS, ROOT, Otp
from tests.system.certificates import Leaf

KEYS = (
    "attack",
    "carrier",
    "otp",
    "tried",
    "executed",
    "nodeups",
    "event_seen",
    "reason",
    "median_refusal_ms",
)


def attack(*arguments: str | Path, seconds: float = 110) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "attack"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_the_list_names_every_attack_and_what_it_needs() -> None:
    listed = attack("--list")
    assert listed.returncode == 0
    for each in CATALOGUE:
        assert f"{each.name} " in listed.stdout
    assert listed.stdout.count("needs:") == len(CATALOGUE)


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["--attempts", "0"], "at least 1"),
        (["--attack", "no_such_attack"], "invalid choice"),
        (["--carrier", "pigeon"], "invalid choice"),
        (["--node", "a@h"], "--target"),
        (["--target", "127.0.0.1:9100"], "--node"),
        (["--target", "somewhere", "--node", "a@h"], "HOST:PORT"),
        (["--target", "192.0.2.1:9100", "--node", "a@h"], "--confirm-own"),
        (["--target", "example.org:9100", "--node", "a@h"], "--confirm-own"),
        (["--target", "127.0.0.1:1", "--node", "a@h", "--ca", __file__], "--ca-key"),
        (["--target", "127.0.0.1:1", "--node", "a@h", "--key", __file__], "--certificate"),
        (["--target", "127.0.0.1:1", "--node", "a@h", "--ca", "/nowhere"], "no such file"),
    ],
)
def test_wrong_usage_is_64_and_one_line(arguments: list[str], about: str) -> None:
    said = attack(*arguments)
    assert (said.returncode, said.stdout) == (64, "")
    assert about in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_target_where_nobody_listens_is_69() -> None:
    said = attack("--target", "127.0.0.1:1", "--node", "a@127.0.0.1")
    assert said.returncode == 69
    assert said.stderr.count("\n") == 1


@pytest.mark.otp
@pytest.mark.skipif(not OTPS, reason="no OTP release is here")
def test_nobody_gets_into_the_carrier_and_the_document_says_so() -> None:
    oldest = str(min(otp.release for otp in OTPS))
    chosen = ("--attack", "no_certificate", "--attack", "race_spawn")
    said = attack("--json", "--attempts", "5", "--otp", oldest, *chosen)
    assert said.returncode == 0, said.stderr
    rows = json.loads(said.stdout)
    assert [row["attack"] for row in rows] == ["no_certificate", "race_spawn"]
    for row in rows:
        assert tuple(row) == KEYS
        assert (row["carrier"], row["otp"]) == ("distsec", oldest)
        assert (row["tried"], row["executed"], row["nodeups"], row["event_seen"]) == (5, 0, 0, 5)
        assert row["median_refusal_ms"] > 0
    assert [row["reason"] for row in rows] == ["certificate_required", "name_not_in_certificate"]


@pytest.fixture
def plain(otp: Otp, beams: Path) -> Iterator[Plain]:
    target = Plain(otp, beams)
    try:
        yield target
    finally:
        target.close()


def test_somebodys_own_node_is_attacked_from_outside_and_whoever_gets_in_is_1(
    plain: Plain, tmp_path: Path
) -> None:
    """Nothing is asked of the victim: only its address, and what an insider has."""
    insider = plain.leaf("b@127.0.0.1")
    said = attack(*of(plain.address, insider, cookie_file(tmp_path, COOKIE)), "--attack", "race_spawn")
    assert said.returncode == 1, said.stderr
    assert "left out" not in said.stdout
    assert plain.nodeups() == 5


@pytest.fixture
def guarded(otp: Otp, beams: Path) -> Iterator[Guarded]:
    target = Guarded(otp, beams, "distsec")
    try:
        yield target
    finally:
        target.close()


def test_an_operators_own_cluster_withstands_it_and_its_events_are_counted(
    guarded: Guarded, tmp_path: Path
) -> None:
    insider = guarded.leaf("b@127.0.0.1")
    cookie = cookie_file(tmp_path, guarded.cookie("ghost@127.0.0.1"))
    chosen = ("--attack", "race_spawn", "--attack", "expired")
    config = ("--config", guarded.scene.cluster.config)
    said = attack("--json", *of(guarded.address, insider, cookie), *chosen, *config)
    assert said.returncode == 0, said.stderr
    (row,) = json.loads(said.stdout)  # the other one takes the CA's key
    assert (row["tried"], row["executed"], row["event_seen"]) == (5, 0, 5)
    assert row["reason"] == "name_not_in_certificate"
    assert "expired                 left out: it takes ca-key" in said.stderr
    guarded.scene.expect_nothing_happened()


def of(address: tuple[str, int], insider: Leaf, cookie: Path) -> tuple[str | Path, ...]:
    return (
        *("--target", "{}:{}".format(*address), "--node", "a@127.0.0.1", "--attempts", "5"),
        *("--certificate", insider.certificate, "--key", insider.key, "--listed", "b@127.0.0.1"),
        *("--cookie-file", cookie),
    )


def cookie_file(directory: Path, cookie: str) -> Path:
    path = directory / "cookie"
    path.write_text(cookie + "\n")
    return path


# ---- the board


ROW = Row("insider_claims_unlisted", "distsec", "25", 10000, 0, 0, 10000, "name_not_in_certificate", 12.3)


def test_the_table_fits_80_columns() -> None:
    told = [*heading("distsec", "25").splitlines(), line(ROW)]
    told.append(line(Row("a" * 23, "x", "29", 999999, 999999, 999999, 999999, "many, " * 20, 123456.7)))
    told.append(line(Row("nobody_can_be_asked", "x", "29", 1, 0, None, None, None, None)))
    assert max(map(len, told)) <= COLUMNS
    assert told[-1].split() == ["nobody_can_be_asked", "1", "0", "-", "-", "-", "-"]


def test_the_page_shows_who_got_in() -> None:
    rows = [ROW, Row("insider_claims_unlisted", "RabbitMQ", "25", 500, 500, 500, 0, None, None)]
    text = page(
        rows, {"insider_claims_unlisted": "a title"}, date="2026-01-31", versions="V.", commands=["x"]
    )
    assert "| a title | 0/10000 | **500/500** |" in text
    assert "| `insider_claims_unlisted` | 10000 | 10000 | name_not_in_certificate | 12.3 |" in text
