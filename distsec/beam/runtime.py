"""Which `erl` a node's command will use, and whether its OTP release is one that we run on.

Known beforehand only where it is obvious (`erl`, `iex`, `elixir`, `mix`); a mix release or RabbitMQ may
bring an ERTS of its own or be a wrapper: for those the agent's snapshot tells the release. The release is
read from the files of the installation (starting a BEAM to ask costs 150 ms a node); only an `erl` that
hides its root is run.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distsec.beam.agent import check_agent
from distsec.errors import RuntimeMissing
from distsec.model.cluster import OLDEST_RELEASE, PROVEN_RELEASES
from distsec.model.text import escape
from distsec.pki.account import Account, acting_as

LIBRARIES = ("asn1", "crypto", "public_key", "ssl")
"""What the guard and the carrier need beside kernel and stdlib, which every release has."""

ASK_DEADLINE_SECONDS = 20.0
"""How long an `erl` that had to be run may take to tell its release."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when the environment names no PATH."""

_ERLANG = frozenset({"erl"})
_ELIXIR = frozenset({"elixir", "iex", "mix"})
_ROOT_LINE = re.compile(r"^\s*ROOTDIR=[\"']?(/[^\s\"'$`]+)[\"']?\s*$", re.MULTILINE)
_ANSWER_BYTES = 64
_QUESTION = "io:put_chars(erlang:system_info(otp_release)), halt()."


@dataclass(frozen=True, slots=True)
class Runtime:
    """An Erlang installation: `version` is the whole `27.3.4.1` where the files say it, else the release."""

    erl: Path
    release: int
    version: str

    @property
    def support(self) -> str:
        """`proven` or `unproven`, see `check_release`."""
        return check_release(self.release)


def check_release(release: int) -> str:
    """`proven` if the test-suite runs on that release, `unproven` if it is another; raises RuntimeMissing
    if too old."""
    if release < OLDEST_RELEASE:
        raise RuntimeMissing(
            f"OTP {release} is too old: {OLDEST_RELEASE} is the oldest",
            do=f"install Erlang/OTP {OLDEST_RELEASE} or newer (proven: {_proven()})",
        )
    return "proven" if release in PROVEN_RELEASES else "unproven"


def find_program(program: str, environment: Mapping[str, str], directory: Path) -> Path:
    """The file that `program` names, absolute: looked up as execvpe(3) does, relative to `directory`.

    Raises RuntimeMissing with what to install or to write.
    """
    if "/" in program:
        path = directory / program
        is_file = os.path.isfile(path)  # noqa: PTH113  Path's own raises where we may not look
        if is_file and _executable(path):
            return path
        exists = is_file or os.path.exists(path)  # noqa: PTH110
        what = "is not executable" if is_file else "is no program" if exists else "does not exist"
        do = "make it executable (chmod +x)" if is_file else "correct the node's command"
        raise RuntimeMissing(f"{escape(str(path), 1024)} {what}", do=do)
    path_variable = environment.get("PATH", DEFAULT_PATH)
    for place in path_variable.split(os.pathsep):
        path = directory / place / program
        if os.path.isfile(path) and _executable(path):  # noqa: PTH113
            return path
    what = f"{escape(program)} is not on the PATH {escape(path_variable, 1024)}"
    if program in _ERLANG:
        do = f"install Erlang/OTP {OLDEST_RELEASE} or newer (Debian: apt-get install erlang-base erlang-ssl)"
    elif program in _ELIXIR:
        do = "install Elixir (Debian: apt-get install elixir)"
    else:
        do = "install it, or write its absolute path into the node's command"
    raise RuntimeMissing(what, do=do)


def _executable(path: Path) -> bool:
    """For whom this thread acts (pki.account.acting_as): access(2) would ask for the real user."""
    return os.access(path, os.X_OK, effective_ids=True)


