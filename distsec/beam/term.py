"""The External Term Format, bounded: bytes from a node become a term or one ProtocolError, and soon.

A managed node may be compromised, so nothing is taken from it that was not asked for: only the tags of
docs/port-protocol.md, at most 16 levels, 65,536 elements and integers of 64 bytes; a declared size is
compared with what is left of the frame before anything is made for it. There is no recursion, no inflating
(tag 80) and no table that grows with what a node sends.

    Erlang                  here                        Erlang               here
    atom                    Atom (a str)                tuple                tuple
    true, false             True, False                 list, string         list
    undefined               None                        map                  dict; keys are atoms or binaries
    binary                  bytes                       integer, float       int, float (finite)

`encode` goes through erlang_py. `decode` reads the bytes itself, in the same walk that checks them: a walk,
then erlang_py, then making its atoms comparable took 46 us for a refusal event of 300 bytes against 9 us for
this (CPython 3.11; the ratio is what counts), and a check apart from the reader can come to disagree with it.
`tests/unit/test_term.py` holds this reader to erlang_py's answers.

Source of the tags: the External Term Format chapter of the ERTS user's guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from struct import Struct
from struct import error as StructError
from typing import Final, TypeAlias

import erlang
from distsec.errors import ProtocolError
from distsec.model.policy import Reason

MAX_FRAME_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 16
MAX_ELEMENTS: Final = 65_536
MAX_INTEGER_BYTES: Final = 64
MAX_ATOM_CHARACTERS: Final = 255  # MAX_ATOM_CHARACTERS in erts/emulator/beam/atom.h

_VERSION: Final = 131
_NEW_FLOAT: Final = 70
_SMALL_INTEGER: Final = 97
_INTEGER: Final = 98
_ATOM_LATIN1: Final = 100  # what term_to_binary/1 writes up to OTP 25
_SMALL_TUPLE: Final = 104
_LARGE_TUPLE: Final = 105
_NIL: Final = 106
_STRING: Final = 107
_LIST: Final = 108
_BINARY: Final = 109
_SMALL_BIG: Final = 110
_MAP: Final = 116
_ATOM_UTF8: Final = 118
_SMALL_ATOM_UTF8: Final = 119
_ROOT: Final = 0

_read_u16 = Struct(">H").unpack_from
_read_u32 = Struct(">I").unpack_from
_read_i32 = Struct(">i").unpack_from
_read_f64 = Struct(">d").unpack_from


class Atom(str):
    """An Erlang atom, however it was encoded. Equal to the `str` of its name; a binary is `bytes`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"


Key: TypeAlias = Atom | bytes | bool | None
Term: TypeAlias = "Atom | bytes | int | float | bool | tuple[Term, ...] | list[Term] | dict[Key, Term] | None"

_WORDS: Final = """
    hello challenge proof welcome snapshot goodbye event heartbeat reply command ack ok error critical
    refusals node os_pid otp launch started_ms carrier listeners address port optfile_digest policy_generation
    policy_digest links peer identity issuer serial not_after direction hidden tls_version cipher since_ms
    verdict reason type at_ms link detail generation digest claimed rule sequence dropped checks check_seconds
    check_micros_sum infinity in out allow deny link_up link_down violation policy_applied policy_rejected
    guard refusal handshake_in handshake_out link_in link_out signature malformed cluster links_remain policy
    disconnect status stop busy crashed unknown
"""
_KNOWN: Final[dict[bytes, Atom | bool | None]] = {
    **{word.encode(): Atom(word) for word in (*_WORDS.split(), *Reason)},
    b"true": True,
    b"false": False,
    b"undefined": None,
}
"""The protocol's atoms by their bytes, so that none is made for each frame. Others are made and not kept."""

_KEY_TYPES: Final = frozenset({Atom, bytes, bool, type(None)})


def decode(frame: bytes) -> Term:
    """The one term in `frame`, version byte included. Raises ProtocolError and, whatever it is, no other."""
    if len(frame) > MAX_FRAME_BYTES:
        raise _refusal(f"a frame of {len(frame)} bytes")
    try:
        if frame[0] != _VERSION:
            raise _refusal("no external term (version byte)")
        return _decode(frame)
    except (IndexError, StructError):
        raise _refusal("cut short") from None


