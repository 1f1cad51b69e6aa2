"""Writes Erlang's term syntax: pure ASCII, deterministic, the same for every reader.

ASCII because the readers disagree about the rest: `file:consult/1` takes UTF-8, `ssl_dist_sup:consult/1`
latin-1 (measured on OTP 25, 27 and 29). What is not printable ASCII becomes `\\x{…}`, one escape a byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

_PLAIN_ATOM = re.compile(r"[a-z][A-Za-z0-9_]*")

_RESERVED = frozenset(
    {
        *(
            "after",
            "and",
            "andalso",
            "band",
            "begin",
            "bnot",
            "bor",
            "bsl",
            "bsr",
            "bxor",
            "case",
            "catch",
            "cond",
        ),
        *(
            "div",
            "else",
            "end",
            "fun",
            "if",
            "let",
            "maybe",
            "not",
            "of",
            "or",
            "orelse",
            "receive",
            "rem",
            "try",
        ),
        *("when", "xor"),
    }
)
"""Words that are no atoms without quotes (erl_scan:reserved_word/1; `maybe` from OTP 27 on)."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """An atom to be written. Its name is always this program's own, never a peer's.

    Not `term.Atom`, which equals the text of its name: what is checked here must tell `true` from `"true"`.
    """

    name: str


@dataclass(frozen=True, slots=True)
class ExternalFunction:
    """`fun module:function/arity`: an optfile may hold it, since ssl evaluates what it reads."""

    module: str
    function: str
    arity: int


Term: TypeAlias = (
    "bool | int | str | bytes | Symbol | ExternalFunction | tuple[Term, ...] | list[Term]"
    " | Mapping[Symbol | bytes, Term] | None"
)
"""What can be written: None as `undefined`, str as a string of its UTF-8 bytes, a mapping in its order."""


def erlang_term(term: Term) -> str:
    """`term` in Erlang's syntax, without a dot. Raises TypeError for what has none here (floats, objects)."""
    match term:
        case None:
            return "undefined"
        case bool():
            return "true" if term else "false"
        case int():
            return str(term)
        case bytes():
            return erlang_binary(term)
        case str():
            return erlang_string(term)
        case Symbol(name):
            return erlang_atom(name)
        case ExternalFunction(module, function, arity):
            return f"fun {erlang_atom(module)}:{erlang_atom(function)}/{arity:d}"
        case tuple():
            return "{" + ",".join(map(erlang_term, term)) + "}"
        case list():
            return "[" + ",".join(map(erlang_term, term)) + "]"
        case Mapping():
            return "#{" + ",".join(f"{erlang_term(k)} => {erlang_term(v)}" for k, v in term.items()) + "}"
    raise TypeError(f"{type(term).__name__} is no Erlang term")


def erlang_binary(octets: bytes) -> str:
    """`<<"…">>` of exactly these bytes, whatever they are."""
    return f'<<"{_escape(octets, quote=0x22)}">>'


def erlang_string(text: str) -> str:
    """`"…"`: the list of the UTF-8 bytes of `text`, not of its code points."""
    return f'"{_escape(text.encode(), quote=0x22)}"'


def erlang_atom(name: str) -> str:
    """`name` as an atom, quoted where it must be. Raises ValueError unless it is 1 to 255 of ASCII."""
    if not name.isascii() or not 0 < len(name) <= 255:
        raise ValueError("an atom is written from 1 to 255 ASCII characters")
    if _PLAIN_ATOM.fullmatch(name) and name not in _RESERVED:
        return name
    return f"'{_escape(name.encode(), quote=0x27)}'"


def _escape(octets: bytes, *, quote: int) -> str:
    def one(octet: int) -> str:
        return chr(octet) if 0x20 <= octet < 0x7F and octet not in (quote, 0x5C) else f"\\x{{{octet:02x}}}"

    return "".join(map(one, octets))
