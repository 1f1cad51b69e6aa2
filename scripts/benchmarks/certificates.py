"""What certificates cost: to issue one, to rotate those of a whole cluster, to prove a link anew."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from distsec.model.names import NodeName
from distsec.pki.authority import Authority
from distsec.pki.store import Store
from scripts.benchmarks.calm import Calm
from scripts.benchmarks.carriers import Place, start_distsec
from scripts.benchmarks.clusters import (
    DISTSEC,
    busy_seconds,
    configuration,
    directory,
    node_names,
    orchestrator,
)
from scripts.benchmarks.nodes import HOST, MODULE, Control, Release
from scripts.benchmarks.rows import Row, compare, in_turn

DAYS = 30
SETTLE_SECONDS = 0.02
ROUND_TRIPS = 500
RENEWALS_A_SECOND = 10
"""While round trips are measured: of one link, thousands of times as often as with certificates of a day."""

_RENEW = "distsec_command:run(renew, #{peers => #{}})"
_RENEWED = "begin {T, {ok, #{renewed := [_], failed := []}}} = timer:tc(fun() -> " + _RENEW + " end), T end"
_KEEP_RENEWING = (
    "begin register(bench_renewing, spawn(fun() -> (fun Again() -> receive stop -> ok after "
    f"{1000 // RENEWALS_A_SECOND} -> {_RENEW}, Again() end end)() end)), ok end"
)
_STOP_RENEWING = (
    "begin R = monitor(process, bench_renewing), bench_renewing ! stop, "
    "receive {'DOWN', R, _, _, _} -> ok end end"
)


# ---- issuing ----------------------------------------------------------------------------------------------


def issue(quick: bool) -> list[Row]:
    """Certificates a second by one process, with their keys, against a key and a signature each."""
    batch, rounds = (20, 3) if quick else (100, 15)
    name = NodeName.parse("n@127.0.0.1")
    with directory() as place:
        store = Store(place / "state")
        authority = Authority.create(store, "bench", time.time())
        signing = ec.generate_private_key(ec.SECP256R1())

        def whole() -> float:
            return _a_second(batch, lambda: authority.issue(name, HOST, DAYS, time.time()))

        def bare() -> float:
            return _a_second(batch, lambda: _key_and_signature(signing))

        taken = in_turn({"issued": whole, "key and signature": bare}, rounds)
    shown = compare(
        "certificates issued", taken, "issued", "key and signature", show=lambda v: f"{v:,.0f} /s"
    )
    return [shown]


def _a_second(count: int, work: Callable[[], object]) -> float:
    begun = time.monotonic()
    for _ in range(count):
        work()
    return count / (time.monotonic() - begun)


def _key_and_signature(signing: ec.EllipticCurvePrivateKey) -> bytes:
    """What no certificate can be had without."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return signing.sign(public, ec.ECDSA(hashes.SHA256()))


# ---- rotating a cluster -----------------------------------------------------------------------------------


def rotation(quick: bool) -> list[Row]:
    """`certs renew --all`: every listener is seen to serve its new certificate, every link proven with it."""
    return [_rotation(4, 2)] if quick else [_rotation(10, 7), _rotation(40, 3)]


def _rotation(count: int, rounds: int) -> Row:
    config = configuration({name: ["erl", "-noinput"] for name in node_names(count)})
    with directory() as place, orchestrator(place, config):
        command = [DISTSEC, "certs", "renew", "--all", "-c", str(place / "distsec.toml")]
        calm = Calm()
        taken = in_turn({"all": lambda: _wall(command)}, rounds, 1, calm.was_calm)
    return Row(
        f"rotation of {count} nodes with {count * (count - 1) // 2} links, served and proven",
        f"{statistics.median(taken['all']):.2f} s",
        f"most {max(taken['all']):.2f} s of {rounds}",
        goal="< 2 s" if count == 10 else "",
        disturbed=taken.disturbed,
    )


def _wall(command: list[str]) -> float:
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {done.stderr}")
    return time.monotonic() - begun


# ---- proving a link ---------------------------------------------------------------------------------------


def proof(release: Release, beams: Path, quick: bool) -> list[Row]:
    """A link that is proven anew, against one that is made; and what its messages notice of it."""
    rounds = 3 if quick else 40
    with directory() as place, ExitStack() as stack:
        a, b = start_distsec(stack, Place(place, release, beams, node_names(2), alone=True))
        rows = []
        for what, measure in (("time", _time), ("CPU", _cpu)):
            taken = in_turn(
                {"proof": partial(_proof, a, b, measure), "join": partial(_join, a, b, measure)},
                rounds,
                calm=Calm().was_calm,
            )
            title = f"{release}: {what} of a link's renewal, both ends"
            rows.append(compare(title, taken, "proof", "join", show=lambda v: f"{v:.1f} ms"))
        _link(a, b)
        trips = in_turn(
            {"renewing": lambda: _round_trips(a, b, renewing=True), "not": lambda: _round_trips(a, b)},
            3 if quick else 20,
            calm=Calm().was_calm,
        )
        title = f"{release}: round trips, p99, with {RENEWALS_A_SECOND} renewals a second"
        rows.append(compare(title, trips, "renewing", "not", show=lambda v: f"{v:.0f} µs"))
    return rows


def _link(a: Control, b: Control) -> None:
    answer = a.ask(f"net_kernel:connect_node({b.atom})")
    assert answer == "true", answer


Measure = Callable[[Control, Control, str], float]
"""Milliseconds of what the first node evaluates to microseconds."""


def _time(a: Control, _: Control, expression: str) -> float:
    (micros,) = a.integers(expression)
    return micros / 1000


def _cpu(a: Control, b: Control, expression: str) -> float:
    """Of both nodes."""
    before = busy_seconds(a.pid) + busy_seconds(b.pid)
    a.integers(expression)
    time.sleep(SETTLE_SECONDS)
    return (busy_seconds(a.pid) + busy_seconds(b.pid) - before) * 1000


def _proof(a: Control, b: Control, measure: Measure) -> float:
    _link(a, b)
    time.sleep(SETTLE_SECONDS)
    return measure(a, b, _RENEWED)


def _join(a: Control, b: Control, measure: Measure) -> float:
    """Its end is in the CPU time, as somebody pays for that too."""
    a.ask(f"begin erlang:disconnect_node({b.atom}), {MODULE}:await_down({b.atom}) end")
    b.ask(f"{MODULE}:await_down({a.atom})")
    time.sleep(SETTLE_SECONDS)
    return measure(a, b, f"{MODULE}:join({b.atom})")


def _round_trips(a: Control, b: Control, *, renewing: bool = False) -> float:
    """The 99th percentile, in microseconds."""
    if renewing:
        a.ask(_KEEP_RENEWING)
    taken = a.integers(f"{MODULE}:round_trips({b.atom},{ROUND_TRIPS})")
    if renewing:
        a.ask(_STOP_RENEWING)
    return statistics.quantiles(taken, n=100, method="inclusive")[98]
