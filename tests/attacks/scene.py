"""What an attack is tried on: one managed node `a`, and two listed names, `b` and `c`, that nobody runs.

So that an attempt is counted exactly, nobody dials here (`connect = "none"`) but the test. What happened is
read as an operator reads it, from the log and from /metrics, and what did not happen is asked of the victim
itself: which nodeups it saw, and whether code that a stranger brought has run.
"""

from __future__ import annotations

import json
import ssl
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from distsec.model.events import REFUSAL_TYPES
from tests.releases import Otp
from tests.system.certificates import Leaf
from tests.system.cluster import Cluster, free_ports
from tests.system.intruder import Intruder, atom, string, tcp
from tests.waiting import PATIENCE_SECONDS

VICTIM = "a@127.0.0.1"
LISTED = ("b", "c")
OWN_PROBES = 2  # TLS 1.3 without a certificate, and TLS 1.2

RECORDER = """
Loop = fun F(Seen) ->
           receive
               {nodeup, Node, _} -> F([Node | Seen]);
               {nodedown, _, _} -> F(Seen);
               {take, From} -> From ! {seen, lists:reverse(Seen)}, F([])
           end
       end,
register(test_recorder, spawn(fun() -> ok = net_kernel:monitor_nodes(true, [{node_type, all}]), Loop([]) end))
"""
DIAL = """
Node = {name},
Dial = fun() ->
           case net_kernel:connect_node(Node) of
               true ->
                   true = monitor_node(Node, true),
                   receive {{nodedown, Node}} -> true after 3000 -> erlang:disconnect_node(Node) end;
               _ -> % false, or ignored where an attack has ended the victim's distribution
                   false
           end
       end,
length([up || _ <- lists:seq(1, {times}), Dial()])
"""
"""Each dial makes a connection of its own: the one before has ended."""

_CANARY = """
Loop = fun F() -> receive _ -> persistent_term:put(test_harmed, message), F() end end,
register(test_canary, spawn(fun() -> Loop() end))
"""
_ATTACK = """
V = {victim},
[begin
     {{test_canary, V}} ! now,
     rpc:call(V, persistent_term, put, [test_harmed, rpc], 2000),
     catch erpc:call(V, persistent_term, put, [test_harmed, erpc], 2000),
     spawn(V, persistent_term, put, [test_harmed, spawn]),
     catch gen_server:call({{test_canary, V}}, now, 200)
 end || _ <- lists:seq(1, {times})],
net_kernel:connect_node(V)
"""

_HOLD = """
Self = self(),
register(test_holder, spawn(fun() ->
    true = erlang:suspend_process(whereis(net_kernel)), Self ! held, receive release -> ok end
end)),
receive held -> ok end
"""
"""Without net_kernel nobody can be disconnected; it goes on when the process that holds it ends."""

_RELEASE = """
case whereis(test_holder) of
    undefined -> ok; % an attempt that came to its end before it was held
    Holder -> Held = monitor(process, Holder), Holder ! release, receive {'DOWN', Held, _, _, _} -> ok end
end
"""

_ALONE = """
{nodes(connected), ets:info(sys_dist, size), distsec_links:all(),
 [up || {_, _, up, _} <- distsec_attempts:all()], maps:get(kickers, sys:get_state(distsec_watch))}
    =:= {[], 0, [], [], #{}}
"""
"""The emulator has no link any more; nor have those of it who hear of that later, each in its own time:
net_kernel, to which a name would be in use still, the watcher, who tells of the end and may be throwing the
peer out still, and the carrier, which counts names.
"""

_UNTOLD = "lists:append([element(1, distsec_ring:read(Lane, 0, 1, pass)) || Lane <- [critical, refusals]])"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True, slots=True)
class Knock:
    """A raw connection that is kept open, and our end of it as the victim sees it."""

    connection: ssl.SSLSocket
    address: str
    error: ssl.SSLError | None


