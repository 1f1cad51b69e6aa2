"""Completion, as it is typed in bash, zsh and fish, and what may stand where the cursor is."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest

from distsec.cli.completion import SHELLS, script
from distsec.cli.group import COMMANDS, distsec
from scripts.manual.__main__ import COMPLETIONS
from tests.packaging.made import need, run
from tests.packaging.test_manual import CONTEXTS
from tests.releases import ROOT
from tests.waiting import PATIENCE_SECONDS

PROGRAM = Path(sys.executable).parent / "distsec"
NODES = ("poller@127.0.0.1", "agent@127.0.0.1", "six@2001:db8::7")
ELSEWHERE = "far@10.0.0.9"

CONFIGURATION = f"""\
[cluster]
name = "shop"
[security.distribution]
allowed_nodes = {[*NODES, ELSEWHERE, "odd`name@10.0.0.1"]}
{"".join(f"[[nodes]]{chr(10)}name = {name!r}{chr(10)}" for name in NODES)}
[[peers]]
name = "peer@10.0.0.8"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a configuration, and with nothing else but `other.toml`."""
    for name in ("distsec.toml", "other.toml"):
        (tmp_path / name).write_text(CONFIGURATION)
    return tmp_path


def offered(line: str, place: Path, shell: str = "bash") -> list[str]:
    """What the program answers the shell's script; nothing else is said, and it always ends well."""
    words = line if shell == "bash" else line.removesuffix(" ")
    variables = {"PATH": os.environ["PATH"], "_DISTSEC_COMPLETE": f"{shell}_complete", "COMP_WORDS": words}
    ended = run(PROGRAM, environment=variables, cwd=place)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.split()


def plain(*names: str) -> list[str]:
    return [f"plain,{name}" for name in names]


# ---- what is offered ----------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("distsec sta", plain("start", "status")),
        ("distsec certs re", plain("revoke", "renew")),
        ("distsec status --js", plain("--json")),
        ("distsec certs revoke --reason key", plain("keyCompromise")),
        ("distsec stop ", plain(*NODES)),
        ("distsec stop poller@127.0", plain(NODES[0])),
        ("distsec stop six@2001:db", plain(NODES[2])),
        (f"distsec stop {NODES[0]} ", plain(*NODES[1:])),
        ("distsec deny ", plain(*NODES, "peer@10.0.0.8", ELSEWHERE)),
        ("distsec certs import --node=p", plain(NODES[0])),
        ("distsec run -c o", ["file,o"]),
        ("distsec run --config=o", ["file,o"]),
        ("distsec certs sign ask.pem --out ", ["file,"]),
        ("distsec no-such-command x", []),
        ("distsec stop 'unfinished", []),
        ("distsec stop -c /nonexistent ", []),
    ],
)
def test_what_is_offered_where(line: str, expected: list[str], place: Path) -> None:
    assert offered(line, place) == expected


def test_names_come_from_the_configuration_that_the_line_names(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert offered("distsec stop ", elsewhere) == []
    assert offered(f"distsec stop -c {place}/other.toml po", elsewhere) == plain(NODES[0])


@pytest.mark.parametrize(
    "content", ["[", 'nodes = 5\nsecurity = "x"', "[[nodes]]\nname = 7\n", "[" * 5000, "\0\xff"]
)
def test_a_configuration_that_is_none_offers_nothing_and_says_nothing(content: str, place: Path) -> None:
    (place / "distsec.toml").write_text(content)
    assert offered("distsec deny ", place) == []


def test_a_pipe_in_the_place_of_the_configuration_holds_up_nobody(place: Path) -> None:
    def seconds_of(expected: list[str]) -> float:
        began = time.monotonic()
        assert offered("distsec deny ", place) == expected
        return time.monotonic() - began

    (place / "distsec.toml").unlink()
    without = seconds_of([])  # most of it is the start of the program, which a busy machine holds up
    os.mkfifo(place / "distsec.toml")
    assert seconds_of([]) < 60 + without  # who waits for a writer waits for ever


def test_an_orchestrator_that_hangs_is_not_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "state").mkdir()
    monkeypatch.chdir(place / "state")  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind("control.sock")
        hanging.listen()
        assert offered("distsec stop po", place) == plain(NODES[0])
        hanging.setblocking(False)
        with pytest.raises(BlockingIOError):
            hanging.accept()


def test_a_tab_imports_nothing_heavy(place: Path) -> None:
    code = (
        "import sys; from distsec.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'aiohttp', 'pydantic', 'asyncio', 'http.client', 'structlog', 'cryptography'}\n"
        "print('imported', sorted(heavy & set(sys.modules)))"
    )
    for line in ("distsec stop po", "distsec deny po", "distsec sta", "distsec certs renew po"):
        variables = {
            **os.environ,
            "_DISTSEC_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "PYTHONPATH": str(ROOT),
        }
        ended = run(sys.executable, "-c", code, environment=variables, cwd=place)
        assert ended.stdout.splitlines()[-1] == "imported []"


