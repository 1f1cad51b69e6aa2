"""The bounded reader of the External Term Format: a term, or ProtocolError; soon, and in little memory."""

from __future__ import annotations

import base64
import math
import struct
import subprocess
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import erlang
from distsec.beam.term import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_FRAME_BYTES,
    Atom,
    Term,
    decode,
    encode,
)
from distsec.errors import ProtocolError
from tests.releases import Otp
from tests.unit.fake_agent import heartbeat_fields, refusal, snapshot_fields

V = b"\x83"
NIL = b"j"
EMPTY_MAP = b"t\0\0\0\0"


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


@contextmanager
def soon(seconds: float = 2.0, most_bytes: int = 32 * MAX_FRAME_BYTES) -> Iterator[None]:
    """Generous bounds: what they catch takes minutes, or hundreds of megabytes."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        spent, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert spent < 5 * seconds  # tracemalloc slows
    assert peak < most_bytes


def refused(frame: bytes, why: str | None = None) -> None:
    with soon(), pytest.raises(ProtocolError, match=why) as caught:
        decode(frame)
    assert caught.value.reason == "term"
    assert len(str(caught.value)) < 200


# ---- terms ------------------------------------------------------------------------------------------

keys = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20).map(Atom),
    st.binary(max_size=20),
    st.booleans(),
    st.none(),
)
leaves = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=255).map(Atom),
    st.binary(max_size=300),
    st.integers(-(2**511), 2**511),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)
terms = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=6).map(tuple),
        st.dictionaries(keys, inner, max_size=6),
    ),
    max_leaves=30,
)


def spelt(term: Any) -> Any:
    """`true` as an atom and True are one term in Erlang: what comes back is the second."""
    match term:
        case Atom():
            return {"true": True, "false": False, "undefined": None}.get(term, term)
        case list() | tuple():
            return type(term)(map(spelt, term))
        case dict():
            return {spelt(key): spelt(value) for key, value in term.items()}
    return term


def depth(term: Any) -> int:
    match term:
        case dict():
            return 1 + max((depth(inner) for pair in term.items() for inner in pair), default=0)
        case list() | tuple():
            return 1 + max(map(depth, term), default=0)
    return 0


@given(terms.filter(lambda term: depth(term) < MAX_DEPTH))
def test_reads_back_what_was_written(term: Term) -> None:
    try:
        read = decode(encode(term))
    except ProtocolError as error:
        assert "key twice" in str(error)  # `true` and True, say
    else:
        assert read == spelt(term)


def comparable(term: Any) -> Any:
    """What erlang_py read, in our vocabulary."""
    match term:
        case erlang.OtpErlangAtom():
            name = term.value
            return Atom(name if isinstance(name, str) else name.decode("latin-1"))
        case erlang.OtpErlangBinary():
            return term.value
        case erlang.OtpErlangList():
            return list(map(comparable, term.value))
        case bytes():  # STRING_EXT
            return list(term)
        case list() | tuple():
            return type(term)(map(comparable, term))
        case dict():
            return {comparable(key): comparable(value) for key, value in term.items()}
    return term


@given(terms.filter(lambda term: depth(term) < MAX_DEPTH))
def test_agrees_with_erlang_py(term: Term) -> None:
    frame = encode(term)
    try:
        ours = decode(frame)
    except ProtocolError:
        return
    assert ours == comparable(erlang.binary_to_term(frame))


@pytest.mark.parametrize(
    ("frame", "term"),
    [
        # as written by term_to_binary/1 of OTP 25 (latin-1 atoms: tag 100) and of 26 and later (tag 119)
        (b"d\0\2ok", Atom("ok")),
        (b"w\2ok", Atom("ok")),
        (b"v\0\2ok", Atom("ok")),
        (b"d\0\1\xe4", Atom("ä")),
        (b"w\2\xc3\xa4", Atom("ä")),
        (b"d\0\4true", True),
        (b"w\5false", False),
        (b"w\11undefined", None),
        (b"k\0\3\1\2\3", [1, 2, 3]),
        (b"l\0\0\0\1a\1j", [1]),
        (b"j", []),
        (b"h\0", ()),
        (b"i\0\0\0\1a\1", (1,)),
        (b"t\0\0\0\1w\1aa\1", {Atom("a"): 1}),
        (b"b\xff\xff\xff\xff", -1),
        (b"n\6\0\xcb\x11\x99\x4a\x9a\x01", 0x019A4A9911CB),
        (b"n\1\1\1", -1),
        (b"F\x3f\xf8\0\0\0\0\0\0", 1.5),
        (b"m\0\0\0\2hi", b"hi"),
    ],
)
def test_reads_what_erlang_writes(frame: bytes, term: Term) -> None:
    read = decode(V + frame)
    assert read == term
    assert type(read) is type(term)


def test_an_atom_is_the_same_however_it_was_encoded_and_never_a_binary() -> None:
    assert decode(V + b"d\0\2ok") == decode(V + b"w\2ok") == "ok"
    assert decode(V + b"m\0\0\0\2ok") != "ok"
    assert hash(decode(V + b"d\0\3xyz")) == hash(decode(V + b"w\3xyz"))


def test_refuses_to_write_a_text_that_could_be_either() -> None:
    with pytest.raises(TypeError):
        encode({Atom("a"): "text"})  # type: ignore[dict-item]


IN_ERLANG = """#{a => [1, -1, 255, 256, 1763764000123, -(1 bsl 70)], <<"b">> => {1.5, true, false, undefined},
'\\x{e4}' => "list", '\\x{20ac}' => [], c => [#{}, {}, <<255, 0>>],
d => list_to_tuple(lists:duplicate(300, x))}"""
IN_PYTHON: Term = {
    Atom("a"): [1, -1, 255, 256, 1763764000123, -(1 << 70)],
    b"b": (1.5, True, False, None),
    Atom("ä"): list(b"list"),
    Atom("€"): [],
    Atom("c"): [{}, (), b"\xff\0"],
    Atom("d"): (Atom("x"),) * 300,
}


def test_what_this_release_writes_is_read_and_what_we_write_is_read_by_it(otp: Otp) -> None:
    ours = ",".join(map(str, encode(IN_PYTHON)))
    script = f"""
        T = {IN_ERLANG},
        io:put_chars(base64:encode(term_to_binary(T))), io:nl(),
        io:put_chars(base64:encode(term_to_binary(T, [{{minor_version, 1}}]))), io:nl(),
        io:put_chars(atom_to_list(binary_to_term(<<{ours}>>) =:= T)), halt()."""
    done = subprocess.run(
        [otp.erl, "-noinput", "-noshell", "-eval", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    default, latin1, same = done.stdout.split()
    assert decode(base64.b64decode(default)) == IN_PYTHON
    assert decode(base64.b64decode(latin1)) == IN_PYTHON
    assert same == "true"


# ---- hostile bytes ----------------------------------------------------------------------------------


def test_refuses_a_compressed_term_without_inflating_it() -> None:
    bomb = V + b"P" + u32(2**32 - 1) + zlib.compress(b"m" + u32(400_000_000) + bytes(100_000_000), 9)
    assert len(bomb) < MAX_FRAME_BYTES
    refused(bomb, "tag 80")


def test_refuses_a_bignum_of_a_megabyte() -> None:
    refused(V + b"o" + u32(1_000_000) + b"\0" + b"\xff" * 1_000_000, "tag 111")
    refused(V + b"n\x41\0" + b"\xff" * 65, "integer of 65 bytes")
    assert decode(V + b"n\x40\0" + b"\xff" * 64) == 2**512 - 1


def test_refuses_deep_nesting() -> None:
    refused(V + b"h\1" * 500_000 + b"j", "levels")
    refused(V + b"l\0\0\0\1" * 200_000, "levels")
    refused(V + b"t\0\0\0\1" * 200_000, "levels")
    assert depth(decode(V + b"h\1" * MAX_DEPTH + b"j")) == MAX_DEPTH + 1  # the empty list within is one more
    refused(V + b"h\1" * (MAX_DEPTH + 1) + b"j", "levels")


@pytest.mark.parametrize("tag", [b"l", b"i", b"t"])
def test_refuses_a_count_that_the_frame_cannot_hold_before_making_room_for_it(tag: bytes) -> None:
    refused(V + tag + u32(2**32 - 1) + NIL, "elements")
    refused(V + tag + u32(30_000) + NIL * 100, "cut short")


def test_refuses_more_elements_than_any_agent_sends() -> None:
    refused(V + b"i" + u32(MAX_ELEMENTS + 1) + b"j" * (MAX_ELEMENTS + 1), "elements")
    pieces = b"k\xff\xff" + bytes(65_535)
    refused(V + b"h\2" + pieces * 2, "elements")
    refused(V + b"h\x0a" + (b"i" + u32(10_000) + b"j" * 10_000) * 10, "elements")
    whole = decode(V + b"i" + u32(MAX_ELEMENTS) + b"j" * MAX_ELEMENTS)
    assert isinstance(whole, tuple)
    assert len(whole) == MAX_ELEMENTS


def test_refuses_a_binary_that_is_longer_than_the_frame() -> None:
    refused(V + b"m" + u32(2**32 - 1) + b"x", "cut short")
    refused(V + b"h\2m" + u32(3) + b"xx" + b"j")


def test_refuses_bytes_after_the_term() -> None:
    refused(V + b"jj", "after the term")


def test_refuses_an_improper_list() -> None:
    refused(V + b"l\0\0\0\1a\1a\2", "improper")


def test_refuses_a_map_with_a_key_twice() -> None:
    refused(V + b"t\0\0\0\2w\1aa\1w\1aa\2", "twice")
    refused(V + b"t\0\0\0\2w\1aa\1d\0\1aa\2", "twice")  # the same atom, otherwise encoded


@pytest.mark.parametrize("key", [b"a\1", b"j", b"h\0", EMPTY_MAP, b"F" + bytes(8), b"l\0\0\0\1a\1j"])
def test_refuses_a_map_key_that_is_neither_atom_nor_binary(key: bytes) -> None:
    refused(V + b"t\0\0\0\1" + key + b"j", "map key")


@pytest.mark.parametrize("atom", [b"w\1\xff", b"v\0\1\xff", b"w\2\xed\xa0", b"w\3\xed\xa0\x80"])
def test_refuses_an_atom_that_is_not_utf8(atom: bytes) -> None:
    refused(V + atom, "UTF-8")


def test_refuses_an_atom_that_erlang_could_not_hold() -> None:
    refused(V + b"d\1\0" + b"x" * 256, "too long")
    refused(V + b"v\1\0" + b"x" * 256, "too long")
    assert decode(V + b"v\2\xfd" + "€".encode() * 255) == "€" * 255


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_refuses_a_float_that_is_no_number(number: float) -> None:
    refused(V + b"F" + struct.pack(">d", number), "no number")


def test_refuses_a_sign_that_is_none() -> None:
    refused(V + b"n\1\2\1", "sign")


@pytest.mark.parametrize("tag", sorted(set(range(256)) - set(b"FabdhijklmntvwP") | {80}))
def test_refuses_every_tag_that_is_not_on_the_list(tag: int) -> None:
    refused(V + bytes([tag]) + bytes(200), f"tag {tag}$")


@pytest.mark.parametrize("frame", [b"", V, b"j", b"\x82j", V + b"w", V + b"m\0\0", V + b"b\0\0", V + b"F\0"])
def test_refuses_what_is_too_short_or_no_term(frame: bytes) -> None:
    refused(frame)


def test_refuses_a_frame_above_the_cap() -> None:
    refused(V + b"m" + u32(MAX_FRAME_BYTES) + bytes(MAX_FRAME_BYTES), "bytes")


@given(st.binary(max_size=400), st.sampled_from([b"", V, V + b"h\3", V + b"t\0\0\0\2", V + b"l\0\0\1\0"]))
@example(b"", V)
def test_arbitrary_bytes_are_a_term_or_a_protocol_error(tail: bytes, head: bytes) -> None:
    try:
        decode(head + tail)
    except ProtocolError as error:
        assert error.reason == "term"


HONEST = [
    encode(refusal(1)),
    encode((Atom("snapshot"), snapshot_fields())),
    encode((Atom("heartbeat"), heartbeat_fields())),
]


@given(
    st.sampled_from(HONEST),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    st.integers(0, 2000),
    st.binary(max_size=8),
)
def test_damaged_frames_are_a_term_or_a_protocol_error(
    frame: bytes, changes: list[tuple[int, int]], cut: int, inserted: bytes
) -> None:
    damaged = bytearray(frame)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    damaged[cut % len(damaged) : cut % len(damaged)] = inserted
    try:
        decode(bytes(damaged))
    except ProtocolError as error:
        assert error.reason == "term"


@given(st.sampled_from(HONEST), st.integers(0, 2000))
def test_every_beginning_of_a_frame_is_refused(frame: bytes, cut: int) -> None:
    with pytest.raises(ProtocolError):
        decode(frame[: cut % len(frame)])
