"""Durations, ciphers and identities in few characters, for tables. Pure."""

from __future__ import annotations

import re

from distsec.model.text import escape

NOTHING = "-"
_HASH = re.compile(r"[_-]SHA\d+$")


def duration(seconds: object) -> str:
    """Two units at most: `42s`, `3m`, `2h 5m`, `4d 3h`, `364d`."""
    if not isinstance(seconds, int | float):
        return NOTHING
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days >= 10:
        return f"{days}d"
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m" if minutes else f"{whole}s"


def remaining(until: object, now: float) -> str:
    """How long until a Unix time; `expired` if it is over."""
    if not isinstance(until, int | float):
        return NOTHING
    return "expired" if until <= now else duration(until - now)


def elapsed(since: object, now: float) -> str:
    """How long since a Unix time."""
    return duration(now - since) if isinstance(since, int | float) else NOTHING


def cipher(name: object) -> str:
    """`TLS_AES_256_GCM_SHA384` as `AES256-GCM`: what tells suites of TLS 1.3 apart."""
    if not isinstance(name, str) or not name:
        return NOTHING
    short = _HASH.sub("", name.removeprefix("TLS_").upper())
    short = short.replace("AES_", "AES").replace("_POLY1305", "").replace("_", "-")
    return escape(short, 20)


def tls_version(version: object) -> str:
    """`tlsv1.3` as `1.3`."""
    if not isinstance(version, str) or not version:
        return NOTHING
    return escape(re.sub(r"^TLS ?v?", "", version, flags=re.IGNORECASE), 10)


def identity(text: object, cluster: object) -> str:
    """A SPIFFE ID, without the scheme and trust domain where that is this cluster's own."""
    if not isinstance(text, str) or not text:
        return NOTHING
    return escape(text.removeprefix(f"spiffe://{cluster}/"), 1024)


def yes_no(value: object) -> str:
    return "yes" if value is True else "no" if value is False else NOTHING


def shown(value: object) -> str:
    """Any value of a status document, escaped; `-` for None."""
    return NOTHING if value is None or value == "" else escape(str(value))
