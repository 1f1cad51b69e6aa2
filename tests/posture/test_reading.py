"""Readers of what strangers wrote: terms, flags, files; the list of holes; findings and exit codes."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.beam.erlang_text import ExternalFunction, Symbol, Term, erlang_term
from distsec.posture.collect import cookies, releases
from distsec.posture.collect.emulator import interface, kernel_of, parse
from distsec.posture.collect.reading import read, walk
from distsec.posture.consult import ConsultError, consult
from distsec.posture.facts import Facts, ReleaseFact
from distsec.posture.finding import Code, Finding, Severity, exit_code, in_order
from distsec.posture.holes import Hole, KnownHoles, known_holes, version_of
from distsec.posture.judge.releases import judge_with

_scalars: st.SearchStrategy[Term] = st.one_of(
    st.integers(-(10**20), 10**20),
    st.binary(max_size=20),
    st.text(st.characters(max_codepoint=0x7F), max_size=20),
    st.sampled_from(["ok", "tlsv1.3", "with space", "quo'te", "end"]).map(Symbol),
    st.just(ExternalFunction("m", "f", 3)),
)
_terms: st.SearchStrategy[Term] = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.sampled_from(["a", "b"]).map(Symbol), inner, max_size=2),
    ),
    max_leaves=20,
)


@given(_terms)
def test_what_we_write_is_read_back(term: Term) -> None:
    assert consult(f"% a comment\n{erlang_term(term)}.\n".encode()) == [term]


@given(st.binary(max_size=400))
def test_any_bytes_are_terms_or_an_error_of_one_kind(content: bytes) -> None:
    try:
        consult(content)
    except ConsultError as error:
        assert len(str(error)) < 200


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a" * 50_000, '"' + "x" * (1 << 20), "9" * 5000 + ".", "1," * 300_000, "'\\x{110000}'."],
)
def test_what_is_too_much_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConsultError):
        consult(text.encode())


def test_an_option_file_as_people_write_it_is_read() -> None:
    text = rb"""
%% -*- erlang -*-
[{server, [{cacertfile, "/etc/x/" "ca.pem"}, {depth, 2}, {reuse_sessions, false},
           {versions, ['tlsv1.2', 'tlsv1.3']}, {verify_fun, {fun ssl_mod:check/3, []}}]},
 {client, [{password, <<"p\"w">>}, inet6, {timeout, 1.5e3}, {chars, [$a, $\n | []]}]}].
