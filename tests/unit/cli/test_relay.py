"""What root starts as somebody else, at real terminals: it has one of its own, and none of root's."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsec.cli.operator_terminal import OperatorTerminal
from tests.releases import ROOT
from tests.system.terminal import Terminal
from tests.waiting import wait_until

BECOME = """
import os, sys
from distsec.cli.shell import become_user
from distsec.errors import DistsecError
try:
    become_user({"uid": 1, "gid": 1})
    os.execvp(sys.argv[1], sys.argv[1:])
except DistsecError as error:
    sys.exit(f"refused: {error}")
"""
"""Of `distsec exec` what is about terminals; user 1 is `daemon`."""

SECONDS = 60
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "LC_ALL": "C", "TERM": "xterm"}


@pytest.fixture(autouse=True)
def _as_root() -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("only root becomes somebody else")
        pytest.skip("only root becomes somebody else")


def program(*words: str) -> list[str]:
    return [sys.executable, "-c", BECOME, *words]


def at_terminal(*words: str, deaf: bool = False, size: tuple[int, int] = (24, 80)) -> Terminal:
    return Terminal(program(*words), environment=ENVIRONMENT, size=size, deaf=deaf)


def script(text: str, **how: bool) -> Terminal:
    return at_terminal("/bin/sh", "-c", text, **how)


class Shell(Terminal):
    """An interactive shell with job control, as an operator's; `run …` runs as somebody else."""

    PROMPT = "operator$ "

    def __init__(self) -> None:
        run = f'() {{ {shlex.join(program())} "$@"; }}'
        variables = {**ENVIRONMENT, "PS1": self.PROMPT, "HISTFILE": "", "BASH_FUNC_run%%": run}
        super().__init__(["/bin/bash", "--norc", "--noediting", "-i"], environment=variables)

    def line(self, text: str) -> None:
        """Types it when the shell is ready for it: what is typed before is whoever's has the terminal."""
        self.wait(self.PROMPT)
        self.type(f"{text}\r")

    def end(self) -> None:
        self.line("stty -a | tr ' ' '\\n' | grep -x -e icanon -e opost -e echo | xargs echo; exit")
        self.wait("opost icanon echo")
        assert self.exit_code() == 0


@pytest.fixture
def shell() -> Iterator[Shell]:
    with Shell() as made:
        yield made
        made.end()


def ended(pid: int) -> bool:
    """Also a zombie, whose new parent takes its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True


def number_behind(terminal: Terminal, text: str) -> int:
    """The number that is shown behind `text`, and a full stop."""
    terminal.wait(text)
    at = terminal.text.rindex(text) + len(text)
    terminal.wait(".")
    return int(terminal.text[at:].partition(".")[0])


# ---- whose terminal it is ----------------------------------------------------------------------------------

LOOK = """
import fcntl, json, os, sys
def tried(how, *given):
    try:
        return how(*given) and "done"
    except OSError as error:
        return error.strerror
def controlling():
    number = bytearray(4)
    fcntl.ioctl(os.open("/dev/tty", os.O_RDWR), 0x80045432, number)
    return int.from_bytes(number, sys.byteorder)
