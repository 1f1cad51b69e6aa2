"""Node processes: started clean, watched through pidfds, ended whole, found again, and never mistaken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distsec.beam import node, proc, session
from distsec.beam.logs import OutputLog
from distsec.beam.node import Exit, NodeProcess, RunRecord, boot_id, node_environment, read_run
from distsec.beam.provision import node_directory
from distsec.errors import RuntimeMissing, StoreError
from distsec.pki.store import Store
from distsec.supervisor.node_users import NodeUsers
from tests.unit.descriptors import closed_what_is_left, open_descriptors
from tests.unit.fake_machine import node_spec
from tests.waiting import wait_until

GRACE_SECONDS = 10.0
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


class Bench:
    """One node's directory, and starts of commands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "log").mkdir()
        self.log = OutputLog(root / "log" / "output.log", 1 << 20)
        self.record = b""

    def environment(self, **extra: str) -> dict[str, str]:
        base = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "/run/notify", "DISTSEC_CONFIG": "x"}
        return node_environment(
            base,
            user="somebody",
            home=str(self.root),
            erl_aflags="-ours",
            log_directory=self.log.path.parent,
            extra=extra,
        )

    def start(self, *command: str, **changes: Any) -> NodeProcess:
        arguments: dict[str, Any] = {
            "environment": self.environment(),
            "working_directory": self.root,
            "log": self.log,
            "started_at": 1_763_764_000.5,
            "record": self._keep,
        }
        return NodeProcess.start(command, **(arguments | changes))

    def shell(self, script: str) -> NodeProcess:
        return self.start("sh", "-c", script)

    def output(self) -> str:
        return self.log.path.read_text()

    async def says(self, text: str) -> str:
        await self.until(lambda: text in self.output(), f"output {text!r}")
        return self.output()

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits with the event loop running."""
        return await asyncio.to_thread(wait_until, condition, what)

    def _keep(self, content: bytes) -> None:
        self.record = content


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    # Whatever a failed test left: it carries this test's own directory.
    for member in session.leftovers(None, made.log.path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    if made.record:
        run = read_run(made.record)
        if proc.same_process(run.pid, run.start_time):
            os.killpg(run.pid, signal.SIGKILL)


async def end(process: NodeProcess, grace_seconds: float) -> Exit:
    """As the supervisor ends a node: SIGTERM, and SIGKILL where that is not enough."""
    process.signal_group(signal.SIGTERM)
    process.signal_group(signal.SIGCONT)
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(process.wait(), grace_seconds)
    process.signal_group(signal.SIGKILL)
    return await process.wait()


def alive(pid: int) -> bool:
    found = proc.stat(pid)
    return found is not None and found.alive


# ---- what a node is given ---------------------------------------------------------------------------------


def test_the_environment_is_ours_and_nothing_leaks(tmp_path: Path) -> None:
    base = {
        "PATH": "/bin",
        "TZ": "UTC",
        "NOTIFY_SOCKET": "/run/notify",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "DISTSEC_CONFIG": "/etc/distsec/distsec.toml",
        "ERL_FLAGS": "-proto_dist inet_tcp",
        "HOME": "/root",
    }
    extra = {"APP_MODE": "x", "LANG": "de_DE.UTF-8", "ERL_AFLAGS": "-theirs"}
    assert node_environment(
        base, user="app", home="/home/app", erl_aflags="-ours", log_directory=tmp_path, extra=extra
    ) == {
        "PATH": "/bin",
        "TZ": "UTC",
        "HOME": "/home/app",
        "USER": "app",
        "LOGNAME": "app",
        "LANG": "de_DE.UTF-8",
        "ERL_CRASH_DUMP": f"{tmp_path}/erl_crash.dump",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "APP_MODE": "x",
        "ERL_AFLAGS": "-ours",
    }


def test_an_empty_base_still_gives_a_usable_environment(tmp_path: Path) -> None:
    made = node_environment({}, user="app", home="/", erl_aflags="", log_directory=tmp_path, extra={})
    assert made["LANG"] == "C.UTF-8" and "/usr/bin" in made["PATH"] and "TZ" not in made


@pytest.mark.asyncio
async def test_a_command_gets_that_environment_its_directory_and_no_descriptor_of_ours(bench: Bench) -> None:
    script = """
