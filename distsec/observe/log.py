"""The log: one JSON line on stderr for each event, by structlog; journald and whoever collects it take it
from there.

A line always begins with `time` (RFC 3339, UTC), `level` and `event`; the other keys are the fields of
`model.events.SecurityEvent`, each only where it is known. Texts are escaped there. A flood is aggregated:
who can make a node refuse 50,000 peers a second must not be able to fill the disk. The exact numbers are in
the metrics.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

import structlog

from distsec.model.events import SecurityEvent, Severity
from distsec.model.text import escape

LINES_PER_SECOND = 50
"""Lines of one (type, node, reason) within a second before the rest of them is only counted."""

NODE_LINES_PER_SECOND = 200
"""Lines about one node within a second, except critical ones."""

WINDOW_SECONDS = 1.0

MAX_KEYS = 1024
"""Different (type, node, reason) within one window; what comes beyond shares one key, critical events
another."""

_LEVELS = {
    Severity.INFO: "info",
    Severity.NOTICE: "notice",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "critical",
}

Key = tuple[str, str, str | None]
_OVERFLOW: Key = ("", "", None)
_CRITICAL_OVERFLOW: Key = ("", "", "critical")


class Logger(Protocol):
    """What is used of structlog: `msg(event, **fields)` writes one line."""

    def msg(self, event: str, **fields: Any) -> Any: ...


def make_logger(stream: TextIO | None = None) -> Logger:
    """A logger that writes JSON lines to `stream`, stderr by default, independent of structlog's global
    state."""
    wrapped: Logger = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=[_in_order, structlog.processors.JSONRenderer()],
        wrapper_class=_Bound,
        cache_logger_on_first_use=True,
    )
    return wrapped


def log_line(logger: Logger, level: str, event: str, now: float | None = None, **fields: Any) -> None:
    """A line of the orchestrator's own that is no event: started, listening, reloaded. Texts are escaped."""
    shown = {key: escape(value, 1024) if isinstance(value, str) else value for key, value in fields.items()}
    logger.msg(event, time=_rfc3339(time.time() if now is None else now), level=level, **shown)


class EventLog:
    """A subscriber of the bus that writes each event, and of a flood the beginning and the number.

    Somebody calls `flush` once per second, so that a flood that stopped is still summed up; it is also done
    whenever an event finds that the second is over. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        logger: Logger,
        *,
        clock: Callable[[], float] = time.monotonic,
        lines_per_second: int = LINES_PER_SECOND,
        node_lines_per_second: int = NODE_LINES_PER_SECOND,
        least: Severity = Severity.INFO,
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._per_key = lines_per_second
        self._per_node = node_lines_per_second
        self._least = least
        self._window_began = clock()
        self._lines: Counter[Key] = Counter()
        self._node_lines: Counter[str] = Counter()
        self._held_back: dict[Key, _HeldBack] = {}

    def __call__(self, event: SecurityEvent) -> None:
        if event.severity < self._least:
            return
        if self._clock() - self._window_began >= WINDOW_SECONDS:
            self.flush()
        key: Key = (event.type, event.node, event.reason)
        critical = event.severity >= Severity.CRITICAL
        if key not in self._lines and len(self._lines) >= MAX_KEYS:
            key = _CRITICAL_OVERFLOW if critical else _OVERFLOW
        self._lines[key] += 1
        if self._lines[key] > self._per_key or (
            not critical and self._node_lines[event.node] >= self._per_node
        ):
            held = self._held_back.setdefault(key, _HeldBack(event.severity))
            held.add(event)
            return
        self._node_lines[event.node] += not critical
        self._write(event)

    def flush(self) -> None:
        """Ends the window: one line for each kind of event of which some were held back."""
        held_back, self._held_back = self._held_back, {}
        self._lines.clear()
        self._node_lines.clear()
        self._window_began = self._clock()
        for (kind, node, reason), held in held_back.items():
            fields: dict[str, Any] = {"severity": held.severity.name.lower(), "node": escape(node)}
            if reason is not None:
                fields["reason"] = escape(reason)
            self._logger.msg(
                kind or "Events",
                time=_rfc3339(held.last),
                level=_LEVELS[held.severity],
                **fields,
                suppressed=held.number,
            )

    def _write(self, event: SecurityEvent) -> None:
        fields = event.as_dict()
        kind = fields.pop("type")
        fields.pop("time")
        self._logger.msg(kind, time=_rfc3339(event.time), level=_LEVELS[event.severity], **fields)


class _HeldBack:
    """How many events of one kind were not written, the worst severity and the latest time among them."""

    __slots__ = ("last", "number", "severity")

    def __init__(self, severity: Severity) -> None:
        self.severity = severity
        self.number = 0
        self.last = 0.0

    def add(self, event: SecurityEvent) -> None:
        self.number += 1
        self.severity = max(self.severity, event.severity)
        self.last = max(self.last, event.time)


class _Bound(structlog.BoundLoggerBase):
    """`msg` only: the level is a field, since the field's severities are not those of `logging`."""

    def msg(self, event: str, **fields: Any) -> Any:
        return self._proxy_to_logger("msg", event, **fields)


def _in_order(logger: object, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`time`, `level`, `event` first, so that a line is readable at its beginning; structlog puts `event`
    last."""
    first = {key: fields.pop(key) for key in ("time", "level", "event") if key in fields}
    return {**first, **fields}


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
