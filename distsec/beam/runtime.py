"""Which `erl` a node's command will use, and whether its OTP release is one that we run on.

Known beforehand only where it is obvious (`erl`, `iex`, `elixir`, `mix`); a mix release or RabbitMQ may
bring an ERTS of its own or be a wrapper: for those the agent's snapshot tells the release. The release is
read from the files of the installation (starting a BEAM to ask costs 150 ms a node); only an `erl` that
hides its root is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distsec.errors import RuntimeMissing
from distsec.model.cluster import OLDEST_RELEASE, PROVEN_RELEASES
from distsec.model.text import escape

LIBRARIES = ("asn1", "crypto", "public_key", "ssl")
"""What the guard and the carrier need beside kernel and stdlib, which every release has."""

ASK_DEADLINE_SECONDS = 20.0
"""How long an `erl` that had to be run may take to tell its release."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when the environment names no PATH."""

_ERLANG = frozenset({"erl"})
_ELIXIR = frozenset({"elixir", "iex", "mix"})
_ROOT_LINE = re.compile(r"^\s*ROOTDIR=[\"']?(/[^\s\"'$`]+)[\"']?\s*$", re.MULTILINE)
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
        if path.is_file() and os.access(path, os.X_OK):
            return path
        what = (
            "is not executable"
            if path.is_file()
            else "does not exist"
            if not path.exists()
            else "is no program"
        )
        do = "make it executable (chmod +x)" if path.is_file() else "correct the node's command"
        raise RuntimeMissing(f"{escape(str(path), 1024)} {what}", do=do)
    path_variable = environment.get("PATH", DEFAULT_PATH)
    if found := shutil.which(program, path=path_variable):
        return directory / found
    what = f"{escape(program)} is not on the PATH {escape(path_variable, 1024)}"
    if program in _ERLANG:
        do = f"install Erlang/OTP {OLDEST_RELEASE} or newer (Debian: apt-get install erlang-base erlang-ssl)"
    elif program in _ELIXIR:
        do = "install Elixir (Debian: apt-get install elixir)"
    else:
        do = "install it, or write its absolute path into the node's command"
    raise RuntimeMissing(what, do=do)


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


def inspect(erl: Path, environment: Mapping[str, str]) -> Runtime:
    """The installation behind an `erl`, from its files or, failing that, by running it (blocks up to 20 s).

    `environment` is a clean one (PATH, HOME). Raises RuntimeMissing when it is too old or does not run.
    """
    for root in roots(erl):
        if (runtime := _from_files(erl, root)) is not None:
            check_release(runtime.release)
            return runtime
    release = _ask(erl, environment)
    check_release(release)
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
    resolved = erl.resolve()
    roots = [resolved.parent.parent]
    try:
        with resolved.open("rb") as script:
            text = script.read(16_384).decode("utf-8", "replace")
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
        or not (root / f"erts-{fields[0]}").is_dir()
    ):
        return None
    version = _short_text(releases / fields[1] / "OTP_VERSION").strip()
    if not re.fullmatch(rf"{fields[1]}(\.\d+)*(-rc\d+)?", version):
        version = fields[1]
    return Runtime(erl, int(fields[1]), version)


def _short_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(256).decode("ascii", "replace")
    except OSError:
        return ""


def _ask(erl: Path, environment: Mapping[str, str]) -> int:
    # no_dot_erlang: the user's ~/.erlang is code that would run here.
    command = [str(erl), "-boot", "no_dot_erlang", "-noinput", "-eval", _QUESTION]
    try:
        answer = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ASK_DEADLINE_SECONDS,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _silent(erl) from error
    if not re.fullmatch(rb"\d{1,3}", answer):
        raise _silent(erl)
    return int(answer)


def _silent(erl: Path) -> RuntimeMissing:
    return RuntimeMissing(
        "this erl does not tell its OTP release",
        where=escape(str(erl), 1024),
        do=f"repair the installation: `erl -noshell -eval '{_QUESTION}'` must print a number",
    )


def _proven() -> str:
    return ", ".join(map(str, sorted(PROVEN_RELEASES)))
