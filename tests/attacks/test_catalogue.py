"""Every attack of the catalogue, 500 times on each release, on a managed node with the carrier `distsec`.

Nothing of it is executed, no link comes up, and each attempt leaves exactly one event that says what it was.
DISTSEC_ATTEMPTS is another number of attempts.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from distsec.control.client import ControlClient
from tests.attacks.catalogue import BY_NAME, CATALOGUE
from tests.attacks.catalogue.attack import Attack, Outcome, Try, carry_out
from tests.attacks.scene import VICTIM
from tests.attacks.targets.guarded import Guarded
from tests.releases import Otp
from tests.system.cluster import Cluster
from tests.waiting import wait_until

ATTEMPTS = int(os.environ.get("DISTSEC_ATTEMPTS", "500"))
SECONDS = 600

COUNTED_SECONDS = 60.0
"""Until the victim has counted the last attempt: it ends the connection first (ssl closes the socket, and
then the carrier hears why), by up to a millisecond on a quiet core and by whatever it waits for a busy one.
"""

PARTLY_ANONYMOUS = frozenset({"truncated", "replayed"})
"""Some of their attempts end before, and some after, a certificate was shown."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS)]


@pytest.fixture(scope="module")
def guarded(otp: Otp, beams: Path) -> Iterator[Guarded]:
    target = Guarded(otp, beams, "distsec")
    try:
        yield target
    finally:
        target.close()


def carried_out(guarded: Guarded, attack: Attack, attempts: int = ATTEMPTS) -> Outcome:
    guarded.begin()
    return carry_out(attack, guarded, attempts, seconds=SECONDS / 2)


class Counting(Protocol):
    """What is needed of Guarded."""

    def evidence(self) -> Counter[str]: ...


def counted(victim: Counting, tried: int, seconds: float = COUNTED_SECONDS) -> Counter[str]:
    """What the victim has counted, by reason, as soon as it has counted so many; else what there is then."""
    seen: Counter[str] = Counter()

    def all_there() -> bool:
        nonlocal seen
        seen = victim.evidence()
        return seen.total() >= tried

    with suppress(AssertionError):  # it is the caller's to judge
        wait_until(all_there, "the victim to have counted all", seconds, poll_seconds=0.05)
    return seen


def untold(outcome: Outcome, guarded: Guarded, began: float) -> list[Try]:
    """The attempts that no event tells of; one without an address never had a connection."""
    told = {each["address"] for each in told_since(guarded, began)}
    return [each for each in outcome.tries if each.address not in told]


def told_since(guarded: Guarded, began: float) -> list[dict[str, Any]]:
    """What the operator was told of refusals by the victim, one by one."""
    events = ControlClient(str(guarded.scene.cluster.state / "control.sock")).events(since=began)["events"]
    return [each for each in events if each["node"] == VICTIM and each.get("result") == "deny"]


def events_since(guarded: Guarded, began: float, least: int) -> list[dict[str, Any]]:
    """As soon as there are so many."""

    def told() -> list[dict[str, Any]]:
        own = told_since(guarded, began)
        return own if len(own) >= least else []

    found: list[dict[str, Any]] = guarded.scene.cluster.wait(told, f"{least} events")
    return found


OF_THE_VICTIM = [attack for attack in CATALOGUE if not attack.counts_links]


@pytest.mark.parametrize("attack", OF_THE_VICTIM, ids=lambda attack: attack.name)
def test_an_attack_runs_nothing_and_leaves_one_event_an_attempt(guarded: Guarded, attack: Attack) -> None:
    guarded.begin()
    began = time.time()  # whatever was on its way before has been told
    outcome = carry_out(attack, guarded, ATTEMPTS, seconds=SECONDS / 2)

    tried = len(outcome.tries)
    assert tried == min(ATTEMPTS, attack.limit or ATTEMPTS)
    assert (outcome.executed, outcome.linked, guarded.nodeups()) == (0, 0, 0)
    guarded.scene.expect_nothing_happened()
    evidence = counted(guarded, tried)
    assert evidence.total() == tried, (evidence, untold(outcome, guarded, began))
    assert set(evidence) <= attack.reasons

    events = events_since(guarded, began, tried)
    assert len(events) == tried
    assert Counter(each["reason"] for each in events) == evidence
    assert {each["direction"] for each in events} == {attack.direction}
    assert_addresses(guarded, attack, outcome, events)
    assert_identities(guarded, attack, events)
    assert_names(outcome, events)


class CountsLate:
    """A victim that has not counted the last attempts when it is asked first."""

    def __init__(self, *seen: int) -> None:
        self.seen = list(seen)

    def evidence(self) -> Counter[str]:
        return Counter({"malformed": self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]})


