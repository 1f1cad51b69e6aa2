"""`epmd = "loopback"`: the nodes are found by whoever asks epmd, and epmd by nobody beyond the host."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distsec.beam import proc
from tests.releases import Otp
from tests.system.cluster import Cluster, free_ports
from tests.system.intruder import atom
from tests.waiting import wait_until

MAKE = Callable[..., Cluster]


@pytest.fixture
def port() -> Iterator[int]:
    """Of an epmd that only this test knows; it is ended with the test."""
    (port,) = free_ports(1)
    yield port
    end_epmd(port)


def end_epmd(port: int) -> None:
    for pid in holders(port):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not holders(port), "the end of epmd")


def holders(port: int) -> set[int]:
    """The processes called epmd that listen on `port`."""
    return {
        process.pid
        for process in proc.everything()
        if process.name == "epmd" and any(each.port == port for each in proc.listening([process.pid]))
    }


def listeners(port: int) -> set[str]:
    return {address for address, number in proc.all_listening(os.getpid()) if number == port}


def names(port: int) -> dict[str, int]:
    """What epmd tells a tool that asks it (NAMES_REQ, the EPMD protocol in the ERTS User's Guide); nothing
    while there is none.
    """
    answer = b""
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        connection.sendall(struct.pack(">HB", 1, ord("n")))
        while more := connection.recv(4096):
            answer += more
    lines = (line.split() for line in answer[4:].decode().splitlines())
    return {words[1]: int(words[4]) for words in lines}


def register(port: int, name: str, node_port: int) -> socket.socket:
    """Registers a name as any user of the host may (ALIVE2_REQ); it is given up when the socket is closed."""
    connection = socket.create_connection(("127.0.0.1", port), 30)
    body = (
        struct.pack(">BHBBHHH", 120, node_port, 77, 0, 6, 5, len(name)) + name.encode() + struct.pack(">H", 0)
    )
    connection.sendall(struct.pack(">H", len(body)) + body)
    answer = connection.recv(16)
    assert answer[1] == 0, "epmd refused the name"
    return connection


def start_epmd(otp: Otp, port: int) -> None:
    """As an operator would."""
    program = Path(otp.erl).resolve().with_name("epmd")
    subprocess.run(
        [str(program), "-daemon", "-address", "127.0.0.1", "-port", str(port)], cwd="/", check=True
    )
    wait_until(lambda: bool(listeners(port)), "epmd")


def registering(make_cluster: MAKE, otp: Otp, port: int, *nodes: str, **how: str) -> Cluster:
    cluster = make_cluster(otp, list(nodes), **how)
    cluster.settings["security"]["distribution"]["epmd"] = "loopback"
    for node in nodes:
        cluster.table(node)["environment"] = {"ERL_EPMD_PORT": str(port)}
    return cluster


@pytest.mark.parametrize("carrier", ["distsec", "inet_tls"])
def test_the_nodes_register_with_an_epmd_that_listens_on_loopback_alone(
    otp: Otp, make_cluster: MAKE, port: int, carrier: str
) -> None:
    cluster = registering(make_cluster, otp, port, "a", "b", carrier=carrier)
    cluster.start()
    wait_until(lambda: names(port) == cluster.ports, "both nodes to be registered")
    assert listeners(port) <= {"127.0.0.1", "::1"}
    environment = Path(f"/proc/{next(iter(holders(port)))}/environ").read_bytes()
    assert not {b"ERL_AFLAGS", b"HOME", b"DISTSEC_CONFIG"} & {
        entry.partition(b"=")[0] for entry in environment.split(b"\0")
    }


def test_the_nodes_register_over_ipv6_too(otp: Otp, make_cluster: MAKE, port: int) -> None:
    cluster = registering(make_cluster, otp, port, "a", "b", host="::1")
    cluster.start()
    wait_until(lambda: names(port) == cluster.ports, "both nodes to be registered")


def test_epmd_is_told_and_never_asked(otp: Otp, make_cluster: MAKE, port: int) -> None:
    """Who registers a name there is dialled by nobody, and takes no other node's place."""
    cluster = registering(make_cluster, otp, port, "a", "b")
    cluster.start()
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        number = trap.getsockname()[1]
        with register(port, "evil", number):
            assert cluster.erl("a", f"net_kernel:connect_node({atom('evil@127.0.0.1')})") == "false"
            assert cluster.erl("a", "net_adm:ping('evil@127.0.0.1')") == "pang"
            assert cluster.erl("a", "net_adm:names()") == "{ok,[]}"
            with pytest.raises(TimeoutError):
                trap.accept()


def test_a_name_that_is_taken_in_epmd_keeps_no_node_from_its_links(
    otp: Otp, make_cluster: MAKE, port: int
) -> None:
    start_epmd(otp, port)
    with register(port, "a", 1):
        cluster = registering(make_cluster, otp, port, "a", "b")
        cluster.start()
        wait_until(lambda: names(port) == {"a": 1, "b": cluster.port("b")}, "b, and who took a's name")
        told = "epmd does not register this node: duplicate_name"
        cluster.wait(lambda: told in cluster.log("a"), "a to say so")
    wait_until(lambda: names(port) == cluster.ports, "the node to be registered after all")


def test_an_epmd_that_ends_takes_no_link_with_it_and_one_that_comes_back_is_told_again(
    otp: Otp, make_cluster: MAKE, port: int
) -> None:
    cluster = registering(make_cluster, otp, port, "a", "b")
    cluster.start()
    wait_until(lambda: names(port) == cluster.ports, "both nodes to be registered")
    since = cluster.status_of("a")["links"][0]["since"]
    end_epmd(port)
    assert cluster.erl("a", "erpc:call('b@127.0.0.1', erlang, node, [])") == "'b@127.0.0.1'"
    start_epmd(otp, port)
    wait_until(lambda: names(port) == cluster.ports, "both nodes to be registered again")
    assert cluster.status_of("a")["links"][0]["since"] == since
    cluster.distsec("stop", "b@127.0.0.1")
    wait_until(lambda: names(port) == {"a": cluster.port("a")}, "the stopped node to be forgotten")


def test_there_is_no_epmd_unless_it_is_asked_for(otp: Otp, make_cluster: MAKE, port: int) -> None:
    cluster = make_cluster(otp, ["a"])
    cluster.table("a")["environment"] = {"ERL_EPMD_PORT": str(port)}
    cluster.start()
    assert listeners(port) == set()


def test_an_epmd_that_something_below_a_node_starts_listens_on_loopback_alone(
    otp: Otp, make_cluster: MAKE, port: int
) -> None:
    """As each command-line tool with a node name does, when it finds none, and is not told otherwise."""
    cluster = make_cluster(otp, ["a"])
    cluster.table("a")["environment"] = {"ERL_EPMD_PORT": str(port)}
    cluster.start()
    tool = f"{otp.erl} -noinput -sname tool -eval 'halt()'"
    cluster.erl("a", f'os:cmd("{tool}")', 30)
    assert listeners(port) == set(), "it is told otherwise"
    cluster.erl("a", f'os:cmd("env -u ERL_AFLAGS {tool}")', 30)
    wait_until(lambda: listeners(port), "the tool's epmd")
    assert listeners(port) <= {"127.0.0.1", "::1"}
