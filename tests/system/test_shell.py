"""`distsec shell` over real links: expressions, lines and terminals, in the barest environments."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distsec.beam import proc
from tests.releases import OTPS, Otp
from tests.system.cluster import COMMAND, Cluster
from tests.system.terminal import Terminal
from tests.waiting import wait_until

A = "a@127.0.0.1"
PROMPT = f"({A})1> "
SIZES = [(1, 1), (5, 20), (100, 300), (0, 0)]


@pytest.fixture(scope="module", params=OTPS, ids=str)
def cluster(request: pytest.FixtureRequest, agent_ebin: Path, beams: Path) -> Iterator[Cluster]:
    """One node, for all tests of this module on a release; they leave it as they found it."""
    with Cluster(request.param, beams, ["a"]) as made:
        made.init()
        made.run()
        made.wait_running()
        yield made


@pytest.fixture(autouse=True)
def _tested_release(request: pytest.FixtureRequest) -> None:
    if "cluster" in request.fixturenames:
        otp: Otp = request.getfixturevalue("cluster").otps["a"]
        request.node.user_properties.append(("otp", otp.stands_for))


def bare(cluster: Cluster, **more: str) -> dict[str, str]:
    """What `env -i` leaves: no HOME, no TERM, no language, no PATH."""
    return {"DISTSEC_CONFIG": str(cluster.config), **more}


def shell(
    cluster: Cluster, *arguments: str, node: str = A, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "shell", node, *arguments],
        cwd="/",
        env=bare(cluster, **more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def terminal(
    cluster: Cluster,
    size: tuple[int, int] = (24, 80),
    *,
    node: str = A,
    deaf: bool = False,
    **more: str,
) -> Terminal:
    return Terminal([*COMMAND, "shell", node], environment=bare(cluster, **more), size=size, deaf=deaf)


def directories(cluster: Cluster) -> list[Path]:
    found = cluster.state / "shells"
    return sorted(found.iterdir()) if found.exists() else []


def wait_swept(cluster: Cluster) -> None:
    cluster.wait(lambda: not directories(cluster), "the directories of ended shells to go")


def wait_ended(cluster: Cluster) -> None:
    cluster.wait(lambda: cluster.erl("a", "whereis(test_shell_waits)") == "undefined", "its process to go")


def wait_alone(cluster: Cluster) -> None:
    """The links of shells of an earlier test have gone from the status, too, and their ends are told: the
    last, since the node is told first.
    """
    wait_swept(cluster)
    cluster.wait(lambda: not cluster.status_of("a")["links"], "the links of ended shells to go")
    cluster.wait(
        lambda: names_of(cluster, "ShellAttached") - names_of(cluster, "ShellDetached") == Counter(),
        "the ends of shells to be told",
    )


def names_of(cluster: Cluster, kind: str) -> Counter[str]:
    return Counter(event["peer"] for event in cluster.events(kind))


def names_open(cluster: Cluster) -> set[str]:
    """What the shells are called that are open. Of one before them the node may still have something to tell,
    also of its beginning, when all else of it has gone: by their names these are known.
    """
    return {json.loads((each / "shell.json").read_bytes())["name"] for each in directories(cluster)}


# ---- without a terminal ----------


@pytest.mark.otp
def test_an_expression_is_evaluated_on_the_node_and_its_value_is_all_of_stdout(cluster: Cluster) -> None:
    done = shell(cluster, "--eval", "X = 20, {node(), is_alive(), X * 2 + 2}.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'a@127.0.0.1',true,42}\n", "")


@pytest.mark.otp
def test_the_dot_may_be_left_out_and_commands_of_the_shell_work(cluster: Cluster) -> None:
    done = shell(cluster, "--eval", "element(1, lists:keyfind(total, 1, memory()))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "total\n", "")


@pytest.mark.otp
def test_an_exception_is_told_on_stderr_with_exit_code_1(cluster: Cluster) -> None:
    done = shell(cluster, "--eval", 'io:put_chars("before\\n"), error(no_luck).')
    assert (done.returncode, done.stdout) == (1, "before\n")
    assert done.stderr == "** exception error: no_luck\n"


@pytest.mark.otp
def test_what_is_no_erlang_is_told_in_a_line_and_reaches_no_node(cluster: Cluster) -> None:
    done = shell(cluster, "--eval", "foo(")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr == "distsec: --eval: line 1: syntax error before: '.'\n"


@pytest.mark.otp
def test_an_evaluation_that_takes_too_long_is_ended_on_the_node(cluster: Cluster) -> None:
    waiting = "register(test_shell_waits, self()), receive never -> ok end."
    done = shell(cluster, "--timeout", "1", "--eval", waiting)
    assert (done.returncode, done.stdout) == (124, "")
    assert done.stderr == "distsec: no value within 1 s; the evaluation was ended\n"
    wait_ended(cluster)


@pytest.mark.otp
def test_what_the_node_prints_is_text_and_nothing_that_a_terminal_obeys(cluster: Cluster) -> None:
    done = shell(cluster, "--eval", r'io:format("~ts|~ts~n", ["\e[2J\x{202e}é", "\r\x{9b}"]).')
    assert (done.returncode, done.stdout) == (0, "\\x{1b}[2J\\x{202e}é|\\x{d}\\x{9b}\nok\n")


@pytest.mark.otp
def test_an_expression_from_stdin_is_in_no_process_list(cluster: Cluster) -> None:
    look = "lists:flatten([os:cmd(\"cat /proc/[0-9]*/cmdline 2>/dev/null | tr -c 'a-zA-Z_0-9' ' '\")])."
    done = shell(
        cluster,
        "--eval",
        "-",
        stdin=f'Secret_a1b2 = 1, string:find({look.rstrip(".")}, "Secret_" ++ "a1b2").',
    )
    assert (done.returncode, done.stdout) == (0, "nomatch\n")


@pytest.mark.otp
def test_closed_standard_streams_are_no_obstacle(cluster: Cluster) -> None:
    command = f"{shlex.join(COMMAND)} shell {A} --eval 'node().' <&- 2>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=bare(cluster), stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "'a@127.0.0.1'\n")


@pytest.mark.otp
def test_a_reader_that_goes_away_ends_it_quietly(cluster: Cluster) -> None:
    command = f"{shlex.join(COMMAND)} shell {A} --eval 'lists:seq(1, 200000).' | head -n 1"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=bare(cluster), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("[1,2,3")
    assert done.stderr == ""


@pytest.mark.otp
def test_lines_of_a_pipe_are_evaluated_in_turn_with_their_bindings(cluster: Cluster) -> None:
    typed = "X = 40. Y = 1.\nlists:map(fun(N) ->\n  N * 2\nend, [X, Y]).\nf(X).\n% a comment\nX = 7"
    done = shell(cluster, stdin=typed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40\n1\n[80,2]\nok\n7\n", "")


@pytest.mark.otp
def test_of_lines_in_a_pipe_the_first_that_fails_is_the_last(cluster: Cluster) -> None:
    done = shell(cluster, stdin="1.\nerror(no_luck).\nerlang:put(reached, true).\n")
    assert (done.returncode, done.stdout, done.stderr) == (1, "1\n", "** exception error: no_luck\n")
    done = shell(cluster, stdin="1.\n2 3.\n4.\n")
    assert (done.returncode, done.stdout) == (65, "1\n")
    assert done.stderr == "distsec: line 2: syntax error before: 3\n"


@pytest.mark.otp
def test_an_end_of_input_or_q_in_a_pipe_leaves_the_node_alone(cluster: Cluster) -> None:
    pid = cluster.pid("a")
    assert shell(cluster, stdin="").returncode == 0
    done = shell(cluster, stdin="q().\n1.\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert shell(cluster, "--eval", "q().").returncode == 1
    assert cluster.pid("a") == pid


# ---- at a terminal ----------


@pytest.mark.otp
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_terminal_of_any_size_does_also_when_it_is_resized(cluster: Cluster, size: tuple[int, int]) -> None:
    with terminal(cluster, size, TERM="xterm") as typed:
        typed.wait("> ")
        typed.type("lists:sum(lists:seq(1, 8)) + 6.\r")
        typed.wait("42") if size[1] != 1 else typed.wait("4")
        for other in SIZES:
            typed.resize(*other)
            typed.type("\r")
        typed.resize(24, 80)
        typed.type("6 * 111.\r")
        typed.wait("666")
        typed.type("q().\r")
        assert typed.exit_code() == 0
        assert typed.as_before


@pytest.mark.otp
def test_ctrl_c_interrupts_an_evaluation_and_nothing_else(cluster: Cluster) -> None:
    pid = cluster.pid("a")
    with terminal(cluster, TERM="xterm") as typed:
        typed.wait(PROMPT)
        typed.type("register(test_shell_waits, self()), receive never -> ok end.\r")
        cluster.wait(lambda: cluster.erl("a", "whereis(test_shell_waits)") != "undefined", "the evaluation")
        typed.type("\x03")
        typed.wait(")2> ")
        typed.type("6 * 7.\r")
        typed.wait("42")
        typed.type("\x07")
        typed.wait("-->")
        typed.type("q\r")
        assert typed.exit_code() == 0
        assert typed.as_before
    wait_ended(cluster)
    assert cluster.pid("a") == pid


def shows_at_a_tab(typed: Terminal, text: str) -> bool:
    typed.type("\t")
    with contextlib.suppress(AssertionError):
        typed.wait(text, 2)
        return True
    return False


@pytest.mark.otp
def test_names_of_the_node_are_completed(cluster: Cluster) -> None:
    with terminal(cluster, TERM="xterm") as typed:
        typed.wait(PROMPT)
        typed.type("distsec_test_no")
        # A shell of OTP 25 is told to ask the node a moment after its prompt is there (distsec_shell.erl).
        wait_until(lambda: shows_at_a_tab(typed, "distsec_test_node"), "the name to be completed")
        typed.type("\x15q().\r")
        assert typed.exit_code() == 0


@pytest.mark.otp
@pytest.mark.parametrize("term", [{}, {"TERM": "no-such-terminal"}], ids=["none", "unknown"])
def test_a_terminal_that_does_not_say_what_it_is_is_taken_for_an_ordinary_one(
    cluster: Cluster, term: dict[str, str]
) -> None:
    with terminal(cluster, **term) as typed:
        typed.wait(PROMPT)
        typed.type("6 * 7.\r")
        typed.wait("42")
        typed.type("q().\r")
        assert typed.exit_code() == 0


@pytest.mark.otp
def test_a_dumb_terminal_gets_lines_and_a_prompt(cluster: Cluster) -> None:
    with terminal(cluster, TERM="dumb") as typed:
        typed.wait(PROMPT)
        typed.type("error(no_luck).\r")
        typed.wait("exception error: no_luck")
        typed.wait(")2> ")
        typed.type("6 *\r")
        typed.type("7.\r")
        typed.wait("42")
        typed.wait(")3> ")
        typed.type("\x04")
        assert typed.exit_code() == 0


@pytest.mark.otp
@pytest.mark.parametrize("deaf", [False, True], ids=["hung up", "nohup"])
def test_closing_the_window_ends_the_shell_and_not_the_node(cluster: Cluster, deaf: bool) -> None:
    """Where its input ends, the shell of OTP 25 halts the VM that it runs in."""
    pid = cluster.pid("a")
    with terminal(cluster, TERM="xterm", deaf=deaf) as typed:
        typed.wait(PROMPT)
        typed.hang_up()
        assert typed.exit_code() != 127
    wait_swept(cluster)
    cluster.wait(lambda: cluster.erl("a", "nodes(hidden)") == "[]", "the shell's link to go")
    assert cluster.pid("a") == pid


# ---- what is on record, and what is left ----------


@pytest.mark.otp
def test_two_shells_at_once_attach_and_detach_on_record(cluster: Cluster) -> None:
    wait_alone(cluster)
    before = len(cluster.orchestrator_lines())
    with terminal(cluster, TERM="xterm") as one, terminal(cluster, TERM="xterm") as other:
        one.wait(PROMPT)
        other.wait(PROMPT)
        names = names_open(cluster)
        assert len(names) == 2
        attached = cluster.wait(
            lambda: at_least(2, told(cluster, before, "ShellAttached", names)), "both to attach"
        )
        assert sorted(event["peer"] for event in attached) == sorted(names)
        links = cluster.wait(lambda: links_of(cluster, names), "the links of both, and no others")
        for event in attached:
            link = links[event["peer"]]
            assert (event["node"], event["rule"]) == (A, "distsec-shell-*@127.0.0.1")
            assert event["operator"].endswith(f"(uid {os.getuid()})")
            assert link["identity"] == event["identity"]
            assert link["identity"].startswith("spiffe://demo/shell/127.0.0.1/distsec-shell-")
            assert (link["hidden"], link["direction"], link["verdict"]) == (True, "in", "allow")
        cluster.wait(lambda: cluster.metric("distsec_shells", node=A) == 2, "the gauge to show both")
        assert cluster.metric("distsec_links", node=A, verdict="deny") == 0
        for typed in (one, other):
            typed.type("q().\r")
            assert typed.exit_code() == 0
    detached = cluster.wait(
        lambda: at_least(2, told(cluster, before, "ShellDetached", names)), "both to detach"
    )
    assert sorted(event["peer"] for event in detached) == sorted(names)
    assert all(event["seconds"] >= 0 and "detail" not in event for event in detached)
    wait_swept(cluster)
    cluster.wait(lambda: cluster.metric("distsec_shells", node=A) == 0, "the gauge to fall")


def told(cluster: Cluster, after: int, kind: str, names: set[str]) -> list[dict[str, Any]]:
    """The events of this kind about shells of these names."""
    events = [json.loads(line) for line in cluster.orchestrator_lines()[after:]]
    return [event for event in events if event["event"] == kind and event["peer"] in names]


def links_of(cluster: Cluster, names: set[str]) -> dict[str, dict[str, Any]] | None:
    """The links of the node, where they are those of these shells."""
    links = {link["peer"]: link for link in cluster.status_of("a")["links"]}
    return links if set(links) == names else None


def at_least(number: int, events: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return events if len(events) >= number else None


@pytest.mark.otp
def test_nothing_secret_is_in_arguments_or_environment_and_all_files_are_private(cluster: Cluster) -> None:
    wait_swept(cluster)
    with terminal(cluster, TERM="xterm") as typed:
        typed.wait(PROMPT)
        (directory,) = directories(cluster)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for file in directory.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        cookie = (directory / ".erlang.cookie").read_bytes()
        assert len(cookie) >= 32
        looked_into = set()
        for pid in proc.tree(typed.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a helper that has ended
                for file in ("cmdline", "environ"):
                    content = Path(f"/proc/{pid}/{file}").read_bytes()
                    assert cookie not in content
                    assert b"PRIVATE KEY" not in content
                looked_into.add(pid)
        assert typed.pid in looked_into
        environ = Path(f"/proc/{typed.pid}/environ").read_bytes().split(b"\0")
        names = {variable.partition(b"=")[0] for variable in environ if variable}
        assert names == {b"PATH", b"HOME", b"LC_ALL", b"ERL_CRASH_DUMP_SECONDS", b"TERM"} | erlexec_s(environ)
        assert proc.listening(proc.tree(typed.pid)) == []


def erlexec_s(environ: list[bytes]) -> set[bytes]:
    """What `erl` and erlexec have added themselves, and the shell that runs `erl`."""
    own = {b"ROOTDIR", b"BINDIR", b"EMU", b"PROGNAME", b"PWD", b"OLDPWD", b"SHLVL", b"_"}
    return {variable.partition(b"=")[0] for variable in environ} & own


@pytest.mark.otp
def test_a_killed_shell_leaves_no_key_behind(cluster: Cluster) -> None:
    wait_alone(cluster)
    before = len(cluster.orchestrator_lines())
    with terminal(cluster, TERM="xterm") as typed:
        typed.wait(PROMPT)
        names = names_open(cluster)
        assert len(names) == 1
        typed.signal(signal.SIGKILL)
        assert typed.exit_code() == -signal.SIGKILL
    wait_swept(cluster)
    cluster.wait(lambda: told(cluster, before, "ShellDetached", names), "its end to be told")


@pytest.mark.otp
def test_the_atoms_of_the_node_do_not_grow_with_the_number_of_shells(cluster: Cluster) -> None:
    def evaluate() -> int:
        return int(shell(cluster, "--eval", "erlang:system_info(atom_count).").stdout)

    def grown() -> int:
        first = evaluate()
        return [evaluate() for _ in range(3)][-1] - first

    evaluate()
    # A name of 256 each (and, where it is new, its host's way of writing it). What else the node does for the
    # first time meanwhile, it does once: not in each row of shells.
    assert any(grown() <= 3 * 2 for _ in range(3))


# ---- errors ----------


@pytest.mark.otp
def test_who_has_no_shell_is_told_why(cluster: Cluster) -> None:
    done = cluster.distsec("shell", "nobody@127.0.0.1", "--eval", "ok.", check=False)
    assert (done.returncode, done.stdout) == (68, "")
    assert (
        done.stderr == "distsec: nobody@127.0.0.1: no such managed node; the managed nodes are: a@127.0.0.1\n"
    )
    cluster.distsec("stop", A)
    try:
        done = cluster.distsec("shell", A, "--eval", "ok.", check=False)
        assert (done.returncode, done.stdout) == (70, "")
        assert "a@127.0.0.1 is STOPPED" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    finally:
        cluster.distsec("start", A)
    wait_swept(cluster)


@pytest.mark.otp
def test_a_node_that_goes_ends_its_shells_with_the_reason(cluster: Cluster) -> None:
    with terminal(cluster, TERM="xterm") as typed:
        typed.wait(PROMPT)
        cluster.distsec("stop", A)
        typed.wait("distsec: the link with a@127.0.0.1 is down")
        assert typed.exit_code() == 70
        assert typed.as_before
    cluster.distsec("start", A)


# ---- other carriers, and without the orchestrator ----------


CARRIERS: dict[str, dict[str, Any]] = {
    "inet_tls": {"carrier": "inet_tls"},
    "development": {"mode": "development"},
    "ipv6": {"host": "::1"},
}


@pytest.mark.parametrize("how", CARRIERS.values(), ids=CARRIERS)
def test_a_shell_works_with_every_carrier(
    otp: Otp, make_cluster: Callable[..., Cluster], how: dict[str, Any]
) -> None:
    cluster = make_cluster(otp, ["a"], **how)
    cluster.init()
    cluster.run()
    cluster.wait_running()
    node = cluster.node("a")
    done = shell(cluster, "--eval", "{node(), length(nodes(hidden))}.", node=node)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{{'{node}',1}}\n", "")
    with terminal(cluster, node=node, TERM="xterm") as typed:
        typed.wait(f"({node})1> ")
        typed.type("6 * 7.\r")
        typed.wait("42")
        typed.type("q().\r")
        assert typed.exit_code() == 0
    cluster.wait(lambda: len(cluster.events("ShellDetached")) == 2, "both to detach")
    assert len(cluster.events("ShellAttached")) == 2
    assert not cluster.events("UnauthorizedAccess")


def test_a_shell_outlives_the_orchestrator_and_the_next_one_sees_it_to_its_end(
    otp: Otp, make_cluster: Callable[..., Cluster]
) -> None:
    cluster = make_cluster(otp, ["a"])
    cluster.init()
    cluster.run()
    cluster.wait_running()
    with terminal(cluster, TERM="xterm") as stays, terminal(cluster, TERM="xterm") as goes:
        stays.wait(PROMPT)
        goes.wait(PROMPT)
        cluster.kill()
        goes.signal(signal.SIGKILL)
        goes.exit_code()
        assert len(directories(cluster)) == 2
        cluster.run()
        cluster.wait_running()
        cluster.wait(lambda: len(directories(cluster)) == 1, "the one that ended to be swept")
        stays.type("6 * 7.\r")
        stays.wait("42")
        stays.type("q().\r")
        assert stays.exit_code() == 0
    wait_swept(cluster)
    cluster.wait(lambda: len(cluster.events("ShellDetached")) >= 2, "the ends of both to be told")
    details = {event.get("detail") for event in cluster.events("ShellDetached")}
    assert details == {None, "it ended while the orchestrator was away"}
