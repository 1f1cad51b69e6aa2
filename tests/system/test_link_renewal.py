"""Links outlive the certificates that they were made with, if their ends prove themselves anew, and only
then: the carrier's part, with certificates put in place by hand."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.certificates import Leaf, TestAuthority
from tests.system.cluster import HOST, Cluster
from tests.system.renewals import drop

SOON_SECONDS = 12
"""How long the short-lived certificates of these tests are good for."""


@pytest.fixture(scope="module", params=OTPS, ids=str)
def cluster(request: pytest.FixtureRequest, agent_ebin: Path, beams: Path) -> Iterator[Cluster]:
    otp: Otp = request.param
    with Cluster(otp, beams) as made:
        made.start()
        yield made


@pytest.fixture(autouse=True)
def _whole(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    request.node.user_properties.append(("otp", next(iter(cluster.otps.values())).stands_for))
    cluster.wait_running()
    cluster.wait_meshed()


def give(cluster: Cluster, name: str, seconds: float = 86400.0, key_of: Leaf | None = None) -> Leaf:
    """Puts another pair for `name` in its directory; `key_of`: with a key that does not belong to it."""
    leaf = TestAuthority.of_cluster(cluster.state).issue(
        cluster.directory / f"leaf-{name}-{time.monotonic_ns()}",
        [f"spiffe://demo/node/{HOST}/{name}"],
        valid_for=timedelta(days=1, seconds=seconds),
    )
    drop(cluster, name, replace(leaf, key=(key_of or leaf).key), ".")
    return leaf


def run(cluster: Cluster, name: str, command: str) -> str:
    return cluster.erl(name, f"distsec_command:run({command})", 30)


def reload(cluster: Cluster, name: str) -> str:
    return run(cluster, name, "reload, #{}")


def serials(cluster: Cluster) -> dict[tuple[str, str], str]:
    """(node, peer) → the serial of the peer's certificate, as the node knows it."""
    return {
        (node["name"].partition("@")[0], link["peer"].partition("@")[0]): link["serial"]
        for node in cluster.status()["nodes"]
        for link in node["links"]
    }


def downs(cluster: Cluster) -> int:
    return len(cluster.events("NodeDown"))


def test_a_link_goes_on_with_the_certificates_of_now(cluster: Cluster) -> None:
    before = downs(cluster)
    leaves = {name: give(cluster, name) for name in cluster.names}
    for name, leaf in leaves.items():
        assert f'serial => <<"{leaf.serial}">>' in reload(cluster, name)
    answers = [run(cluster, name, "renew, #{peers => #{}}") for name in cluster.names]
    assert all("failed => []" in answer for answer in answers), answers
    links = len(cluster.names) * (len(cluster.names) - 1)
    assert sum(answer.count("cookie => current") for answer in answers) == links // 2, answers
    wanted = {(a, b): leaves[b].serial for a in cluster.names for b in cluster.names if a != b}
    cluster.wait(lambda: serials(cluster) == wanted, "the status to show the new certificates")
    for leaf in leaves.values():
        cluster.wait_event("LinkRenewed", serial=leaf.serial)
    assert downs(cluster) == before


def test_a_node_that_was_given_another_certificate_proves_its_links_by_itself(cluster: Cluster) -> None:
    before, leaf = downs(cluster), give(cluster, "a")
    reload(cluster, "a")
    cluster.wait(
        lambda: (
            [serial for (_, peer), serial in serials(cluster).items() if peer == "a"]
            == [leaf.serial] * (len(cluster.names) - 1)
        ),
        "all peers of a to know its certificate",
    )
    assert downs(cluster) == before


def test_proofs_leave_nothing_behind(cluster: Cluster) -> None:
    dialler = next(a for a, b in sorted(serials(cluster)) if dialled(cluster, a, b))
    everywhere = "[distsec_renewal:prove([]) || _ <- lists:seq(1, 50)], ok"

    assert cluster.erl(dialler, everywhere, 60) == "ok"  # what is made once is made
    before: dict[str, list[int]] = cluster.wait(lambda: settled(cluster), "the first proofs to be gone")
    atoms = {name: int(cluster.erl(name, "erlang:system_info(atom_count)")) for name in cluster.names}
    assert cluster.erl(dialler, everywhere, 60) == "ok"
    cluster.wait(lambda: no_more(left(cluster), before), f"no more than before: {before}")
    after = {name: int(cluster.erl(name, "erlang:system_info(atom_count)")) for name in cluster.names}
    assert all(after[name] - atoms[name] < 10 for name in cluster.names), (atoms, after)


