"""A node under a flood of half-open handshakes: others join it as fast as ever, and nothing of it stays."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.attacks.scene import OWN_PROBES
from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.system.flood import Flood, flood
from tests.system.of_module import of_module

pytestmark = pytest.mark.alone

MAX_OF_SOURCE, MAX_IN_ALL = 64, 256  # distsec_attempts.erl
TLS_SECONDS = 5  # distsec_acceptor.erl, TLS_MS
OPEN = 2000
A_FEW = 12
"""What a busy node may have more of at any moment, whatever came before."""
ARRIVING_PER_SECOND = 200
JOINS = 15
JOIN_MILLISECONDS = 100
"""A genuine node joins within this (the median), whatever strangers do."""

ELSEWHERE = [f"127.0.1.{number}" for number in range(1, 201)]

_COUNTS = """
{erlang:system_info(process_count), erlang:system_info(port_count), erlang:system_info(atom_count),
 lists:sum([S || T <- ets:all(), S <- [ets:info(T, size)], is_integer(S)]), length(ets:all()),
 length(distsec_attempts:all())}
"""
_REFUSALS = "maps:get(refusals, distsec_count:report())"
_HALF_OPEN = "distsec_halfopen:size(maps:get(half_open, sys:get_state(distsec_attempts)))"


@dataclass(frozen=True, slots=True)
class Join:
    """How long it took; `in_vain`: how often it had to dial again."""

    milliseconds: float
    in_vain: int


@dataclass(frozen=True, slots=True)
class Flooded:
    """What came of a flood of `made` strangers; `told` and `lines` are of before."""

    joins: Mapping[str, list[Join]]
    made: int
    refusals: Mapping[str, int]
    told: float
    lines: tuple[int, int]


otp = of_module(OTPS)


@pytest.fixture(scope="module")
def pair(otp: Otp, beams: Path) -> Iterator[Cluster]:
    """`a`, the victim, and `b`, the genuine node; nobody dials but the test."""
    with Cluster(otp, beams, ["a", "b"], carrier="distsec") as cluster:
        cluster.settings["security"]["distribution"]["connect"] = "none"
        for name in cluster.names:  # else global dials again of itself after a link that was brief
            cluster.table(name)["command"] += ["-kernel", "dist_auto_connect", "never"]
        cluster.init()
        cluster.run()
        cluster.wait_running()
        join(cluster)  # what is loaded or made once is there before anything is counted
        before = refusals(cluster)
        with flood(cluster.port("a")) as warm:
            warm.idle(MAX_OF_SOURCE + 1)
            wait_over(cluster, warm, before)
        yield cluster


_JOIN = """
Join = fun F(Dials) ->
           case net_kernel:connect_node('a@127.0.0.1') of true -> Dials; false -> F(Dials + 1) end
       end,
{Microseconds, Dials} = timer:tc(fun() -> Join(1) end),
[Microseconds, Dials]
"""


def join(cluster: Cluster) -> Join:
    """b joins a, however often it has to dial, and leaves again when a knows of it, too."""
    microseconds, dials = json.loads(cluster.erl("b", _JOIN))
    up = "[x || {_, _, up, _} <- distsec_attempts:all()]"
    cluster.wait(lambda: cluster.erl("a", up) == "[x]", "the link at a's end")
    cluster.erl("b", "true = erlang:disconnect_node('a@127.0.0.1')")
    cluster.wait(lambda: cluster.erl("a", f"{{{up}, nodes(connected)}}") == "{[],[]}", "b to be gone")
    return Join(microseconds / 1000, dials - 1)


def refusals(cluster: Cluster) -> dict[str, int]:
    """Inbound refusals of a by reason, as a counts them."""
    listed = cluster.erl("a", f"[{{R, N}} || {{in, R, N}} <- {_REFUSALS}]")
    pairs = (entry.split(",") for entry in listed.strip("[]{}").split("},{") if entry)
    return {reason: int(number) for reason, number in pairs}


def grown(cluster: Cluster, before: dict[str, int]) -> dict[str, int]:
    now = refusals(cluster)
    return {
        reason: now[reason] - before.get(reason, 0) for reason in now if now[reason] > before.get(reason, 0)
    }


def counted_by_operator(cluster: Cluster) -> float:
    """All refusals of a in /metrics."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(cluster.metrics())
        for sample in family.samples
        if sample.name == "distsec_security_refusals_total" and sample.labels["node"] == cluster.node("a")
    )


