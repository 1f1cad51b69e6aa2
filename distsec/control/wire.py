"""What the client and the server of the control socket agree on. Standard library only. Pure.

Every answer is one JSON object with `"schema": 1`. An error is `{"schema": 1, "error": {"type", "message",
"exit_code", "what", "where", "do", …}}`; the client raises the same class of distsec.errors again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distsec.errors import CommandFailed, ConfigError, DistsecError, NotAcknowledged, Problem
from distsec.model.text import escape

SCHEMA = 1
SOCKET_NAME = "control.sock"
"""In the state directory (docs/state-files.md)."""

MAX_REQUEST_BYTES = 64 * 1024
MAX_TEXT = 2048
"""Characters of one text in an error."""

MAX_ERROR_ITEMS = 1000
"""Problems of a configuration, or names that are missing, in one error."""

JSON_LINES = "application/jsonl"


def error_document(error: DistsecError) -> dict[str, Any]:
    """`error` for the wire."""
    fields: dict[str, Any] = {
        "type": type(error).__name__,
        "message": escape(str(error), MAX_TEXT),
        "exit_code": error.exit_code,
        "what": escape(error.what, MAX_TEXT),
        "where": escape(error.where, MAX_TEXT),
        "do": escape(error.do, MAX_TEXT),
    }
    if isinstance(error, NotAcknowledged):
        fields["missing"] = [escape(name) for name in error.missing[:MAX_ERROR_ITEMS]]
    if isinstance(error, ConfigError):
        fields["problems"] = [
            {
                "key": escape(problem.key, MAX_TEXT),
                "line": problem.line,
                "what": escape(problem.what, MAX_TEXT),
                "do": escape(problem.do, MAX_TEXT),
            }
            for problem in error.problems[:MAX_ERROR_ITEMS]
        ]
    return {"schema": SCHEMA, "error": fields}


def error_from(document: object) -> DistsecError:
    """The error that `document` tells of; of a type that is not known here, a CommandFailed."""
    fields = document.get("error") if isinstance(document, Mapping) else None
    if not isinstance(fields, Mapping):
        return CommandFailed("the orchestrator sent an answer that is no error and no result")
    kind = _TYPES.get(_text(fields, "type"), CommandFailed)
    what, where, do = _text(fields, "what"), _text(fields, "where"), _text(fields, "do")
    if kind is NotAcknowledged:
        return NotAcknowledged(
            what, missing=[str(name) for name in _list(fields, "missing")], where=where, do=do
        )
    if kind is ConfigError:
        return ConfigError(where, [_problem(problem) for problem in _list(fields, "problems")])
    return kind(what or _text(fields, "message"), where=where, do=do)


def _problem(fields: object) -> Problem:
    if not isinstance(fields, Mapping):
        return Problem("", 0, "unknown")
    line = fields.get("line")
    return Problem(
        _text(fields, "key"), line if isinstance(line, int) else 0, _text(fields, "what"), _text(fields, "do")
    )


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _list(fields: Mapping[str, Any], key: str) -> list[Any]:
    value = fields.get(key)
    return value if isinstance(value, list) else []


def _subclasses(kind: type[DistsecError]) -> Iterator[type[DistsecError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)


_TYPES = {kind.__name__: kind for kind in _subclasses(DistsecError)}