"""
    [[(_, server), (_, client)]] = consult(text)
    assert (Symbol("cacertfile"), "/etc/x/ca.pem") in server
    assert (Symbol("verify_fun"), (ExternalFunction("ssl_mod", "check", 3), [])) in server
    assert (Symbol("password"), b'p"w') in client and (Symbol("chars"), [97, 10]) in client


def test_flags_are_read_as_init_reads_them() -> None:
    words = "-K true -- -root /r -- -name a@h -kernel inet_dist_listen_min 9100 inet_dist_use_interface"
    words += " {127,0,0,1} +W w -proto_dist inet_tls -proto_dist inet_tcp -setcookie secret -extra -name b@h"
    flags = parse(["beam.smp", *words.split()])
    assert (flags.node, flags.carrier, flags.encrypted) == ("a@h", "inet_tls", True)
    assert flags.count("proto_dist") == 2
    assert flags.kernel("inet_dist_listen_min") == 9100
    assert interface(flags.kernel("inet_dist_use_interface")) == "127.0.0.1"
    assert flags.first("setcookie") is None and flags.count("setcookie") == 1
    assert "secret" not in repr(flags.all)


def test_parameters_of_a_config_file_are_found() -> None:
    text = b"[{sasl, []}, {kernel, [{inet_dist_listen_min, 4370}, {x, y}]}]."
    assert kernel_of(text, "inet_dist_listen_min") == 4370
    assert kernel_of(b"nonsense", "x") is None


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (b"beam.smp\0-setcookie\0abc\0-name\0x", [b"abc"]),
        (b"beam.smp\0-setcookie\0n@h\0abc\0", [b"abc"]),
        (b"sh\0-c\0erl -setcookie abc -noinput\0", [b"abc"]),
        (b"beam.smp\0-extra\0--cookie\0abc\0", [b"abc"]),
        (b"beam.smp\0-setcookie\0-noinput\0", []),
        (b"beam.smp\0-setcookie", []),
    ],
)
def test_cookies_are_found_in_arguments(argv: bytes, found: list[bytes]) -> None:
    assert cookies.in_arguments(argv) == found


def test_cookies_are_found_in_an_environment() -> None:
    environ = b"PATH=/bin\0RELEASE_COOKIE=abc\0ERL_ZFLAGS=+S 1 -setcookie 'def'\0XCOOKIE=no\0ERL_COOKIE=\0"
    assert cookies.in_environment(environ) == [("RELEASE_COOKIE", b"abc"), ("ERL_ZFLAGS", b"def")]


def test_the_version_of_an_installation_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "releases/27").mkdir(parents=True)
    (tmp_path / "releases/27/OTP_VERSION").write_text("27.3.4.1\n")
    assert releases.of_root(tmp_path) == (27, "27.3.4.1")
    mix = tmp_path / "mix"
    (mix / "releases").mkdir(parents=True)
    (mix / "releases/start_erl.data").write_text("13.2.2 0.1.0\n")
    assert releases.of_root(mix) == (25, None)
    (mix / "releases/start_erl.data").write_text("13 ../../../etc\n")
    assert releases.of_root(mix) == (None, None)
    assert releases.of_root(tmp_path / "nowhere") == (None, None)


def test_a_pipe_a_device_and_a_directory_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "no", Path("/x\0y")):
        assert read(path).content is None and read(path).problem


def test_a_walk_follows_no_symlink(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert sorted(path.name for path in walk(tmp_path)[0]) == ["a", "loop"]


# ---- releases ----------


@pytest.mark.parametrize(
    ("version", "identifier", "has_it"),
    [
        ("25.2.3", "CVE-2026-89422", True),
        ("27.3.4.17", "CVE-2026-89422", True),
        ("27.3.4.18", "CVE-2026-89422", False),
        ("28.5.0.6", "CVE-2026-89422", True),
        ("29.1.1", "CVE-2026-89422", False),
        ("30.0", "CVE-2026-89422", False),
        ("25.2.3", "CVE-2026-48860", False),
        ("26.2.5", "CVE-2026-48860", True),
        ("25.0.1", "CVE-2022-37026", True),
        ("25.0.2", "CVE-2022-37026", False),
        ("25.3.2.20", "CVE-2025-32433", False),
    ],
)
def test_a_version_has_the_holes_that_came_before_it_was_mended(
    version: str, identifier: str, has_it: bool
) -> None:
    [hole] = [each for each in known_holes().holes if each.id == identifier]
    numbers = version_of(version)
    assert numbers is not None and hole.is_in(numbers) is has_it


def test_every_entry_of_the_list_has_a_link_and_fixed_versions() -> None:
    for hole in known_holes().holes:
        assert hole.link.startswith("https://www.cve.org/CVERecord?id=CVE-") and hole.fixed and hole.what


def test_a_list_older_than_a_year_says_so() -> None:
    known = known_holes()
    begins = datetime(known.as_of.year, known.as_of.month, known.as_of.day, tzinfo=UTC).timestamp()
    facts = Facts(now=begins + 400 * 86_400, releases=(ReleaseFact(("a@h",), "/r", 29, "29.9"),))
    assert [each.code for each in judge_with(facts, known)] == [Code.OTP_LIST_OUTDATED]
    assert not known.outdated(begins + 300 * 86_400)


def test_a_hole_that_the_carrier_stops_is_low_on_it() -> None:
    hole = Hole("CVE-1", Severity.HIGH, "x", ((27, 1),), (0,), "", carrier_stops_it=True)
    known = KnownHoles(known_holes().as_of, (hole,))

    def severity(on_carrier: bool) -> Severity:
        fact = ReleaseFact(("a@h",), "/r", 27, "27.0", on_carrier=on_carrier)
        [finding] = judge_with(Facts(now=0.0, releases=(fact,)), known)
        assert "backport" in finding.fix and hole.link in finding.fix
        return finding.severity

    assert (severity(True), severity(False)) == (Severity.LOW, Severity.HIGH)


@pytest.mark.parametrize(
    ("release", "version", "code"), [(24, "24.9", Code.OTP_TOO_OLD), (None, None, Code.OTP_VERSION_UNKNOWN)]
)
def test_an_old_or_unknown_release_is_told(release: int | None, version: str | None, code: Code) -> None:
    facts = Facts(now=0.0, releases=(ReleaseFact(("a@h",), "/r", release, version),))
    assert code in {each.code for each in judge_with(facts, KnownHoles(known_holes().as_of, ()))}


# ---- findings ----------


def found(severity: Severity, code: Code = Code.MODE) -> Finding:
    return Finding.of(severity, code, what="x", where="y")


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([found(Severity.INFO)], 0),
        ([found(Severity.CRITICAL, Code.OTP_KNOWN_HOLE), found(Severity.HIGH, Code.SHARED_UID)], 0),
        ([found(Severity.LOW)], 1),
        ([found(Severity.MEDIUM), found(Severity.LOW)], 1),
        ([found(Severity.HIGH), found(Severity.INFO)], 2),
        ([found(Severity.CRITICAL)], 2),
    ],
)
def test_the_exit_code_follows_the_worst_that_counts(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code


def test_findings_are_told_once_and_the_worst_first() -> None:
    low, high = found(Severity.LOW), found(Severity.HIGH)
    assert in_order([low, high, low]) == (high, low)


def test_every_code_is_explained_in_the_manual() -> None:
    import re

    text = (Path(__file__).parents[2] / "docs/check.md").read_text()
    explained = re.findall(r"^\| `([a-z0-9_]+)` \|", text, re.MULTILINE)
    assert sorted(explained) == sorted(map(str, Code))
