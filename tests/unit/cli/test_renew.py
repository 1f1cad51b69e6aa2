"""`distsec certs renew` as it is typed, with an orchestrator that answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distsec.errors import CaKeyUnavailable
from tests.unit.cli.conftest import Type
from tests.unit.control.fake_orchestrator import NODES, Running


def asked(orchestrator: Running) -> list[tuple[Any, ...]]:
    """Without the looks at how far it has come."""
    return [call for call in orchestrator.fake.asked if call[0] != "status"]


def test_each_node_says_what_it_serves(orchestrator: Running, type_in: Type) -> None:
    done = type_in("certs", "renew", NODES[1], NODES[0])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == (
        f"{NODES[1]} serves serial 0d, 2 links proven with it\n"
        f"{NODES[0]} serves serial 0d, 2 links proven with it\n"
    )
    assert asked(orchestrator) == [("renew", [NODES[1], NODES[0]], False)]


def test_all_nodes_and_their_links_remade(orchestrator: Running, type_in: Type) -> None:
    done = type_in("certs", "renew", "--all", "--recycle", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["done"] is True
    assert asked(orchestrator) == [("renew", list(NODES), True)]


def test_who_is_not_done_is_named_with_the_reason(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.renewal.why = {NODES[1]: "its port serves serial 0c, and should serve 0d"}
    done = type_in("certs", "renew", "--all")
    assert done.exit_code == 70
    assert done.stderr == (
        f"distsec: {NODES[1]} is not renewed: its port serves serial 0c, and should serve 0d\n"
    )
    assert len(done.stdout.splitlines()) == 2


def test_a_link_that_is_not_proven_is_another_matter_than_a_certificate_that_is_not_served(
    orchestrator: Running, type_in: Type
) -> None:
    orchestrator.fake.renewal.why = {NODES[0]: "link with x: handshake_timeout"}
    orchestrator.fake.renewal.fields = {"served": True}
    done = type_in("certs", "renew", NODES[0])
    assert done.exit_code == 70
    assert done.stderr == (
        f"distsec: {NODES[0]} serves serial 0d, and not all is well: link with x: handshake_timeout\n"
    )


def test_a_link_that_keeps_its_certificate_is_a_warning(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.renewal.fields = {"links_left": {"x\x1b[2J": "inet_tls proves no link anew"}}
    done = type_in("certs", "renew", NODES[0])
    assert done.exit_code == 0
    assert "\x1b" not in done.stderr
    assert f"warning: the link of {NODES[0]} with x" in done.stderr


def test_a_node_that_does_not_run_has_it_from_its_next_start_on(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.renewal.fields = {"running": False, "served": False}
    done = type_in("certs", "renew", NODES[0])
    assert done.stdout == f"{NODES[0]} has serial 0d from its next start on\n"


def test_without_the_cas_key_the_way_out_is_said(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.error = CaKeyUnavailable("the CA's key is sealed", do="give it with --passphrase-file")
    done = type_in("certs", "renew", "--all")
    assert done.exit_code == 66
    assert done.stderr == "distsec: the CA's key is sealed; give it with --passphrase-file\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a node, or use --all"),
        (("--all", NODES[0]), "name nodes or use --all, not both"),
        (("nobody@127.0.0.1",), "nobody@127.0.0.1: no such managed node"),
        (("no name",), "is no node name"),
    ],
)
def test_what_cannot_be_renewed_is_said_before_anything_is_done(
    orchestrator: Running, type_in: Type, words: tuple[str, ...], said: str
) -> None:
    done = type_in("certs", "renew", *words)
    assert done.exit_code in {64, 65, 68}
    assert said in done.stderr
    assert asked(orchestrator) == []
