"""certs revoke, and denials at the worst moments: refused from then on, wherever and whenever it dials."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.system.intruder import atom
from tests.system.of_module import meshed, of_module
from tests.waiting import wait_until

HAMMER = """
register(hammer, spawn(fun Again() ->
    _ = net_kernel:connect_node({peer}),
    receive {{stop, From}} -> From ! stopped after 0 -> Again() end
end))
"""
STOP_HAMMER = "hammer ! {stop, self()}, receive stopped -> ok after 20000 -> late end"
RECORD = """
register(recorder, spawn(fun() ->
    ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
    (fun Again(Seen) ->
         receive
             {nodeup, N, _} -> Again([N | Seen]);
             {nodedown, _, _} -> Again(Seen);
             {take, From} -> From ! {seen, Seen}, Again([])
         end
     end)([])
end))
"""
TAKE = "recorder ! {take, self()}, receive {seen, Seen} -> lists:usort(Seen) end"


otp = of_module(OTPS)


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams) as cluster:
        cluster.start()
        for name in cluster.names:
            record(cluster, name)
        yield cluster


cluster = meshed()


def record(cluster: Cluster, name: str) -> None:
    """Has a node that was just started record its nodeups."""
    cluster.wait_answering(name)
    cluster.erl(name, RECORD)


def serial(cluster: Cluster, name: str) -> str:
    text: str = cluster.status_of(name)["certificate"]["serial"]
    return text


def certify_again(cluster: Cluster, name: str) -> None:
    """As the warning of `certs revoke` says."""
    cluster.distsec("stop", cluster.node(name))
    cluster.distsec("certs", "renew", cluster.node(name))
    cluster.distsec("start", cluster.node(name))
    record(cluster, name)


def test_a_revoked_certificate_is_refused_everywhere_at_once_and_after_every_restart(
    cluster: Cluster,
) -> None:
    old = serial(cluster, "c")
    for name in ("a", "b"):
        cluster.erl(name, TAKE)
    told = cluster.distsec("certs", "revoke", "c@127.0.0.1")
    # It has returned, so the links are down: nothing is waited for.
    assert "c@127.0.0.1" not in cluster.erl("a", "nodes(connected)")
    assert "c@127.0.0.1" not in cluster.erl("b", "nodes(connected)")
    assert told.stdout.startswith(f"{old} is revoked: policy generation ")
    assert "acknowledged by 3 nodes" in told.stdout
    assert (
        "distsec: warning: that is the certificate c@127.0.0.1 has now: it runs on without links"
        in told.stderr
    )

    def refused_both_ways() -> None:
        for one, other in (("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")):
            assert cluster.erl(one, f"net_kernel:connect_node({atom(cluster.node(other))})", 30) == "false"
        for name in ("a", "b"):
            assert "c@127.0.0.1" not in cluster.erl(name, TAKE)

    # c itself has nothing to end; it notices what the others have ended.
    cluster.wait(lambda: cluster.erl("c", "nodes(connected)") == "[]", "c to notice")
    refused_both_ways()
    cluster.wait_event("CertificateValidationFailed", node="a@127.0.0.1", reason="revoked", serial=old)
    done = cluster.distsec("status", check=False)
    assert done.returncode == 1
    assert "c@127.0.0.1: its certificate is revoked" in done.stdout
    assert cluster.status_of("c")["certificate"]["revoked"] is True
    rows = [line.split() for line in cluster.distsec("certs", "list").stdout.splitlines()]
    assert ["c@127.0.0.1", old, "364d", "revoked"] in rows

    cluster.distsec("restart", "a@127.0.0.1", "c@127.0.0.1")
    for name in ("a", "c"):
        record(cluster, name)
    refused_both_ways()
    cluster.kill()
    cluster.run()
    cluster.wait_running()
    refused_both_ways()

    certify_again(cluster, "c")
    assert serial(cluster, "c") != old
    cluster.wait_meshed()
    cluster.wait_well()
    listed = json.loads(cluster.distsec("certs", "list", "--json").stdout)
    assert old in listed["revoked"]
    assert old in cluster.distsec("certs", "list").stdout


def test_whoever_hammers_while_it_is_revoked_is_linked_with_nobody_afterwards(cluster: Cluster) -> None:
    """Both sides dial all the while: one of the handshakes is in the very middle."""
    for _ in range(5):
        for one, other in (("a", "c"), ("c", "a"), ("b", "c")):
            cluster.erl(one, HAMMER.format(peer=atom(cluster.node(other))))
        cluster.distsec("deny", "c@127.0.0.1")
        for name in ("a", "b"):
            assert "c@127.0.0.1" not in cluster.erl(name, "nodes(connected)")
            cluster.erl(name, TAKE)
        _settle(cluster)
        for name in ("a", "b"):
            assert cluster.erl(name, TAKE) in {"[]", "['a@127.0.0.1']", "['b@127.0.0.1']"}
            assert "c@127.0.0.1" not in cluster.erl(name, "nodes(connected)")
        for name in ("a", "c", "b"):
            assert cluster.erl(name, STOP_HAMMER, 30) == "ok"
        cluster.distsec("allow", "c@127.0.0.1")
        cluster.wait_meshed()


def _settle(cluster: Cluster) -> None:
    """Until each of those who hammer has been refused some more times."""

    def refused() -> float:
        return cluster.metric("distsec_security_refusals_total")

    before = refused()
    cluster.wait(lambda: refused() > before + 10, "more refusals")


def test_a_denial_and_an_allow_in_quick_succession_end_as_the_last_one_says(cluster: Cluster) -> None:
    threads = [
        threading.Thread(target=cluster.distsec, args=(word, "c@127.0.0.1"), kwargs={"check": False})
        for word in ("deny", "allow", "deny", "allow")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster.distsec("deny", "c@127.0.0.1")
    assert "c@127.0.0.1" not in cluster.erl("a", "nodes(connected)")
    assert cluster.erl("a", "net_kernel:connect_node('c@127.0.0.1')", 30) == "false"
    cluster.distsec("allow", "c@127.0.0.1")
    cluster.wait_meshed()


def test_a_stolen_key_is_refused_by_its_serial_while_its_owner_runs_on_with_another(cluster: Cluster) -> None:
    leaf = cluster.leaf("b")
    cookie = pair_cookie(cluster)
    cluster.distsec("certs", "revoke", leaf.serial.upper())
    cluster.wait_well()
    cluster.distsec("stop", "b@127.0.0.1")
    thief = cluster.intruder("b", leaf=leaf, cookie=cookie, hidden=True)
    assert not thief.connect("a@127.0.0.1")
    cluster.wait_event(
        "CertificateValidationFailed", node="a@127.0.0.1", reason="revoked", serial=leaf.serial
    )
    thief.stop()
    cluster.distsec("start", "b@127.0.0.1")
    record(cluster, "b")
    cluster.wait_meshed()


def pair_cookie(cluster: Cluster) -> str:
    text = (cluster.node_directory("a") / "cookie.term").read_text()
    return wait_until(lambda: text.split('<<"b@127.0.0.1">> => <<"')[1].split('"')[0], "the cookie")
