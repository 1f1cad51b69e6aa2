"""What was meant by a key that is not known. Pure."""

from __future__ import annotations

import difflib

from distsec.config.lines import KeyPath
from distsec.config.schema import Table, headers, table_at

_REFUSED = {
    "ktls": "leave it out: with kernel TLS the peer's certificate is gone and cannot be checked",
    "versions": "leave it out: links speak TLS 1.3 and nothing else",
    "ciphers": "leave it out: links speak TLS 1.3 with Erlang's own choice of ciphers",
    "setcookie": "leave it out: cookies are derived for each pair of nodes",
}
"""Keys that somebody may look for, and that are not there on purpose."""


def suggest(path: KeyPath) -> str:
    """What to do about the unknown key that `path` ends in."""
    key, table = str(path[-1]), table_at(path[:-1])
    if key in _REFUSED:
        return _REFUSED[key]
    known = list(table.model_fields) if table else []
    near = _nearest(key, known)
    if near:
        return f"did you mean {near}?"
    home = next(
        (header for header, other in headers() if key in other.model_fields and other is not table), None
    )
    if home:
        return f"{key} belongs in {home}"
    return _elsewhere(key, table) or f"remove it; known here: {', '.join(known)}"


def _elsewhere(key: str, table: type[Table] | None) -> str | None:
    """A key that is nearly one of another table's."""
    for header, other in headers():
        near = _nearest(key, list(other.model_fields)) if other is not table else None
        if near:
            return f"did you mean {near} in {header}?"
    return None


def _nearest(key: str, known: list[str]) -> str | None:
    normal = key.lower().replace("-", "_")
    near = difflib.get_close_matches(normal, known, 1)
    if near:
        return near[0]
    return next((name for name in known if len(normal) > 2 and name.startswith(normal)), None)
