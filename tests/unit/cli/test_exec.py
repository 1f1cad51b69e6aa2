"""`distsec exec` up to the moment in which it becomes another program."""

from __future__ import annotations

import getpass
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distsec.control.attach import MAX_PROGRAM_CHARACTERS, tool_environment
from distsec.model.shells import Operator
from tests.unit.cli.conftest import Type
from tests.unit.control.fake_orchestrator import NODES, Running

NODE = NODES[0]


@dataclass
class Became:
    """What the process has become, and where."""

    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    error: OSError | None = None


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch, orchestrator: Running) -> Iterator[Became]:
    made = Became()

    def execvpe(file: str, words: tuple[str, ...], environment: Mapping[str, str]) -> None:
        assert file == words[0]
        if made.error is not None:
            raise made.error
        made.words, made.environment = words, environment
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvpe", execvpe)
    before = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    yield made
    for number, handler in before.items():  # this process does not become another after all
        signal.signal(number, handler)


def test_the_command_runs_as_it_was_typed_in_what_the_orchestrator_gave(
    orchestrator: Running, type_in: Type, became: Became, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERL_FLAGS", "-proto_dist inet_tcp")
    monkeypatch.setenv("TERM", "vt220")
    assert type_in("exec", NODE, "--", "/opt/bin/rabbitmqctl", "-q", "eval", "a b.").exit_code == 0
    (asked,) = orchestrator.fake.asked
    assert asked == ("tool", NODE, Operator(os.getpid(), os.getuid(), getpass.getuser()), "rabbitmqctl")
    assert became.words == ("/opt/bin/rabbitmqctl", "-q", "eval", "a b.")
    assert became.environment["ERL_AFLAGS"] == "-dist_listen false"
    assert became.environment["RABBITMQ_NODENAME"] == NODE
    assert became.environment["TERM"] == "vt220"
    assert "ERL_FLAGS" not in became.environment


def test_the_name_on_record_is_bounded_and_no_argument_is(
    orchestrator: Running, type_in: Type, became: Became
) -> None:
    assert type_in("exec", NODE, "--", "/x/" + "long\x1b" * 40, "pa$$word").exit_code == 0
    (asked,) = orchestrator.fake.asked
    assert len(asked[3]) == MAX_PROGRAM_CHARACTERS
    assert asked[3].isprintable() and "pa$$word" not in str(asked)


@pytest.mark.parametrize("words", [(), ("",)])
def test_without_a_command_nothing_is_asked_for(
    words: tuple[str, ...], orchestrator: Running, type_in: Type, became: Became
) -> None:
    assert type_in("exec", NODE, "--", *words).exit_code == 64
    assert orchestrator.fake.asked == []


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FileNotFoundError(2, "No such file"), 72, "there is no such program"),
        (PermissionError(13, "Permission denied"), 70, "cannot be run: Permission denied"),
    ],
)
def test_a_command_that_cannot_be_run_is_named(
    error: OSError, code: int, said: str, type_in: Type, became: Became
) -> None:
    became.error = error
    done = type_in("exec", NODE, "--", "tool\x1b[2J")
    assert done.exit_code == code
    assert said in done.stderr and "\x1b" not in done.stderr


def test_it_runs_where_it_may_look(
    type_in: Type, became: Became, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Erlang looks for code in the working directory, and complains of one that it may not read."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.chdir(tmp_path)
    assert type_in("exec", NODE, "--", "tool").exit_code == 0
    assert Path.cwd() == Path("/")


def test_flags_for_every_vm_of_the_operator_are_not_handed_on() -> None:
    given = {"ERL_AFLAGS": "ours"}
    own = {
        "ERL_AFLAGS": "x",
        "ERL_FLAGS": "x",
        "ERL_ZFLAGS": "x",
        "HOME": "/h",
        "ERL_CRASH_DUMP_SECONDS": "9",
    }
    assert tool_environment(given, own) == {"HOME": "/h", "ERL_CRASH_DUMP_SECONDS": "0", "ERL_AFLAGS": "ours"}
