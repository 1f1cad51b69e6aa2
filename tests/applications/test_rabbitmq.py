"""RabbitMQ, unchanged, as config/examples/rabbitmq has it: three brokers, one cluster, no epmd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.applications.packaged import need_package
from tests.applications.rabbit import SERVER, TOOLS, Brokers, Publisher
from tests.releases import Otp
from tests.system.intruder import Intruder
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.otp, pytest.mark.timeout(300), pytest.mark.alone]


@pytest.fixture(scope="module")
def brokers(debians: Otp, beams: Path) -> Iterator[Brokers]:
    """Three brokers in one cluster. Each test leaves them like that."""
    need_package(SERVER)
    with Brokers(debians, beams) as made:
        made.begin()
        made.join("rabbit2", "rabbit1")
        made.join("rabbit3", "rabbit1")
        yield made


def test_three_brokers_are_one_cluster_over_proven_links(brokers: Brokers) -> None:
    brokers.assert_linked_at_the_first_try()
    links = [link for node in brokers.status()["nodes"] for link in node["links"] if not link["hidden"]]
    assert len(links) == 6 and {link["tls_version"] for link in links} == {"tlsv1.3"}
    for name in brokers.names:
        brokers.wait_running_nodes(name, *brokers.names)
        seen = brokers.cluster_status(name)
        assert set(seen["disk_nodes"]) == brokers.nodes()
        assert seen["partitions"] == {}


def test_no_broker_starts_an_epmd(brokers: Brokers) -> None:
    """RabbitMQ does so every minute where its own name is not known, by a VM with a node name."""
    said = brokers.ask("rabbit1", "rabbit_nodes:ensure_epmd().")
    assert said == "ok"
    assert not [each for each in brokers.processes() if "epmd -daemon" in each]


def test_the_tools_see_the_whole_cluster(brokers: Brokers) -> None:
    for name in brokers.names:
        with brokers.connection(name) as connection:
            connection.channel().queue_declare(f"of-{name}", durable=True)
    # Each broker answers for its own queues, straight to the tool, which listens to nobody.
    listed = json.loads(
        brokers.tool("rabbit2", "rabbitmqctl", "list_queues", "--silent", "--formatter", "json")
    )
    assert {f"of-{name}" for name in brokers.names} <= {queue["name"] for queue in listed}
    assert "fully booted and running" in brokers.tool("rabbit3", "rabbitmq-diagnostics", "check_running")
    assert f"Node name: {brokers.node('rabbit1')}" in brokers.tool(
        "rabbit1", "rabbitmq-diagnostics", "status"
    )
    peers = set(
        brokers.tool("rabbit1", "rabbitmqctl", "eval", "nodes().").strip("[]\n").replace("'", "").split(",")
    )
    assert peers == brokers.nodes("rabbit1")


def test_a_tool_s_exit_code_is_that_of_the_command(brokers: Brokers) -> None:
    done = brokers.run_tool("rabbit1", str(TOOLS / "rabbitmqctl"), "no_such_command", check=False)
    own = subprocess.run(
        [TOOLS / "rabbitmqctl", "no_such_command"],
        env={**os.environ, "ERL_AFLAGS": "-start_epmd false"},  # else its VM leaves one behind, for everybody
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == own.returncode != 0


def test_debian_s_wrapper_works_too(brokers: Brokers) -> None:
    """It wants to be root or that user, and would become that user."""
    done = brokers.run_tool("rabbit1", "/usr/sbin/rabbitmqctl", "-q", "list_users")
    assert "guest" in done.stdout


def test_a_run_of_a_tool_is_on_record_and_leaves_nothing(brokers: Brokers) -> None:
    before = len(brokers.events("ShellAttached"))
    brokers.tool("rabbit1", "rabbitmqctl", "status")
    (tool,) = brokers.wait(lambda: attached_to(brokers, "rabbit1", before), "that to be told")
    assert tool["peer"].startswith("rabbitmqcli-") and tool["operator"].startswith("root")
    identity = tool["identity"]
    assert "/shell/127.0.0.1/exec." in identity and tool["detail"] == "rabbitmqctl"
    brokers.wait_event("ShellDetached", identity=identity)
    brokers.wait(lambda: not list((brokers.state / "shells").iterdir()), "its directory to go")
    brokers.wait(lambda: brokers.ask("rabbit1", "distsec_tools:rules().") == "[]", "the node to forget it")
    assert (
        brokers.metric("distsec_security_connection_attempts_total", peer="*@127.0.0.1", result="allow") > 0
    )


def attached_to(brokers: Brokers, name: str, before: int) -> list[dict[str, Any]]:
    attached = brokers.events("ShellAttached")[before:]
    return [event for event in attached if event["node"] == brokers.node(name)]


def test_a_tool_that_was_not_let_in_reaches_nothing(brokers: Brokers) -> None:
    """As before distsec: by itself, with the node's cookie and its port."""
    done = subprocess.run(
        [TOOLS / "rabbitmqctl", "--timeout", "10", "--erlang-cookie", brokers._cookie("rabbit1"), "status"],
        env=brokers.environment(
            RABBITMQ_USE_LONGNAME="true",
            RABBITMQ_NODENAME=brokers.node("rabbit1"),
            ERL_AFLAGS=f"-start_epmd false -dist_listen false -erl_epmd_port {brokers.port('rabbit1')}",
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 69 and "RabbitMQ version" not in done.stdout, done.stderr
    brokers.wait_event("NodeConnectionAttempt", node=brokers.node("rabbit1"), result="deny", direction="in")


def test_an_application_stops_and_starts_within_its_node(brokers: Brokers) -> None:
    pid = brokers.pids()[brokers.node("rabbit3")]
    brokers.tool("rabbit3", "rabbitmqctl", "stop_app")
    brokers.tool("rabbit1", "rabbitmqctl", "forget_cluster_node", brokers.node("rabbit3"))
    assert set(brokers.cluster_status("rabbit1")["disk_nodes"]) == brokers.nodes("rabbit3")
    brokers.tool("rabbit3", "rabbitmqctl", "reset")
    brokers.tool("rabbit3", "rabbitmqctl", "join_cluster", brokers.node("rabbit2"))
    brokers.tool("rabbit3", "rabbitmqctl", "start_app")
    brokers.wait_running_nodes("rabbit2", *brokers.names)
    assert brokers.pids()[brokers.node("rabbit3")] == pid


class Hammer:
    """An insider's certificate and a node's cookie, under a name that is not listed: as fast as it can."""

    def __init__(self, brokers: Brokers, marker: Path) -> None:
        leaf = brokers.leaf("stranger")
        self.tried = 0
        self.executed = 0
        self._stranger: Intruder = brokers.intruder("stranger", leaf=leaf, hidden=True)
        self._brokers, self._marker = brokers, marker
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._hammer, name="hammer")

    def _hammer(self) -> None:
        while not self._end.is_set():
            for name in self._brokers.names:
                self.tried += 1
                self.executed += self._stranger.execute(self._brokers.node(name), self._marker)

    def __enter__(self) -> Hammer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)
        self._stranger.stop()