def left(cluster: Cluster) -> dict[str, list[int]]:
    """By node, how many processes, ports and attempts there are."""
    counts = (
        "{erlang:system_info(process_count), erlang:system_info(port_count), length(distsec_attempts:all())}"
    )
    return {
        name: [int(count) for count in cluster.erl(name, counts).strip("{}").split(",")]
        for name in cluster.names
    }


def settled(cluster: Cluster) -> dict[str, list[int]] | None:
    """What is left, if it is twice the same, with a status in between."""
    first = left(cluster)
    cluster.status()
    return first if left(cluster) == first else None


def no_more(now: dict[str, list[int]], before: dict[str, list[int]]) -> bool:
    return all(
        count <= then
        for name, counts in now.items()
        for count, then in zip(counts, before[name], strict=True)
    )


def dialled(cluster: Cluster, name: str, peer: str) -> bool:
    own = next(node for node in cluster.status()["nodes"] if node["name"] == cluster.node(name))
    return any(link["peer"] == cluster.node(peer) and link["direction"] == "out" for link in own["links"])


def test_a_tls_process_that_crashes_leaves_no_key_in_the_log(cluster: Cluster) -> None:
    """ssl reports its whole state, and the traffic keys of the session with it."""
    written = len(cluster.log("a"))
    killed = cluster.erl(
        "a",
        f'{{ok, _, F}} = distsec_attempts:of_link(<<"{cluster.node("b")}">>), '
        "Pids = [distsec_links:owner(maps:get(socket, F)), maps:get(controller, F)], "
        "[catch sys:terminate(Pid, oops, 1000) || Pid <- Pids], length(Pids)",
    )
    assert killed == "2"
    said = "a TLS process of the distribution ended (gen_statem terminate): oops"
    cluster.wait(lambda: said in cluster.log("a")[written:], "the report")
    cluster.wait_meshed()
    report = cluster.log("a")[written:]
    assert not re.search(r"secret|cipher_state|traffic|hmac|#Fun|certdb|<<\d+,\d+,\d+", report)
    assert len(report) < 4096


@pytest.fixture
def alone(cluster: Cluster) -> Iterator[Cluster]:
    """Without an orchestrator, which would put a better certificate in place; it is back afterwards."""
    cluster.kill()
    yield cluster
    cluster.run()
    cluster.wait_running()
    cluster.wait_meshed()


def test_a_pair_that_does_not_fit_is_refused_and_the_old_one_stays_in_use(alone: Cluster) -> None:
    good = give(alone, "b")
    assert good.serial in reload(alone, "b")
    give(alone, "b", key_of=good)
    answer = reload(alone, "b")
    assert "certificate_rejected" in answer
    assert "keyfile holds the key of another certificate" in answer
    assert good.serial in alone.erl("b", "distsec_tls:own()")
    (alone.node_directory("b") / "certificate.pem").write_bytes(b"no certificate")
    assert "certificate_rejected" in reload(alone, "b")
    assert good.serial in alone.erl("b", "distsec_tls:own()")
    give(alone, "b")
    assert "{ok," in reload(alone, "b")


def test_a_link_whose_peer_shows_nothing_newer_ends_when_its_proof_does(alone: Cluster) -> None:
    def linked(name: str) -> bool:
        return f"'{alone.node('c')}'" in alone.erl(name, "nodes(connected)")

    # Proven with it long before its end; on a machine that is too busy for that, with one that lasts longer.
    for seconds in (SOON_SECONDS, 2 * SOON_SECONDS, 4 * SOON_SECONDS):
        alone.wait(lambda: linked("a") and linked("b"), "the links of c")
        short = give(alone, "c", seconds)
        reload(alone, "c")
        for name in alone.names:
            run(alone, name, "renew, #{peers => #{}}")
        ends = int(re.findall(r"not_after => (\d+)", alone.erl("c", "distsec_tls:own()"))[0])
        proven = all(short.serial in alone.erl(name, "distsec_links:all()") for name in ("a", "b"))
        if proven and time.time() < ends - 1:
            break
        give(alone, "c")
        reload(alone, "c")
    assert proven

    last: dict[str, float] = {}
    longest = 0.0  # that a node took to answer: it does nothing earlier on this machine
    while len(last) < 2 and time.time() < ends + 60:
        for name in {"a", "b"} - set(last):
            asked = time.time()
            if not linked(name):
                last[name] = time.time()
            longest = max(longest, time.time() - asked)
    assert set(last) == {"a", "b"}
    assert all(ends < moment < ends + 4 + longest for moment in last.values()), (ends, last, longest)
    leaf = give(alone, "c")
    assert leaf.serial in reload(alone, "c")
    alone.run()
    alone.wait_running()
    alone.wait_meshed()
    for name in ("a", "b"):
        alone.wait_event("NodeDown", node=alone.node(name), peer=alone.node("c"), reason="expired")
    alone.kill()