def _decode(frame: bytes) -> Term:
    """One loop over the bytes: `items` collects the container being read, `stack` holds those around it.

    A length that points past the end makes `at` pass the end: the next read raises IndexError, or the
    comparison at the root finds it; a slice never holds more than the frame does.
    """
    known = _KNOWN
    size = len(frame)
    at = 1
    allowance = MAX_ELEMENTS
    items: list[Term] = []
    missing = 1  # elements that `items` still lacks
    kind = _ROOT
    stack: list[tuple[list[Term], int, int]] = []
    while True:
        tag = frame[at]
        # ---- leaves, the frequent ones first
        if tag == _SMALL_ATOM_UTF8:
            end = at + 2 + frame[at + 1]
            name = frame[at + 2 : end]
            try:
                items.append(known[name])
            except KeyError:
                items.append(_unknown_atom(name, "utf-8"))
            at = end
        elif tag == _BINARY:
            end = at + 5 + _read_u32(frame, at + 1)[0]
            items.append(frame[at + 5 : end])
            at = end
        elif tag in (_ATOM_LATIN1, _ATOM_UTF8):
            end = at + 3 + _read_u16(frame, at + 1)[0]
            name = frame[at + 3 : end]
            try:
                items.append(known[name])
            except KeyError:
                items.append(_unknown_atom(name, "latin-1" if tag == _ATOM_LATIN1 else "utf-8"))
            at = end
        elif tag == _SMALL_INTEGER:
            items.append(frame[at + 1])
            at += 2
        elif tag == _INTEGER:
            items.append(_read_i32(frame, at + 1)[0])
            at += 5
        elif tag == _SMALL_BIG:
            end = at + 3 + frame[at + 1]
            items.append(_big(frame[at + 1 : end]))
            at = end
        elif tag == _NIL:
            items.append([])
            at += 1
        elif tag == _NEW_FLOAT:
            number = _read_f64(frame, at + 1)[0]
            if not isfinite(number):
                raise _refusal("a float that is no number")
            items.append(number)
            at += 9
        elif tag == _STRING:
            end = at + 3 + _read_u16(frame, at + 1)[0]
            allowance -= end - at - 3
            if allowance < 0:
                raise _refusal(f"more than {MAX_ELEMENTS} elements")
            items.append(list(frame[at + 3 : end]))
            at = end
        # ---- containers: open one, and go on with its first element
        else:
            if tag == _MAP:
                count = 2 * _read_u32(frame, at + 1)[0]
                at += 5
            elif tag == _SMALL_TUPLE:
                count = frame[at + 1]
                at += 2
            elif tag in (_LIST, _LARGE_TUPLE):
                count = _read_u32(frame, at + 1)[0]
                at += 5
            else:
                raise _refusal(f"tag {tag}")
            allowance -= count
            if allowance < 0:
                raise _refusal(f"more than {MAX_ELEMENTS} elements")
            if count > size - at:  # each element takes a byte at least
                raise _refusal("cut short")
            stack.append((items, missing, kind))
            if len(stack) > MAX_DEPTH:
                raise _refusal(f"more than {MAX_DEPTH} levels")
            items = []
            missing = count + 1
            kind = tag
        # ---- close what is complete
        missing -= 1
        while not missing:
            value: Term
            if kind == _MAP:
                value = _map(items)
            elif kind in (_SMALL_TUPLE, _LARGE_TUPLE):
                value = tuple(items)
            elif kind == _LIST:
                if frame[at] != _NIL:
                    raise _refusal("an improper list")
                at += 1
                value = items
            else:
                if at != size:
                    raise _refusal("cut short" if at > size else "bytes after the term")
                return items[0]
            items, missing, kind = stack.pop()
            items.append(value)
            missing -= 1


def _unknown_atom(name: bytes, encoding: str) -> Atom:
    try:
        atom = Atom(name.decode(encoding))
    except UnicodeDecodeError:
        raise _refusal("an atom that is not UTF-8") from None
    if len(atom) > MAX_ATOM_CHARACTERS:
        raise _refusal("an atom that is too long")
    return atom


def _big(body: bytes) -> int:
    """`body`: count, sign, digits (little-endian)."""
    if body[0] > MAX_INTEGER_BYTES:
        raise _refusal(f"an integer of {body[0]} bytes")
    if body[1] > 1:
        raise _refusal("an integer with no sign")
    magnitude = int.from_bytes(body[2:], "little")
    return -magnitude if body[1] else magnitude


def _map(items: list[Term]) -> Term:
    keys = items[::2]
    if not _KEY_TYPES.issuperset(map(type, keys)):
        raise _refusal("a map key that is neither an atom nor a binary")
    value = dict(zip(keys, items[1::2], strict=True))
    if len(value) != len(keys):
        raise _refusal("a map with a key twice")
    return value  # type: ignore[return-value]  # the keys' types were just checked


def _refusal(what: str) -> ProtocolError:
    return ProtocolError(f"not a term that is taken from an agent: {what}", reason="term")


def encode(term: Term) -> bytes:
    """The external form of a term of ours. Raises TypeError for what is no term here (a plain str, say)."""
    return bytes(erlang.term_to_binary(_to_erlang_py(term)))


def _to_erlang_py(term: Term) -> object:
    if isinstance(term, Atom):
        return erlang.OtpErlangAtom(str(term))
    if isinstance(term, bytes):
        return erlang.OtpErlangBinary(term)
    if term is None or isinstance(term, bool | int | float):
        return term
    if isinstance(term, tuple):
        return tuple(map(_to_erlang_py, term))
    if isinstance(term, list):
        return list(map(_to_erlang_py, term))
    if isinstance(term, Mapping):
        return {_to_erlang_py(key): _to_erlang_py(value) for key, value in term.items()}
    raise TypeError(f"{type(term).__name__} is no term")
