"""The command line as transcripts: what is typed, what is said on which stream, and the exit code."""

from __future__ import annotations

import configparser
import json
import os
import pty
import re
import resource
import select
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec import __version__
from distsec.cli import group, options
from distsec.cli.certs.revoke import REASONS
from distsec.cli.env import shell_lines, systemd_lines
from distsec.cli.events import parse_since
from distsec.errors import CommandFailed, ConfigError, NotAcknowledged, Problem
from distsec.pki.crl import RevocationReason
from tests.unit.cli.conftest import Type
from tests.unit.control.fake_orchestrator import NODES, NOW, Running, refusal

VALUE = '-proto_dist inet_tls -x "it\'s 100% \\\\ $HOME"'


# ---- nodes and policy ----------


def test_start_names_what_was_started(orchestrator: Running, type_in: Type) -> None:
    result = type_in("start", NODES[1], NODES[0])
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        f"started {NODES[1]}\nstarted {NODES[0]}\n",
        "",
    )
    assert orchestrator.fake.asked == [("start", [NODES[1], NODES[0]])]


def test_all_means_all_nodes(orchestrator: Running, type_in: Type) -> None:
    assert type_in("restart", "--all").exit_code == 0
    assert orchestrator.fake.asked == [("restart", list(NODES))]


@pytest.mark.parametrize("args", [("stop",), ("stop", "--all", NODES[0])])
def test_names_or_all_and_not_both(orchestrator: Running, type_in: Type, args: tuple[str, ...]) -> None:
    result = type_in(*args)
    assert result.exit_code == 64
    assert result.stderr.startswith("distsec stop: ")
    assert len(result.stderr.splitlines()) == 1
    assert orchestrator.fake.asked == []


def test_an_unknown_node_is_named_with_those_that_are_known(orchestrator: Running, type_in: Type) -> None:
    result = type_in("start", "nobody@127.0.0.1")
    assert result.exit_code == 68
    assert result.stderr == (
        "distsec: nobody@127.0.0.1: no such managed node; the managed nodes are: " + ", ".join(NODES) + "\n"
    )


def test_allow_and_deny_say_who_acknowledged(orchestrator: Running, type_in: Type) -> None:
    allowed = type_in("allow", "new@10.0.0.9", "--identity", "spiffe://demo/node/10.0.0.9/new")
    denied = type_in("deny", "new@10.0.0.9")
    assert allowed.stdout == "new@10.0.0.9 is allowed: policy generation 8, acknowledged by 3 nodes\n"
    assert denied.stdout == "new@10.0.0.9 is denied: policy generation 9, acknowledged by 1 node\n"
    assert orchestrator.fake.asked == [
        ("allow", "new@10.0.0.9", "spiffe://demo/node/10.0.0.9/new"),
        ("deny", "new@10.0.0.9", False, 0.0),
    ]


