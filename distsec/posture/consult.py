"""Reads Erlang's term syntax as `file:consult/1` does: option files, sys.config, cookie files. Pure.

Never an Erlang value: atoms become `Symbol`, so that nothing that a stranger wrote is ever an atom anywhere.
Bounded in size, depth and count. What an option file may hold beyond constants is `fun M:F/A` (ssl evaluates
it); every other expression is a ConsultError, which is what OTP would say too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from distsec.beam.erlang_text import ExternalFunction, Symbol

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 64
MAX_TOKENS: Final = 200_000


class ConsultError(ValueError):
    """The text is not what `file:consult/1` would read; the message holds nothing of it but a line."""


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|%[^\n]*)
    |(?P<line>\n)
    |(?P<number>\d+\#[0-9a-zA-Z]+|\d[\d_]*(\.\d+([eE][+-]?\d+)?)?)
    |(?P<char>\$(\\(x\{[0-9a-fA-F]{1,6}\}|x[0-9a-fA-F]{2}|[0-7]{1,3}|\^.|.)|[^\\]))
    |(?P<atom>[a-z\u00df-\u00f6\u00f8-\u00ff][\w@]*)
    |(?P<quoted>'(\\.|[^'\\])*')
    |(?P<string>"(\\.|[^"\\])*")
    |(?P<variable>[A-Z_][\w@]*)
    |(?P<mark><<|>>|=>|\#\{|[{}\[\](),|/:.+-])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2})|([0-7]{1,3})|\^(.)|(.))", re.DOTALL)
_PLAIN = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "e": "\x1b",
    "s": " ",
    "d": "\x7f",
    "b": "\b",
    "f": "\f",
    "v": "\v",
}


def consult(content: bytes) -> list[Any]:
    """The terms of a file: bool-less Python values of `Symbol`, int, float, str (a string), bytes (a binary),
    tuple, list, dict and `ExternalFunction`. Raises ConsultError.

    `true` and `false` are Symbols too; see `tls_terms` for values that are compared with our own.
    """
    if len(content) > MAX_BYTES:
        raise ConsultError(f"is longer than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # as ssl_dist_sup:consult/1 reads it, and older files are written
    return _Reader(text).terms()


def tls_terms(term: Any) -> Any:
    """`term` with True and False for the atoms, as `beam.tls_options` writes options."""
    match term:
        case Symbol("true"):
            return True
        case Symbol("false"):
            return False
        case list():
            return [tls_terms(each) for each in term]
        case tuple():
            return tuple(tls_terms(each) for each in term)
        case dict():
            return {key: tls_terms(value) for key, value in term.items()}
    return term


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def terms(self) -> list[Any]:
        found = []
        while self._kind() != "end":
            found.append(self._term(0))
            self._expect(".")
        return found

    def _term(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._wrong("is nested too deeply")
        token = self._next()
        match token.kind, token.text:
            case "number", text:
                return _number(text, self._wrong)
            case "char", text:
                return ord(_unescaped(text[1:], self._wrong))
            case "atom", "fun":
                return self._function()
            case "atom", text:
                return Symbol(text)
            case "quoted", text:
                return Symbol(_unescaped(text[1:-1], self._wrong))
            case "string", text:
                return self._string(text)
            case "mark", "-" | "+":
                value = self._term(depth + 1)
                if not isinstance(value, int | float):
                    raise self._wrong("has a sign before what is no number")
                return -value if token.text == "-" else value
            case "mark", "{":
                return tuple(self._sequence("}", depth))
            case "mark", "[":
                return self._list(depth)
            case "mark", "#{":
                return self._map(depth)
            case "mark", "<<":
                return self._binary()
        raise self._wrong("is no Erlang term")

    def _string(self, text: str) -> str:
        parts = [_unescaped(text[1:-1], self._wrong)]
        while self._kind() == "string":  # adjacent strings are one
            parts.append(_unescaped(self._next().text[1:-1], self._wrong))
        return "".join(parts)

    def _sequence(self, end: str, depth: int) -> Iterator[Any]:
        if self._take(end):
            return
        while True:
            yield self._term(depth + 1)
            if self._take(end):
                return
            self._expect(",")

    def _list(self, depth: int) -> list[Any]:
        if self._take("]"):
            return []
        found = [self._term(depth + 1)]
        while self._take(","):
            found.append(self._term(depth + 1))
        if self._take("|"):
            tail = self._term(depth + 1)
            if not isinstance(tail, list):
                raise self._wrong("has an improper list")
            found += tail
        self._expect("]")
        return found

    def _map(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        if self._take("}"):
            return found
        while True:
            key = self._term(depth + 1)
            self._expect("=>")
            try:
                found[key] = self._term(depth + 1)
            except TypeError:
                raise self._wrong("has a key of a map that is not looked at here") from None
            if self._take("}"):
                return found
            self._expect(",")

    def _binary(self) -> bytes:
        out = bytearray()
        if self._take(">>"):
            return b""
        while True:
            token = self._next()
            if token.kind == "string":
                text = self._string_of(token)
                utf8 = self._take("/") and self._next().text == "utf8"
                try:
                    out += text.encode() if utf8 else text.encode("latin-1")
                except UnicodeEncodeError:
                    out += text.encode()
            elif token.kind == "number" and token.text.isdecimal():
                out.append(int(token.text) & 0xFF)
            else:
                raise self._wrong("has a binary that is not looked at here")
            if self._take(">>"):
                return bytes(out)
            self._expect(",")

    def _string_of(self, token: _Token) -> str:
        return _unescaped(token.text[1:-1], self._wrong)

    def _function(self) -> ExternalFunction:
        module = self._term(MAX_DEPTH)
        self._expect(":")
        function = self._term(MAX_DEPTH)
        self._expect("/")
        arity = self._term(MAX_DEPTH)
        if not (isinstance(module, Symbol) and isinstance(function, Symbol) and isinstance(arity, int)):
            raise self._wrong("has a fun that is no external one")
        return ExternalFunction(module.name, function.name, arity)

    def _kind(self) -> str:
        return self._tokens[self._at].kind

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def _take(self, mark: str) -> bool:
        token = self._tokens[self._at]
        if token.kind == "mark" and token.text == mark:
            self._at += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise self._wrong(f"has no {mark!r} where one is needed")

    def _wrong(self, what: str) -> ConsultError:
        return ConsultError(f"line {self._tokens[min(self._at, len(self._tokens) - 1)].line}: {what}")


def _tokens(text: str) -> Iterator[_Token]:
    at, line, count = 0, 1, 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ConsultError(f"line {line}: is no Erlang term")
        kind = found.lastgroup
        # lastgroup names the outermost group that matched last, which is one of the named ones
        assert kind is not None
        if kind not in {"space", "line"}:
            count += 1
            if count > MAX_TOKENS:
                raise ConsultError("has too many words")
            yield _Token(kind, found[0], line)
        line += found[0].count("\n")
        at = found.end()
    yield _Token("end", "", line)


def _number(text: str, wrong: Any) -> int | float:
    try:
        if "#" in text:
            base, _, digits = text.partition("#")
            return int(digits, int(base))
        if "." in text:
            return float(text.replace("_", ""))
        if len(text) > 400:
            raise ValueError
        return int(text.replace("_", ""))
    except ValueError:
        raise wrong("has a number that cannot be read") from None


def _unescaped(text: str, wrong: Any) -> str:
    def one(found: re.Match[str]) -> str:
        _, wide, byte, octal, control, plain = found.groups()
        if wide or byte:
            code = int(wide or byte, 16)
        elif octal:
            code = int(octal, 8)
        elif control:
            code = ord(control) & 31
        else:
            return _PLAIN.get(plain, plain)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise wrong("has a character that is none")
        return chr(code)

    return _ESCAPE.sub(one, text)
