"""A node's process: started unmodified in a session of its own, watched through a pidfd, ended whole.

The process outlives this one when it is left (`abandon`) and is found again by pid and start time (`adopt`,
with what `read_run` says). Nothing here knows why a node is started or ended (`core.lifecycle`) or what its
output means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distsec.beam import proc, session
from distsec.beam.logs import OutputLog
from distsec.beam.runtime import DEFAULT_PATH, find_program
from distsec.beam.shortage import RETRY_SECONDS, shortage
from distsec.errors import RuntimeMissing, StoreError
from distsec.model.text import escape
from distsec.pki.account import Account, acting_as

SURVIVOR_GRACE_SECONDS = 3.0
"""Between SIGTERM and SIGKILL for what is left of a node whose leader has died."""

_ALIVE_CHECK_SECONDS = 1.0
_ALIVE_SLACK_TICKS = 2 * proc.CLOCK_TICKS_PER_SECOND
"""A pid cannot come round within these few seconds after its process was seen alive (pid_max is at least
32,768)."""

_SWEEPS = 5
"""Passes over what is left; whoever still forks after these is left to itself."""

_RUN_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Exit:
    """How the leader ended: an exit code, or the number of a signal; both None for an adopted process."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(self.signal).name}"
            return f"killed by signal {self.signal}"
        return "ended, exit code unknown" if self.code is None else f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """`run.json`: which process a node is. `start_time` in clock ticks since boot, `started_at` in Unix
    seconds. `uid`: whom it was started as; None: as ourselves, like those of earlier versions."""

    pid: int
    start_time: int
    boot_id: str
    started_at: float
    uid: int | None = None

    def to_bytes(self) -> bytes:
        """The content of run.json."""
        fields = {
            "schema": _RUN_SCHEMA,
            "pid": self.pid,
            "start_time": self.start_time,
            "boot_id": self.boot_id,
            "started_at": self.started_at,
            **({} if self.uid is None else {"uid": self.uid}),
        }
        return json.dumps(fields).encode() + b"\n"


def read_run(content: bytes) -> RunRecord:
    """Reads run.json. Raises StoreError for anything but what `RunRecord.to_bytes` writes."""
    try:
        fields = json.loads(content)
        expected = {"schema": int, "pid": int, "start_time": int, "boot_id": str, "started_at": (int, float)}
        if isinstance(fields, dict) and "uid" in fields:
            expected["uid"] = int
        if not isinstance(fields, dict) or fields.keys() != expected.keys():
            raise ValueError("other keys")
        for key, kind in expected.items():
            if not isinstance(fields[key], kind) or isinstance(fields[key], bool):  # type: ignore[arg-type]
                raise ValueError(key)
        uid = fields.get("uid")
        least = {"pid": 2, "start_time": 0, **({} if uid is None else {"uid": 1})}
        if fields["schema"] != _RUN_SCHEMA or any(fields[key] < lowest for key, lowest in least.items()):
            raise ValueError("out of range")
        pid, began, boot = fields["pid"], fields["start_time"], fields["boot_id"]
        return RunRecord(pid, began, boot, float(fields["started_at"]), uid)
    except (ValueError, RecursionError, OverflowError) as error:
        raise StoreError(
            "no record of a running process",
            where="run.json",
            do="see that the node does not run any more, then remove the file",
        ) from error


