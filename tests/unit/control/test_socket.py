"""The control socket, both ends: the real client against the real server over a fake orchestrator."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distsec.control.client import ControlClient
from distsec.control.wire import MAX_REQUEST_BYTES
from distsec.errors import (
    CommandFailed,
    ConfigError,
    DistsecError,
    NameInvalid,
    NotAcknowledged,
    NotFound,
    PermissionRefused,
    PortInUse,
    Problem,
    StoreError,
    Unavailable,
    UsageError,
)
from tests.unit.control.fake_orchestrator import NODES, NOW, FakeOrchestrator, Running, refusal, running
from tests.waiting import wait_until


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def server(state_dir: Path) -> Iterator[Running]:
    with running(state_dir) as server:
        yield server


@pytest.fixture
def client(server: Running, state_dir: Path) -> ControlClient:
    return ControlClient(str(state_dir / "control.sock"))


def raw(state_dir: Path, request: bytes) -> tuple[int, dict[str, Any]]:
    """Sends bytes as they are; returns the status and the document."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(10)
        connected.connect(str(state_dir / "control.sock"))
        connected.sendall(request)
        response = http.client.HTTPResponse(connected)
        response.begin()
        return response.status, json.loads(response.read())


def post(state_dir: Path, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return raw(state_dir, head.encode() + body)


# ---- commands ----------


def test_the_socket_is_private_from_the_moment_it_exists(server: Running, state_dir: Path) -> None:
    mode = (state_dir / "control.sock").lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_every_answer_says_its_schema(client: ControlClient) -> None:
    answers = [
        client.health(),
        client.status(),
        client.nodes("start", [NODES[0]]),
        client.allow("x@h.example"),
        client.deny("x@h.example"),
        client.deny("x@h.example", compromised=True, since=7.0),
        client.revoke("0a1b"),
        client.serve([NODES[0]]),
        client.told_of_issue("0a1b"),
        client.certificates(),
        client.reload(),
        client.environment(NODES[0]),
        client.events(),
    ]
    assert {answer["schema"] for answer in answers} == {1}


def test_commands_reach_the_orchestrator_with_checked_names(client: ControlClient, server: Running) -> None:
    client.nodes("restart", [NODES[1], NODES[0], NODES[1]])
    client.nodes("stop", [], everything=True)
    client.allow("new@10.0.0.9", "spiffe://demo/node/10.0.0.9/new")
    client.deny("new@10.0.0.9")
    client.deny("new@10.0.0.9", compromised=True, since=7.0)
    client.revoke("0A:1B")
    client.revoke("dn:CN=" + "x" * 1000, "superseded")
    client.serve([NODES[1]])
    client.told_of_issue("0a")
    assert [call for call in server.fake.asked if call != ("status",)] == [
        ("restart", [NODES[1], NODES[0]]),
        ("stop", list(NODES)),
        ("allow", "new@10.0.0.9", "spiffe://demo/node/10.0.0.9/new"),
        ("deny", "new@10.0.0.9", False, 0.0),
        ("deny", "new@10.0.0.9", True, 7.0),
        ("revoke", "0A:1B"),
        ("revoke", "dn:CN=" + "x" * 1000, "superseded"),
        ("serve", NODES[1]),
        ("told_of_issue", "0a"),
    ]


@pytest.mark.parametrize(
    ("action", "chosen"), [("start", NODES[::2]), ("restart", NODES[::2]), ("stop", NODES[1:])]
)
def test_all_is_the_nodes_that_have_a_command_and_for_a_stop_those_that_run(
    client: ControlClient, server: Running, action: str, chosen: tuple[str, ...]
) -> None:
    nodes = server.fake.spec.nodes
    server.fake.spec = replace(server.fake.spec, nodes=(nodes[0], replace(nodes[1], command=()), nodes[2]))
    states = zip(NODES, ["STOPPED", "RUNNING", "BACKOFF"], strict=True)
    server.fake.document["nodes"] = [{"name": name, "state": state} for name, state in states]
    assert client.nodes(action, [], everything=True)["nodes"] == list(chosen)
    assert server.fake.asked[-1] == (action, list(chosen))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.nodes("start", ["nobody@127.0.0.1"]), NotFound),
        (lambda c: c.nodes("start", ["no name"]), NameInvalid),
        (lambda c: c.nodes("start", []), UsageError),
        (lambda c: c.nodes("start", [NODES[0]] * 1001), UsageError),
        (lambda c: c.nodes("destroy", [NODES[0]]), UsageError),
        (lambda c: c.allow("x"), NameInvalid),
        (lambda c: c.allow("x@h", "CN=x"), UsageError),
        (lambda c: c.allow("x@h", "spiffe://demo/" + "a" * 3000), UsageError),
        (lambda c: c.deny("x@h", compromised="yes"), UsageError),
        (lambda c: c.deny("x@h", compromised=True, since=-1.0), UsageError),
        (lambda c: c.deny("x@h", compromised=True, since=1e300), UsageError),
        (lambda c: c.deny("x@h", compromised=True, since=True), UsageError),
        (lambda c: c.deny("x@h", since=5.0), UsageError),
        (lambda c: c.revoke(""), UsageError),
        (lambda c: c.revoke("0" * 300), UsageError),
        (lambda c: c.revoke(7), UsageError),
        (lambda c: c.revoke("spiffe://" + "x" * 2048), UsageError),
        (lambda c: c.revoke("0a", "boredom"), UsageError),
        (lambda c: c.revoke("0a", 7), UsageError),
        (lambda c: c.serve([]), UsageError),
        (lambda c: c.serve(["x@h.example"]), NotFound),
        (lambda c: c.told_of_issue(7), UsageError),
        (lambda c: c.environment("nobody@127.0.0.1"), NotFound),
        (lambda c: c.environment("../../etc/passwd"), NameInvalid),
    ],
)
def test_bad_input_is_refused_and_never_reaches_the_orchestrator(
    client: ControlClient, server: Running, call: Any, error: type[DistsecError]
) -> None:
    with pytest.raises(error):
        call(client)
    assert server.fake.asked == []
    assert server.failures == []


