"""`distsec shell` up to the moment in which it becomes another program."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distsec.cli import relay, shell
from distsec.control.attach import EXPRESSION
from distsec.errors import CommandFailed, NotFound
from distsec.model.shells import Operator
from tests.unit.cli.conftest import Type
from tests.unit.control.fake_orchestrator import NODES, Running


@dataclass
class Became:
    """What the process has become."""

    words: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    alarm: int = 0


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch, orchestrator: Running, tmp_path: Path) -> Iterator[Became]:
    made = Became()
    directory = tmp_path / "shell"
    directory.mkdir(mode=0o700)
    orchestrator.fake.shell_directory = str(directory)

    def execve(path: str, words: list[str], environment: Mapping[str, str]) -> None:
        made.words, made.environment = words, environment
        made.alarm = signal.alarm(0)
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(shell.resource, "setrlimit", lambda *_: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    yield made
    for number, handler in before.items():  # this process does not become another after all
        signal.signal(number, handler)


def test_the_orchestrator_is_told_by_the_kernel_who_asks(
    orchestrator: Running, type_in: Type, became: Became
) -> None:
    assert type_in("shell", NODES[0], "--eval", "node().").exit_code == 0
    (asked,) = orchestrator.fake.asked
    assert asked == ("shell", NODES[0], Operator(os.getpid(), os.getuid(), getpass.getuser()))


def test_an_expression_is_handed_over_in_a_private_file(
    orchestrator: Running, type_in: Type, became: Became
) -> None:
    assert type_in("shell", NODES[0], "--timeout", "5", "--eval", "secret_ä().").exit_code == 0
    file = Path(orchestrator.fake.shell_directory) / EXPRESSION
    assert file.read_text() == "secret_ä()."
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any("secret" in word for word in became.words)
    assert became.words[:2] == ["/usr/bin/erl", "-hidden"]
    assert became.words[became.words.index("-distsec_shell") + 1] == "5"
    assert "evaluate" in became.words
    assert set(became.environment) == {"PATH", "HOME", "LC_ALL", "ERL_CRASH_DUMP_SECONDS"}


def test_nothing_hangs_for_ever_though_the_vm_should(type_in: Type, became: Became) -> None:
    type_in("shell", NODES[0], "--timeout", "5", "--eval", "ok.")
    assert 5 < became.alarm <= 5 + shell.BOOT_SECONDS


def test_without_a_terminal_lines_are_read_and_nobody_is_prompted(
    orchestrator: Running, type_in: Type, became: Became
) -> None:
    result = type_in("shell", NODES[0], TERM="xterm")
    assert (result.exit_code, result.stderr) == (0, "")
    at = became.words.index("-distsec_shell")
    assert became.words[at + 1 : at + 3] == [str(shell.DEFAULT_TIMEOUT_SECONDS), "silent"]
    assert "lines" in became.words
    assert "TERM" not in became.environment


@pytest.mark.parametrize("expression", ["", "  ", "\n"])
def test_an_empty_expression_asks_for_no_shell(orchestrator: Running, type_in: Type, expression: str) -> None:
    result = type_in("shell", NODES[0], "--eval", expression)
    assert result.exit_code == 64
    assert result.stderr.startswith("distsec: the expression is empty")
    assert orchestrator.fake.asked == []


@pytest.mark.parametrize("timeout", ["0", "-1", "x", str(10**9)])
def test_a_timeout_is_bounded(orchestrator: Running, type_in: Type, timeout: str) -> None:
    assert type_in("shell", NODES[0], "--timeout", timeout, "--eval", "ok.").exit_code == 64
    assert orchestrator.fake.asked == []


@pytest.mark.parametrize(
    ("error", "code"), [(NotFound("no such node"), 68), (CommandFailed("a is STOPPED"), 70)]
)
def test_what_the_orchestrator_says_is_told_in_a_line(
    orchestrator: Running, type_in: Type, error: Exception, code: int
) -> None:
    orchestrator.fake.error = error
    result = type_in("shell", NODES[0], "--eval", "ok.")
    assert (result.exit_code, result.stderr) == (code, f"distsec: {error}\n")


def test_no_orchestrator_is_told_with_what_to_do(config: Path, type_in: Type) -> None:
    result = type_in("shell", NODES[0], "--eval", "ok.")
    assert result.exit_code == 69
    assert "start it with `distsec run" in result.stderr


def test_help_has_examples_and_exit_codes(type_in: Type) -> None:
    text = type_in("shell", "--help").stdout
    assert "distsec shell poller@127.0.0.1 --eval" in text
    assert "124" in text
    assert "Ctrl-G" in text


# ---- which terminal ----------


def terminal(named: str | None, *known: str) -> str:
    """In a process of its own: Python asks the library for one terminal only."""
    set_known = f"shell.TERMINALS = {known!r}; " if known else ""
    code = f"from distsec.cli import shell; {set_known}print(shell.terminal({named!r}))"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


@pytest.mark.parametrize(("named", "driven"), [("xterm", "xterm"), ("vt100", "vt100"), ("dumb", "None")])
def test_a_terminal_is_driven_as_what_it_says(named: str, driven: str) -> None:
    assert terminal(named) == driven


@pytest.mark.parametrize("named", [None, "", "no-such-terminal", "../../etc/passwd", "x" * 5000])
def test_one_that_is_not_known_is_taken_for_an_ordinary_one(named: str | None) -> None:
    assert terminal(named) in shell.TERMINALS


def test_where_no_terminal_is_described_there_are_lines() -> None:
    assert terminal("no-such-terminal", "nor-this") == "None"


# ---- root gives up what it need not have ----------


def test_root_becomes_the_orchestrator_s_user_before_it_becomes_a_vm(
    orchestrator: Running, type_in: Type, became: Became, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(relay, "keep_terminal", lambda uid: done.append(("terminal", uid)))
    monkeypatch.setattr(shell, "refuse_typing", lambda: done.append(("typing",)))
    monkeypatch.setattr(os, "setgroups", lambda groups: done.append(("groups", list(groups))))
    monkeypatch.setattr(os, "setresgid", lambda *ids: done.append(("gid", *ids)))
    monkeypatch.setattr(os, "setresuid", lambda *ids: done.append(("uid", *ids)))
    shell.become_user({"uid": 1234, "gid": 1235})
    identity = [("groups", []), ("gid", 1235, 1235, 1235), ("uid", 1234, 1234, 1234)]
    assert done == [("terminal", 1234), ("typing",), *identity]
    done.clear()
    shell.become_user({"uid": 0, "gid": 0})
    assert done == []
