"""Whether a guard is in force: each difference on its own, and the echoes of our own probes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distsec.beam.messages import Listener as AgentListener
from distsec.beam.messages import Snapshot
from distsec.beam.proc import Listener
from distsec.model.policy import Direction, Reason
from distsec.supervisor.echoes import REMEMBERED_SECONDS, Echoes, EchoRecord
from distsec.supervisor.proof import Expected, Judgement, judge

BEAM = 42
EXPECTED = Expected("inet_tls", "127.0.0.1", 9100, "a" * 64, "b" * 64)
SNAPSHOT = Snapshot(
    node="a@127.0.0.1",
    os_pid=BEAM,
    otp="27",
    launch="0" * 32,
    started_ms=0,
    carrier="inet_tls",
    listeners=(AgentListener("127.0.0.1", 9100),),
    optfile_digest="a" * 64,
    policy_generation=1,
    policy_digest="b" * 64,
    links=(),
)
SOCKETS = (Listener(BEAM, "127.0.0.1", 9100), Listener(BEAM, "0.0.0.0", 8080))


def test_all_that_was_written_is_proven() -> None:
    assert judge(EXPECTED, SNAPSHOT, SOCKETS, BEAM).judgement is Judgement.PROVEN


@pytest.mark.parametrize(
    "difference",
    [
        {"carrier": "inet_tcp"},
        {"carrier": "inet_tls,inet_tcp"},
        {"otp": "24"},
        {"otp": "x"},
        {"optfile_digest": "c" * 64},
        {"optfile_digest": None},
        {"listeners": (AgentListener("0.0.0.0", 9100),)},
        {"listeners": (AgentListener("127.0.0.1", 9101),)},
        {"listeners": (AgentListener("127.0.0.1", 9100), AgentListener("127.0.0.1", 9100))},
    ],
)
def test_each_difference_of_the_hello_disproves(difference: dict[str, object]) -> None:
    verdict = judge(EXPECTED, replace(SNAPSHOT, **difference), SOCKETS, BEAM)  # type: ignore[arg-type]
    assert verdict.judgement is Judgement.DISPROVEN
    assert verdict.what


@pytest.mark.parametrize(
    "sockets",
    [
        [Listener(BEAM, "0.0.0.0", 9100)],
        [Listener(BEAM, "127.0.0.1", 9100), Listener(BEAM, "10.0.0.1", 9100)],
        [Listener(BEAM + 1, "127.0.0.1", 9100)],
    ],
)
def test_a_socket_elsewhere_or_of_another_process_disproves(sockets: list[Listener]) -> None:
    assert judge(EXPECTED, SNAPSHOT, sockets, BEAM).judgement is Judgement.DISPROVEN


@pytest.mark.parametrize(
    ("snapshot", "sockets"),
    [
        (SNAPSHOT, ()),
        (replace(SNAPSHOT, carrier="", listeners=()), ()),
        (replace(SNAPSHOT, policy_digest=None), SOCKETS),
        (replace(SNAPSHOT, policy_digest="c" * 64), SOCKETS),
    ],
)
def test_what_may_still_come_is_unclear_and_never_proven(
    snapshot: Snapshot, sockets: tuple[Listener, ...]
) -> None:
    assert judge(EXPECTED, snapshot, sockets, BEAM).judgement is Judgement.UNCLEAR


def test_addresses_are_compared_as_addresses() -> None:
    expected = replace(EXPECTED, address="::1")
    snapshot = replace(SNAPSHOT, listeners=(AgentListener("0:0:0:0:0:0:0:1", 9100),))
    assert judge(expected, snapshot, [Listener(BEAM, "::1", 9100)], BEAM).judgement is Judgement.PROVEN


CERTIFICATE = (Direction.IN, Reason.CERTIFICATE_REQUIRED)


def test_a_probe_has_one_echo_and_only_from_its_own_address() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    assert not echoes.absorbs(*CERTIFICATE, "127.0.0.1:2", 1.0)
    assert echoes.absorbs(*CERTIFICATE, "127.0.0.1:1", 1.0)
    assert not echoes.absorbs(*CERTIFICATE, "127.0.0.1:1", 1.0)


def test_where_the_node_names_no_address_a_probe_pays_for_one_refusal() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    assert echoes.absorbs(*CERTIFICATE, None, 1.0)
    assert not echoes.absorbs(*CERTIFICATE, None, 1.0)


def test_where_every_refusal_names_its_address_nothing_is_taken_off_for_one_that_does_not() -> None:
    echoes = Echoes()
    echoes.addressed = True
    echoes.expect("127.0.0.1:1", 0.0)
    assert not echoes.absorbs(*CERTIFICATE, None, 1.0)
    assert not echoes.absorbs(*CERTIFICATE, "127.0.0.1:2", 1.0)
    assert echoes.absorbs(*CERTIFICATE, "127.0.0.1:1", 1.0)


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
        assert [echoes.absorbs(*event, 1.0) for event in events] == [True, True]
        assert not echoes.absorbs(*CERTIFICATE, None, 1.0)


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
    assert not echoes.absorbs(direction, reason, "127.0.0.1:1", now)


def test_counts_lose_each_echo_once_whichever_comes_first() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    assert echoes.taken_off({CERTIFICATE: 1}, 1.0) == {}  # counted before it is reported
    echoes.absorbs(*CERTIFICATE, "127.0.0.1:1", 2.0)
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
    assert echoes.absorbs(*CERTIFICATE, "127.0.0.1:1", 1.0)
    successor = Echoes()
    successor.addressed = True
    successor.begin_launch(echoes.record(1.0), 100.0)
    assert successor.taken_off({CERTIFICATE: 2}, 100.5) == {}
    assert not successor.absorbs(*CERTIFICATE, "127.0.0.1:1", 101.0)
    assert successor.absorbs(*CERTIFICATE, "127.0.0.1:2", 101.0)
    assert successor.taken_off({CERTIFICATE: 3}, 101.0) == {CERTIFICATE: 1}


def test_what_a_witness_was_refused_for_is_kept_and_alarms_nobody() -> None:
    """A certificate that we show to see it refused: whatever the reason is, once, and from its address."""
    echoes = Echoes()
    echoes.expect_proof("127.0.0.1:1", 0.0)
    assert echoes.refused_for("127.0.0.1:1") is None
    assert not echoes.absorbs(Direction.IN, Reason.UNKNOWN_CA, "127.0.0.1:2", 0.0)
    assert not echoes.absorbs(Direction.OUT, Reason.UNKNOWN_CA, "127.0.0.1:1", 0.0)
    assert not echoes.absorbs(Direction.IN, Reason.UNKNOWN_CA, None, 0.0)
    assert echoes.absorbs(Direction.IN, Reason.UNKNOWN_CA, "127.0.0.1:1", 0.0)
    assert echoes.refused_for("127.0.0.1:1") == "unknown_ca"
    assert not echoes.absorbs(Direction.IN, Reason.NOT_ALLOWED, "127.0.0.1:1", 0.0), "that is somebody else"
    assert echoes.refused_for("127.0.0.1:1") == "unknown_ca"
    assert echoes.taken_off({(Direction.IN, Reason.UNKNOWN_CA): 3}, 0.0) == {
        (Direction.IN, Reason.UNKNOWN_CA): 2
    }
    echoes.expect_proof("127.0.0.1:3", 0.0)
    assert not echoes.absorbs(Direction.IN, Reason.UNKNOWN_CA, "127.0.0.1:3", REMEMBERED_SECONDS + 1)


def test_what_was_absorbed_without_an_address_is_not_expected_again() -> None:
    echoes = Echoes()
    echoes.expect("127.0.0.1:1", 0.0)
    echoes.expect("127.0.0.1:2", 0.0)
    assert echoes.absorbs(*CERTIFICATE, None, 1.0)
    assert len(echoes.record(1.0).expected) == 1
    assert echoes.absorbs(*CERTIFICATE, None, 1.0)
    assert echoes.record(1.0).expected == ()
    successor = Echoes()
    successor.begin_launch(echoes.record(1.0), 2.0)
    assert not successor.absorbs(*CERTIFICATE, None, 3.0)