parent = os.getppid()
relay = int(open(f"/proc/{parent}/stat").read().rpartition(")")[2].split()[1])
told = {
    "uid": os.geteuid(),
    "devices": sorted({os.fstat(int(each)).st_rdev for each in os.listdir("/proc/self/fd")
                       if os.path.exists("/proc/self/fd/" + each) and os.isatty(int(each))}),
    "terminals": sorted(int(each) for each in os.listdir("/proc/self/fd")
                        if os.path.exists("/proc/self/fd/" + each) and os.isatty(int(each))),
    "controlling": controlling(),
    "theirs": [tried(os.open, sys.argv[1], os.O_RDONLY), tried(os.open, sys.argv[1], os.O_WRONLY)],
    "own": tried(os.open, os.ttyname(0), os.O_RDWR),
    "relays": [tried(os.listdir, f"/proc/{each}/fd") for each in (parent, relay)],
}
print("<" + json.dumps(told) + ">", flush=True)
"""


def looked(terminal: Terminal) -> dict[str, object]:
    terminal.wait(">")
    found: dict[str, object] = json.loads(terminal.text[terminal.text.index("<") + 1 :].partition(">")[0])
    return found


def test_every_descriptor_of_it_is_another_terminal_and_roots_cannot_be_opened() -> None:
    look = shlex.join(program("/usr/bin/python3", "-c", LOOK))
    opened = f"exec 7</dev/tty 8>/dev/tty; {look} $(tty)"
    with Terminal(["/bin/sh", "-c", opened], environment=ENVIRONMENT) as typed:
        told = looked(typed)
        assert typed.exit_code() == 0, typed.text
        assert typed.as_before
        (device,) = told["devices"]  # type: ignore[misc]
        assert device != typed.device
    assert told["uid"] == 1
    assert told["terminals"] == [0, 1, 2, 7, 8]
    assert told["controlling"] == device, "/dev/tty is its own too"
    assert told["theirs"] == ["Permission denied"] * 2
    assert told["own"] == "done"
    assert told["relays"] == ["Permission denied"] * 2


def test_with_all_streams_redirected_the_terminal_that_controls_us_is_not_its_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    seen = tmp_path / "seen"
    look = "import sys, fcntl, os; n = bytearray(4); fcntl.ioctl(os.open('/dev/tty', 2), 0x80045432, n); "
    look += "print(int.from_bytes(n, sys.byteorder))"
    command = f"{shlex.join(program('/usr/bin/python3', '-c', look))} </dev/null >{seen} 2>&1"
    with Terminal(["/bin/sh", "-c", command], environment=ENVIRONMENT) as typed:
        assert typed.exit_code() == 0, seen.read_text()
        assert int(seen.read_text()) not in {0, typed.device}


def test_two_terminals_as_standard_streams_are_refused_and_a_third_one_is_not_handed_on() -> None:
    other, theirs = os.openpty()
    try:
        name = os.ttyname(theirs)
        with Terminal(
            ["/bin/sh", "-c", f"{shlex.join(program('true'))} >{name}"], environment=ENVIRONMENT
        ) as typed:
            typed.wait("refused: the standard streams are two terminals")
            assert typed.exit_code() == 1
        count = shlex.join(program("/bin/sh", "-c", "ls -l /proc/self/fd | grep -c pts"))
        with Terminal(["/bin/sh", "-c", f"{count} 5<{name}"], environment=ENVIRONMENT) as typed:
            typed.wait("2\r\n")  # standard input and error of ls
            assert typed.exit_code() == 0
    finally:
        os.close(other)
        os.close(theirs)


def test_without_any_terminal_it_is_this_very_process() -> None:
    command = f"echo $$; exec {shlex.join(program('/bin/sh', '-c', 'echo $$; id -u'))}"
    done = subprocess.run(
        ["setsid", "--wait", "/bin/sh", "-c", command],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    first, second, user = done.stdout.split()
    assert (first, user) == (second, "1"), done.stderr


# ---- what passes between ----------------------------------------------------------------------------------


def test_what_is_typed_and_printed_and_the_end_of_input_come_through() -> None:
    with at_terminal("cat") as typed:
        typed.type("one\r")
        typed.wait("one\r\none\r\n")
        typed.type("\x04")
        assert typed.exit_code() == 0
        assert typed.as_before


def test_the_size_of_the_window_is_its_own_and_follows() -> None:
    with script(
        "trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done",
    ) as typed:
        typed.wait("24 80")
        typed.resize(5, 133)
        typed.wait("5 133")
        typed.type("\x03")
        assert typed.exit_code() == -signal.SIGINT


def test_ctrl_c_reaches_it_alone() -> None:
    with script("trap 'echo caught; exit 9' INT; echo on; while :; do sleep 0.1; done") as typed:
        typed.wait("on")
        typed.type("\x03")
        typed.wait("caught")
        assert typed.exit_code() == 9
        assert typed.as_before


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", -signal.SIGTERM),
        ("kill -KILL $$", -signal.SIGKILL),
        ("ulimit -c 0; kill -SEGV $$", -signal.SIGSEGV),
    ],
)
def test_it_ends_as_the_program_has_ended(text: str, code: int) -> None:
    with script(f"echo last words; {text}") as typed:
        assert typed.exit_code() == code
        assert "last words" in typed.text
        assert typed.as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_the_terminal_set_back(number: signal.Signals) -> None:
    with script("echo on; while :; do sleep 0.1; done") as typed:
        typed.wait("on")
        assert not typed.as_before, "each key is passed on"
        typed.signal(number)
        assert typed.exit_code() == -number
        assert typed.as_before


def test_what_was_printed_last_is_shown_all() -> None:
    with script("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end") as typed:
        assert typed.exit_code() == 0
        assert typed.output.count(b"x") == 1_000_000
        assert typed.text.endswith("end\r\n")


def test_a_program_that_floods_waits_and_the_relay_does_not_grow() -> None:
    with script("echo pid $$.; exec yes") as typed:
        pid = number_behind(typed, "pid ")
        seen: list[int] = []

        def stuck() -> bool:
            text = Path(f"/proc/{pid}/io").read_text()
            seen.append(int(text.partition("wchar: ")[2].split()[0]))
            return len(seen) > 25 and len(set(seen[-25:])) == 1

        before = resident(typed.pid)
        wait_until(stuck, "nobody to read, and so nothing to be written", SECONDS)
        assert resident(typed.pid) < before + 4 * 1024
        typed.type("\x03")
        assert typed.exit_code() == -signal.SIGINT


def resident(pid: int) -> int:
    """KiB, at the most so far."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])


