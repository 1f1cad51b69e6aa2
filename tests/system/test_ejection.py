"""Ejecting a node leaves the pairs of all others linked, with prevent_overlapping_partitions on.

`global` at either end of a link that ends tells all it knows, and each of those cuts the node that was lost.
Were the ejected one to notice first, it would have its peers cut each other (distsec_parting.erl). So these
tests count every link between others that goes down, however shortly.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from distsec.control.client import ControlClient
from tests.releases import Otp
from tests.system.cluster import Cluster
from tests.waiting import wait_until

EJECTIONS = 50
NODES = 10
MESHED_SECONDS = 2.0
"""After the acknowledgement; the issue's own bound. By what the nodes noted when their links came up: to ask
them all for it takes a machine that is busy a while, which is none of theirs.
"""

REALLOWED_SECONDS = 20.0
LOCK_SECONDS = 5.0
UNAWARE_EJECTIONS = 5
COOKIE_EJECTIONS = 5

WARNING = "prevent overlapping partitions"  # global.erl, in each warning of that kind
CONFLICT = "global: Name conflict"

Pair = frozenset[str]


class Watched:
    """A cluster whose nodes note which links they lose."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        # Not the command: a hundred starts of Python would take longer than what they ask for.
        self.control = ControlClient(str(cluster.state / "control.sock"))
        for name in cluster.names:
            cluster.erl(name, "distsec_test_links:start()")

    def links(self, name: str) -> set[str]:
        return _names(self.cluster.erl(name, "nodes(connected)"))

    def meshed(self, names: Iterable[str]) -> bool:
        among = set(names)
        return all(self.links(name) >= among - {name} for name in among)

    def ups(self, name: str) -> dict[str, float]:
        """By peer, when the link came up last, if it did since it is watched; Unix seconds."""
        asked = "case whereis(distsec_test_links) of undefined -> []; _ -> distsec_test_links:ups() end"
        found = re.findall(r"\{'([^@']+)@[^']*',(\d+)\}", self.cluster.erl(name, asked))
        return {peer: int(milliseconds) / 1000 for peer, milliseconds in found}

    def up_since(self, moment: float, peer: str, names: Iterable[str]) -> bool:
        """Whether one of these has a link with `peer` that came up after that moment."""
        return any(self.ups(name).get(peer, 0.0) > moment for name in names)

    def lost(self, *without: str) -> set[Pair]:
        """The pairs that lost their link since this was asked last, but for those with one of `without`. A
        node that has started anew has noted nothing.
        """
        asked = "case whereis(distsec_test_links) of undefined -> []; _ -> distsec_test_links:lost() end"
        pairs = {
            frozenset({name, peer})
            for name in self.cluster.names
            for peer in _names(self.cluster.erl(name, asked))
        }
        return {pair for pair in pairs if not pair & set(without)}

    def deny(self, name: str) -> float:
        """Returns the time of the acknowledgement."""
        self.control.deny(self.cluster.node(name))
        return time.time()

    def allow(self, name: str) -> None:
        self.control.allow(self.cluster.node(name))

    def meshed_after(self, names: Iterable[str], since: float) -> float:
        """Waits until these are meshed; the seconds that it took until the last link was up."""
        among = set(names)
        self.cluster.wait(lambda: self.meshed(among), f"a mesh of {among}")
        ups = [up for name in among for peer, up in self.ups(name).items() if peer in among]
        return max([0.0, *(up - since for up in ups)])

    def slowest_lock(self, name: str, when: str) -> float:
        """Of those that a node got since this was asked last, of which there must be one. Seconds."""
        slowest = 0.0

        def got() -> bool:
            nonlocal slowest
            held, milliseconds = self.cluster.erl(name, "distsec_test_links:locks()").strip("{}").split(",")
            slowest = max(slowest, int(milliseconds) / 1000)
            return int(held) > 0

        self.cluster.wait(got, f"a lock of {name} ({when}): its global hangs")
        return slowest

    def wait_everybody(self) -> None:
        wait_until(lambda: self.meshed(self.cluster.names), "everybody in the mesh", REALLOWED_SECONDS)

    def logged(self, words: str) -> int:
        """How often the nodes' logs say that, all together; wherever a line of theirs is broken."""
        return sum(" ".join(self.cluster.log(name).split()).count(words) for name in self.cluster.names)


