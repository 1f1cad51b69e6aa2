"""The command `distsec check` as transcripts: streams, exit codes, 80 columns, users who may see little."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distsec.cli import group
from distsec.cli.check_view import view
from distsec.posture.collect import processes
from distsec.posture.finding import Code, Finding, Severity
from tests.posture.planted import Planted
from tests.system.cluster import COMMAND, free_ports

NOBODY = 65534


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    from click.testing import CliRunner

    monkeypatch.delenv("DISTSEC_CONFIG", raising=False)
    return lambda *args: CliRunner().invoke(group.distsec, list(args), prog_name="distsec")


def test_a_clean_cluster_ends_with_0_and_a_summary(clean: Planted, type_in: Callable[..., Any]) -> None:
    result = type_in("check", "-c", str(clean.config))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("nothing above info; ")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout and result.stderr == ""


@pytest.mark.parametrize(("mode", "code"), [(0o600, 0), (0o640, 2)])
def test_json_is_one_document_and_the_exit_code_says_how_it_is(
    clean: Planted, type_in: Callable[..., Any], mode: int, code: int
) -> None:
    (clean.node() / "key.pem").chmod(mode)
    result = type_in("check", "--json", "-c", str(clean.config))
    document = json.loads(result.stdout)
    assert (result.exit_code, list(document)) == (code, ["schema", "findings"])
    ranks = [list(Severity).index(Severity(each["severity"])) for each in document["findings"]]
    assert ranks == sorted(ranks)
    exposed = [each for each in document["findings"] if each["code"] == Code.SECRET_EXPOSED]
    assert [each["fix"].split()[0] for each in exposed] == ["chmod"] * (code // 2)


def test_a_configuration_that_is_wrong_is_a_finding(clean: Planted, type_in: Callable[..., Any]) -> None:
    clean.config.write_text("[cluster\n")
    result = type_in("check", "-c", str(clean.config))
    assert result.exit_code == 2
    assert "configuration_invalid" in result.stdout and "line 1" in result.stdout


def test_a_configuration_that_is_not_there_is_an_error(tmp_path: Path, type_in: Callable[..., Any]) -> None:
    result = type_in("check", "-c", str(tmp_path / "no.toml"))
    assert result.exit_code == 78
    assert "there is no such file" in result.stderr and result.stdout == ""


def test_without_a_configuration_the_host_is_looked_at(
    clean: Planted, type_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean.directory / "elsewhere").mkdir()
    monkeypatch.chdir(clean.directory / "elsewhere")
    clean.beam("-name", "x@127.0.0.1", "-setcookie", "f00dfeedf00dfeedcafe1234567890")
    monkeypatch.setattr("distsec.config.load.SEARCHED", (Path("distsec.toml"),))
    result = type_in("check")
    assert result.exit_code == 2
    assert "cookie_in_arguments" in result.stdout and "f00d" not in result.stdout


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--port", "nonsense"), 64),
        (("--port", "127.0.0.1:0"), 64),
        (("--port", "127.0.0.1:99999"), 64),
        (("--port", "127.0.0.1:1", "--host"), 64),
        (("--host", "-c", "x.toml"), 64),
        (("--port", "no-such-host.invalid:1"), 69),
    ],
)
def test_wrong_usage_is_one_line(type_in: Callable[..., Any], args: tuple[str, ...], code: int) -> None:
    result = type_in("check", *args)
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1)


def test_a_port_at_which_nobody_listens_ends_with_69(type_in: Callable[..., Any]) -> None:
    [port] = free_ports(1)
    result = type_in("check", "--port", f"127.0.0.1:{port}")
    assert result.exit_code == 69
    assert f"127.0.0.1:{port}: nothing answers there" in result.stderr


def test_long_and_hostile_texts_stay_within_80_columns() -> None:
    from io import StringIO

    from rich.console import Console

    finding = Finding.of(
        Severity.CRITICAL,
        Code.FLAG_TWICE,
        what="[red]x[/red] " + "y" * 500,
        where="/" + "z" * 300,
        fix="\x1b[2J",
    )
    out = StringIO()
    Console(file=out, width=200, highlight=False, markup=False).print(view([finding]))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "[red]x[/red]" in out.getvalue() and "\x1b" not in out.getvalue()
    assert out.getvalue().splitlines()[-1] == "1 critical"


def test_colour_is_for_terminals_and_not_where_no_color_is_set(clean: Planted) -> None:
    from tests.system.terminal import Terminal

    def shown(**extra: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": "/", "TERM": "xterm", "LANG": "C.UTF-8", **extra}
        with Terminal([*COMMAND, "check", "-c", str(clean.config)], environment=environment) as terminal:
            assert terminal.exit_code() in {0, 1, 2}
            return terminal.text

    assert "\x1b[" in shown()
    assert "\x1b[3" not in shown(NO_COLOR="1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_may_not_see_is_told_what_was_not_seen(clean: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at root's cluster: that is no clean bill."""
    clean.directory.chmod(0o755)
    clean.check()  # imports what it needs: nobody may not be able to read Python's own files
    findings = _as(NOBODY, lambda: clean.check())
    assert [each.code for each in findings if each.code is Code.NOT_SEEN]
    assert any("not yours to read" in each.what for each in findings)

    clean.config.chmod(0o644)
    findings = _as(NOBODY, lambda: clean.check())
    assert any(str(clean.state) in each.what for each in findings if each.code is Code.NOT_SEEN)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_emulators_of_others_are_named_where_their_sockets_may_not_be_seen(tmp_path: Path) -> None:
    fake = tmp_path / "beam.smp"
    fake.symlink_to("/bin/sleep")
    with subprocess.Popen([str(fake), "60"]) as sleeper:
        try:
            found = _as(NOBODY, processes.find)
            seen = [beam for beam in found.beams if beam.pid == sleeper.pid]
            assert [(beam.environ, beam.listeners) for beam in seen] == [(None, None)]
            assert any("the environment of" in text for text in found.unseen)
        finally:
            sleeper.kill()


def _as(uid: int, function: Callable[[], Any]) -> Any:
    """The value of `function` in a child that is another user."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            try:
                outcome = function()
            except Exception as error:
                outcome = error
            with os.fdopen(writes, "wb") as stream:
                pickle.dump(outcome, stream)
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        content = stream.read()
    os.waitpid(child, 0)
    outcome = pickle.loads(content)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