class Scene:
    """See the module. `begin` before each test; `test` holds what ends with it."""

    def __init__(
        self, otp: Otp, beams: Path, *, carrier: str = "inet_tls", external: Sequence[str] = ()
    ) -> None:
        """`external`: listed nodes that something else starts."""
        self.cluster = Cluster(otp, beams, ["a"], carrier=carrier)
        self.test = ExitStack()
        self.otp = otp
        self.listed_ports = dict(zip(LISTED, free_ports(len(LISTED)), strict=True))
        distribution = self.cluster.settings["security"]["distribution"]
        distribution["connect"] = "none"
        distribution["allowed_nodes"] += [self.cluster.node(name) for name in LISTED]
        self.cluster.settings["peers"] = [
            {"name": self.cluster.node(name), "address": "127.0.0.1", "port": port}
            for name, port in self.listed_ports.items()
        ]
        self.external_ports = dict(zip(external, free_ports(len(external)), strict=True))
        for name, port in self.external_ports.items():
            distribution["allowed_nodes"].append(name)
            self.cluster.settings["nodes"].append({"name": name, "port": port})
        self._log_read = 0
        self._before: Series = {}

    @property
    def port(self) -> int:
        """Where the victim listens."""
        return self.cluster.port("a")

    # ---- the course of a test

    def __enter__(self) -> Scene:
        try:
            self.cluster.init()
            self.cluster.run()
            self.cluster.wait_running()
            self.cluster.wait(lambda: self._of_probes() >= OWN_PROBES, "the node to tell of the probes")
            self.erl(RECORDER)
            self.erl(_CANARY)
        except BaseException:
            self.cluster.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.close()

    def begin(self) -> None:
        """From here on everything is counted anew; nothing of an earlier test is still on its way."""
        self.settle()
        self.nodeups()
        self.erl("persistent_term:erase(test_harmed)")
        self._log_read = len(self.cluster.orchestrator_lines())
        self._before = self.series()

    def settle(self) -> None:
        """Waits until the orchestrator has taken every event of the victim, and counted each refusal."""

        def all_there() -> bool:
            if self.erl(_UNTOLD) != "[]":
                return False
            metrics = self.series()
            told = sum(
                value
                for (name, labels), value in metrics.items()
                if name == "distsec_security_refusals_total" and ("node", VICTIM) in labels
            )
            return told + self._of_probes() == self._refusals_in_the_node()

        self.cluster.wait(all_there, "the victim's refusals to be counted by the orchestrator")

    def _of_probes(self) -> int:
        """How many refusals were the orchestrator's own looks, which it counts nowhere but in its records: a
        look that a slow machine spoilt is repeated.
        """
        record = self.cluster.node_directory("a") / "probes.json"
        return sum(json.loads(record.read_text())["absorbed"].values()) if record.exists() else 0

    def _refusals_in_the_node(self) -> int:
        return int(self.erl("lists:sum([N || {_, _, N} <- maps:get(refusals, distsec_count:report())])"))

    # ---- the victim, from inside

    def erl(self, expressions: str, seconds: float = PATIENCE_SECONDS) -> str:
        return self.cluster.erl("a", expressions, seconds)

    def nodeups(self) -> str:
        """Every nodeup, hidden ones too, since it was asked last."""
        return self.erl("test_recorder ! {take, self()}, receive {seen, Nodes} -> Nodes end")

    def wait_alone(self, what: str) -> None:
        """Waits until the victim has no link, and nothing in it takes it for having one."""
        self.cluster.wait(lambda: self.erl(_ALONE) == "true", what)

    def harmed(self) -> str:
        """How code of a stranger ran in the victim, or "no"."""
        return self.erl("persistent_term:get(test_harmed, no)")

    def dial(self, peer: str, times: int) -> str:
        """The victim dials `peer`; which answers it had."""
        expressions = (
            f"lists:usort([net_kernel:connect_node({atom(self.cluster.node(peer))}) "
            f"|| _ <- lists:seq(1, {times})])"
        )
        return self.erl(expressions)

    def pair_cookie(self, peer: str) -> str:
        """What the victim and `peer` say to each other."""
        path = string(str(self.cluster.node_directory("a") / "cookie.term"))
        name = self.cluster.node(peer)
        return self.erl(
            f"{{ok, [{{distsec_cookies, #{{peers := P}}}}]}} = file:consult({path}), "
            f'binary_to_atom(maps:get(<<"{name}">>, P))'
        ).strip("'")

    def default_cookie(self) -> str:
        return self.cluster.cookie("a")

    def hold(self) -> None:
        """From here on the victim disconnects nobody, as one that hangs."""
        self.erl(_HOLD)

    @contextmanager
    def released_in_the_end(self) -> Iterator[None]:
        """Ends `hold`, whatever becomes of the test."""
        try:
            yield
        finally:
            self.erl(_RELEASE)

    # ---- what the operator has of it

    def log(self) -> list[dict[str, Any]]:
        """The log since the test began."""
        return [json.loads(line) for line in self.cluster.orchestrator_lines()[self._log_read :]]

    def denials(self) -> list[dict[str, Any]]:
        """Events of a peer that was kept out or thrown out, each once; a flood's are in `denied`."""
        return [event for event in self.log() if event.get("result") == "deny" and "reason" in event]

    def last_events(self, reason: str, times: int) -> list[dict[str, Any]]:
        """The newest `times` of `distsec events --json` with that reason; unlike the log it has them all."""
        events = json.loads(self.cluster.distsec("events", "--json").stdout)["events"]
        return [event for event in events if event.get("reason") == reason][-times:]

    def denied(self) -> Counter[str]:
        """How many denials the log tells of, those included that it only counts, by reason."""
        told: Counter[str] = Counter()
        for event in self.log():
            if event["event"] in REFUSAL_TYPES and (event.get("result") == "deny" or "suppressed" in event):
                told[event.get("reason", "")] += event.get("suppressed", 1)
        return told

    def series(self) -> Series:
        """/metrics."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.cluster.metrics())
            for sample in family.samples
        }

    def counted(self, metric: str, *labels: str) -> dict[tuple[str, ...], float]:
        """By how much each series of `metric` grew since the test began, those that did; by their labels."""
        grown = {}
        for (name, pairs), value in self.series().items():
            more = value - self._before.get((name, pairs), 0)
            if name == metric and more:
                of = dict(pairs)
                grown[tuple(of[label] for label in labels)] = more
        return grown

    def refusals(self) -> dict[tuple[str, ...], float]:
        """distsec_security_refusals_total since the test began: (node, direction, reason) → number."""
        return self.counted("distsec_security_refusals_total", "node", "direction", "reason")

    def attempts(self) -> dict[tuple[str, ...], float]:
        """distsec_security_connection_attempts_total: (result, peer) → number."""
        return self.counted("distsec_security_connection_attempts_total", "result", "peer")

    def wait_told(self) -> None:
        """Waits until the log tells of every refusal that was counted: what it held back it says later."""
        self.settle()
        self.cluster.wait(
            lambda: self.denied().total() == sum(self.refusals().values()), "every refusal in the log"
        )

    def expect(self, reason: str, times: int, *, direction: str = "in", peer: str = "unlisted") -> None:
        """Exactly `times` refusals, all for `reason`: in the log, under both counters, and nowhere else."""
        self.cluster.wait(lambda: self.denied()[reason] >= times, f"{times} times {reason} in the log")
        self.settle()
        assert self.denied() == {reason: times}, self.denials()
        assert self.refusals() == {(VICTIM, direction, reason): times}
        assert self.attempts() == {("deny", peer): times}

    def expect_nothing_happened(self) -> None:
        """No nodeup since the test began, no link now, and nobody's code ran."""
        assert self.nodeups() == "[]"
        assert self.erl("nodes(connected)") == "[]"
        assert self.harmed() == "no"

    # ---- those who attack

    def knock(self, leaf: Leaf | None = None, *, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Knock:
        """A TLS handshake by a client that trusts every server; the socket stays open, whatever it says."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = maximum
        if leaf:
            context.load_cert_chain(leaf.certificate, leaf.key)
        raw = self.test.enter_context(tcp(self.port))
        connection = self.test.enter_context(context.wrap_socket(raw, do_handshake_on_connect=False))
        address = "{}:{}".format(*connection.getsockname())
        try:
            connection.do_handshake()
        except ssl.SSLError as error:
            return Knock(connection, address, error)
        return Knock(connection, address, None)

    def intruder(self, name: str, *, leaf: Leaf | None, **how: Any) -> Intruder:
        stranger = self.cluster.intruder(name, leaf=leaf, **how)
        self.test.callback(stranger.stop)
        return stranger

    def attack(self, stranger: Intruder, times: int) -> None:
        """All ways to run something in a node that is linked: send, rpc, erpc, spawn, call; each dials."""
        stranger.erl(_ATTACK.format(victim=atom(VICTIM), times=times), 60)