def wait_counted(cluster: Cluster) -> None:
    """Waits until the operator has counted every refusal of a but those of its own looks, whose number is in
    its records.
    """
    record = cluster.node_directory("a") / "probes.json"

    def all_counted() -> bool:
        looks = sum(json.loads(record.read_text())["absorbed"].values()) if record.exists() else 0
        told = looks + counted_by_operator(cluster)
        return looks >= OWN_PROBES and told == sum(refusals(cluster).values())

    cluster.wait(all_counted, "every refusal so far to be counted by the operator")


def wait_over(cluster: Cluster, strangers: Flood, before: dict[str, int], in_vain: int = 0) -> None:
    """Waits until each stranger of a flood was refused, and nothing of them is left in a. `in_vain`: dials of
    b that gave way, which are counted as the strangers are.
    """
    strangers.close()
    expected = strangers.made + in_vain
    cluster.wait(
        lambda: sum(grown(cluster, before).values()) >= expected,
        f"{expected} refusals, each stranger's own and {in_vain} of b, after {before}",
        30,
    )
    cluster.wait(lambda: cluster.erl("a", "distsec_attempts:all()") == "[]", "the end of all attempts", 30)


@pytest.fixture(scope="module")
def flooded(pair: Cluster) -> Flooded:
    """The whole flood once a release; the tests look at what came of it."""
    wait_counted(pair)  # what came before is told of a moment after a has counted it
    before, told = refusals(pair), counted_by_operator(pair)
    lines = len(pair.orchestrator_lines()), len(pair.log("a").splitlines())
    joins = {"nobody": joined(pair)}
    with flood(pair.port("a")) as strangers:
        strangers.idle(OPEN)
        joins["idle"] = joined(pair)
        strangers.trickle(OPEN, ELSEWHERE)
        with strangers.trickling():
            joins["idle and trickling"] = joined(pair)
        with strangers.arriving(ARRIVING_PER_SECOND):
            joins["arriving"] = joined(pair)
        with strangers.arriving(ARRIVING_PER_SECOND, ELSEWHERE[0]):
            joins["arriving elsewhere"] = joined(pair)
        in_vain = sum(each.in_vain for times in joins.values() for each in times)
        wait_over(pair, strangers, before, in_vain)
        return Flooded(joins, strangers.made, grown(pair, before), told, lines)


def joined(cluster: Cluster) -> list[Join]:
    return [join(cluster) for _ in range(JOINS)]


@pytest.mark.parametrize("who", ["idle", "idle and trickling", "arriving", "arriving elsewhere"])
def test_a_genuine_node_joins_at_once_whoever_else_is_connected(
    flooded: Flooded, record_property: Callable[[str, object], None], who: str
) -> None:
    times = [each.milliseconds for each in flooded.joins[who]]
    found = f"median {statistics.median(times):.1f} ms, max {max(times):.1f} ms"
    alone = statistics.median(each.milliseconds for each in flooded.joins["nobody"])
    record_property("joins", found)
    print(f"joins, {who}: {found}, with nobody else {alone:.1f} ms")
    assert statistics.median(times) < JOIN_MILLISECONDS, found


def test_each_stranger_is_one_refusal(flooded: Flooded) -> None:
    """So is each dial of the genuine node that gave way to those who came after it from the same address."""
    given_way = sum(each.in_vain for times in flooded.joins.values() for each in times)
    assert (flooded.made + given_way, flooded.refusals) == (sum(flooded.refusals.values()), flooded.refusals)
    assert set(flooded.refusals) <= {"flood_dropped", "handshake_timeout", "closed"}


def test_the_operator_counts_each_and_is_not_told_of_each(pair: Cluster, flooded: Flooded) -> None:
    expected = sum(flooded.refusals.values())
    pair.wait(lambda: counted_by_operator(pair) - flooded.told == expected, "every refusal to be counted")
    orchestrator, node = flooded.lines
    assert len(pair.orchestrator_lines()) - orchestrator < expected / 5
    assert len(pair.log("a").splitlines()) - node < 10


