"""What is known of nodes that other orchestrators run, and what a rotation here may do without a word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distsec.core.rotation import Command
from distsec.core.wanted import Overlay
from distsec.model.cluster import Carrier, ClusterSpec, Mode, NodeSpec
from distsec.model.hosts import HostNode, HostSpec
from distsec.model.names import NodeName
from distsec.supervisor.difference import difference
from distsec.supervisor.elsewhere import not_ready, of_no_host, run_elsewhere

OLD, NEW = "0" * 64, "1" * 64
A, B, C, D = (NodeName.parse(f"{name}@192.0.2.1") for name in "abcd")
HOST = HostSpec(
    name="there",
    signing_key="2" * 64,
    agreement_key="3" * 64,
    serial=7,
    issued_at=7,
    digest="4" * 64,
    nodes=(HostNode(B, "192.0.2.2", 9100, OLD), HostNode(C, "192.0.2.2", 9101, NEW)),
    epochs=((str(B), 2),),
    trusts=(OLD,),
)
SPEC = ClusterSpec(
    name="shop",
    config_file="/etc/distsec.toml",
    state_dir="/var/lib/distsec",
    mode=Mode.PRODUCTION,
    carrier=Carrier.DISTSEC,
    allowed_nodes=(A, B, C, D),
    nodes=(NodeSpec(A, ("erl",)),),
    hosts=(HOST,),
)
MANAGED = {str(A)}


def test_whoever_is_listed_and_not_managed_is_elsewhere_unless_denied() -> None:
    assert run_elsewhere(SPEC, Overlay(), MANAGED) == [str(B), str(C), str(D)]
    assert run_elsewhere(SPEC, Overlay(deny=frozenset({str(C)})), MANAGED) == [str(B), str(D)]


def test_who_was_imported_has_cookies_that_a_rotation_here_leaves_alone() -> None:
    assert of_no_host(SPEC, Overlay(), MANAGED) == [str(D)]


@pytest.mark.parametrize(
    ("command", "trusts", "left"),
    [
        (Command.PREPARE, (OLD,), []),
        (Command.ROLLBACK, (OLD,), []),
        (Command.ACTIVATE, (OLD,), [str(B), str(C), str(D)]),
        (Command.ACTIVATE, (OLD, NEW), [str(D)]),
        (Command.PRUNE, (OLD, NEW), [str(B), str(D)]),
    ],
)
def test_a_step_of_a_new_ca_waits_for_what_the_other_host_said_last(
    command: Command, trusts: tuple[str, ...], left: list[str]
) -> None:
    spec = replace(SPEC, hosts=(replace(HOST, trusts=trusts),))
    names = run_elsewhere(spec, Overlay(), MANAGED)
    assert not_ready(spec, names, command, NEW) == left


def test_where_no_new_ca_is_known_nobody_is_ready() -> None:
    names = [str(B), str(C)]
    for command in (Command.ACTIVATE, Command.PRUNE):
        assert not_ready(SPEC, names, command, None) == names


def test_another_document_of_the_same_nodes_is_a_change_of_the_policy() -> None:
    other = replace(SPEC, hosts=(replace(HOST, agreement_key="5" * 64),))
    assert not difference(SPEC, SPEC).policy_changed
    assert difference(SPEC, other).policy_changed


def test_a_host_counts_how_often_it_re_keyed_a_node() -> None:
    assert (HOST.epoch(str(B)), HOST.epoch(str(C))) == (2, 0)
