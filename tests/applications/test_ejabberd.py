"""ejabberd, unchanged, as config/examples/ejabberd has it: two nodes with one Mnesia, no epmd."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.applications.jabber import CONTROL, DOMAIN, Servers
from tests.applications.packaged import need_package
from tests.releases import Otp

pytestmark = [pytest.mark.slow, pytest.mark.otp, pytest.mark.timeout(240), pytest.mark.alone]


@pytest.fixture(scope="module")
def servers(debians: Otp, beams: Path) -> Iterator[Servers]:
    """Two nodes, joined. Each test leaves them like that."""
    need_package(CONTROL)
    with Servers(debians, beams) as made:
        made.begin()
        made.tool("ejabberd2", "join_cluster", made.node("ejabberd1"))
        yield made


def test_two_nodes_are_joined_over_proven_links(servers: Servers) -> None:
    servers.assert_linked_at_the_first_try()
    for name in servers.names:
        servers.wait_members(name, *servers.names)


def test_the_control_script_works_and_both_nodes_share_what_it_says(servers: Servers) -> None:
    assert "is started with status: started" in servers.tool("ejabberd1", "status")
    servers.tool("ejabberd1", "register", "romeo", DOMAIN, "under-the-balcony")
    servers.wait_registered("ejabberd2", "romeo")
    servers.tool("ejabberd2", "unregister", "romeo", DOMAIN)
    servers.wait_registered("ejabberd1")


def test_the_control_script_s_exit_code_comes_through(servers: Servers) -> None:
    done = servers.run_tool("ejabberd1", str(CONTROL), "no_such_command", check=False)
    assert done.returncode in {1, 2}
    assert servers.run_tool("ejabberd1", str(CONTROL), "started", check=False).returncode == 0


def test_a_stranger_is_refused(servers: Servers, debians: Otp) -> None:
    servers.assert_refuses_a_stranger(debians)


def test_the_orchestrator_may_end_and_a_node_be_killed(servers: Servers) -> None:
    servers.tool("ejabberd1", "register", "juliet", DOMAIN, "above-the-balcony")
    pids = servers.pids()
    servers.kill()
    servers.run()
    servers.wait_running()
    assert servers.pids() == pids, "adopted, and not started again"
    os.kill(pids[servers.node("ejabberd2")], signal.SIGKILL)
    servers.wait_event("NodeStopped", node=servers.node("ejabberd2"))
    servers.wait_running()
    servers.booted()
    servers.wait_members("ejabberd1", *servers.names)
    servers.wait_registered("ejabberd2", "juliet")
    servers.tool("ejabberd1", "unregister", "juliet", DOMAIN)


def test_a_node_leaves_the_cluster_and_joins_it_again(servers: Servers) -> None:
    servers.tool("ejabberd1", "leave_cluster", servers.node("ejabberd2"))
    servers.wait_members("ejabberd1", "ejabberd1")
    servers.wait_running()
    servers.booted()
    servers.tool("ejabberd2", "join_cluster", servers.node("ejabberd1"))
    servers.wait_members("ejabberd2", *servers.names)


def test_all_stops_in_good_order(servers: Servers) -> None:
    """The last test: afterwards nothing runs."""
    servers.assert_stops_in_good_order()