def test_nothing_of_a_flood_stays_behind(pair: Cluster, flooded: Flooded) -> None:
    """Of a second one: in the first all code was loaded that there is to load."""
    del flooded
    counts, before = counted(pair), refusals(pair)
    with flood(pair.port("a")) as strangers:
        strangers.idle(OPEN)
        strangers.trickle(OPEN, ELSEWHERE)
        with strangers.trickling():
            in_vain = join(pair).in_vain
        wait_over(pair, strangers, before, in_vain)

    def gone() -> bool:  # of twice OPEN each left something behind, or none did
        return all(now <= then + A_FEW for now, then in zip(counted(pair), counts, strict=True))

    pair.wait(gone, f"no more than {counts}, last {counted(pair)}", 30)


def counted(pair: Cluster) -> list[int]:
    """Processes, ports, atoms, rows of tables, tables, attempts."""
    return [int(count) for count in pair.erl("a", _COUNTS).strip("{}").split(",")]


def test_of_one_address_the_oldest_give_way_and_are_counted_exactly(pair: Cluster) -> None:
    before = refusals(pair)
    with flood(pair.port("a")) as strangers:
        strangers.idle(500)
        pair.wait(
            lambda: grown(pair, before).get("flood_dropped", 0) == 500 - MAX_OF_SOURCE,
            "the drops",
            TLS_SECONDS,
        )
        pair.wait(lambda: strangers.open() == MAX_OF_SOURCE, "the end of those who gave way", TLS_SECONDS)
        assert pair.erl("a", _HALF_OPEN) == str(MAX_OF_SOURCE)
        assert grown(pair, before) == {"flood_dropped": 500 - MAX_OF_SOURCE}
        wait_over(pair, strangers, before)


def test_of_many_addresses_there_are_only_so_many_in_all(pair: Cluster) -> None:
    before = refusals(pair)
    with flood(pair.port("a")) as strangers:
        strangers.idle(500, ELSEWHERE)
        pair.wait(
            lambda: grown(pair, before).get("flood_dropped", 0) == 500 - MAX_IN_ALL, "the drops", TLS_SECONDS
        )
        pair.wait(lambda: strangers.open() == MAX_IN_ALL, "the end of those who gave way", TLS_SECONDS)
        assert pair.erl("a", _HALF_OPEN) == str(MAX_IN_ALL)
        wait_over(pair, strangers, before)


def test_a_silent_stranger_is_given_up_after_a_few_seconds(pair: Cluster) -> None:
    before = refusals(pair)
    with flood(pair.port("a")) as strangers:
        strangers.idle(3)
        pair.wait(lambda: strangers.open() == 0, "their end", TLS_SECONDS + 5)
        wait_over(pair, strangers, before)
    assert grown(pair, before) == {"handshake_timeout": 3}


_SUPERVISOR = "tls_dist_connection_sup"
"""Of ssl: it starts the processes of each handshake, one after the other (tls_connection_sup.erl)."""
_WAITING = f"element(2, process_info(whereis({_SUPERVISOR}), message_queue_len))"
MAX_WAITING = 32  # distsec_tls.erl
"""And those who ask in one moment: each has its answer before the requests of the others are there."""


def test_what_outruns_ssls_own_supervisor_waits_with_us_and_not_with_it(pair: Cluster) -> None:
    """Its queue has no bound, and what is in it stays when its connection has long been dropped."""
    before, counts = refusals(pair), counted(pair)
    pair.erl("a", f"sys:suspend({_SUPERVISOR})")
    try:
        with flood(pair.port("a")) as strangers:
            strangers.idle(OPEN)
            pair.wait(
                lambda: grown(pair, before).get("flood_dropped", 0) >= OPEN - MAX_OF_SOURCE, "the drops"
            )
            waiting = int(pair.erl("a", _WAITING))
            assert 0 < waiting <= MAX_WAITING + MAX_IN_ALL
            # a worker and whom ssl starts for it; those in the queue keep theirs, whom nobody waits for
            at_most = counts[0] + 2 * (waiting + MAX_OF_SOURCE) + A_FEW
            pair.wait(lambda: counted(pair)[0] <= at_most, f"at most {at_most} processes")
            pair.erl("a", f"sys:resume({_SUPERVISOR})")
            assert join(pair).milliseconds >= 0
            wait_over(pair, strangers, before)
    finally:
        pair.erl("a", f"sys:resume({_SUPERVISOR})")
    assert sum(grown(pair, before).values()) >= OPEN
    pair.wait(lambda: counted(pair)[0] <= counts[0] + A_FEW, f"the {counts[0]} processes of before", 30)