def test_a_change_that_is_not_acknowledged_says_by_whom(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.error = NotAcknowledged(
        "not acknowledged by agent@127.0.0.1, and rolled back", missing=[NODES[1]], do="look at its log"
    )
    result = type_in("allow", "new@10.0.0.9")
    assert result.exit_code == 75
    assert result.stderr == "distsec: not acknowledged by agent@127.0.0.1, and rolled back; look at its log\n"


def test_a_denial_of_a_compromised_node_says_who_is_clean_held_and_beyond_reach(
    orchestrator: Running, type_in: Type
) -> None:
    result = type_in("deny", NODES[1], "--compromised", "--since", "2026-01-31T12:00+00:00")
    assert result.exit_code == 0
    assert result.stdout == (
        "agent@127.0.0.1 is denied as compromised: policy generation 9, acknowledged by 1 node\n"
        "revoked: 2 certificates\n"
        "re-keyed and clean: poller@127.0.0.1\n"
        "re-keyed and held: agent@127.0.0.1 (until `distsec allow` and `distsec start`)\n"
        "tainted, not managed here, until `distsec allow` or `deny`: far@10.0.0.9\n"
        "were linked too, and cannot be re-keyed here: spiffe://demo/cli/x\n"
    )
    assert orchestrator.fake.asked == [("deny", NODES[1], True, 1769860800.0)]


def test_a_time_without_compromised_is_wrong_usage(orchestrator: Running, type_in: Type) -> None:
    result = type_in("deny", NODES[1], "--since", "1h")
    assert result.exit_code == 64
    assert "--since goes with --compromised" in result.stderr
    assert orchestrator.fake.asked == []


def test_a_revocation_warns_where_it_is_a_nodes_own_certificate(orchestrator: Running, type_in: Type) -> None:
    result = type_in("certs", "revoke", "0A1B")
    assert result.stdout == "0a1b is revoked: policy generation 9, acknowledged by 3 nodes\n"
    assert result.stderr == ""
    orchestrator.fake.current = [NODES[0]]
    result = type_in("certs", "revoke", NODES[0])
    assert result.stderr == (
        "distsec: warning: that is the certificate poller@127.0.0.1 has now: it runs on without links;"
        " `distsec certs renew poller@127.0.0.1` gives it another\n"
    )
    assert orchestrator.fake.asked == [("revoke", "0A1B"), ("revoke", NODES[0])]


def test_the_revocation_of_an_identity_says_what_it_means_for_a_node_that_has_it(
    orchestrator: Running, type_in: Type
) -> None:
    orchestrator.fake.current = [NODES[0]]
    orchestrator.fake.lists = [
        {"file": "ca/crl.pem", "number": 3, "next_update": NOW, "entries": 1, "behind": "the key is sealed"}
    ]
    result = type_in("certs", "revoke", "spiffe://demo/x", "--reason", "keyCompromise")
    assert result.stdout == (
        "spiffe://demo/x is revoked: policy generation 9, acknowledged by 3 nodes\n"
        "certificates of it that are known here: 0a1b\n"
    )
    assert "poller@127.0.0.1 is known by that identity" in result.stderr
    assert "the list ca/crl.pem (CRL) is behind; the nodes are not: the key is sealed" in result.stderr
    assert orchestrator.fake.asked == [("revoke", "spiffe://demo/x", "keyCompromise")]
    assert type_in("certs", "revoke", "0a", "--reason", "boredom").exit_code == 64


def test_the_reasons_that_may_be_given_are_those_of_a_list() -> None:
    assert list(REASONS) == [str(each) for each in RevocationReason]


def test_certificates_are_listed_with_those_that_are_revoked(
    orchestrator: Running, type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsec.cli.certs.listing.time.time", lambda: float(NOW))
    result = type_in("certs", "list")
    assert result.stdout == (
        "NODE              SERIAL  EXPIRES  STATE\n"
        "poller@127.0.0.1  0a1b    1d 0h    revoked\n"
        "agent@127.0.0.1   0c      40d      valid\n"
        "\n"
        "issuer: CN=demo\n"
        "\n"
        "revoked, of no node now:\n"
        "  ff\n"
    )
    document = json.loads(type_in("certs", "list", "--json").stdout)
    assert (document["schema"], document["revoked"]) == (1, ["0a1b", "ff"])


def test_the_list_shows_states_issuers_identities_and_what_was_issued_for_others(
    orchestrator: Running, type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsec.cli.certs.listing.time.time", lambda: float(NOW))

    def one(node: str, serial: str, state: str, issuer: str) -> dict[str, Any]:
        fields = {"node": node, "serial": serial, "state": state, "issuer": issuer}
        return {**fields, "not_after": NOW + 86_400, "revoked": state == "revoked"}

    orchestrator.fake.listed = {
        "certificates": [
            one(NODES[0], "0a", "not_yet_valid", "CN=one"),
            one(NODES[1], "0b", "revoked", "CN=one"),
        ],
        "issued": [one("far@10.9.0.1", "f" * 32, "expiring", f"CN=\x1b[31mtwo,O={'x' * 30},OU={'y y' * 9}")],
        "revoked": ["0b", "0c"],
        "revoked_identities": ["dn:CN=x,O=y"],
        "lists": [
            {"file": "ca/crl.pem", "number": 9, "next_update": NOW + 7 * 86_400, "entries": 2, "behind": None}
        ],
    }
    result = type_in("certs", "list")
    assert result.stdout == (
        "NODE              SERIAL                            EXPIRES  STATE\n"
        "poller@127.0.0.1  0a                                1d 0h    not yet valid\n"
        "agent@127.0.0.1   0b                                1d 0h    revoked\n"
        "\n"
        "of nodes that are not managed here:\n"
        "far@10.9.0.1      ffffffffffffffffffffffffffffffff  1d 0h    expiring\n"
        "\n"
        "issuer: CN=one  (poller@127.0.0.1, agent@127.0.0.1)\n"
        "\n"
        f"issuer: CN=\\x1b[31mtwo,O={'x' * 30},OU=y yy yy yy yy yy yy\n"
        "  yy yy y  (far@10.9.0.1)\n"
        "\n"
        "revoked identities, with whatever certificate:\n"
        "  dn:CN=x,O=y\n"
        "\n"
        "revoked, of no node now:\n"
        "  0c\n"
        "\n"
        "list (CRL) 9: 2 revoked, 7d 0h\n"
    )
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "args",
    [("start", "--all"), ("allow", "x@127.0.0.1"), ("deny", "x@127.0.0.1"), ("env", NODES[0]), ("events",)],
)
def test_without_an_orchestrator_every_command_says_how_to_start_it(
    type_in: Type, config: Path, args: tuple[str, ...]
) -> None:
    result = type_in(*args)
    assert result.exit_code == 69
    assert result.stderr == (
        f"distsec: {config.parent}/run/control.sock: no orchestrator answers; "
        f"start it with `distsec run -c {config}`\n"
    )


# ---- events ----------


def test_events_are_lines_for_people(orchestrator: Running, type_in: Type) -> None:
    orchestrator.publish(refusal(peer="x\x1b@h"))
    result = type_in("events")
    assert result.exit_code == 0
    assert result.stdout == (
        "2025-11-21 22:26:40Z  WARNING   UnauthorizedAccess  poller@127.0.0.1  peer=x\\x1b@h  direction=in"
        "  reason=not_allowed  result=deny\n"
    )


def test_events_as_json_are_one_document(orchestrator: Running, type_in: Type) -> None:
    orchestrator.publish(refusal(1))
    orchestrator.publish(refusal(2))
    document = json.loads(type_in("events", "--json").stdout)
    assert document["schema"] == 1
    assert [event["time"] for event in document["events"]] == [NOW + 1, NOW + 2]


def test_following_as_json_is_one_object_a_line(orchestrator: Running, type_in: Type) -> None:
    for number in range(15):
        orchestrator.publish(refusal(number))
    orchestrator.close_bus()
    with_history = _follow(orchestrator, type_in, "--since", "2025-01-01")
    assert [event["id"] for event in with_history] == list(range(1, 16))
    assert {event["schema"] for event in with_history} == {1}
    whole = json.loads(type_in("events", "--json").stdout)["events"]
    assert with_history == [{"schema": 1, **event} for event in whole], "else as in the one document"
    assert [event["id"] for event in _follow(orchestrator, type_in)] == list(range(6, 16))


def _follow(orchestrator: Running, type_in: Type, *args: str) -> list[dict[str, object]]:
    """Follows until the bus is closed, which another thread does once the follower is there."""
    import threading

    from tests.waiting import wait_until

    def close() -> None:
        wait_until(lambda: orchestrator.fake.bus._followers, "a follower")
        orchestrator.close_bus()

    closer = threading.Thread(target=close)
    closer.start()
    result = type_in("events", "-f", "--json", *args)
    closer.join(20)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_ages_and_times_are_understood() -> None:
    assert parse_since("90s", 1000.0) == 910.0
    assert parse_since("2h", 10_000.0) == 2800.0
    assert parse_since("1970-01-02T00:00:00+00:00", 0.0) == 86400.0
    for text in ("yesterday", "10", "-5m", "", "1e3s"):
        with pytest.raises(click.BadParameter):
            parse_since(text, 0.0)


def test_a_time_that_is_none_is_wrong_usage(type_in: Type) -> None:
    result = type_in("events", "--since", "yesterday")
    assert result.exit_code == 64
    assert len(result.stderr.splitlines()) == 1


# ---- env ----------


def test_env_as_json_is_the_document(orchestrator: Running, type_in: Type) -> None:
    document = json.loads(type_in("env", NODES[0], "--json").stdout)
    assert document["schema"] == 1
    assert document["env"] == {"ERL_AFLAGS": VALUE}
    assert set(document["files"]) == {"certificate", "key"}


def test_env_for_a_shell_gives_the_value_back_when_it_is_evaluated(
    orchestrator: Running, type_in: Type
) -> None:
    lines = type_in("env", NODES[0], "--shell").stdout
    shell = subprocess.run(
        ["/bin/sh", "-c", f'{lines}\nprintf %s "$ERL_AFLAGS"'],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert shell.stdout == VALUE


def test_env_without_a_format_is_for_reading(orchestrator: Running, type_in: Type) -> None:
    lines = type_in("env", NODES[0]).stdout.splitlines()
    assert lines[0] == f"ERL_AFLAGS   {VALUE}"
    assert lines[1] == "certificate  /x/certificate.pem"


_values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(_values)
def test_shell_quoting_is_undone_by_a_shells_rules(value: str) -> None:
    [line] = shell_lines({"X": value})
    assert shlex.split(line) == ["export", f"X={value}"]


@given(_values)
def test_systemd_quoting_is_undone_by_systemds_rules(value: str) -> None:
    """systemd.syntax(7), QUOTING: C escapes within double quotes; systemd.unit(5): %% is a percent sign."""
    [line] = systemd_lines({"X": value})
    assert "\n" not in line
    assert line.startswith('Environment="X=') and line.endswith('"')
    out, rest = "", line.removeprefix('Environment="X=').removesuffix('"')
    while rest:
        if rest.startswith("\\x"):
            out, rest = out + chr(int(rest[2:4], 16)), rest[4:]
        elif rest[0] == "\\":
            assert rest[1] in '\\"'
            out, rest = out + rest[1], rest[2:]
        elif rest[0] == "%":
            assert rest[1] == "%"
            out, rest = out + "%", rest[2:]
        else:
            assert rest[0] != '"'
            out, rest = out + rest[0], rest[1:]
    assert out == value


def test_env_for_systemd_is_a_line_of_a_unit(orchestrator: Running, type_in: Type) -> None:
    unit = configparser.RawConfigParser()
    unit.read_string("[Service]\n" + type_in("env", NODES[0], "--systemd").stdout)
    assert (
        unit["Service"]["Environment"]
        == '"ERL_AFLAGS=-proto_dist inet_tls -x \\"it\'s 100%% \\\\\\\\ $HOME\\""'
    )


# ---- the group ----------


def test_help_lists_every_command_and_imports_none() -> None:
    script = (
        "import sys; from distsec.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'rich', 'aiohttp', 'pydantic', 'asyncio', 'http.client', 'structlog', 'cryptography'}\n"
        "print('imported', sorted(heavy & set(sys.modules)), 'exit', code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    *text, last = done.stdout.splitlines()
    assert last == "imported [] exit 0"
    assert all(any(line.split()[:1] == [name] for line in text) for name in group.COMMANDS)


def test_help_starts_in_less_than_twice_the_time_of_importing_click() -> None:
    def taken(*args: str) -> float:
        """Of the processor: what else runs on this machine, and when, is none of its doing."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    rounds = [
        (taken("-c", "import click"), taken("-c", "from distsec.cli import main; main()", "--help"))
        for _ in range(9)
    ]
    click_alone, help_text = map(min, zip(*rounds, strict=True))
    assert help_text < 2 * click_alone


@pytest.mark.parametrize("name", sorted(set(group.COMMANDS) - {"run"}))
def test_every_command_of_the_table_is_there_and_has_help(type_in: Type, name: str) -> None:
    result = type_in(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: distsec {name}" in result.stdout


def test_the_version_is_told(type_in: Type) -> None:
    assert type_in("--version").stdout == f"distsec {__version__}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("statsu",), "distsec: there is no command 'statsu' (did you mean status?); see `distsec --help`"),
        (("zebra",), "distsec: there is no command 'zebra'; see `distsec --help`"),
        (("certs", "lst"), "distsec certs: there is no command 'lst' (did you mean list?)"),
        (("status", "--jsno"), "distsec status: No such option"),
        (("allow",), "distsec allow: Missing argument 'NODE'"),
        (("\x1b[31m",), "distsec: there is no command '\\x1b[31m'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_64(type_in: Type, args: tuple[str, ...], said: str) -> None:
    result = type_in(*args)
    assert result.exit_code == 64
    [line] = result.stderr.splitlines()
    assert line.startswith(said)


def test_nothing_typed_is_answered_with_help_and_exit_code_64(type_in: Type) -> None:
    result = type_in()
    assert result.exit_code == 64
    assert "Commands:" in result.stderr


def test_each_problem_of_a_configuration_is_a_line(orchestrator: Running, type_in: Type) -> None:
    orchestrator.fake.error = ConfigError("/x.toml", [Problem("a", 1, "bad\x1b"), Problem("b", 2, "worse")])
    result = type_in("start", "--all")
    assert result.exit_code == 78
    assert result.stderr.splitlines() == [
        "distsec: /x.toml: line 1: a: bad\\x1b",
        "distsec: /x.toml: line 2: b: worse",
    ]


@pytest.mark.parametrize("args", [("--debug", "stop", "--all"), ("stop", "--all", "--debug")])
def test_a_traceback_is_shown_with_debug_only(
    orchestrator: Running, type_in: Type, args: tuple[str, ...]
) -> None:
    orchestrator.fake.error = CommandFailed("it did not stop")
    assert "Traceback" in type_in(*args).stderr
    assert type_in("stop", "--all").stderr == "distsec: it did not stop\n"


def test_ctrl_c_ends_with_130(orchestrator: Running, type_in: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distsec.control.client.ControlClient.nodes", interrupted)
    assert type_in("stop", "--all").exit_code == 130


@pytest.mark.parametrize("command", ["events", "status"])
def test_a_reader_that_goes_away_is_no_trouble(orchestrator: Running, config: Path, command: str) -> None:
    orchestrator.publish(refusal())
    reads, writes = os.pipe()
    os.close(reads)
    program = [sys.executable, "-c", "from distsec.cli import main; main()"]
    with os.fdopen(writes, "wb") as pipe:
        done = subprocess.run(
            [*program, command, "-c", str(config)],
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


# ---- finding the orchestrator ----------


def test_the_search_is_that_of_the_configuration_loader() -> None:
    from distsec.config import load

    assert options.CONFIG_VARIABLE == load.CONFIG_VARIABLE
    assert tuple(map(Path, options.SEARCHED)) == load.SEARCHED


def test_the_option_wins_over_the_environment(orchestrator: Running, type_in: Type, config: Path) -> None:
    assert type_in("stop", "--all", "-c", str(config), DISTSEC_CONFIG="/nowhere.toml").exit_code == 0
    missing = type_in("stop", "--all", DISTSEC_CONFIG="/nowhere.toml")
    assert missing.exit_code == 78
    assert missing.stderr.startswith("distsec: /nowhere.toml: ")


def test_the_file_in_the_current_directory_is_found(
    orchestrator: Running, type_in: Type, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    assert type_in("stop", "--all", DISTSEC_CONFIG=None).exit_code == 0


def test_no_configuration_anywhere_says_where_was_looked(
    type_in: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    if Path("/etc/distsec/distsec.toml").exists():
        pytest.skip("this machine has a configuration")
    result = type_in("status", DISTSEC_CONFIG=None)
    assert result.exit_code == 78
    assert "distsec init DIR" in result.stderr


def test_a_file_that_is_being_edited_still_leads_to_the_orchestrator(
    orchestrator: Running, type_in: Type, config: Path
) -> None:
    config.write_text('[cluster]\nstate_dir = "run"\nnosuchkey = 7\n[[nodes]]\n')
    assert type_in("stop", "--all").exit_code == 0


@pytest.mark.parametrize("text", ["[cluster", 'cluster = "x"', "[cluster]\nstate_dir = 7\n"])
def test_a_file_that_does_not_tell_the_state_directory_is_judged_in_full(
    orchestrator: Running, type_in: Type, config: Path, text: str
) -> None:
    config.write_text(text)
    result = type_in("stop", "--all")
    assert result.exit_code == 78
    assert result.stderr.startswith(f"distsec: {config}: ")
    assert orchestrator.fake.asked == []


def test_a_state_directory_from_a_variable_is_interpolated(
    orchestrator: Running, type_in: Type, config: Path
) -> None:
    config.write_text(
        '[cluster]\nname = "demo"\nstate_dir = "${WHERE}"\n'
        '[security.distribution]\nallowed_nodes = ["a@127.0.0.1"]\n'
        '[[nodes]]\nname = "a@127.0.0.1"\ncommand = ["erl", "-noinput"]\n'
    )
    result = type_in("stop", "--all", WHERE="run")
    assert result.exit_code == 0, result.output


# ---- progress ----------


def test_waiting_shows_a_line_on_a_terminal_and_takes_it_away_again() -> None:
    script = (
        "import distsec.cli.progress as p, threading\n"
        "p.PATIENCE_SECONDS = p._REDRAW_SECONDS = 0.02\n"
        "drawn = threading.Event(); write = __import__('sys').stderr.write\n"
        "__import__('sys').stderr.write = lambda text: (write(text), drawn.set())\n"
        "with p.waiting('starting a@h'): assert drawn.wait(20)\n"
    )
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, timeout=60)
        shown = b""
        while select.select([ours], [], [], 0)[0]:  # what it wrote last may come by itself
            shown += os.read(ours, 65536)
    finally:
        os.close(theirs)
        os.close(ours)
    assert re.search(r"starting a@h … \d+ s", shown.decode())
    assert shown.endswith(b"\r\x1b[K")


# ---- adopt ----------


def test_adopt_says_as_which_process_it_runs(orchestrator: Running, type_in: Type) -> None:
    done = type_in("adopt", NODES[0], "--pid", "4712", "--timeout", "2.5")
    assert done.stdout == f"adopted {NODES[0]}: RUNNING as process 4712; something else starts it\n"
    assert json.loads(type_in("adopt", NODES[1], "--json").stdout) == {
        "schema": 1, "node": NODES[1], "pid": 4711, "command": False,
    }  # fmt: skip
    assert orchestrator.fake.asked == [("adopt", NODES[0], 4712, 2.5), ("adopt", NODES[1], None, None)]


@pytest.mark.parametrize(
    "args", [("--pid", "1"), ("--timeout", "0"), ("--timeout", "4000"), ("--pid", "9999999")]
)
def test_adopt_takes_no_pid_and_no_time_that_cannot_be(
    orchestrator: Running, type_in: Type, args: tuple[str, ...]
) -> None:
    done = type_in("adopt", NODES[0], *args)
    assert done.exit_code == 64 and len(done.stderr.splitlines()) == 1
    assert orchestrator.fake.asked == []
