"""The log: one JSON line an event, floods summed up, remote text escaped."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.observe.log import EventLog, log_line, make_logger


class Written:
    """A log on a string, with a clock that a test turns."""

    def __init__(self, **limits: int) -> None:
        self.stream = io.StringIO()
        self.now = 0.0
        self.log = EventLog(make_logger(self.stream), clock=lambda: self.now, **limits)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def refusal(reason: str = "unknown_ca", severity: Severity = Severity.WARNING, **more: Any) -> SecurityEvent:
    return SecurityEvent(
        EventType.CERTIFICATE_VALIDATION_FAILED, severity, "a@h", 1763764000.5, reason=reason, **more
    )


def test_an_event_is_one_line_with_stable_keys() -> None:
    written = Written()
    written.log(refusal(peer="x@h", direction="in", sequence=7))
    assert written.lines == [
        {
            "time": "2025-11-21T22:26:40.500Z",
            "level": "warning",
            "event": "CertificateValidationFailed",
            "severity": "warning",
            "node": "a@h",
            "peer": "x@h",
            "reason": "unknown_ca",
            "direction": "in",
            "sequence": 7,
        }
    ]
    assert list(written.lines[0])[:3] == ["time", "level", "event"]


@pytest.mark.parametrize("severity", Severity)
def test_every_severity_has_a_level(severity: Severity) -> None:
    written = Written()
    written.log(refusal(severity=severity))
    assert written.lines[0]["level"] == {"INFO": "info", "NOTICE": "notice", "WARNING": "warning"}.get(
        severity.name, "critical"
    )


def test_remote_text_cannot_forge_a_line_or_turn_a_terminal_around() -> None:
    written = Written()
    written.log(refusal(peer='x\n{"event":"forged"}\u202e\x1b[2J', detail="y" * 100_000))
    [line] = written.lines
    assert line["peer"] == 'x\\x0a{"event":"forged"}\\u202e\\x1b[2J'
    assert len(line["detail"]) < 1100
    assert "\x1b" not in written.stream.getvalue()


def test_a_flood_is_fifty_lines_and_one_that_sums_up_the_rest() -> None:
    written = Written()
    for _ in range(50_000):
        written.log(refusal())
    assert len(written.lines) == 50
    written.now = 1.0
    written.log.flush()
    assert len(written.lines) == 51
    assert written.lines[-1]["suppressed"] == 49_950
    assert written.lines[-1]["reason"] == "unknown_ca"


def test_the_next_event_after_the_second_sums_up_by_itself() -> None:
    written = Written(lines_per_second=1)
    written.log(refusal())
    written.log(refusal())
    written.now = 1.5
    written.log(refusal())
    assert [line.get("suppressed") for line in written.lines] == [None, 1, None]


def test_a_flood_of_one_reason_leaves_the_others_readable() -> None:
    written = Written()
    for _ in range(1000):
        written.log(refusal("unknown_ca"))
    written.log(refusal("denied"))
    assert written.lines[-1]["reason"] == "denied"


def test_one_node_cannot_fill_the_log_by_changing_reasons_and_never_hides_a_violation() -> None:
    written = Written(node_lines_per_second=100)
    for number in range(5000):
        written.log(refusal(f"reason{number}"))
    assert len(written.lines) == 100
    written.log(refusal("unlisted_link", Severity.CRITICAL))
    assert written.lines[-1]["level"] == "critical"
    written.log.flush()
    assert len(written.lines) <= 101 + 1024 + 1, "what was held back is bounded too"
    assert sum(line.get("suppressed", 0) for line in written.lines) == 4900


def test_a_quiet_window_writes_nothing() -> None:
    written = Written()
    written.log.flush()
    assert written.lines == []


def test_lines_of_the_orchestrator_itself_are_escaped_too() -> None:
    stream = io.StringIO()
    log_line(make_logger(stream), "info", "listening", now=0.0, path="/tmp/\x1bx", port=9911)
    assert json.loads(stream.getvalue()) == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "event": "listening",
        "path": "/tmp/\\x1bx",
        "port": 9911,
    }
