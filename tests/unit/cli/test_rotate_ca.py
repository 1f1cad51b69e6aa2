"""`distsec certs rotate-ca` as transcripts."""

from __future__ import annotations

import json

import pytest

from distsec.errors import NotAcknowledged
from tests.unit.cli.conftest import Running, Type
from tests.unit.control.fake_orchestrator import NODES


@pytest.mark.parametrize("word", ["prepare", "activate", "prune", "rollback"])
def test_each_step_says_what_it_has_reached_and_what_comes_next(
    orchestrator: Running, type_in: Type, word: str
) -> None:
    orchestrator.fake.authority.answer |= {"phase": f"{word}d"}
    result = type_in("certs", "rotate-ca", word)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{word}d: every node" if word != "rollback" else "rollbackd: the old CA")
    assert "(3 nodes)\nnext: `distsec certs rotate-ca prune` (or `rollback`)\n" in result.stdout
    assert orchestrator.fake.asked == [("rotate the CA", word, False)]


def test_the_end_of_a_rotation_has_no_next_step(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.authority.answer |= {"phase": "idle", "next": None}
    assert "next" not in type_in("certs", "rotate-ca", "prune").stdout


def test_who_has_not_read_its_files_and_who_is_not_run_here_is_named(
    orchestrator: Running, type_in: Type
) -> None:
    orchestrator.fake.authority.answer |= {
        "phase": "idle", "next": None, "behind": {NODES[0]: "its agent does not answer"},
        "elsewhere": ["far@10.0.0.9"],
    }  # fmt: skip
    result = type_in("certs", "rotate-ca", "rollback")
    assert f"warning: {NODES[0]} has the files, and has not read them: its agent" in result.stderr
    assert "not run here: far@10.0.0.9; bring them `distsec certs export --ca`" in result.stdout


def test_only_steps_that_could_lock_somebody_out_take_elsewhere(orchestrator: Running, type_in: Type) -> None:
    assert type_in("certs", "rotate-ca", "activate", "--elsewhere").exit_code == 0
    assert type_in("certs", "rotate-ca", "prune", "--elsewhere").exit_code == 0
    assert orchestrator.fake.asked == [("rotate the CA", "activate", True), ("rotate the CA", "prune", True)]
    assert type_in("certs", "rotate-ca", "rollback", "--elsewhere").exit_code == 64


def test_whoever_holds_a_step_up_is_named_with_what_to_do(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.error = NotAcknowledged("it is preparing: b: silent", missing=("b",), do="stop it")
    result = type_in("certs", "rotate-ca", "prepare")
    assert (result.exit_code, result.stderr) == (75, "distsec: it is preparing: b: silent; stop it\n")


def test_status_fits_a_terminal_and_its_document_is_one_line(orchestrator: Running, type_in: Type) -> None:
    result = type_in("certs", "rotate-ca", "status")
    assert result.stdout.startswith("phase  prepared: every node trusts both CAs; the old one issues\n")
    assert "next   `distsec certs rotate-ca activate`" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert f"{NODES[0]}  yes   current         current, next" in result.stdout
    document = json.loads(type_in("certs", "rotate-ca", "status", "--json").stdout)
    assert (document["schema"], document["phase"], document["next"]) == (1, "prepared", "activate")
    assert [each["role"] for each in document["authorities"]] == ["current", "next"]