def _names(listed: str) -> set[str]:
    """`['a@127.0.0.1','b@127.0.0.1']` → {"a", "b"}."""
    return {name.strip("' \n").partition("@")[0] for name in listed.strip("[]").split(",") if name}


def _spread(otps: tuple[Otp, ...], count: int) -> dict[str, Otp]:
    """`n1`…, of all releases in turn."""
    return {f"n{number}": otps[number % len(otps)] for number in range(1, count + 1)}


@pytest.mark.timeout(300)
def test_ejecting_each_of_ten_nodes_in_turn_leaves_the_other_nine_meshed(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    by_name = _spread(otps, NODES)
    cluster = make_cluster(by_name, list(by_name))
    cluster.start()
    watched = Watched(cluster)
    for name in cluster.names:
        cluster.erl(name, "distsec_test_links:lock_on()")
    split: dict[int, set[Pair]] = {}
    seconds: list[float] = []
    slowest_lock = 0.0

    for number in range(EJECTIONS):
        ejected = cluster.names[number % NODES]
        others = [name for name in cluster.names if name != ejected]
        acknowledged = watched.deny(ejected)
        # It has returned, so it is done, at both ends.
        for name in others:
            assert ejected not in watched.links(name), f"ejection {number}: {name} still has {ejected}"
        assert watched.links(ejected) == set()
        seconds.append(watched.meshed_after(others, acknowledged))

        watched.allow(ejected)
        watched.wait_everybody()
        if pairs := watched.lost(ejected):
            split[number] = pairs
        for name in cluster.names:
            slowest_lock = max(slowest_lock, watched.slowest_lock(name, f"ejection {number}"))

    print(
        f"{EJECTIONS} ejections from a mesh of {NODES}: {len(split)} split a pair of others"
        f" ({sum(map(len, split.values()))} pairs had to be made again), meshed at most"
        f" {max(seconds):.2f} s after the acknowledgement, slowest global lock {slowest_lock:.2f} s,"
        f" {watched.logged(WARNING)} warnings of overlapping partitions,"
        f" {watched.logged(CONFLICT)} name conflicts"
    )
    assert max(seconds) < MESHED_SECONDS
    assert watched.logged(CONFLICT) == 0
    assert slowest_lock < LOCK_SECONDS
    # Without distsec_parting it is more than every second one.
    assert len(split) <= EJECTIONS // 10, split


def test_a_peer_that_knows_of_no_denial_splits_nobody_either_and_may_come_back_at_once(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    by_name = _spread(otps, 5)
    cluster = make_cluster(by_name, list(by_name))
    cluster.settings["security"]["distribution"]["allowed_nodes"].append(cluster.node("guest"))
    cluster.start()
    watched = Watched(cluster)
    guest = cluster.intruder("guest", leaf=cluster.leaf("guest"))
    for name in cluster.names:
        pair = cluster.erl(name, f"erlang:get_cookie('{cluster.node('guest')}')")
        guest.erl(f"erlang:set_cookie('{cluster.node(name)}', {pair})")

    def is_everywhere() -> bool:
        for name in cluster.names:  # again: it may not have seen yet that the link of before has ended
            assert guest.connect(cluster.node(name))
        return all("guest" in watched.links(name) for name in cluster.names)

    def arrive() -> None:
        wait_until(is_everywhere, "the guest everywhere")

    arrive()
    for number in range(UNAWARE_EJECTIONS):
        acknowledged = watched.deny("guest")
        for name in cluster.names:
            assert "guest" not in watched.links(name)
        assert watched.meshed_after(cluster.names, acknowledged) < MESHED_SECONDS
        if number == 0:  # it sees the last link end when the moment of silence is over
            wait_until(lambda: guest.links() == "[]", "the guest to be alone")
        watched.allow("guest")
        arrive()
    assert watched.lost("guest") == set()
    assert watched.meshed(cluster.names)


@pytest.mark.alone
@pytest.mark.parametrize("connect", ["mesh", "none"])
def test_what_an_ejected_node_has_split_is_mended_and_nothing_else_is_linked(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster], connect: str
) -> None:
    by_name = {name: otps[number % len(otps)] for number, name in enumerate(("a", "b", "loner", "x"))}
    cluster = make_cluster(by_name, list(by_name))
    cluster.settings["security"]["distribution"]["connect"] = connect
    cluster.init()
    cluster.run()
    cluster.wait_running()
    if connect == "mesh":
        cluster.wait_meshed()
    else:  # the application's own doing, and `global` makes a triangle of it
        for name in ("a", "b"):
            cluster.erl(name, f"net_kernel:connect_node('{cluster.node('x')}')")
        cluster.wait_links(("a", "b"), ("a", "x"), ("b", "x"))
    watched = Watched(cluster)

    # What its `global` would say, had it lost b: a then cuts b off.
    cluster.erl(
        "x",
        f"{{global_name_server, '{cluster.node('a')}'}} ! "
        f"{{lost_connection, node(), 1 bsl 40, erlang:unique_integer([monotonic]), '{cluster.node('b')}'}}",
    )
    cluster.wait(lambda: _lost_pair(watched, "a", "b"), "the split")
    acknowledged = watched.deny("x")
    staying = ["a", "b", "loner"] if connect == "mesh" else ["a", "b"]
    assert watched.meshed_after(staying, acknowledged) < MESHED_SECONDS
    assert "x" not in watched.links("a") | watched.links("b")
    if connect == "none":
        assert watched.links("loner") == set()


def _lost_pair(watched: Watched, *pair: str) -> bool:
    return frozenset(pair) in watched.lost()


def test_two_nodes_that_are_ejected_at_once_split_nobody_else(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    by_name = _spread(otps, 6)
    cluster = make_cluster(by_name, list(by_name))
    cluster.start()
    watched = Watched(cluster)
    *staying, fifth, sixth = cluster.names
    for _ in range(3):
        with ThreadPoolExecutor() as pool:
            acknowledged = max(pool.map(watched.deny, (fifth, sixth)))
        assert watched.meshed_after(staying, acknowledged) < MESHED_SECONDS
        for name in staying:
            assert watched.links(name) == set(staying) - {name}
        with ThreadPoolExecutor() as pool:
            list(pool.map(watched.allow, (fifth, sixth)))
        watched.wait_everybody()
    assert watched.lost(fifth, sixth) == set()


def test_an_ejection_while_another_node_joins_leaves_a_mesh(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    by_name = _spread(otps, 5)
    cluster = make_cluster(by_name, list(by_name))
    cluster.start()
    watched = Watched(cluster)
    *staying, joining, ejected = cluster.names
    for _ in range(2):
        pid, killed = cluster.pid(joining), time.time()
        os.kill(pid, signal.SIGKILL)  # the orchestrator starts it again
        # Not that nobody has it first: whoever looks too seldom misses that.
        wait_until(partial(watched.up_since, killed, joining, staying), "it to join", 20.0)
        watched.deny(ejected)
        cluster.wait_running(joining)
        cluster.wait(lambda: watched.meshed([*staying, joining]), "the mesh", 5.0)
        assert all(ejected not in watched.links(name) for name in [*staying, joining])
        watched.allow(ejected)
        watched.wait_everybody()
        assert watched.lost(joining, ejected) == set()


@pytest.mark.alone
def test_without_certificates_what_an_ejection_splits_is_mended(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    by_name = _spread(otps, 5)
    cluster = make_cluster(by_name, list(by_name), mode="development")
    cluster.start()
    watched = Watched(cluster)
    *staying, ejected = cluster.names
    split = 0
    for _ in range(COOKIE_EJECTIONS):
        acknowledged = watched.deny(ejected)
        assert watched.meshed_after(staying, acknowledged) < MESHED_SECONDS
        assert all(ejected not in watched.links(name) for name in staying)
        split += bool(watched.lost(ejected))
        watched.allow(ejected)
        watched.wait_everybody()
        watched.lost()
    print(f"{split} of {COOKIE_EJECTIONS} ejections split a pair of others")
