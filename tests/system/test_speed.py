"""That links are set up as scripts/bench measured them, and that scripts/bench measures. No timings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distsec.beam.aflags import flag_words
from distsec.beam.tls_options import IDLE_MILLISECONDS
from distsec.model.cluster import Carrier
from distsec.model.names import NodeName
from tests.releases import OTPS, ROOT, Otp
from tests.system.cluster import Cluster

BENCH_SECONDS = 300

BUFFERS = (
    "lists:usort([{Buffer, NoDelay} || Port <- erlang:ports(),"
    " {ok, {Ip, _}} <- [inet:peername(Port)], is_tuple(Ip),"
    " {ok, [{buffer, Buffer}, {nodelay, NoDelay}]} <- [inet:getopts(Port, [buffer, nodelay])]])"
)
"""Of all TCP connections of a node; those of the test and of the agent are Unix sockets."""


ASLEEP = (
    'lists:sort([{Module, string:find(atom_to_list(Function), "hibernate") =/= nomatch} ||'
    " Pid <- processes(), {Module, init, _} <- [proc_lib:initial_call(Pid)],"
    " lists:member(Module, [tls_sender, ssl_gen_statem]),"
    " {current_function, {_, Function, _}} <- [process_info(Pid, current_function)]])"
)
"""Of the two processes that ssl has for each link."""


def test_a_link_reads_in_large_pieces_and_holds_nothing_while_it_is_idle(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    """With OTP's default buffer of 1,460 bytes 64 KB messages go at a twentieth of the speed on 25 and 27."""
    cluster = make_cluster(otp, nodes=["a", "b"])
    cluster.start()
    cluster.wait_meshed()
    for node in ("a", "b"):
        assert cluster.erl(node, BUFFERS) == "[{262144,true}]"
    cluster.wait(
        lambda: cluster.erl("a", ASLEEP) == "[{ssl_gen_statem,true},{tls_sender,true}]",
        "the processes of the link hibernate",
        seconds=60 + IDLE_MILLISECONDS / 1000,
    )


@pytest.mark.parametrize("carrier", [Carrier.DISTSEC, Carrier.INET_TLS])
def test_dialled_and_accepted_links_have_the_same_options(carrier: Carrier) -> None:
    words = flag_words(
        node=NodeName.parse("a@127.0.0.1"),
        carrier=carrier,
        directory="/d",
        ebin="/e",
        address="127.0.0.1",
        port=9100,
    )
    value = {
        name: words[words.index(name) + 1]
        for name in words
        if name.startswith("inet_dist_") and name.endswith("_options")
    }
    assert value == dict.fromkeys(
        ["inet_dist_listen_options", "inet_dist_connect_options"], "[{nodelay,true},{buffer,262144}]"
    )


@pytest.mark.slow
@pytest.mark.timeout(BENCH_SECONDS + 30)
def test_a_quick_bench_measures_joins_with_every_carrier(otp: Otp) -> None:
    rows = bench("--otp", str(otp.release), "join")
    assert [row["what"] for row in rows] == [f"OTP {otp.release}: join"] * 3
    assert {row["baseline"].rsplit(" ", 2)[0] for row in rows} == AGAINST
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in rows)


@pytest.mark.otp
@pytest.mark.slow
@pytest.mark.timeout(BENCH_SECONDS + 30)
def test_a_quick_bench_measures_messages_and_a_mesh(agent_ebin: Path) -> None:
    newest = str(OTPS[-1].release)
    *messages, linked, memory = bench("--otp", newest, "throughput", "mesh")
    sizes = ("1 KB", "64 KB", "1 MB")
    assert [row["what"] for row in messages] == [
        f"OTP {newest}: {size} messages" for size in sizes for _ in AGAINST
    ]
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in messages)
    assert "mesh of 5 nodes" in linked["what"] and linked["ratio"] > 0
    assert memory["value"].endswith(" MB") and memory["ratio"] > 0


@pytest.mark.otp
@pytest.mark.slow
@pytest.mark.timeout(BENCH_SECONDS + 30)
def test_a_quick_bench_measures_certificates_and_proofs_of_links(agent_ebin: Path) -> None:
    newest = str(OTPS[-1].release)
    issued, *proofs = bench("--otp", newest, "issue", "proof")
    assert issued["value"].endswith(" /s") and 0 < issued["ratio"] < 1  # a key and a signature are in it
    assert [row["what"].partition(" of a")[0] for row in proofs[:2]] == [
        f"OTP {newest}: time",
        f"OTP {newest}: CPU",
    ]
    assert "round trips" in proofs[2]["what"] and all(row["ratio"] > 0 for row in proofs)


AGAINST = {"documented", "documented, 1.3", "no TLS"}


def bench(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(ROOT / "scripts" / "bench"), "--json", "--quick", *arguments],
        capture_output=True,
        text=True,
        timeout=BENCH_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["schema"] == 1
    rows: list[dict[str, Any]] = document["rows"]
    return rows