import json, os
links = {fd: f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
fds = {fd: os.readlink(link) for fd, link in links.items() if os.path.exists(link)}
print(json.dumps([dict(os.environ), os.getcwd(), fds, os.getsid(0) == os.getpid() == os.getpgrp()]))
"""
    leak = os.open(bench.root / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(leak, True)
    process = bench.start(sys.executable, "-I", "-c", script)
    assert await process.wait() == Exit(code=0)
    os.close(leak)
    environment, directory, descriptors, leads = json.loads(bench.output())
    environment.pop("LC_CTYPE", None)  # Python sets it for itself
    assert environment == bench.environment()
    assert directory == str(bench.root)
    assert leads
    log = str(bench.log.path)
    assert descriptors["0"] == "/dev/null" and descriptors["1"] == descriptors["2"] == log
    assert set(descriptors) == {"0", "1", "2"}
    assert stat.S_IMODE(bench.log.path.stat().st_mode) == 0o600


@pytest.mark.asyncio
async def test_output_is_appended_over_starts(bench: Bench) -> None:
    for number in (1, 2):
        process = bench.shell(f"echo out {number}; echo err {number} >&2")
        await process.wait()
    assert bench.output() == "out 1\nerr 1\nout 2\nerr 2\n"


# ---- what cannot be started -------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_missing_command_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(RuntimeMissing, match="erlang-base"):
        bench.start("erl", environment={"PATH": "/nonexistent"})
    assert bench.record == b""


@pytest.mark.asyncio
async def test_a_missing_working_directory_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(RuntimeMissing, match=r"working directory .* is not there; make it"):
        bench.start("true", working_directory=bench.root / "nowhere")


@pytest.mark.asyncio
@pytest.mark.parametrize(("content", "says"), [("echo no interpreter line\n", "#!"), ("#!/no/such\n", "#!")])
async def test_a_file_that_the_kernel_cannot_run_says_what_to_do(
    bench: Bench, content: str, says: str
) -> None:
    program = bench.root / "program"
    program.write_text(content)
    program.chmod(0o755)
    with pytest.raises(RuntimeMissing, match=says):
        bench.start(str(program))


@pytest.mark.asyncio
async def test_a_nul_byte_in_an_argument_is_an_error_and_no_crash(bench: Bench) -> None:
    with pytest.raises(RuntimeMissing, match="NUL"):
        bench.start("echo", "a\0b")


@pytest.mark.asyncio
async def test_a_log_that_is_a_symlink_starts_nothing(bench: Bench) -> None:
    bench.log.path.symlink_to(bench.root / "elsewhere")
    with pytest.raises(StoreError, match="symbolic link"):
        bench.start("true")
    assert not (bench.root / "elsewhere").exists()


@pytest.mark.asyncio
async def test_a_process_that_cannot_be_recorded_does_not_live_on(bench: Bench) -> None:
    seen: list[int] = []

    def full_disk(content: bytes) -> None:
        seen.append(read_run(content).pid)
        raise StoreError("no space left")

    with pytest.raises(StoreError, match="no space left"):
        bench.start("sleep", "60", record=full_disk)
    assert proc.stat(seen[0]) is None


# ---- how it ends ------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "expected"),
    [("exit 0", Exit(code=0)), ("exit 7", Exit(code=7)), ("kill -9 $$", Exit(signal=9))],
)
async def test_tells_exit_code_or_signal(bench: Bench, script: str, expected: Exit) -> None:
    process = bench.shell(script)
    assert await process.wait() == expected
    assert await process.wait() == expected, "it may be asked again"
    assert not process.running
    assert proc.stat(process.pid) is None, "it was reaped"


def test_an_exit_is_told_in_words() -> None:
    assert str(Exit(code=3)) == "exit code 3"
    assert str(Exit(signal=9)) == "killed by SIGKILL"
    assert str(Exit(signal=64)) in {"killed by SIGRTMAX", "killed by signal 64"}
    assert str(Exit()) == "ended, exit code unknown"


@pytest.mark.asyncio
async def test_it_is_not_gone_before_its_rest_was_looked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = session.leftovers

    def without_descriptors(*arguments: Any, **how: Any) -> list[session.Member]:
        looks.append(1)
        if len(looks) < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return look(*arguments, **how)

    monkeypatch.setattr(session, "leftovers", without_descriptors)
    monkeypatch.setattr(node, "RETRY_SECONDS", 0.01)
    process = bench.shell("exit 7")
    assert await process.wait() == Exit(code=7)
    assert len(looks) == 3 + 2


@pytest.mark.asyncio
async def test_a_signal_reaches_the_whole_group(bench: Bench) -> None:
    inner = "trap 'echo inner; exit' USR1; echo ready; while :; do sleep 0.05; done"
    process = bench.shell(f'trap "echo outer" USR1; sh -c "{inner}"; echo done')
    await bench.says("ready")
    assert process.signal_group(signal.SIGUSR1)
    assert await process.wait() == Exit(code=0)
    assert {"inner", "outer", "done"} <= set(bench.output().split())


@pytest.mark.asyncio
async def test_one_that_ignores_sigterm_is_killed_after_the_grace(bench: Bench) -> None:
    process = bench.shell(STUBBORN)
    await bench.says("ready")
    assert await end(process, 0.3) == Exit(signal=signal.SIGKILL)


@pytest.mark.asyncio
async def test_one_that_is_stopped_is_ended_too(bench: Bench) -> None:
    process = bench.shell("echo ready; exec sleep 600")
    await bench.says("ready")
    process.signal_group(signal.SIGSTOP)
    assert await end(process, GRACE_SECONDS) == Exit(signal=signal.SIGTERM)


@pytest.mark.asyncio
async def test_nothing_is_sent_once_it_has_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    process = bench.shell("exit 0")
    await process.wait()
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("a signal was sent"))
    assert not process.signal_group(signal.SIGTERM)
    assert await end(process, GRACE_SECONDS) == Exit(code=0)


@pytest.mark.asyncio
async def test_a_helper_that_outlives_its_wrapper_is_ended_before_the_node_counts_as_gone(
    bench: Bench,
) -> None:
    process = bench.shell("sleep 600 & echo $!; exit 5")
    assert await process.wait() == Exit(code=5)
    assert not alive(int(bench.output()))


UNMARKED = "env -i sleep 600 </dev/null >/dev/null 2>&1 & echo helper=$!"


@pytest.mark.asyncio
async def test_a_helper_without_any_mark_is_ended_because_our_zombie_holds_its_session(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        node, "_ALIVE_SLACK_TICKS", -1_000_000
    )  # when the leader last lived proves nothing here
    process = bench.shell(f"{UNMARKED}; exit 0")
    assert await process.wait() == Exit(code=0)
    assert not alive(int(bench.output().split("=")[1]))


@pytest.mark.asyncio
async def test_a_stubborn_helper_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "SURVIVOR_GRACE_SECONDS", 0.3)
    process = bench.shell(f'sh -c "{STUBBORN}" & echo helper=$!; wait')
    await bench.says("ready")  # of the two words either may be the first
    output = await bench.says("helper=")
    helper = int(output.split("helper=")[1].split()[0])
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == Exit(signal=9)
    assert not alive(helper)


@pytest.mark.asyncio
async def test_processes_and_listeners_of_a_wrapped_server_are_seen(bench: Bench) -> None:
    server = (
        'import socket; s = socket.create_server(("127.0.0.1", 0));'
        'print("port", s.getsockname()[1], flush=True); s.accept()'
    )
    process = bench.shell(f"{sys.executable} -c '{server}'; :")
    port = int((await bench.says("port")).split()[1])
    (listener,) = process.listeners()
    assert (listener.address, listener.port) == ("127.0.0.1", port)
    assert process.contains(listener.pid) and listener.pid != process.pid
    assert not process.contains(os.getpid())
    await end(process, GRACE_SECONDS)
    assert process.processes() == [] and process.listeners() == []


# ---- the record -------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_record_names_the_process_and_the_boot(bench: Bench) -> None:
    process = bench.shell("exec sleep 600")
    run = read_run(bench.record)
    assert run == RunRecord(process.pid, process.start_time, boot_id(), 1_763_764_000.5)
    assert json.loads(bench.record)["schema"] == 1
    await end(process, GRACE_SECONDS)


GOOD = {"schema": 1, "pid": 77, "start_time": 5, "boot_id": "b", "started_at": 1.5}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        json.dumps(GOOD | {"schema": 2}).encode(),
        json.dumps(GOOD | {"pid": 1}).encode(),
        json.dumps(GOOD | {"pid": "77"}).encode(),
        json.dumps(GOOD | {"pid": True}).encode(),
        json.dumps(GOOD | {"start_time": -1}).encode(),
        json.dumps(GOOD | {"extra": 1}).encode(),
        json.dumps({key: value for key, value in GOOD.items() if key != "boot_id"}).encode(),
    ],
)
def test_a_record_that_is_not_ours_is_an_error(content: bytes) -> None:
    assert read_run(json.dumps(GOOD).encode()) == RunRecord(77, 5, "b", 1.5)
    with pytest.raises(StoreError, match=r"run\.json"):
        read_run(content)


# ---- adoption ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def orphan(bench: Bench, script: str) -> Iterator[RunRecord]:
    """A leader whose starter has died, as after kill -9 of the orchestrator, with its output in the log."""
    program = (
        "import subprocess, sys; log = open(sys.argv[1], 'ab');"
        "print(subprocess.Popen(['sh', '-c', sys.argv[2]], start_new_session=True,"
        " stdin=subprocess.DEVNULL, stdout=log, stderr=log).pid)"
    )
    starter = subprocess.run(
        [sys.executable, "-c", program, str(bench.log.path), script],
        capture_output=True,
        text=True,
        check=True,
    )
    pid = int(starter.stdout)
    began = proc.start_time(pid)
    assert began is not None
    run = RunRecord(pid, began, boot_id(), 0.0)
    try:
        yield run
    finally:
        if proc.same_process(pid, began):
            os.killpg(pid, signal.SIGKILL)


@pytest.mark.asyncio
async def test_an_adopted_process_is_watched_signalled_and_ended_with_its_helpers(bench: Bench) -> None:
    with orphan(bench, "sleep 600 & echo helper=$!; wait") as run:
        helper = int((await bench.says("helper=")).split("=")[1])
        process = NodeProcess.adopt(run, bench.log)
        assert process is not None and process.running
        assert process.contains(helper)
        os.kill(run.pid, signal.SIGKILL)
        assert await process.wait() == Exit(), "only a parent learns the exit code"
        assert not alive(helper)
        assert not process.signal_group(signal.SIGTERM)


@pytest.mark.asyncio
@pytest.mark.parametrize("slack", [200, -1_000_000])
async def test_an_unmarked_helper_of_an_adopted_leader_is_its_own_only_if_it_began_while_that_lived(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, slack: int
) -> None:
    monkeypatch.setattr(node, "_ALIVE_SLACK_TICKS", slack)
    with orphan(bench, f"{UNMARKED}; wait") as run:
        helper = int((await bench.says("helper=")).split("=")[1])
        # until then it is the shell's own copy, whose output is the node's log
        await bench.until(lambda: proc.arguments(helper) == ("sleep", "600"), "the helper to be itself")
        try:
            process = NodeProcess.adopt(run, bench.log)
            assert process is not None
            os.kill(run.pid, signal.SIGKILL)
            assert await process.wait() == Exit()
            assert alive(helper) is (slack < 0)
        finally:
            if alive(helper):
                os.kill(helper, signal.SIGKILL)


@pytest.mark.asyncio
async def test_an_adopted_process_is_ended_by_its_group(bench: Bench) -> None:
    with orphan(bench, "exec sleep 600") as run:
        process = NodeProcess.adopt(run, bench.log)
        assert process is not None
        assert await end(process, GRACE_SECONDS) == Exit()
        assert not alive(run.pid)


@pytest.mark.asyncio
async def test_a_reused_pid_is_neither_adopted_nor_touched(bench: Bench) -> None:
    with orphan(bench, "exec sleep 600") as stranger:
        earlier = RunRecord(stranger.pid, stranger.start_time - 1, stranger.boot_id, 0.0)
        assert NodeProcess.adopt(earlier, bench.log) is None
        bench.log.path.unlink()  # so that no mark of ours is on it either
        assert node.leftovers(earlier, bench.log) == []
        left = await session.end([session.Member(stranger.pid, stranger.start_time - 1)], GRACE_SECONDS)
        assert left == [] and alive(stranger.pid)


@pytest.mark.asyncio
async def test_another_users_process_is_neither_adopted_nor_ended_whatever_the_record_says(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without a user of its own can write run.json, and we may have CAP_KILL."""
    store = Store(bench.root / "state")
    spec = node_spec("a")
    users = NodeUsers(store)
    with orphan(bench, "exec sleep 600") as run:
        monkeypatch.setattr(proc, "owner", lambda pid: os.geteuid() + 1)
        assert NodeProcess.adopt(run, bench.log) is None
        forged = replace(run, uid=os.geteuid() + 2)
        store.write(f"{node_directory(spec.name)}/run.json", forged.to_bytes())
        await users.settle(spec, lambda *said, **more: None)
        assert not store.exists(f"{node_directory(spec.name)}/run.json")
        assert alive(run.pid)


@pytest.mark.asyncio
async def test_after_a_reboot_nothing_is_adopted(bench: Bench) -> None:
    with orphan(bench, "exec sleep 600") as run:
        before = RunRecord(run.pid, run.start_time, "another-boot", 0.0)
        assert NodeProcess.adopt(before, bench.log) is None
        assert alive(run.pid)


@pytest.mark.asyncio
async def test_what_lives_on_of_a_leader_that_died_meanwhile_is_found_by_its_mark(bench: Bench) -> None:
    with orphan(bench, "sleep 600 & echo helper=$!; wait") as run:
        helper = int((await bench.says("helper=")).split("=")[1])
        # in the middle of its exec it has no mark
        await bench.until(lambda: proc.arguments(helper) == ("sleep", "600"), "the helper to be itself")
        os.kill(run.pid, signal.SIGKILL)
        await bench.until(lambda: not alive(run.pid), "the leader to die")
        assert NodeProcess.adopt(run, bench.log) is None
        # Without the mark a member proves nothing: the session's number may be another's by now.
        elsewhere = OutputLog(bench.root / "other" / "output.log", 1)
        assert node.leftovers(run, elsewhere) == []
        found = node.leftovers(run, bench.log)
        assert [member.pid for member in found] == [helper]
        assert await session.end(found, GRACE_SECONDS) == []
        assert not alive(helper)


@pytest.mark.asyncio
async def test_an_abandoned_process_runs_on_and_can_be_adopted_again(bench: Bench) -> None:
    first = bench.shell("echo ready; exec sleep 600")
    await bench.says("ready")
    await first.abandon()
    assert alive(first.pid)
    second = NodeProcess.adopt(read_run(bench.record), bench.log)
    assert second is not None
    second.signal_group(signal.SIGKILL)
    assert await second.wait() == Exit()
    os.waitpid(first.pid, 0)  # it is still a child of this process here


@pytest.mark.asyncio
async def test_no_descriptor_stays_open(bench: Bench) -> None:
    before = closed_what_is_left()
    for _ in range(5):
        await bench.shell("sleep 60 & exit 0").wait()
        process = bench.shell("exec sleep 60")
        await end(process, GRACE_SECONDS)
    assert open_descriptors() == before


# ---- what leaves the session ------------------------------------------------------------------------------


def disguised(bench: Bench, name: str) -> str:
    """A program that only sleeps and is called `name`."""
    program = bench.root / name
    shutil.copy(shutil.which("sleep") or "", program)
    return str(program)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("beam.smp", True),  # erl -detached
        ("erlexec", True),  # the same, a moment earlier
        ("daemon", False),  # what an application starts for good is its own business
    ],
)
async def test_of_what_left_the_session_only_a_beam_is_ended(bench: Bench, name: str, ends: bool) -> None:
    os.mkfifo(bench.root / "go")
    program = disguised(bench, name)
    process = bench.shell(f"setsid {program} 600 </dev/null >/dev/null 2>&1 & read go < go; exit 0")
    mark = str(bench.root).encode()

    def outside() -> list[int]:
        named = [each for each in proc.everything() if each.name == name and each.session != process.pid]
        return [each.pid for each in named if proc.environment_holds(each.pid, mark)]

    (pid,) = await bench.until(outside, f"{name} to leave the session")
    try:
        await asyncio.to_thread((bench.root / "go").write_text, "\n")
        assert await process.wait() == Exit(code=0)
        assert alive(pid) is not ends
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.asyncio
async def test_an_operators_shell_is_left_alone(bench: Bench) -> None:
    """It has the node's environment (`distsec env`) and is a BEAM, but it has a terminal too."""
    program = disguised(bench, "beam.smp")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(program, [program, "600"], bench.environment())
    try:
        mark = str(bench.root).encode()
        await bench.until(lambda: proc.environment_holds(pid, mark), "the shell to run")
        assert await bench.shell("exit 0").wait() == Exit(code=0)
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


