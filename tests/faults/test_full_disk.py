"""A disk that is full while the orchestrator runs, and a node that prints without end."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.chaos.place import Disk
from tests.releases import OTPS, Otp
from tests.system.cluster import Cluster
from tests.waiting import PATIENCE_SECONDS

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


@contextlib.contextmanager
def small_disk(cluster: Cluster) -> Iterator[Disk]:
    """The state directory is a disk of its own."""
    try:
        disk = Disk(cluster.state)
    except (subprocess.CalledProcessError, OSError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        yield disk
    finally:
        cluster.close()
        disk.close()


def written(path: Path) -> tuple[int, int]:
    """Another one whenever it is written."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


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
    # one that is being written at this moment is in its place a moment later
    cluster.wait(lambda: not list(cluster.state.rglob(".distsec-new-*")), "no file to be left half written")

    cluster.distsec("deny", "b@127.0.0.1")
    assert json.loads((cluster.state / "policy.overlay").read_bytes())["deny"] == ["b@127.0.0.1"]
    assert cluster.erl("a", "nodes(connected)") == "[]"
    assert cluster.erl("b", "nodes(connected)") == "[]"
    assert cluster.terminate() == 0


def test_an_orchestrator_that_begins_on_a_full_disk_has_its_nodes_and_writes_nothing(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a", "b"])
    record = cluster.state / "orchestrator.json"
    with small_disk(cluster) as disk:
        cluster.start()
        cluster.distsec("deny", "x@127.0.0.1", check=False)
        cluster.distsec("allow", "y@127.0.0.1")
        assert cluster.terminate() == 0
        before, pids = in_force(cluster), {name: cluster.pid(name) for name in cluster.names}
        files = {path: written(path) for path in cluster.state.rglob("*.*") if path.is_file()}
        generation = json.loads((cluster.state / "policy.overlay").read_bytes())["generation"]
        said = len(cluster.orchestrator_lines())
        disk.fill()

        cluster.run()
        cluster.wait_running()
        cluster.wait_meshed()
        assert {name: cluster.pid(name) for name in cluster.names} == pids
        status = cluster.status()
        assert (status["healthy"], status["policy_generation"]) == (True, generation)
        assert in_force(cluster) == before
        expected = [
            "the policy stays the one of before",
            "who runs here is not on record; it is tried again",
        ]

        def told() -> list[str]:
            lines = [json.loads(line) for line in cluster.orchestrator_lines()[said:]]
            return [line["event"] for line in lines if line["level"] not in {"info", "notice"}]

        cluster.wait(lambda: len(told()) >= len(expected), "what it has to say")
        assert told() == expected
        assert not record.exists()
        assert len(files) > 12
        assert [
            path
            for path, then in files.items()
            if path.name not in {record.name, ".filling", "output.log"} and written(path) != then
        ] == []
        done = cluster.distsec("deny", "b@127.0.0.1", check=False)
        assert (done.returncode, in_force(cluster)) == (73, before)

        disk.free()
        cluster.wait(record.exists, "the record")
        assert cluster.orchestrator is not None
        assert json.loads(record.read_bytes())["pid"] == cluster.orchestrator.pid
        cluster.distsec("deny", "b@127.0.0.1")
        assert cluster.status()["policy_generation"] == generation + 1
        assert cluster.terminate() == 0


def test_an_orchestrator_with_a_policy_that_it_cannot_save_ends_and_tells_nobody(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a"])
    with small_disk(cluster) as disk:
        cluster.start()
        cluster.kill()
        for half_written in list(cluster.state.rglob(".distsec-new-*")):
            half_written.unlink()  # else whoever writes next removes it, and has the room that it took
        before = in_force(cluster)
        cluster.settings["security"]["distribution"]["allowed_nodes"].append("z@127.0.0.1")
        cluster.write()
        disk.fill()
        cluster.run()
        assert cluster.orchestrator is not None
        assert cluster.orchestrator.wait(PATIENCE_SECONDS) == 73
        assert f"{cluster.state}/policy.overlay: the disk is full" in cluster.story()
        assert in_force(cluster) == before


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

    def copies() -> list[tuple[int, int, bytes]] | None:
        """Of each its size, mode and content; None: they are being rotated."""
        try:
            opened = [copy.open("rb") for copy in directory.glob("output.log.*") if copy.suffix != ".new"]
        except FileNotFoundError:
            return None
        found = []
        for file in opened:
            with file:
                state = os.fstat(file.fileno())
                found.append((state.st_size, state.st_mode & 0o777, file.read()))
        return found

    found = cluster.wait(copies, "a rotation")
    assert len(found) <= COPIES
    for size, mode, content in found:
        assert (size <= 2 * LOG_BYTES, mode) == (True, 0o600)
        lines = content.split(b"\n")[1:-1]  # the first and the last may be cut
        assert lines and set(lines) == {b"." * 99}
    assert b"\0" not in (directory / "output.log").read_bytes()  # it appends where the file was truncated
    size = (directory / "output.log").stat().st_size
    cluster.wait(lambda: (directory / "output.log").stat().st_size != size, "more output")
    assert cluster.pid("a") == pid