def boot_id() -> str:
    """Identifies this boot of the kernel, so that a record from before a reboot matches nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def leftovers(run: RunRecord | None, log: OutputLog, account: Account | None = None) -> list[session.Member]:
    """What still lives of a node that could not be adopted, for `session.end`; without a record, by its
    mark only. `account`: whom it ran as, or runs as now."""
    leader = session.Member(run.pid, run.start_time) if run is not None and run.boot_id == boot_id() else None
    return session.leftovers(leader, log.path, account=account)


def node_environment(
    base: Mapping[str, str],
    *,
    user: str,
    home: str,
    erl_aflags: str,
    log_directory: Path,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of a node. Of `base` (the orchestrator's own) only PATH, LANG and TZ are taken.

    So neither NOTIFY_SOCKET, nor credentials, nor ERL_FLAGS reach it. An epmd that anything below the node
    starts (each command-line tool with a node name does) listens on loopback alone. `extra` is what the
    configuration gives the node and wins over all but ERL_AFLAGS, which carries the guard.
    """
    environment = {
        "PATH": base.get("PATH") or DEFAULT_PATH,
        "HOME": home,
        "USER": user,
        "LOGNAME": user,
        "LANG": base.get("LANG") or "C.UTF-8",
        "ERL_CRASH_DUMP": str(log_directory / "erl_crash.dump"),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    if "TZ" in base:
        environment["TZ"] = base["TZ"]
    return {**environment, **extra, "ERL_AFLAGS": erl_aflags}


class NodeProcess:
    """One start of a node's command: its leader and all that came of it. Build it with `start` or `adopt`."""

    def __init__(
        self,
        leader: session.Member,
        handle: int,
        log: OutputLog,
        child: subprocess.Popen[bytes] | None,
        account: Account | None = None,
    ) -> None:
        self.pid = leader.pid
        self.start_time = leader.start_time
        self.log = log
        self._leader = leader
        self._handle = handle
        self._child = child
        self._account = account
        self._known_alive = session.ticks_now()
        self._exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(handle, self._leader_exited)
        self._timer: asyncio.TimerHandle | None = None
        self._note_alive()
        self._ended = self._loop.create_task(self._end_session(), name=f"session of pid {self.pid}")

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        working_directory: Path,
        log: OutputLog,
        started_at: float,
        record: Callable[[bytes], object],
        account: Account | None = None,
    ) -> NodeProcess:
        """Starts `command` in a session of its own, with that environment and nothing else, and records it;
        as `account`, with its groups, where there is one.

        `working_directory` is absolute. `record` stores the bytes of run.json; if it fails, the process is
        killed and its error goes on, for a node that cannot be found again must not run. `started_at` is
        now, in Unix seconds. Raises RuntimeMissing when the command cannot be run, StoreError when its log
        cannot be kept.
        """
        with acting_as(account):
            if not os.path.isdir(working_directory):  # noqa: PTH112  Path.is_dir raises where it may not look
                raise RuntimeMissing(
                    f"the working directory {escape(str(working_directory), 1024)} is not there",
                    do="make it, or correct the node's working_directory",
                )
            program = find_program(command[0], environment, working_directory)
        output = log.open()
        try:
            with acting_as(account):  # the child changes its directory before it changes its user
                child = subprocess.Popen(
                    command,
                    executable=program,
                    env=dict(environment),
                    cwd=working_directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    close_fds=True,
                    user=None if account is None else account.uid,
                    group=None if account is None else account.gid,
                    extra_groups=None if account is None else account.groups,
                )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "a NUL byte in the command or environment"
            raise RuntimeMissing(
                f"{escape(str(program), 1024)} cannot be run ({reason})",
                do="see that it is a program for this machine, or a script that begins with #!",
            ) from error
        finally:
            os.close(output)
        handle: int | None = None
        try:
            handle = _open_pidfd(child.pid)
            began = proc.start_time(child.pid)
            if began is None:
                raise RuntimeMissing("/proc does not show the process that was started", do="mount /proc")
            uid = None if account is None else account.uid
            record(RunRecord(child.pid, began, boot_id(), started_at, uid).to_bytes())
            return cls(session.Member(child.pid, began), handle, log, child, account)
        except BaseException:
            # Its pid is ours until we wait for it, so this hits nobody else.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if handle is not None:
                os.close(handle)
            raise

    @classmethod
    def adopt(cls, run: RunRecord, log: OutputLog, account: Account | None = None) -> NodeProcess | None:
        """Takes over a process that an earlier orchestrator started as `account`; None when it is not there
        any more.

        Then `leftovers` tells what it left behind. A pid that was reused, also by a reboot, is not adopted,
        nor is a process of another user: where nodes share our own they can write the record, and with
        CAP_KILL we may signal anybody.
        """
        if run.boot_id != boot_id():
            return None
        leader = session.Member(run.pid, run.start_time)
        handle = session.open_handle(leader)
        if handle is None:
            return None
        owner = os.geteuid() if account is None else account.uid
        if not session.lives(leader) or proc.owner(run.pid) != owner or os.getsid(run.pid) != run.pid:
            os.close(handle)
            return None
        return cls(leader, handle, log, None, account)

    @property
    def running(self) -> bool:
        """Whether the leader has not exited, as far as the event loop has heard."""
        return not self._exited.is_set()

    async def wait(self) -> Exit:
        """Waits until the leader has exited and all that it left behind was ended. May be awaited any
        number of times."""
        return await asyncio.shield(self._ended)

    def processes(self) -> list[int]:
        """The pids of the leader, all below it and all in its session, ascending."""
        return proc.tree(self.pid) if self._same() else []

    def contains(self, pid: int) -> bool:
        """Whether `pid` is of this node: below the leader, or in its session."""
        return self._same() and proc.descends_from(pid, self.pid)

    def listeners(self) -> list[proc.Listener]:
        """The listening TCP sockets of all its processes. Raises PermissionRefused when they cannot be
        seen."""
        processes = self.processes()
        with acting_as(self._account):
            return proc.listening(processes)

    def signal_group(self, number: signal.Signals) -> bool:
        """Sends `number` to the leader's process group; False when the leader has gone and nothing was sent.

        The group's number is the leader's pid, which nobody else can have while the leader exists: that it
        does is asked of the pidfd, not of the pid. Raises PermissionError when the kernel refuses (another
        user's process).
        """
        if not self.running or not self._same():
            return False
        try:
            signal.pidfd_send_signal(self._handle, 0)  # 0: only ask
            if os.getsid(self.pid) != self.pid:
                return False
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def abandon(self) -> None:
        """Stops watching and leaves the process running, for a later orchestrator to adopt. The last call."""
        self._stop_watching()
        self._ended.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ended
        self._close()
        if self._child is not None and self._child.returncode is None:
            self._child.returncode = 0  # or its destructor takes it for forgotten and warns

    def _same(self) -> bool:
        return proc.same_process(self.pid, self.start_time)

    def _leader_exited(self) -> None:
        self._stop_watching()
        self._exited.set()

    def _stop_watching(self) -> None:
        if self._handle >= 0:
            self._loop.remove_reader(self._handle)
        if self._timer is not None:
            self._timer.cancel()

    def _note_alive(self) -> None:
        # Only an adopted leader's pid is up for reuse as soon as it has exited; see session.leftovers.
        if self._child is None:
            if self._same():
                self._known_alive = session.ticks_now()
            self._timer = self._loop.call_later(_ALIVE_CHECK_SECONDS, self._note_alive)

    async def _end_session(self) -> Exit:
        await self._exited.wait()
        known_alive = self._known_alive + _ALIVE_SLACK_TICKS
        clean = 0
        for _ in range(_SWEEPS):
            clean = clean + 1 if await self._sweep(known_alive) else 0
            if clean == 2:  # one pass over /proc can miss what forks, or calls exec, while it lasts
                break
        # Reaped last: as long as our zombie is there, its pid, group and session number are nobody else's.
        ended = Exit()
        if self._child is not None:
            code = self._child.wait()
            ended = Exit(code=code) if code >= 0 else Exit(signal=-code)
        self._close()
        return ended

    async def _sweep(self, known_alive: int) -> bool:
        """Ends what it left behind; whether that was nothing. Where it cannot be looked at for want of
        descriptors it is looked at again until it can be: till then it is not known to be gone."""
        while True:
            try:
                found = await asyncio.to_thread(
                    session.leftovers,
                    self._leader,
                    self.log.path,
                    held=self._child is not None,
                    known_alive=known_alive,
                    account=self._account,
                )
                await session.end(found, SURVIVOR_GRACE_SECONDS)
            except (OSError, RuntimeError) as error:
                if shortage(error) is None:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return not found

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise RuntimeMissing(
            f"the kernel gives no pidfd ({error.strerror})",
            do="run Linux 5.3 or newer and let pidfd_open through seccomp",
        ) from error
