"""Whether a guard is in force: each difference on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distsec.beam.messages import Listener as AgentListener
from distsec.beam.messages import Snapshot
from distsec.beam.proc import Listener
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
