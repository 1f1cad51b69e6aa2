"""The log in systemd's journal, with fields of its own, where stderr is the journal.

Source: systemd's "Native Journal Protocol". A datagram to /run/systemd/journal/socket holds `NAME=value`
lines; a value with a newline is NAME, newline, its length as 64 bits little-endian, the value, newline.
Nothing here waits: a journal that does not take a line gets it as JSON on stderr, and if that is full too the
line is counted, and the number told with the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from struct import Struct
from typing import Any, Final

from distsec.observe.log import Logger, make_logger
from distsec.observe.sentences import sentence

SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "distsec"
STDERR: Final = 2

MAX_FIELDS: Final = 40
MAX_VALUE_BYTES: Final = 4096
"""Of one field. A datagram is so at most 160 KiB, below the default of net.core.wmem_default (208 KiB)."""

PRIORITIES: Final[Mapping[str, int]] = {"critical": 2, "error": 3, "warning": 4, "notice": 5, "info": 6}
"""syslog(3): LOG_CRIT, LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO."""

_length = Struct("<Q").pack


def is_journal(environment: Mapping[str, str], descriptor: int = STDERR) -> bool:
    """Whether `descriptor` is the stream that systemd has connected with the journal (JOURNAL_STREAM)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def open_log(environment: Mapping[str, str]) -> Logger:
    """The logger of the orchestrator: the journal where stderr is that, else JSON lines on stderr."""
    if is_journal(environment) and SOCKET.exists():
        return JournalLogger(SOCKET, STDERR)
    return make_logger()


class JournalLogger:
    """Implements observe.log.Logger. `fallback` is a descriptor that lines are written to without waiting."""

    def __init__(self, address: Path, fallback: int) -> None:
        self._address = str(address)
        self._fallback = fallback
        self._dropped = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.set_inheritable(False)

    def msg(self, event: str, **fields: Any) -> None:
        """One entry. Never raises, never waits."""
        if self._dropped:
            fields["dropped"] = self._dropped
        try:
            self._socket.sendto(entry(event, fields), self._address)
        except OSError:  # EAGAIN: it does not read; ENOENT, ECONNREFUSED: it is not there
            if not self._write_line(event, fields):
                self._dropped += 1
                return
        self._dropped = 0

    def _write_line(self, event: str, fields: Mapping[str, Any]) -> bool:
        first = {key: fields[key] for key in ("time", "level") if key in fields}
        line = json.dumps({**first, "event": event, **fields}, default=str).encode() + b"\n"
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(self._fallback).st_mode):  # as it is where it is the journal
                with socket.socket(fileno=os.dup(self._fallback)) as stream:
                    return stream.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) > 0
            return os.write(self._fallback, line) > 0
        return False


def entry(event: str, fields: Mapping[str, Any]) -> bytes:
    """The datagram of one line of the log: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, DISTSEC_EVENT, and each
    field of the line as DISTSEC_<NAME> in upper case.
    """
    level = str(fields.get("level", "info"))
    given = {
        "MESSAGE": sentence(event, fields),
        "PRIORITY": PRIORITIES.get(level, 6),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "DISTSEC_EVENT": event,
    }
    more = [(f"DISTSEC_{key.upper()}", value) for key, value in fields.items() if key != "level"]
    return b"".join(_field(name, value) for name, value in [*given.items(), *more[:MAX_FIELDS]])


def _field(name: str, value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    raw = text.encode("utf-8", "replace")
    if len(raw) > MAX_VALUE_BYTES:
        raw = raw[:MAX_VALUE_BYTES].decode("utf-8", "ignore").encode()
    if b"\n" in raw:
        return name.encode() + b"\n" + _length(len(raw)) + raw + b"\n"
    return name.encode() + b"=" + raw + b"\n"