@pytest.mark.parametrize(
    ("seen", "found"), [((500,), 500), ((499, 500), 500), ((498, 499, 501), 501), ((499,), 499)]
)
def test_an_attempt_is_missed_only_when_its_count_does_not_come(seen: tuple[int, ...], found: int) -> None:
    seconds = COUNTED_SECONDS if seen[-1] >= 500 else 0.3
    assert counted(CountsLate(*seen), 500, seconds).total() == found


def assert_addresses(
    guarded: Guarded, attack: Attack, outcome: Outcome, events: list[dict[str, Any]]
) -> None:
    """Whoever dialled is named by its own end; whom the victim dialled by where it was dialled."""
    told = Counter(each["address"] for each in events)
    if attack.direction == "in" and outcome.tries[0].address:  # a real node does not say which its ends were
        assert told == Counter(each.address for each in outcome.tries)
    elif attack.direction == "in":
        assert {address.rpartition(":")[0] for address in told} == {"127.0.0.1"}
    else:
        dialled = {"{}:{}".format(*guarded.listed_address(which)) for which in (0, 1)}
        assert set(told) <= dialled
        assert len(told) == 1


def assert_identities(guarded: Guarded, attack: Attack, events: list[dict[str, Any]]) -> None:
    expected = attack.identity(guarded)
    shown = {each.get("identity") for each in events}
    if attack.name in PARTLY_ANONYMOUS:
        assert shown <= {expected, None}
    else:
        assert shown == {expected}


def assert_names(outcome: Outcome, events: list[dict[str, Any]]) -> None:
    """Of attempts that got as far as a name, the name, if it is one that can be printed at all."""
    claimed = {each.claimed for each in outcome.tries}
    for event in events:
        peer = event.get("peer")
        if peer is not None:
            assert len(peer) <= 1024
            assert peer.isprintable()
            if event["reason"] in {"name_not_in_certificate", "bad_cookie"} and None not in claimed:
                assert peer in claimed


@pytest.mark.parametrize("name", ["boot_window", "revocation_churn"])
def test_nobody_gets_in_while_a_node_starts_or_while_it_is_denied(guarded: Guarded, name: str) -> None:
    outcome = carried_out(guarded, BY_NAME[name])
    assert len(outcome.tries) >= ATTEMPTS / 10
    assert (outcome.executed, outcome.linked) == (0, 0)
    evidence = guarded.evidence()
    seen = sum(evidence[reason] for reason in BY_NAME[name].reasons)
    assert seen >= len(outcome.tries)


def test_ten_thousand_attempts_leave_no_atom_process_port_or_table_entry(guarded: Guarded) -> None:
    for name in LEAVING:  # whatever is loaded or made once is there after that
        carried_out(guarded, BY_NAME[name], WARM_UP)
    before = settled(guarded)
    for name in LEAVING:
        outcome = carried_out(guarded, BY_NAME[name], 10_000 // len(LEAVING))
        assert (outcome.executed, outcome.linked) == (0, 0)
    guarded.scene.cluster.wait(
        lambda: sizes(guarded) == before, f"the sizes before, {before}; they are {sizes(guarded)}"
    )


LEAVING = (
    "no_certificate",
    "unlisted_hidden",
    "insider_claims_many",
    "hostile_names",
    "race_spawn",
    "truncated",
    "garbage_before_tls",
    "random_bytes",
)
WARM_UP = 100

SIZES = """
{erlang:system_info(atom_count), erlang:system_info(process_count), erlang:system_info(port_count),
 length(ets:all()), lists:sum([N || T <- ets:all(), N <- [ets:info(T, size)], is_integer(N)])}
"""
"""Atoms, processes, ports, ETS tables, and the entries of all of them."""


def sizes(guarded: Guarded) -> str:
    return guarded.evaluate(SIZES)


def settled(guarded: Guarded) -> str:
    """The sizes, once two looks agree: what is on its way out is gone."""
    last = ""

    def same() -> str:
        nonlocal last
        now = sizes(guarded)
        agree, last = now == last, now
        return now if agree else ""

    guarded.scene.settle()
    found: str = guarded.scene.cluster.wait(same, "the victim to come to rest")
    return found


def test_a_cluster_is_whole_after_all_of_it(guarded: Guarded) -> None:
    """The attacks were on a node that goes on doing its work, and whose operator is told so."""
    cluster: Cluster = guarded.scene.cluster
    assert cluster.states()["a"] == "RUNNING"
    assert cluster.erl("a", "nodes(connected)") == "[]"