def find_erl(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> Path | None:
    """The `erl` that `command` will run, or None where only running it would tell.

    Raises RuntimeMissing when the command's program, or the `erl` that it needs, is not there.
    """
    program = find_program(command[0], environment, directory)
    name = Path(command[0]).name
    if name in _ERLANG:
        return program
    # Elixir's scripts exec the `erl` of the PATH (bin/elixir: ERTS_BIN is empty outside a release).
    return find_program("erl", environment, directory) if name in _ELIXIR else None


def check_runtime(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, account: Account | None = None
) -> None:
    """There is what `command` runs on, as far as that can be known beforehand. Blocks like `inspect`. Raises
    RuntimeMissing.
    """
    with acting_as(account):
        erl = find_erl(command, environment, directory)
    if erl is not None:
        plain = {key: environment[key] for key in ("PATH", "HOME", "LANG") if key in environment}
        inspect(erl, plain, account)


def inspect(erl: Path, environment: Mapping[str, str], account: Account | None = None) -> Runtime:
    """The installation behind an `erl`, from its files or, failing that, by running it (blocks up to 20 s),
    as `account`: whoever runs the node may have written it.

    `environment` is a clean one (PATH, HOME). Raises RuntimeMissing when it is too old or does not run.
    """
    with acting_as(account):
        for root in roots(erl):
            if (runtime := _from_files(erl, root)) is not None:
                check_release(runtime.release)
                check_agent(runtime.release)
                return runtime
    release = _ask(erl, environment, account)
    check_release(release)
    check_agent(release)
    return Runtime(erl, release, str(release))


def find_libraries(directory: Path) -> tuple[str, ...]:
    """The code of `LIBRARIES` in the `lib` directory of an Erlang installation: one ebin of each, the newest.

    Raises RuntimeMissing with what is not there.
    """
    found = []
    for name in LIBRARIES:
        versions = [path for path in directory.glob(f"{name}-*/ebin") if (path / f"{name}.app").is_file()]
        if not versions:
            raise RuntimeMissing(
                f"there is no {name}",
                where=escape(str(directory), 1024),
                do="set otp_libraries to the lib directory of an Erlang/OTP of the release's own version, "
                "such as /usr/lib/erlang/lib",
            )
        found.append(str(max(versions, key=_version)))
    return tuple(found)


def _version(ebin: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", ebin.parent.name))


def roots(erl: Path) -> list[Path]:
    """Candidates for its ROOTDIR: where the script really lies (that is what it uses itself), then what it
    names."""
    resolved = Path(os.path.realpath(erl))  # Path.resolve raises where somebody has made a loop of links
    roots = [resolved.parent.parent]
    try:
        text = _beginning(resolved, 16_384).decode("utf-8", "replace")
    except OSError:
        return roots
    named = {Path(path) for path in _ROOT_LINE.findall(text)}
    return roots + sorted(named) if len(named) == 1 else roots


def _from_files(erl: Path, root: Path) -> Runtime | None:
    releases = root / "releases"
    # "<erts version> <release>" of what `erl` boots (OTP System Principles, "Creating a Target System").
    fields = _short_text(releases / "start_erl.data").split()
    if (
        len(fields) != 2
        or not re.fullmatch(r"\d{1,3}", fields[1])
        or not os.path.isdir(root / f"erts-{fields[0]}")  # noqa: PTH112  Path's own raises, of a long name too
    ):
        return None
    version = _short_text(releases / fields[1] / "OTP_VERSION").strip()
    if not re.fullmatch(rf"{fields[1]}(\.\d+)*(-rc\d+)?", version):
        version = fields[1]
    return Runtime(erl, int(fields[1]), version)


def _short_text(path: Path) -> str:
    try:
        return _beginning(path, 256).decode("ascii", "replace")
    except OSError:
        return ""


def _beginning(path: Path, count: int) -> bytes:
    """At most `count` bytes. A FIFO, which whoever runs the node may have put there, is as good as empty, and
    holds nobody up. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, count)
    finally:
        os.close(descriptor)


def _ask(erl: Path, environment: Mapping[str, str], account: Account | None = None) -> int:
    # no_dot_erlang: the user's ~/.erlang is code that would run here.
    command = [str(erl), "-boot", "no_dot_erlang", "-noinput", "-eval", _QUESTION]
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # away from our terminal, and whatever it starts goes with it
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else account.groups,
        )
    except OSError as error:
        raise _silent(erl) from error
    with process:
        assert process.stdout is not None
        try:
            answer = _answer(process.stdout.fileno())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if not re.fullmatch(rb"\d{1,3}", answer):
        raise _silent(erl)
    return int(answer)


def _answer(descriptor: int) -> bytes:
    """What it prints, up to more than any answer has: it may be the node's own, and print for ever."""
    deadline, answer, waiting = time.monotonic() + ASK_DEADLINE_SECONDS, b"", select.poll()
    waiting.register(descriptor, select.POLLIN)
    while len(answer) < _ANSWER_BYTES and (left := deadline - time.monotonic()) > 0:
        if waiting.poll(left * 1000):
            if not (more := os.read(descriptor, _ANSWER_BYTES)):
                return answer
            answer += more
    return b""


def _silent(erl: Path) -> RuntimeMissing:
    return RuntimeMissing(
        "this erl does not tell its OTP release",
        where=escape(str(erl), 1024),
        do=f"repair the installation: `erl -noshell -eval '{_QUESTION}'` must print a number",
    )


def _proven() -> str:
    return ", ".join(map(str, sorted(PROVEN_RELEASES)))