# ---- real nodes -------------------------------------------------------------------------------------------

PRINTER = 'F = fun F(N) -> io:format("tick ~p~n", [N]), timer:sleep(20), F(N + 1) end, F(0).'


@pytest.mark.asyncio
async def test_a_node_that_prints_all_the_while_survives_its_starter_and_is_adopted(
    otp: Any, bench: Bench
) -> None:
    command = [otp.erl, "-noinput", "-eval", PRINTER]
    starter_script = f"""
import asyncio, sys
from pathlib import Path
from distsec.beam.logs import OutputLog
from distsec.beam.node import NodeProcess
async def main():
    root = Path(sys.argv[1])
    NodeProcess.start({command!r}, environment={bench.environment() | {"ERL_AFLAGS": ""}!r},
        working_directory=root, log=OutputLog(root / "log" / "output.log", 1 << 20), started_at=0.0,
        record=(root / "run.json").write_bytes)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    package = str(Path(node.__file__).parents[2])
    starter = subprocess.Popen(
        [sys.executable, "-c", starter_script, str(bench.root)], env=os.environ | {"PYTHONPATH": package}
    )
    try:
        await bench.until(bench.log.path.exists, "the log")
        await bench.says("tick 10\n")
    finally:
        starter.kill()
        starter.wait()
    bench.record = (bench.root / "run.json").read_bytes()
    process = NodeProcess.adopt(read_run(bench.record), bench.log)
    assert process is not None
    size = bench.log.path.stat().st_size
    await bench.until(lambda: bench.log.path.stat().st_size > size + 200, "the node to print on")
    assert await end(process, GRACE_SECONDS) == Exit()
    assert not (bench.root / "log" / "erl_crash.dump").exists()


@pytest.mark.asyncio
async def test_a_node_whose_shell_was_killed_is_ended_and_not_left_unguarded(otp: Any, bench: Bench) -> None:
    process = bench.start(
        "sh",
        "-c",
        f"{otp.erl} -noinput -eval '{PRINTER}'; :",
        environment=bench.environment() | {"ERL_AFLAGS": ""},
    )
    await bench.says("tick 1\n")
    (beam,) = (
        pid for pid in process.processes() if (found := proc.stat(pid)) and found.name.startswith("beam")
    )
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == Exit(signal=9)
    assert not alive(beam)


@pytest.mark.asyncio
async def test_a_node_that_detached_itself_is_ended_with_the_command_that_started_it(
    otp: Any, bench: Bench
) -> None:
    touched = bench.root / "detached"
    proof = f'file:write_file("{touched}", os:getpid()), timer:sleep(infinity).'
    process = bench.start(
        otp.erl, "-detached", "-noinput", "-eval", proof, environment=bench.environment() | {"ERL_AFLAGS": ""}
    )
    await process.wait()
    assert session.leftovers(None, bench.log.path) == []
    pid = touched.read_text() if touched.exists() else ""  # it may be ended before it has written all of it
    assert not pid or not alive(int(pid))
