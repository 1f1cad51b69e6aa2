"""`distsec status`: transcripts, exit codes, hostile names, eighty columns."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from distsec.cli import status_words as words
from distsec.cli.health import assess
from distsec.cli.status import watch_on
from distsec.cli.status_view import view
from distsec.control.client import ControlClient
from distsec.errors import Unavailable
from tests.unit.cli.conftest import Type
from tests.unit.cli.documents import link, node, status, with_first
from tests.unit.control.fake_orchestrator import NODES, Running

HOSTILE = "[bold red]x[/]\x1b[2J\u202e\n@10.0.0.7"


def answer(orchestrator: Running, type_in: Type, document: dict[str, Any], *args: str) -> Result:
    orchestrator.fake.document = document
    return type_in("status", *args)


def test_all_well_is_exit_code_0_and_names_every_link(orchestrator: Running, type_in: Type) -> None:
    result = answer(orchestrator, type_in, status())
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[:12] == [
        "cluster demo (production, inet_tls, policy 7): all well",
        "",
        "NODE             STATE   PID  OTP UPTIME AGENT     POLICY EXPIRES LINKS",
        "poller@127.0.0.1 RUNNING 4711 27  2h 5m  connected 7      300d    2",
        "agent@127.0.0.1  RUNNING 4711 27  2h 5m  connected 7      300d    2",
        "sync@127.0.0.1   RUNNING 4711 27  2h 5m  connected 7      300d    2",
        "",
        "LINKS OF / WITH         DIR HIDDEN TLS            EXPIRES UP    VERDICT",
        "poller@127.0.0.1",
        "  agent@127.0.0.1       in  no     1.3 AES256-GCM 364d    2h 5m allow",
        "  node/127.0.0.1/agent",
        "  sync@127.0.0.1        in  no     1.3 AES256-GCM 364d    2h 5m allow",
    ]
    assert sum(line.endswith("allow") for line in lines) == 6
    assert result.stderr == ""


def test_json_is_the_document_and_nothing_else(orchestrator: Running, type_in: Type) -> None:
    document = with_first(state="BACKOFF")
    result = answer(orchestrator, type_in, document, "--json")
    assert json.loads(result.stdout) == document
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("document", "code", "said"),
    [
        (status(), 0, ""),
        (status(refusals=[{"node": NODES[0], "direction": "in", "reason": "expired", "count": 9}]), 0, ""),
        (with_first(state="STOPPED", reason="operator"), 0, ""),
        (with_first(state="STOPPED", reason="exited"), 0, ""),
        (with_first(state="STOPPED", reason="external_gone"), 1, "STOPPED and should be RUNNING"),
        (with_first(state="STARTING"), 1, "is STARTING"),
        (with_first(state="BACKOFF", reason="exited", detail="status 1"), 1, "is BACKOFF (exited: status 1)"),
        (with_first(state="FATAL", reason="flapping"), 1, "is FATAL (flapping)"),
        (with_first(agent="lost"), 1, "its agent is lost"),
        (with_first(guard="unproven"), 1, "its guard is being proven again"),
        (with_first(policy_generation=6), 1, "policy generation 6 is in force, 7 is wanted"),
        (with_first(policy_generation=None), 1, "policy generation None is in force"),
        (with_first(tainted=True), 1, "is tainted"),
        (status(healthy=False, metrics_problem="the port is taken"), 1, "no metrics: the port is taken"),
        (status(healthy=False), 1, "calls the cluster unhealthy"),
        (
            with_first(links=[link("x@h", verdict="deny", reason="denied")]),
            2,
            "x@h is up and not allowed (denied)",
        ),
        (with_first(links=[link("x@h", verdict="deny")], agent="lost"), 2, "(unlisted_link)"),
        (with_first(links=[link("x@h", verdict=None)]), 2, "x@h is up and not allowed"),
        (
            with_first(state="FATAL", reason="carrier_not_in_force", detail="port 1"),
            2,
            "not in force (carrier",
        ),
        (with_first(state="STOPPING", reason="carrier_not_in_force"), 2, "its guard is not in force"),
        (status(violation=True), 2, "reports a violation"),
    ],
)
def test_exit_codes(document: dict[str, Any], code: int, said: str) -> None:
    health = assess(document)
    assert health.exit_code == code
    assert said in "\n".join(health.violations + health.degraded)
    assert bool(health.violations) == (code == 2)


def test_a_violation_comes_first_and_is_exit_code_2(orchestrator: Running, type_in: Type) -> None:
    result = answer(
        orchestrator, type_in, with_first(links=[link("evil@10.0.0.7", verdict="deny", reason="denied")])
    )
    assert result.exit_code == 2
    first = " ".join(result.stdout.split()[:9])
    assert first == "VIOLATION poller@127.0.0.1: a link with evil@10.0.0.7 is up and"


def test_refusals_are_summed_up_and_degrade_nothing(orchestrator: Running, type_in: Type) -> None:
    refusals = [{"node": NODES[0], "direction": "in", "reason": "unknown_ca", "count": 12}]
    result = answer(orchestrator, type_in, status(refusals=refusals))
    assert result.exit_code == 0
    assert "poller@127.0.0.1 in        unknown_ca    12" in result.stdout


def test_no_orchestrator_is_exit_code_3_and_says_what_to_type(type_in: Type) -> None:
    result = type_in("status", "--json")
    assert result.exit_code == 3
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("distsec: ") and "start it with `distsec run -c " in line


def test_links_without_tls_or_identity_show_a_dash(orchestrator: Running, type_in: Type) -> None:
    bare = link("a@127.0.0.1", identity=None, tls_version=None, cipher=None, not_after=None, direction=None)
    result = answer(orchestrator, type_in, with_first(links=[bare | {"hidden": True}]))
    row = next(line for line in result.stdout.splitlines() if line.startswith("  a@127.0.0.1"))
    assert row.split() == ["a@127.0.0.1", "-", "yes", "-", "-", "2h", "5m", "allow"]


def test_hostile_names_are_shown_as_text_and_never_as_markup_or_controls(
    orchestrator: Running, type_in: Type
) -> None:
    evil = link(HOSTILE, identity=HOSTILE, verdict="deny", reason=HOSTILE, cipher=HOSTILE, direction=HOSTILE)
    document = with_first(
        name=HOSTILE, state=HOSTILE, otp=HOSTILE, detail=HOSTILE, reason=HOSTILE, links=[evil]
    )
    result = answer(orchestrator, type_in, document)
    assert result.exit_code == 2
    assert "[bold red]x[/]" in result.stdout.replace("\n", "")
    assert not set("\x1b\u202e\r") & set(result.stdout)
    colours = io.StringIO()
    Console(file=colours, force_terminal=True, width=80).print(view(document, assess(document), 0.0))
    assert "\x1b[2J" not in colours.getvalue()


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(
    "names",
    [
        NODES,
        tuple(f"{'n' * 60}{i}@{'h' * 60}.example" for i in range(3)),
        tuple(f"n@fd00:0:0:0:0:0:0:{i}" for i in range(3)),
    ],
    ids=["short", "long", "ipv6"],
)
def test_it_fits_the_columns_and_loses_no_character_of_a_name(width: int, names: tuple[str, ...]) -> None:
    nodes = [
        node(
            name,
            links=[link(peer) for peer in names if peer != name],
            support="unproven",
            uptime_seconds=10**8,
        )
        for name in names
    ]
    document = status(nodes=nodes)
    out = io.StringIO()
    Console(file=out, width=width).print(view(document, assess(document), 0.0))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in out.getvalue()
    folded = "".join(line[:30].replace(" ", "") for line in lines)
    if names == NODES:
        assert all(name in folded for name in names)


def test_piped_it_is_plain_and_on_a_terminal_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(**environment: str) -> str:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        out = io.StringIO()
        terminal = environment.pop("terminal", "yes") == "yes"
        document = with_first(state="FATAL")
        Console(file=out, force_terminal=terminal or None, width=80).print(
            view(document, assess(document), 0.0)
        )
        return out.getvalue()

    assert "\x1b[1;31mFATAL" in printed()
    assert "\x1b" not in printed(terminal="no")
    assert "31m" not in printed(NO_COLOR="1")


def test_watch_needs_a_terminal(orchestrator: Running, type_in: Type) -> None:
    result = type_in("status", "--watch")
    assert result.exit_code == 64
    assert "needs a terminal" in result.stderr
    assert type_in("status", "--watch", "--json").exit_code == 64


def test_watch_draws_anew_survives_a_restart_of_the_orchestrator_and_ends_by_ctrl_c() -> None:
    answers: list[dict[str, Any] | Exception] = [
        status(),
        Unavailable("no orchestrator answers", where="/x"),
        with_first(agent="lost"),
    ]
    waited: list[float] = []

    class Scripted(ControlClient):
        def status(self) -> dict[str, Any]:
            answer = answers[len(waited)]
            if isinstance(answer, Exception):
                raise answer
            return answer

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == len(answers):
            raise KeyboardInterrupt

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=40)
    assert watch_on(Scripted("/x"), console, wait) == 1
    assert waited == [2.0, 2.0, 2.0]
    drawn = out.getvalue()
    assert drawn.index("all well") < drawn.index("no orchestrator answers") < drawn.index("its agent is lost")
    assert drawn.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in drawn, "the terminal is given back"


def test_watch_ends_with_the_exit_code_of_what_was_seen_last() -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40)
    assert watch_on(ControlClient("/nowhere"), console, interrupted) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (7500, "2h 5m"),
        (86400 * 4, "4d 0h"),
        (86400 * 99, "99d"),
    ],
)
def test_durations(seconds: int, text: str) -> None:
    assert words.duration(seconds) == text


def test_words() -> None:
    assert words.remaining(10, 10.0) == "expired"
    assert words.remaining(None, 10.0) == words.elapsed("x", 0.0) == words.duration(None) == "-"
    assert words.cipher("TLS_CHACHA20_POLY1305_SHA256") == "CHACHA20"
    assert words.cipher("TLS_AES_128_GCM_SHA256") == "AES128-GCM"
    assert words.tls_version("tlsv1.3") == words.tls_version("TLS 1.3") == "1.3"
    assert words.identity("spiffe://demo/node/h/x", "demo") == "node/h/x"
    assert words.identity("spiffe://other/node/h/x", "demo") == "spiffe://other/node/h/x"


def test_a_node_that_claims_thousands_of_links_buries_nobody_else() -> None:
    link = {"peer": "x@127.0.0.1", "verdict": "deny", "reason": "not_allowed"}
    node = {"name": "a@127.0.0.1", "state": "RUNNING", "agent": "connected"}
    document = {"nodes": [{**node, "links": [link] * 4096}, {**node, "name": "b@127.0.0.1", "links": [link]}]}
    health = assess(document)
    assert len(health.violations) == 10 + 1 + 1
    assert "4086 more" in health.violations[10]
    assert health.violations[11].startswith("b@127.0.0.1")
