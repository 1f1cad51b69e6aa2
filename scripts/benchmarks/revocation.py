"""How long a link lives on once its node has been told to end it: from the command's arrival to nodedown."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from pathlib import Path

from distsec.control.client import ControlClient
from distsec.control.wire import SOCKET_NAME
from scripts.benchmarks.carriers import Place, start_distsec
from scripts.benchmarks.clusters import directory, node_names
from scripts.benchmarks.nodes import Control, Release
from scripts.benchmarks.rows import Row

ROUNDS, QUICK_ROUNDS = 200, 10
GOAL_MILLISECONDS = 10
LEAST_POLICY_BYTES = 400
"""Smaller frames to an agent are acknowledgements."""

_RECORDER = f"""
Agent = whereis(distsec_agent),
register(revocation, spawn_opt(fun() ->
    ok = net_kernel:monitor_nodes(true, [{{node_type, all}}]),
    1 = erlang:trace(Agent, true, ['receive', monotonic_timestamp]),
    (fun Again(Arrived, Taken) ->
         receive
             {{trace_ts, Agent, 'receive', {{tcp, _, Frame}}, At}}
               when byte_size(Frame) > {LEAST_POLICY_BYTES} ->
                 Again(At, Taken);
             {{nodedown, _, _}} ->
                 Micros = erlang:convert_time_unit(erlang:monotonic_time() - Arrived, native, microsecond),
                 Again(Arrived, [Micros | Taken]);
             {{take, From}} -> From ! {{taken, Taken}}, Again(Arrived, []);
             _ -> Again(Arrived, Taken)
         end
     end)(0, [])
end, [{{priority, max}}])), recording
"""
_TAKE = "begin revocation ! {take, self()}, receive {taken, Taken} -> Taken end end"


def revocation(release: Release, beams: Path, quick: bool) -> list[Row]:
    """One node denies another that it is linked with, again and again."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with directory() as place, ExitStack() as stack:
        here = Place(place, release, beams, node_names(2), alone=True)
        victim, peer = start_distsec(stack, here)
        client = ControlClient(str(place / "state" / SOCKET_NAME))
        victim.ask(f"begin {_RECORDER} end")
        taken = [_once(client, victim, peer) for _ in range(rounds + 1)][1:]
    p99 = statistics.quantiles(taken, n=100, method="inclusive")[98]
    return [
        Row(
            f"{release}: denial, from its arrival in the agent to nodedown, p99 of {rounds}",
            f"{p99 / 1000:.2f} ms",
            f"median {statistics.median(taken) / 1000:.2f} ms, most {max(taken) / 1000:.2f} ms",
            goal=f"< {GOAL_MILLISECONDS} ms",
        )
    ]


def _once(client: ControlClient, victim: Control, peer: Control) -> int:
    """Microseconds of one denial; the peer is let in again and linked before."""
    client.allow(peer.name)
    answer = victim.ask(f"net_kernel:connect_node({peer.atom})")
    assert answer == "true", answer
    victim.integers(_TAKE)
    client.deny(peer.name)
    (micros,) = victim.integers(_TAKE)
    return micros