def test_what_it_leaves_running_is_neither_waited_for_nor_ended() -> None:
    with script("sleep 1000 & echo pid $!.") as typed:
        pid = number_behind(typed, "pid ")
        assert typed.exit_code() == 0
        try:
            assert not ended(pid)
        finally:
            os.kill(pid, signal.SIGKILL)


# ---- redirected ----------------------------------------------------------------------------------


def test_what_is_no_terminal_is_handed_on_as_it_is(shell: Shell) -> None:
    shell.line("printf 'a\\nb' | run sh -c 'cat; readlink /proc/self/fd/0 | tr -d 0-9; exit 3'; echo code $?")
    shell.wait("code $?")
    shell.wait("a\r\nbpipe:[]\r\ncode 3")
    shell.line("run sh -c 'echo to stdout; echo to stderr >&2' | tr a-z A-Z; echo d''one")
    shell.wait("done")
    assert {"to stderr", "TO STDOUT"} <= set(shell.text.splitlines())


def test_a_terminal_tells_whether_a_line_waits_and_is_found_under_another_name() -> None:
    master, slave = os.openpty()
    other = os.open(os.ttyname(slave), os.O_RDONLY | os.O_NOCTTY)
    try:
        terminal = OperatorTerminal(slave)
        assert not terminal.line_waits
        os.write(master, b"half")
        assert not terminal.line_waits
        os.write(master, b" and half\n")
        wait_until(lambda: terminal.line_waits, "the line", SECONDS)
        assert terminal.is_same(other)
        before = termios.tcgetattr(slave)
        terminal.make_raw()
        assert select.select([slave], [], [], 0)[0] and not terminal.line_waits, "there are keys, not lines"
        terminal.make_raw()
        terminal.restore()
        assert termios.tcgetattr(slave) == before
        terminal.make_raw()
        termios.tcsetattr(slave, termios.TCSANOW, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
        terminal.restore()
        assert termios.tcgetattr(slave) != before, "somebody else has set it since"
    finally:
        for descriptor in (master, slave, other):
            os.close(descriptor)


# ---- stopped, continued, behind ----------------------------------------------------------------------------


TELLS = """
import os, signal
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"on " + b"again, "))
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.write(1, b"be" + b"gun, ")
os.write(1, b"got " + os.read(0, 100))
"""
"""It starts no other process: one that does (vfork) can be stopped before the other runs, and is not then."""


def test_it_is_stopped_and_continued_as_any_job(shell: Shell) -> None:
    shell.line(f"run /usr/bin/python3 -c {shlex.quote(TELLS)}")
    shell.wait("begun")
    shell.type("\x1a")
    shell.wait("Stopped")
    shell.line("stty -a | tr ' ' '\\n' | grep -x icanon | tr a-z A-Z")
    shell.wait("ICANON")
    shell.line("fg")
    shell.wait("on again")
    shell.type("typed\r")
    shell.wait("got typed")


def test_one_that_is_stopped_from_elsewhere_is_a_stopped_job_too(shell: Shell) -> None:
    shell.line("run sh -c 'kill -STOP $$; exit 6'")
    shell.wait("Stopped")
    shell.line("fg; echo code $?")
    shell.wait("code 6")


def test_who_stops_the_relay_alone_finds_it_as_it_was(shell: Shell) -> None:
    shell.line("run sh -c 'read _ _ _ pid _ </proc/$PPID/stat; echo re\"\"lay $pid.; read x; echo got $x'")
    os.kill(number_behind(shell, "relay "), signal.SIGSTOP)
    shell.wait("Stopped")
    shell.line("stty -a | tr ' ' '\\n' | grep -x icanon | tr a-z A-Z")
    shell.wait("ICANON")
    shell.line("fg")
    shell.wait("become_user")  # which job it is
    shell.type("typed\r")
    shell.wait("got typed")


def test_where_no_shell_waits_it_is_not_left_stopped() -> None:
    with at_terminal("/usr/bin/python3", "-c", TELLS) as typed:
        typed.wait("begun")
        typed.type("\x1a")
        typed.wait("on again")
        typed.type("\x03")
        assert typed.exit_code() == -signal.SIGINT


def test_in_the_background_it_is_stopped_when_it_reads_and_reads_in_front(shell: Shell) -> None:
    shell.line("run sh -c 'read x; echo got $x' &")
    shell.line("while jobs | grep Running; do :; done; jobs")
    shell.wait("Stopped")
    shell.line("fg")
    shell.wait("run")
    shell.type("typed\r")
    shell.wait("got typed")


def test_in_a_pipeline_it_has_the_terminal_from_when_it_asks_for_it(shell: Shell) -> None:
    shell.line("run sh -c 'read x; echo got $x' | cat")
    shell.wait("| cat\r\n")
    shell.type("typed\r")
    shell.wait("got typed")


def test_what_it_closes_is_closed_though_it_goes_on() -> None:
    pipeline = f"{shlex.join(program('/bin/sh', '-c', 'exec sleep 1000 >&-'))} | (cat; echo over)"
    with Terminal(["/bin/sh", "-c", pipeline], environment=ENVIRONMENT) as typed:
        typed.wait("over")
        typed.type("\x03")
        assert typed.exit_code() != 0


def test_in_a_pipeline_a_line_that_nobody_reads_is_for_it(shell: Shell) -> None:
    """An Erlang VM waits for its input without reading, so that the kernel does not stop it."""
    poll = "import select, sys; select.select([0], [], []); print('polled', sys.stdin.readline())"
    shell.line(f"run /usr/bin/python3 -c {shlex.quote(poll)} | cat")
    shell.wait("| cat\r\n")
    shell.type("a line\r")
    shell.wait("polled a line")


def test_in_a_pipeline_a_pager_that_has_the_terminal_keeps_it(shell: Shell) -> None:
    page = "import os, termios, tty; input(); f = os.open('/dev/tty', 2); was = termios.tcgetattr(f); "
    page += "print('line' if was[3] & termios.ICANON else 'raw', 'by line', flush=True); tty.setraw(f); "
    page += "print('pa' 'ges', flush=True); keys = os.read(f, 1); termios.tcsetattr(f, 0, was); "
    page += "print('page', keys.hex(), flush=True)"
    begun = "run sh -c 'echo text; exec sleep 1000'"
    shell.line(f"{begun} | /usr/bin/python3 -c {shlex.quote(page)}")
    shell.wait("line by line")
    shell.wait("pages")
    shell.type("q")
    shell.wait("page 71")
    shell.type("\x03")
    shell.line("jobs | grep -c . | sed 's/^/jobs: /'")
    shell.wait("jobs: 0")


# ---- the end of one is the end of the other ----------------------------------------------------------------


def test_when_the_relay_is_killed_so_is_the_program_and_the_rest_is_hung_up_on() -> None:
    with script("trap '' HUP; echo pid $$.; echo keeper $PPID.; while :; do sleep 0.1; done") as typed:
        pids = [number_behind(typed, text) for text in ("pid ", "keeper ")]
        typed.signal(signal.SIGKILL)
        assert typed.exit_code() == -signal.SIGKILL
        for pid in pids:
            wait_until(lambda pid=pid: ended(pid), f"the end of {pid}", SECONDS)  # type: ignore[misc]
    with script("echo pid $$.; sh -c 'echo child $$.; exec sleep 1000'; true") as typed:
        pids = [number_behind(typed, text) for text in ("pid ", "child ")]
        typed.signal(signal.SIGKILL)
        for pid in pids:
            wait_until(lambda pid=pid: ended(pid), f"the end of {pid}", SECONDS)  # type: ignore[misc]


def test_when_its_keeper_is_killed_the_program_ends_and_the_terminal_is_set_back() -> None:
    with script("trap '' HUP; echo pid $$.; echo keeper $PPID.; while :; do sleep 0.1; done") as typed:
        pid, keeper = (number_behind(typed, text) for text in ("pid ", "keeper "))
        os.kill(keeper, signal.SIGKILL)
        typed.wait("refused: the process that keeps the program's session was killed")
        assert typed.exit_code() == 1
        assert typed.as_before
        wait_until(lambda: ended(pid), "its end", SECONDS)


@pytest.mark.parametrize("deaf", [False, True], ids=["hung up", "nohup"])
def test_a_closed_window_is_the_end_of_its_input(deaf: bool) -> None:
    with script("echo pid $$.; cat; exit 5", deaf=deaf) as typed:
        pid = number_behind(typed, "pid ")
        ignored = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
        assert int(ignored, 16) & 1 == deaf, "what was ignored is, and nothing else"
        typed.hang_up()
        # Without nohup it is also sent SIGHUP; the kernel wakes who reads before that.
        assert typed.exit_code() in ({5} if deaf else {5, -signal.SIGHUP})
        wait_until(lambda: ended(pid), "its end", SECONDS)
