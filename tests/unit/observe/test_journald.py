"""The log as entries of the journal: fields, bounds, and that nothing is ever waited for."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distsec.model.events import EventType, SecurityEvent, Severity
from distsec.observe import journald
from distsec.observe.journald import MAX_FIELDS, MAX_VALUE_BYTES, JournalLogger, entry, is_journal, open_log
from distsec.observe.log import EventLog, log_line
from distsec.observe.sentences import MAX_SENTENCE, PHRASES, sentence
from tests.unit.observe.systemd import Datagrams, fields_of


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Datagrams]:
    with Datagrams(tmp_path / "journal") as made:
        yield made


def refusal(**fields: Any) -> SecurityEvent:
    given = {"result": "deny", "reason": "not_allowed", "peer": "evil@10.0.0.9", **fields}
    return SecurityEvent(
        EventType.NODE_CONNECTION_ATTEMPT, Severity.WARNING, "a@10.0.0.1", 1_763_764_000.0, **given
    )


def test_an_event_is_an_entry_with_a_sentence_and_a_field_for_everything(journal: Datagrams) -> None:
    EventLog(JournalLogger(journal.path, 2))(refusal(address="10.0.0.9:40112", direction="in", sequence=7))
    [datagram] = journal.read()
    assert fields_of(datagram) == {
        "MESSAGE": "a@10.0.0.1: refused a link with evil@10.0.0.9 from 10.0.0.9:40112 (not_allowed)",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "distsec",
        "DISTSEC_EVENT": "NodeConnectionAttempt",
        "DISTSEC_TIME": "2025-11-21T22:26:40.000Z",
        "DISTSEC_SEVERITY": "warning",
        "DISTSEC_NODE": "a@10.0.0.1",
        "DISTSEC_PEER": "evil@10.0.0.9",
        "DISTSEC_RESULT": "deny",
        "DISTSEC_REASON": "not_allowed",
        "DISTSEC_DIRECTION": "in",
        "DISTSEC_ADDRESS": "10.0.0.9:40112",
        "DISTSEC_SEQUENCE": "7",
    }


@pytest.mark.parametrize(
    ("severity", "priority"),
    [(Severity.INFO, "6"), (Severity.NOTICE, "5"), (Severity.WARNING, "4"), (Severity.CRITICAL, "2")],
)
def test_each_severity_has_its_priority(journal: Datagrams, severity: Severity, priority: str) -> None:
    event = SecurityEvent(EventType.NODE_STARTED, severity, "a@10.0.0.1", 0.0)
    EventLog(JournalLogger(journal.path, 2))(event)
    assert fields_of(journal.read()[0])["PRIORITY"] == priority


def test_a_line_that_is_no_event_is_one_too(journal: Datagrams) -> None:
    log_line(JournalLogger(journal.path, 2), "error", "reload refused", error="line 3: wrong", files=7)
    fields = fields_of(journal.read()[0])
    assert fields["MESSAGE"] == "reload refused: line 3: wrong"
    assert (fields["PRIORITY"], fields["DISTSEC_FILES"]) == ("3", "7")


def test_a_value_with_a_line_feed_cannot_forge_a_field() -> None:
    forged = "x\nMESSAGE=forged\n_UID=0"
    fields = fields_of(entry("unexpected", {"what": forged, "level": "error"}))
    assert fields["DISTSEC_WHAT"] == forged
    assert "_UID" not in fields
    assert fields["MESSAGE"] == f"unexpected: {forged}"


def test_what_is_told_is_bounded() -> None:
    fields = {f"f{number}": "x" + "ü" * 10_000 for number in range(200)}
    datagram = entry("unexpected", {"level": "error", **fields})
    assert len(fields_of(datagram)) == MAX_FIELDS + 4
    assert len(datagram) < (MAX_FIELDS + 4) * (MAX_VALUE_BYTES + 32)
    assert len(sentence("unexpected", {"what": "x" * 10_000})) == MAX_SENTENCE


def test_a_journal_that_is_not_there_or_does_not_read_gets_it_on_stderr(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, Datagrams(tmp_path / "stuck") as stuck:
        JournalLogger(tmp_path / "nowhere", ours.fileno()).msg("ended", level="info", time="T")
        assert json.loads(theirs.recv(1000)) == {"time": "T", "level": "info", "event": "ended"}
        logger = JournalLogger(stuck.path, ours.fileno())
        theirs.setblocking(False)
        for number in range(20_000):  # far more than both take; nothing waits
            logger.msg("unexpected", level="info", number=number)
        journaled = [int(fields_of(word)["DISTSEC_NUMBER"]) for word in stuck.read()]
        lines = b""
        while True:
            try:
                lines += theirs.recv(1 << 20)
            except BlockingIOError:
                break
        whole = [json.loads(line) for line in lines.decode().splitlines() if line.endswith("}")]
        assert journaled and whole and len(journaled) + len(whole) < 20_000
        logger.msg("ended", level="info")
        last = fields_of(stuck.read()[-1])
        assert int(last["DISTSEC_DROPPED"]) >= 20_000 - len(journaled) - len(whole) - 1, "told with the next"
        logger.msg("ended", level="info")
        assert "DISTSEC_DROPPED" not in fields_of(stuck.read()[-1])


def test_the_journal_is_used_only_where_stderr_is_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Datagrams
) -> None:
    found = os.fstat(2)
    right = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    assert is_journal(right)
    assert not is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
    assert not is_journal({})
    assert not is_journal(right, 999_999)
    monkeypatch.setattr(journald, "SOCKET", journal.path)
    assert isinstance(open_log(right), JournalLogger)
    assert not isinstance(open_log({}), JournalLogger)
    monkeypatch.setattr(journald, "SOCKET", tmp_path / "nowhere")
    assert not isinstance(open_log(right), JournalLogger)


def test_every_type_of_event_has_words() -> None:
    assert PHRASES.keys() == {str(kind) for kind in EventType}
    for kind in EventType:
        text = sentence(kind, {"node": "a@h", "detail": "why", "reason": "r"})
        assert text.startswith("a@h: ") and "why" in text and str(kind) not in text


def test_a_flood_that_is_summed_up_says_so() -> None:
    fields = {"node": "a@h", "reason": "not_allowed", "suppressed": 950}
    assert (
        sentence("NodeConnectionAttempt", fields) == "a@h: link with (not_allowed) and 950 more of the kind"
    )