def test_every_node_and_every_file_on_a_command_line_is_completed() -> None:
    """Whatever command comes: an argument or option that is called NODE or FILE completes."""
    missing = []
    for name, context in CONTEXTS.items():
        for parameter in context.command.params:
            kind = parameter.metavar or ""
            custom = parameter._custom_shell_complete is not None
            if "NODE" in kind and not custom:
                missing.append((name, parameter.name))
            if "FILE" in kind and not custom and not isinstance(parameter.type, click.Path | click.File):
                missing.append((name, parameter.name))
    assert missing == []


# ---- in the shells ----------


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self, words: list[str], variables: dict[str, str], directory: Path) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(directory)
            os.execvpe(words[0], words, variables)
        fcntl.ioctl(
            self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 400, 0, 0)
        )  # no line is broken
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait(self, text: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Waits until the terminal has shown `text` since it was last waited for; returns what was shown."""
        deadline = time.monotonic() + seconds
        while text not in (shown := re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r|.\x08", "", self._seen)):
            if not select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"waited for {text!r}; shown was {shown!r}")
            self._seen += os.read(self._terminal, 65536).decode(errors="replace")
        self._seen = ""
        return shown

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a configuration, and the scripts below `share`, where the shells look for them."""
    directory = tmp_path_factory.mktemp("home")
    for name in ("distsec.toml", "other.toml"):
        (directory / name).write_text(CONFIGURATION)
    for shell, path in COMPLETIONS.items():
        (directory / "share" / path).parent.mkdir(parents=True)
        (directory / "share" / path).write_text(script(shell, distsec))
    functions = (directory / "share" / COMPLETIONS["zsh"]).parent
    (directory / ".bashrc").write_text(". /usr/share/bash-completion/bash_completion\nPS1='READY '\n")
    zshrc = "autoload -U compinit && compinit -u -D; unsetopt PROMPT_SP; PS1='READY '"
    (directory / ".zshrc").write_text(f"fpath=({functions} $fpath); {zshrc}\n")
    return directory


@pytest.fixture(scope="module")
def variables(home: Path) -> dict[str, str]:
    return {
        "PATH": f"{PROGRAM.parent}:/usr/bin:/bin",
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "XDG_DATA_DIRS": f"{home / 'share'}:/usr/share",
    }


@pytest.fixture(scope="module")
def bash(variables: dict[str, str], home: Path) -> Iterator[Terminal]:
    need(Path("/usr/share/bash-completion/bash_completion").exists(), "bash-completion")
    with closing(Terminal(["bash", "--noprofile", "-i"], variables, home)) as shell:
        shell.wait("READY ")
        yield shell


@pytest.fixture(scope="module")
def zsh(variables: dict[str, str], home: Path) -> Iterator[Terminal]:
    need(shutil.which("zsh") is not None, "zsh")
    with closing(Terminal(["zsh", "-d", "-i"], variables, home)) as shell:
        shell.wait("READY ")
        yield shell


TYPED = [
    ("distsec statu", "distsec status "),
    ("distsec stop poller@12", f"distsec stop {NODES[0]} "),
    ("distsec stop six", f"distsec stop {NODES[2]} "),
    ("distsec stop six@2001:d", f"distsec stop {NODES[2]} "),
    ("distsec run -c oth", "distsec run -c other.toml "),
]


@pytest.mark.parametrize(("typed", "shown"), TYPED)
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_tab_completes(name: str, typed: str, shown: str, request: pytest.FixtureRequest) -> None:
    shell: Terminal = request.getfixturevalue(name)
    shell.type(f"{typed}\t")
    shell.wait(shown)
    shell.type("\x15\n")  # throws the line away
    shell.wait("READY ")


def test_fish_completes(variables: dict[str, str], home: Path) -> None:
    need(shutil.which("fish") is not None, "fish")

    def completed(line: str) -> list[str]:
        ended = run("fish", "-c", f"complete -C '{line}'", environment=variables, cwd=home)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout.splitlines()

    assert completed("distsec initi") == []
    assert completed("distsec ini") == [f"init\t{COMMANDS['init'][1]}"]
    assert completed("distsec stop poller@12") == [NODES[0]]
    assert completed("distsec stop ") == sorted(NODES)


@pytest.mark.parametrize(("shell", "words"), [("bash", "bash -n"), ("zsh", "zsh -n"), ("fish", "fish -n")])
def test_the_scripts_have_no_fault(shell: str, words: str, home: Path) -> None:
    need(shutil.which(shell) is not None, shell)
    assert shell in SHELLS
    assert subprocess.run([*words.split(), home / "share" / COMPLETIONS[shell]], timeout=60).returncode == 0


def test_shellcheck_has_nothing_to_say(home: Path) -> None:
    need(shutil.which("shellcheck") is not None, "shellcheck")
    debian = ROOT / "scripts/debian"
    scripts = [debian / name for name in ("build", "postinst", "prerm", "postrm")]
    scripts += sorted(Path(__file__).parent.glob("*.sh"))
    assert run("shellcheck", *scripts).stdout == ""
    assert run("shellcheck", "-s", "bash", home / "share" / COMPLETIONS["bash"]).stdout == ""
