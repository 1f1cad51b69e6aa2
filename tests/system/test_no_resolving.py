"""Names are never resolved for strangers: what a peer gossips costs no DNS query, no dial and no wait."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.releases import Otp
from tests.system.cluster import Cluster

HOST = "127.0.0.1"
GOSSIPED = 1000


DIALLED = f"""
    [Name || {{_, _, _, #{{direction := out, name := Name}}}} <- distsec_attempts:all(),
             not lists:member(Name, [<<"b@{HOST}">>, <<"c@{HOST}">>])]"""


class SilentNameServer:
    """Takes DNS queries and answers none."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        self.queries: list[bytes] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                self.queries.append(self._socket.recv(512))
            except OSError:
                return

    def asked_for(self, *labels: bytes) -> list[bytes]:
        """The queries for a name with one of those labels; OTP 29 asks for its own host's at boot."""
        return [query for query in self.queries if any(label in query for label in labels)]

    def close(self) -> None:
        self._socket.close()


@contextmanager
def silent_name_server() -> Iterator[SilentNameServer]:
    server = SilentNameServer()
    try:
        yield server
    finally:
        server.close()


def gossip(host: str) -> str:
    """Erlang, for a peer: processes of unlisted nodes, as a message; whoever answers one of them dials it."""
    return f"""
        begin
            Name = fun(N) -> list_to_binary("g" ++ integer_to_list(N) ++ "@{host}") end,
            Far = fun(N) -> B = Name(N),
                            binary_to_term(<<131, 88, 119, (byte_size(B)), B/binary, 1:32, 0:32, 7:32>>) end,
            [Far(N) || N <- lists:seq(1, {GOSSIPED})]
        end"""


def test_a_peer_that_gossips_a_thousand_names_costs_no_query_and_no_wait(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    with silent_name_server() as names:
        cluster = make_cluster(otp, nodes=["a", "b", "c"])
        inetrc = cluster.directory / "inetrc"
        server = f"{{127,0,0,1}}, {names.port}"
        inetrc.write_text(
            f"{{lookup, [dns]}}.\n{{alt_nameserver, {server}}}.\n{{nameserver, {server}}}.\n"
            "{timeout, 2000}.\n{retry, 1}.\n"
        )
        cluster.table("a")["environment"] = {"ERL_INETRC": str(inetrc)}
        cluster.start()

        cluster.erl(
            "a",
            "register(gossip_sink, spawn(fun() -> receive {From, Far} ->"
            " From ! {told, timer:tc(fun() -> [Pid ! hello || Pid <- Far], length(Far) end)} end end))",
        )
        told = cluster.erl(
            "b",
            f"begin {{gossip_sink, 'a@{HOST}'}} ! {{self(), {gossip('unlisted.example')}}},"
            " receive {told, {_, Count}} -> Count after 20000 -> timeout end end",
        )
        assert told == str(GOSSIPED)

        # net_kernel has worked all of that off when it answers; it has never waited for anybody
        took, connected = timed(cluster, "net_kernel:connect_node('x@other.example')")
        assert connected == "false"
        assert took < 0.2
        assert not names.asked_for(b"unlisted", b"other")
        assert cluster.erl("a", DIALLED) == "[]"

        cluster.distsec("deny", cluster.node("c"))
        assert cluster.erl("a", "nodes(connected)") == f"['b@{HOST}']"
        assert not names.asked_for(b"unlisted", b"other")

        # the positive control: whoever does resolve, in that very node, asks that server and waits
        took, _ = timed(cluster, 'inet:gethostbyname("silent.example")')
        cluster.wait(lambda: names.asked_for(b"silent"), "the query to be taken")
        assert took > 1
        # Queries are taken in their order: what was asked before that one has been seen by now.
        assert not names.asked_for(b"unlisted", b"other")


def timed(cluster: Cluster, expression: str) -> tuple[float, str]:
    """How many seconds an expression takes in node a, and its value."""
    value = cluster.erl("a", f"timer:tc(fun() -> {expression} end)", seconds=30)
    micros, _, rest = value.strip("{}").partition(",")
    return int(micros) / 1e6, rest
