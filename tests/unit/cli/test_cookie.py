"""`distsec cookie` as transcripts."""

from __future__ import annotations

import json

import pytest

from distsec.errors import NotAcknowledged
from tests.unit.cli.conftest import Type
from tests.unit.control.fake_orchestrator import NODES, Running


def test_a_rotation_says_who_has_it_and_which_links_were_proven(orchestrator: Running, type_in: Type) -> None:
    result = type_in("cookie", "rotate")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "the cookies are rotated: acknowledged by 3 nodes, 3 links proven with the new ones\n"
    )
    assert orchestrator.fake.asked == [("rotate cookies", False)]


def test_who_is_left_without_new_cookies_is_named(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.cookies.elsewhere = ["far@10.0.0.9"]
    result = type_in("cookie", "rotate", "--elsewhere")
    assert result.stdout.endswith("refused until they are brought their new cookies: far@10.0.0.9\n")
    assert orchestrator.fake.asked == [("rotate cookies", True)]


def test_giving_up_is_said_to_be_that(orchestrator: Running, type_in: Type) -> None:
    assert type_in("cookie", "rotate", "--give-up").stdout == (
        "the new cookies are given up: acknowledged by 3 nodes\n"
    )
    assert orchestrator.fake.asked == [("give up cookies",)]
    assert type_in("cookie", "rotate", "--give-up", "--elsewhere").exit_code == 64


def test_one_that_is_not_finished_says_how_to_go_on(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.error = NotAcknowledged("not yet", missing=[NODES[0]], do="run it again")
    result = type_in("cookie", "rotate")
    assert (result.exit_code, result.stderr) == (75, "distsec: not yet; run it again\n")


@pytest.mark.parametrize(
    ("seconds", "age"), [(3 * 86_400 + 5, "3 days"), (86_400, "1 day"), (4000, "1 h 6 min")]
)
def test_the_age_is_told_for_people(orchestrator: Running, type_in: Type, seconds: int, age: str) -> None:
    orchestrator.fake.cookies.state["age_seconds"] = seconds
    assert type_in("cookie", "status").stdout == (
        f"age      {age}\nphase    idle: every node dials with, and takes, one cookie for each peer\n"
    )


def test_a_rotation_that_was_left_says_how_to_go_on(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.cookies.state["phase"] = "using"
    assert type_in("cookie", "status").stdout.endswith("next     `distsec cookie rotate` goes on from here\n")
    orchestrator.fake.cookies.state |= {"under_way": True, "waiting": [NODES[1]]}
    assert type_in("cookie", "status").stdout.endswith(f"waiting  {NODES[1]}\n")


def test_the_status_as_json_is_the_document(orchestrator: Running, type_in: Type) -> None:
    document = json.loads(type_in("cookie", "status", "--json").stdout)
    assert document == {"schema": 1, **orchestrator.fake.cookies.state}


def test_the_group_alone_is_answered_with_its_help(type_in: Type) -> None:
    result = type_in("cookie")
    assert (result.exit_code, result.stdout) == (64, "")
    assert result.stderr.startswith("Usage: distsec cookie") and "rotate" in result.stderr


@pytest.mark.parametrize("subcommand", ["rotate", "status"])
def test_without_an_orchestrator_it_says_how_to_start_it(type_in: Type, subcommand: str) -> None:
    result = type_in("cookie", subcommand)
    assert result.exit_code == 69 and "distsec run" in result.stderr
