"""A stranger who keeps a node's port busy delays its proof, and has nobody stopped."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from tests.releases import Otp
from tests.system.cluster import HOST, Cluster
from tests.waiting import wait_until

CONNECTIONS = 40
"""OTP 27 and later take as many pending handshakes as they have schedulers; the rest queue behind them."""


@contextlib.contextmanager
def idle_connections(port: int) -> Iterator[None]:
    """Connections that say nothing, made anew whenever OTP gives up on one (net_setuptime, 7 s). All of them
    are there before anybody else is.
    """
    end = threading.Event()
    made: set[int] = set()

    def hold() -> None:
        while not end.is_set():
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5) as idle:
                made.add(threading.get_ident())
                idle.settimeout(0.2)
                while not end.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not idle.recv(1):
                            break

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(made) == CONNECTIONS, "all of them to be connected")
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(60)


def test_connections_that_say_nothing_keep_nobody_from_the_port_of_the_carrier(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "b"])
    cluster.start()
    cluster.kill()
    with idle_connections(cluster.port("a")):
        cluster.run()
        cluster.wait_running()
        assert cluster.distsec("restart", "b@127.0.0.1").returncode == 0
        cluster.wait_meshed()
    assert not cluster.events("NodeStopped", node="a@127.0.0.1")


def test_with_stock_otp_a_busy_port_keeps_an_adopted_node_from_its_proof_and_not_from_its_life(
    otps: tuple[Otp, ...], make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otps[-1], ["a"], carrier="inet_tls")
    cluster.start()
    pid = cluster.pid("a")
    cluster.kill()
    # Of the one that adopts it. By then its agent has come (2 s) and the first probe is over (4 s), however
    # busy the machine is.
    cluster.settings["cluster"]["start_deadline_seconds"] = 20
    cluster.write()
    with idle_connections(cluster.port("a")):
        cluster.run()
        cluster.wait_states(a="STARTING")
        told = cluster.distsec("start", "a@127.0.0.1", check=False)
        assert told.returncode == 70
        assert "not proven yet" in told.stderr and "probe" in told.stderr
        status = cluster.status_of("a")
        assert (status["state"], status["pid"], status["agent"]) == ("STARTING", pid, "connected")
        assert cluster.distsec("status", check=False).returncode == 1
    cluster.wait_running()
    assert cluster.pid("a") == pid
    assert not cluster.events("NodeStopped")