@pytest.mark.parametrize(
    "error",
    [
        NotAcknowledged("2 of 3 acknowledged", missing=["a@h", "b@h"], where="allow", do="try again"),
        ConfigError(
            "/x/distsec.toml", [Problem("nodes[0].name", 7, "no name", "name it"), Problem("", 0, "bad")]
        ),
        NotFound("x@h: no such node", do="look"),
        CommandFailed("erl exited"),
        StoreError("the disk is full", where="/x"),
        PermissionRefused("not you"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_orchestrator_is_raised_again_as_itself(
    client: ControlClient, server: Running, error: DistsecError
) -> None:
    server.fake.error = error
    with pytest.raises(type(error)) as raised:
        client.reload()
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    assert raised.value.exit_code == error.exit_code
    assert getattr(raised.value, "missing", None) == getattr(error, "missing", None)
    assert getattr(raised.value, "problems", None) == getattr(error, "problems", None)


def test_a_bug_is_told_to_the_log_and_not_to_the_caller(client: ControlClient, server: Running) -> None:
    server.fake.error = RuntimeError("secret cookie 12345")
    with pytest.raises(CommandFailed, match="look into its log") as raised:
        client.status()
    assert "12345" not in str(raised.value)
    assert server.failures == ["GET /v1/status: secret cookie 12345"]


def test_an_error_text_from_elsewhere_is_escaped(client: ControlClient, server: Running) -> None:
    server.fake.error = CommandFailed("node said \x1b[31m\nforged line")
    with pytest.raises(CommandFailed) as raised:
        client.status()
    assert str(raised.value) == "node said \\x1b[31m\\x0aforged line"


# ---- hostile or foreign requests ----------


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b'"x"', b'{"nmae": "x@h"}', b'{"name": 7}', b"[" * 50_000, b"\xff\xfe"],
)
def test_a_body_that_is_no_request_is_refused(server: Running, state_dir: Path, body: bytes) -> None:
    status, document = post(state_dir, "/v1/policy/allow", body)
    assert (status, document["error"]["type"], document["error"]["exit_code"]) == (400, "UsageError", 64)
    assert server.fake.asked == []


def test_a_body_that_is_too_large_is_refused(server: Running, state_dir: Path) -> None:
    status, document = post(state_dir, "/v1/policy/allow", b" " * (MAX_REQUEST_BYTES + 1))
    assert status == 413
    assert document["error"]["type"] == "UsageError"


@pytest.mark.parametrize("target", ["/", "/v2/status", "/v1/policy", "/metrics"])
def test_what_is_not_served_is_an_error_document(server: Running, state_dir: Path, target: str) -> None:
    status, document = raw(state_dir, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status == 404
    assert document["schema"] == 1


def test_a_get_changes_nothing(server: Running, state_dir: Path) -> None:
    status, _ = raw(state_dir, b"GET /v1/policy/allow HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 405


@pytest.mark.parametrize("query", ["since=x", "since=nan", "since=1e99", "limit=x", "after=inf"])
def test_a_number_that_is_none_is_refused(server: Running, state_dir: Path, query: str) -> None:
    status, _ = raw(state_dir, f"GET /v1/events?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status == 400


# ---- who may ask ----------


def test_a_process_of_a_managed_node_is_refused(state_dir: Path) -> None:
    asked: list[int] = []

    def is_managed(pid: int) -> bool:
        asked.append(pid)
        return True

    with running(state_dir, is_managed=is_managed) as server:
        with pytest.raises(PermissionRefused, match="managed node"):
            ControlClient(str(state_dir / "control.sock")).allow("evil@127.0.0.1")
        assert server.fake.asked == []
        assert asked == [os.getpid()]


def test_a_connection_that_a_process_left_behind_is_refused(server: Running, state_dir: Path) -> None:
    """A managed node could let a child connect and end, and use what it connected."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    connects = (
        "import socket, sys, array;"
        "c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]);"
        "s = socket.socket(fileno=int(sys.argv[2])); socket.send_fds(s, [b'x'], [c.fileno()])"
    )
    with ours, theirs:
        path = str(state_dir / "control.sock")
        subprocess.run(
            [sys.executable, "-c", connects, path, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            check=True,
            timeout=30,
        )
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=descriptors[0]) as left:
        left.settimeout(10)
        left.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        response = http.client.HTTPResponse(left)
        response.begin()
        assert response.status == 403
    assert server.fake.asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_although_the_socket_were_open_to_it(
    server: Running, state_dir: Path
) -> None:
    path = state_dir / "control.sock"
    for directory in [state_dir, *state_dir.parents]:
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
        if directory.name.startswith("pytest-of-"):
            break
    path.chmod(0o666)
    asks = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]);"
        "c.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(c.recv(1000).decode())"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-c", asks, str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if "Permission denied" in answer.stderr:
        pytest.skip("a directory above the test's keeps other users out")
    assert "403" in answer.stdout.splitlines()[0], answer
    assert server.fake.asked == []


# ---- nobody there, or somebody else ----------


def test_nobody_there_says_what_to_type(tmp_path: Path) -> None:
    client = ControlClient(str(tmp_path / "control.sock"), start_command="distsec run -c here.toml")
    with pytest.raises(
        Unavailable, match=r"no orchestrator answers; start it with `distsec run -c here.toml`"
    ):
        client.status()
    with pytest.raises(Unavailable):
        next(client.follow())


def test_an_orchestrator_that_says_nothing_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsec.control.client.ANSWER_SECONDS", 0.1)
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(Unavailable, match="no answer within"):
            ControlClient(path).status()


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"]
)
def test_an_answer_that_is_cut_off_is_unavailable(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.recv(65536)
                connected.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Unavailable, match="went away"):
            ControlClient(path).status()
        thread.join(10)


def test_a_second_orchestrator_does_not_take_the_socket(server: Running, state_dir: Path) -> None:
    with pytest.raises(PortInUse), running(state_dir):
        pass
    assert ControlClient(str(state_dir / "control.sock")).status()["cluster"] == "demo"


def test_a_socket_that_a_dead_orchestrator_left_is_replaced_and_removed_at_the_end(state_dir: Path) -> None:
    state_dir.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state_dir / "control.sock"))
    with running(state_dir):
        assert ControlClient(str(state_dir / "control.sock")).health()["schema"] == 1
    assert not (state_dir / "control.sock").exists()


def test_a_directory_that_others_can_enter_is_refused(state_dir: Path) -> None:
    state_dir.mkdir()
    state_dir.chmod(0o755)
    with pytest.raises(StoreError), running(state_dir):
        pass


# ---- events ----------


def test_recent_events_are_told_since_a_time_and_at_most_so_many(
    client: ControlClient, server: Running
) -> None:
    for number in range(5):
        server.publish(refusal(number))
    events = client.events(since=NOW + 1, limit=2)["events"]
    assert [(event["id"], event["time"], event["type"]) for event in events] == [
        (4, NOW + 3, "UnauthorizedAccess"),
        (5, NOW + 4, "UnauthorizedAccess"),
    ]


def test_following_begins_with_what_was_and_goes_on(client: ControlClient, server: Running) -> None:
    server.publish(refusal(1))
    following = client.follow()
    assert next(following)["id"] == 1
    server.publish(refusal(2, peer="\x1b[2Jx@h"))
    event = next(following)
    assert (event["id"], event["peer"]) == (2, "\\x1b[2Jx@h")
    server.close_bus()
    assert list(following) == []


def test_following_ends_when_the_orchestrator_does(state_dir: Path) -> None:
    with running(state_dir) as server:
        server.publish(refusal())
        following = ControlClient(str(state_dir / "control.sock")).follow()
        next(following)
    assert list(following) == []


def test_a_follower_that_went_away_is_let_go(
    client: ControlClient, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsec.control.http.QUIET_SECONDS", 0.02)
    server.publish(refusal())
    following = client.follow()
    next(following)
    assert len(server.fake.bus._followers) == 1
    following.close()  # type: ignore[attr-defined]  # a generator
    wait_until(lambda: not server.fake.bus._followers, "the follower to be let go")


def test_the_number_of_followers_is_bounded(
    client: ControlClient, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsec.control.http.MAX_FOLLOWERS", 1)
    server.publish(refusal())
    following = client.follow()
    next(following)
    with pytest.raises(Unavailable, match="others follow"):
        next(client.follow())
    assert client.events()["events"], "everything else is still answered"


def test_a_command_is_carried_out_although_its_caller_goes_away(state_dir: Path) -> None:
    import asyncio

    entered, go_on, done = threading.Event(), threading.Event(), threading.Event()

    class Slow(FakeOrchestrator):
        async def start(self, names: list[str]) -> None:
            entered.set()
            await asyncio.to_thread(go_on.wait, 10)
            done.set()

    with running(state_dir, Slow()):
        body = json.dumps({"names": [NODES[0]]}).encode()
        with socket.socket(socket.AF_UNIX) as connected:
            connected.connect(str(state_dir / "control.sock"))
            connected.sendall(
                b"POST /v1/nodes/start HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert entered.wait(10)
        go_on.set()
        assert done.wait(10)


def test_commands_that_come_during_the_start_wait_and_are_admitted_by_what_is_known_then(
    state_dir: Path,
) -> None:
    waiting, go_on, managed = threading.Semaphore(0), asyncio.Event(), set[int]()

    async def begun() -> None:
        waiting.release()
        await go_on.wait()

    client = ControlClient(str(state_dir / "control.sock"))
    with (
        running(state_dir, is_managed=lambda pid: bool(managed), begun=begun) as server,
        ThreadPoolExecutor(1) as others,
    ):
        for refused in (False, True):
            server.loop.call_soon_threadsafe(go_on.clear)
            command = others.submit(client.rotate_ca, "prepare")
            assert waiting.acquire(timeout=30)
            asked = list(server.fake.asked)
            assert client.status()["cluster"] == "demo"
            assert server.fake.asked == [*asked, ("status",)], "nothing but what is asked of memory"
            managed |= {1} if refused else set()  # it is found to be of a node that was adopted
            server.loop.call_soon_threadsafe(go_on.set)
            if refused:
                with pytest.raises(PermissionRefused):
                    command.result(30)
                assert len(server.fake.asked) == len(asked) + 1
            else:
                assert command.result(30)["schema"] == 1
                assert server.fake.asked[-1][0] == "rotate the CA"