def links_since(brokers: Brokers) -> dict[tuple[str, str], float]:
    """Between the brokers; those of tools come and go."""
    return {
        (node["name"], link["peer"]): link["since"]
        for node in brokers.status()["nodes"]
        for link in node["links"]
        if link["peer"] in brokers.nodes()
    }


def meanwhile(publisher: Publisher, what: Callable[[], object]) -> None:
    """Does that, and sees the publisher go on afterwards."""
    what()
    confirmed = publisher.confirmed
    wait_until(
        lambda: publisher.confirmed > confirmed + 20 or publisher.error, "messages to be confirmed", 60
    )
    assert publisher.error is None, publisher.error


def test_no_confirmed_message_is_lost_while_all_around_it_fails(brokers: Brokers, tmp_path: Path) -> None:
    publisher = Publisher(brokers, "rabbit1", "ledger")
    pids = brokers.pids()
    links = links_since(brokers)

    def crash() -> None:
        brokers.kill()
        brokers.run()
        brokers.wait_running()

    with Hammer(brokers, tmp_path / "was-here") as hammer, publisher.publishing():
        wait_until(lambda: publisher.confirmed > 20 or publisher.error, "the first messages", 60)
        meanwhile(publisher, crash)
        meanwhile(publisher, lambda: brokers.distsec("certs", "renew", "--all"))
        for step in ("prepare", "activate", "prune"):
            meanwhile(publisher, lambda step=step: brokers.distsec("certs", "rotate-ca", step))
        meanwhile(publisher, lambda: brokers.distsec("cookie", "rotate"))
        wait_until(lambda: hammer.tried > 10, "some attempts", 60)
    assert publisher.error is None and publisher.confirmed > 100
    assert hammer.executed == 0
    assert brokers.pids() == pids, "no broker was touched"
    assert links_since(brokers) == links, "no link was ended"
    brokers.assert_well()

    # And where a broker dies, the others have it all.
    survivor = Publisher(brokers, "rabbit2", "ledger2")
    with survivor.publishing():
        wait_until(lambda: survivor.confirmed > 20 or survivor.error, "the first messages", 60)
        os.kill(pids[brokers.node("rabbit3")], signal.SIGKILL)
        brokers.wait_event("NodeStopped", node=brokers.node("rabbit3"))
        meanwhile(survivor, lambda: brokers.wait_running("rabbit3"))
        brokers.booted("rabbit3")
    assert survivor.error is None
    brokers.wait_running_nodes("rabbit1", *brokers.names)
    for each, name, queue in ((publisher, "rabbit3", "ledger"), (survivor, "rabbit1", "ledger2")):
        assert set(range(each.confirmed)) <= brokers.drain(name, queue, each.confirmed)


def test_all_stops_in_good_order(brokers: Brokers) -> None:
    """The last test: afterwards nothing runs."""
    brokers.assert_stops_in_good_order()
