"""Refusals that our own probes cause: which they are, and what the next orchestrator knows of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from distsec.model.policy import Direction, Reason
from distsec.pki.store import Store
from distsec.supervisor import echo_file
from distsec.supervisor.echoes import MAX_REMEMBERED, REMEMBERED_SECONDS, Echoes, EchoRecord

CERTIFICATE = (Direction.IN, Reason.CERTIFICATE_REQUIRED)

INFINITE = '{"launch": "launch", "absorbed": {}, "sequences": [1e999]}'

_sequences = itertools.count(1)


def absorbs(echoes: Echoes, direction: Direction, reason: Reason, address: str | None, now: float) -> bool:
    """Of a refusal that was not told before."""
    return echoes.absorbs(next(_sequences), direction, reason, address, now)


def test_a_probe_has_one_echo_and_only_from_its_own_address() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    assert not absorbs(echoes, *CERTIFICATE, "127.0.0.1:2", 1.0)
    assert absorbs(echoes, *CERTIFICATE, "127.0.0.1:1", 1.0)
    assert not absorbs(echoes, *CERTIFICATE, "127.0.0.1:1", 1.0)


def test_where_the_node_names_no_address_a_probe_pays_for_one_refusal() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    assert absorbs(echoes, *CERTIFICATE, None, 1.0)
    assert not absorbs(echoes, *CERTIFICATE, None, 1.0)


def test_where_every_refusal_names_its_address_nothing_is_taken_off_for_one_that_does_not() -> None:
    echoes = Echoes()
    echoes.addressed = True
    echoes.expect("127.0.0.1:1", 0.0)
    assert not absorbs(echoes, *CERTIFICATE, None, 1.0)
    assert not absorbs(echoes, *CERTIFICATE, "127.0.0.1:2", 1.0)
    assert absorbs(echoes, *CERTIFICATE, "127.0.0.1:1", 1.0)


def test_a_probes_two_refusals_are_both_absorbed_whichever_of_them_names_its_address() -> None:
    version = (Direction.IN, Reason.PROTOCOL_VERSION)
    for events in (
        [(*version, None), (*CERTIFICATE, "127.0.0.1:1")],
        [(*CERTIFICATE, None), (*version, "127.0.0.1:2")],
        [(*version, "127.0.0.1:2"), (*CERTIFICATE, "127.0.0.1:1")],
        [(*CERTIFICATE, None), (*version, None)],
    ):
        echoes = Echoes()
        echoes.expect("127.0.0.1:1", 0.0)
        echoes.expect("127.0.0.1:2", 0.0)
        assert [absorbs(echoes, *event, 1.0) for event in events] == [True, True]
        assert not absorbs(echoes, *CERTIFICATE, None, 1.0)


@pytest.mark.parametrize(
    ("direction", "reason", "now"),
    [
        (Direction.OUT, Reason.CERTIFICATE_REQUIRED, 1.0),
        (Direction.IN, Reason.NOT_ALLOWED, 1.0),
        (Direction.IN, Reason.BAD_COOKIE, 1.0),
        (Direction.IN, Reason.CERTIFICATE_REQUIRED, REMEMBERED_SECONDS),
    ],
)
def test_what_no_probe_causes_or_comes_too_late_is_no_echo(
    direction: Direction, reason: Reason, now: float
) -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    assert not absorbs(echoes, direction, reason, "127.0.0.1:1", now)


def test_counts_lose_each_echo_once_whichever_comes_first() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    assert echoes.taken_off({CERTIFICATE: 1}, 1.0) == {}  # counted before it is reported
    absorbs(echoes, *CERTIFICATE, "127.0.0.1:1", 2.0)
    assert echoes.taken_off({CERTIFICATE: 3}, 3.0) == {CERTIFICATE: 2}
    echoes.expect("127.0.0.1:2", 4.0)
    late = 4.0 + REMEMBERED_SECONDS
    assert echoes.taken_off({CERTIFICATE: 3}, late) == {CERTIFICATE: 2}  # never seen: not hidden
    successor = Echoes()
    successor.begin_launch(echoes.record(late), late)
    assert successor.taken_off({CERTIFICATE: 3}, late) == {CERTIFICATE: 2}
    echoes.begin_launch(EchoRecord(), late)
    assert echoes.taken_off({CERTIFICATE: 3}, late) == {CERTIFICATE: 3}


def test_a_knock_whose_echo_is_yet_to_come_is_the_next_orchestrators_too() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    echoes.expect("127.0.0.1:2", 0.0)
    assert absorbs(echoes, *CERTIFICATE, "127.0.0.1:1", 1.0)
    successor = Echoes()
    successor.addressed = True
    successor.begin_launch(echoes.record(1.0), 100.0)
    assert successor.taken_off({CERTIFICATE: 2}, 100.5) == {}
    assert not absorbs(successor, *CERTIFICATE, "127.0.0.1:1", 101.0)
    assert absorbs(successor, *CERTIFICATE, "127.0.0.1:2", 101.0)
    assert successor.taken_off({CERTIFICATE: 3}, 101.0) == {CERTIFICATE: 1}


def test_what_a_witness_was_refused_for_is_kept_and_alarms_nobody() -> None:
    """A certificate that we show to see it refused: whatever the reason is, once, and from its address."""
    echoes = Echoes()
    echoes.expect_proof("127.0.0.1:1", 0.0)
    assert echoes.refused_for("127.0.0.1:1") is None
    assert not absorbs(echoes, Direction.IN, Reason.UNKNOWN_CA, "127.0.0.1:2", 0.0)
    assert not absorbs(echoes, Direction.OUT, Reason.UNKNOWN_CA, "127.0.0.1:1", 0.0)
    assert not absorbs(echoes, Direction.IN, Reason.UNKNOWN_CA, None, 0.0)
    assert absorbs(echoes, Direction.IN, Reason.UNKNOWN_CA, "127.0.0.1:1", 0.0)
    assert echoes.refused_for("127.0.0.1:1") == "unknown_ca"
    assert not absorbs(echoes, Direction.IN, Reason.NOT_ALLOWED, "127.0.0.1:1", 0.0), "that is somebody else"
    assert echoes.refused_for("127.0.0.1:1") == "unknown_ca"
    assert echoes.taken_off({(Direction.IN, Reason.UNKNOWN_CA): 3}, 0.0) == {
        (Direction.IN, Reason.UNKNOWN_CA): 2
    }
    echoes.expect_proof("127.0.0.1:3", 0.0)
    assert not absorbs(echoes, Direction.IN, Reason.UNKNOWN_CA, "127.0.0.1:3", REMEMBERED_SECONDS + 1)


def test_what_was_absorbed_without_an_address_is_not_expected_again() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    echoes.expect("127.0.0.1:2", 0.0)
    assert absorbs(echoes, *CERTIFICATE, None, 1.0)
    assert len(echoes.record(1.0).expected) == 1
    assert absorbs(echoes, *CERTIFICATE, None, 1.0)
    assert echoes.record(1.0).expected == ()
    successor = Echoes()
    successor.begin_launch(echoes.record(1.0), 2.0)
    assert not absorbs(successor, *CERTIFICATE, None, 3.0)


def test_what_the_killed_orchestrator_absorbed_and_did_not_acknowledge_is_told_again_and_alarms_nobody() -> (
    None
):
    echoes = Echoes()
    for address in ("127.0.0.1:1", "127.0.0.1:2"):
        echoes.expect(address, 0.0)
    assert echoes.absorbs(7, *CERTIFICATE, None, 1.0)
    assert echoes.absorbs(8, *CERTIFICATE, "127.0.0.1:2", 1.0)
    successor = Echoes()
    successor.begin_launch(echoes.record(1.0), 100.0)
    assert successor.absorbs(7, *CERTIFICATE, None, 101.0)
    assert successor.absorbs(8, *CERTIFICATE, "127.0.0.1:2", 101.0)
    assert not successor.absorbs(9, *CERTIFICATE, None, 101.0)
    assert successor.taken_off({CERTIFICATE: 3}, 101.0) == {CERTIFICATE: 1}
    successor.begin_launch(EchoRecord(), 102.0)
    assert not successor.absorbs(7, *CERTIFICATE, None, 103.0), "another VM counts from 1"


def test_the_numbers_of_what_was_absorbed_are_bounded() -> None:
    echoes = Echoes()
    for sequence in range(1, MAX_REMEMBERED + 2):
        echoes.expect(f"127.0.0.1:{sequence}", 0.0)
        assert echoes.absorbs(sequence, *CERTIFICATE, f"127.0.0.1:{sequence}", 1.0)
    assert echoes.record(1.0).sequences == tuple(range(2, MAX_REMEMBERED + 2))


def test_what_the_next_orchestrator_must_know_of_probes_is_kept_in_a_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.ensure_directory("nodes/a")
    record = EchoRecord({"certificate_required": 2}, ("127.0.0.1:3",), (7, 8))
    echo_file.save(store, "nodes/a", "launch", record)
    assert echo_file.load(store, "nodes/a", "launch") == record
    assert echo_file.load(store, "nodes/a", "another") == EchoRecord()
    for broken in ('{"launch": "launch", "absorbed": {}, "sequences": ["x"]}', "[", "[]", INFINITE):
        store.path(f"nodes/a/{echo_file.PROBES}").write_text(broken)
        assert echo_file.load(store, "nodes/a", "launch") == EchoRecord()


def test_while_an_echo_is_still_to_come_it_is_counted_under_none_of_the_reasons_that_it_may_have() -> None:
    """What is shown never decreases, and the node has counted strangers that were refused for the same."""
    version, proof = (Direction.IN, Reason.PROTOCOL_VERSION), (Direction.IN, Reason.UNKNOWN_CA)
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    echoes.expect_proof("127.0.0.1:2", 0.0)
    counted = {CERTIFICATE: 44, version: 7, proof: 3}
    shown = echoes.taken_off(counted, 1.0)
    assert (shown[CERTIFICATE], shown[version], shown[proof]) == (42, 5, 2)
    assert absorbs(echoes, *version, "127.0.0.1:1", 2.0)
    assert absorbs(echoes, *proof, "127.0.0.1:2", 2.0)
    assert echoes.taken_off(counted, 3.0) == {CERTIFICATE: 44, version: 6, proof: 2}
