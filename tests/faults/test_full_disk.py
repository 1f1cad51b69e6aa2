"""A disk that is full while the orchestrator runs, and a node that prints without end."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster

LOG_BYTES = 50_000
COPIES = 3


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """One release: it is the orchestrator that is under test."""
    chosen: Otp = request.param
    return chosen


@contextlib.contextmanager
def full_disk(cluster: Cluster) -> Iterator[None]:
    """The orchestrator can write no file meanwhile, its own log included (EFBIG, handled as ENOSPC is)."""
    assert cluster.orchestrator is not None
    pid = cluster.orchestrator.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def in_force(cluster: Cluster) -> dict[str, str]:
    return {name: cluster.erl(name, "distsec_policy:summary()") for name in cluster.names}


def test_allow_and_deny_on_a_full_disk_fail_and_lose_nothing(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "b"])
    cluster.start()
    cluster.distsec("deny", "x@127.0.0.1", check=False)
    cluster.distsec("allow", "y@127.0.0.1")
    overlay = (cluster.state / "policy.overlay").read_bytes()
    documents = {path: path.read_bytes() for path in cluster.state.glob("nodes/*/policy.term")}
    before, links = in_force(cluster), cluster.links()

    with full_disk(cluster):
        for action, name in (("allow", "z@127.0.0.1"), ("deny", "b@127.0.0.1")):
            done = cluster.distsec(action, name, check=False)
            assert done.returncode == 73
            assert done.stderr == (
                f"distsec: {cluster.state}/policy.overlay: the disk is full; nothing was changed; "
                "make room and run it again\n"
            )
        assert cluster.status()["healthy"]
        assert in_force(cluster) == before
    assert (cluster.state / "policy.overlay").read_bytes() == overlay
    assert {path: path.read_bytes() for path in documents} == documents
    assert cluster.links() == links
    assert not list(cluster.state.rglob(".distsec-new-*"))

    cluster.distsec("deny", "b@127.0.0.1")
    assert json.loads((cluster.state / "policy.overlay").read_bytes())["deny"] == ["b@127.0.0.1"]
    assert cluster.erl("b", "nodes(connected)") == "[]"
    assert cluster.terminate() == 0


def test_the_output_of_a_node_that_prints_without_end_stays_bounded(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a"])
    cluster.settings["logging"] = {"max_bytes": LOG_BYTES}
    cluster.start()
    pid = cluster.pid("a")
    cluster.erl(
        "a",
        'spawn(fun Print() -> io:format("~s~n", [lists:duplicate(99, $.)]), '
        "receive after 1 -> Print() end end)",
    )
    directory = cluster.node_directory("a") / "log"
    cluster.wait(lambda: (directory / "output.log.1").exists(), "a rotation", 40)
    for copy in directory.glob("output.log.*"):
        assert copy.stat().st_size <= 2 * LOG_BYTES
        assert copy.stat().st_mode & 0o777 == 0o600
        lines = copy.read_bytes().split(b"\n")[1:-1]  # the first and the last may be cut
        assert lines and set(lines) == {b"." * 99}
    assert len(list(directory.glob("output.log.*"))) <= COPIES
    assert b"\0" not in (directory / "output.log").read_bytes()  # it appends where the file was truncated
    size = (directory / "output.log").stat().st_size
    cluster.wait(lambda: (directory / "output.log").stat().st_size != size, "more output")
    assert cluster.pid("a") == pid
