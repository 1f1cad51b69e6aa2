"""What the VM of a shell is given: names, certificate, files, words, environment; and how its files go."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from distsec.beam import proc, render, runtime, shell_directory
from distsec.beam.shell import ShellFields, shell_files, shell_policy, shell_words
from distsec.beam.shell_directory import ShellRecord
from distsec.control import attach
from distsec.control.attach import Use
from distsec.core.admission import decide
from distsec.errors import StoreError, UsageError
from distsec.model.cluster import Carrier
from distsec.model.names import NodeName
from distsec.model.policy import Claim, Direction, Phase, Policy, PolicyPeer, PolicyRule, Verdict
from distsec.model.secret import Secret
from distsec.model.shells import (
    NAMES,
    SESSION_SECONDS,
    Operator,
    shell_identity,
    shell_name,
    shell_pattern,
    shell_patterns,
)
from distsec.pki.authority import Authority
from distsec.pki.store import Store

NOW = 1_763_764_000.0
COOKIE = Secret(b"d" + b"0" * 64)
TARGET = PolicyPeer("a@127.0.0.1", "spiffe://demo/node/127.0.0.1/a", Phase.OPEN, "127.0.0.1", 9100)
OTHER = PolicyPeer("b@127.0.0.1", "spiffe://demo/node/127.0.0.1/b", Phase.OPEN, "127.0.0.1", 9101)


def fields(carrier: Carrier = Carrier.DISTSEC, target: PolicyPeer = TARGET) -> ShellFields:
    name = shell_name(7, target.name.partition("@")[2])
    return ShellFields("demo", name, target, carrier, "/s/shells/0123", "/ebin", "/usr/bin/erl")


def files(made: ShellFields) -> dict[str, bytes]:
    policy = shell_policy(
        Policy("demo", 3, int(NOW), (TARGET, OTHER), denied=frozenset({"x@h"}), revoked=frozenset({"0a"})),
        made.target,
    )
    key = Secret(b"KEY") if made.carrier.encrypted else None
    pem = b"PEM" if made.carrier.encrypted else None
    return shell_files(made, policy, cookie=COOKIE, key=key, certificate=pem, trust=pem)


# ---- names ----------


def test_names_come_round_and_identities_do_not() -> None:
    assert shell_name(0, "127.0.0.1") == shell_name(NAMES, "127.0.0.1")
    name = shell_name(7, "127.0.0.1")
    assert shell_identity("demo", name, "ab") == "spiffe://demo/shell/127.0.0.1/distsec-shell-7.ab"
    assert shell_identity("demo", name, "ab") != shell_identity("demo", name, "ac")


@given(st.integers(0, 10**9), st.sampled_from(["127.0.0.1", "::1", "host.example", "fd00::12"]))
def test_every_name_and_identity_is_one_that_erlang_and_spiffe_take(number: int, host: str) -> None:
    name = shell_name(number, host)
    assert NodeName.parse(str(name)) == name
    identity = shell_identity("demo", name, "0123456789abcdef")
    assert re.fullmatch(r"spiffe://demo(/[A-Za-z0-9._-]+){3}", identity)


def test_labels_are_one_for_each_host() -> None:
    nodes = [NodeName.parse(text) for text in ("a@127.0.0.1", "b@127.0.0.1", "c@::1")]
    assert shell_patterns(nodes) == (shell_pattern("127.0.0.1"), shell_pattern("::1"))


def test_no_rule_for_every_command_line_tool_takes_a_shell() -> None:
    identity = shell_identity("demo", shell_name(1, "h"), "ab")
    policy = Policy("demo", 1, 0, (TARGET,), (PolicyRule("*@h", "spiffe://demo/cli/*"),))
    claim = Claim(Direction.IN, (identity,), name="distsec-shell-1@h", hidden=True)
    assert decide(policy, claim, 1).verdict is Verdict.DENY


# ---- the certificate ----------


def test_the_certificate_is_for_a_client_alone_and_for_hours(tmp_path: Path) -> None:
    authority = Authority.create(Store(tmp_path / "state"), "demo", NOW)
    key, certificate = authority.issue_shell("spiffe://demo/shell/h/x.ab", SESSION_SECONDS, NOW)
    assert key.reveal().startswith(b"-----BEGIN PRIVATE KEY")
    assert authority.issued(certificate)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://demo/shell/h/x.ab"]
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW, UTC) + timedelta(
        seconds=SESSION_SECONDS
    )
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    authority = Authority.create(Store(tmp_path / "state"), "demo", NOW)
    last_hour = authority.certificate.not_valid_after_utc.timestamp() - 3600
    _, certificate = authority.issue_shell("spiffe://demo/shell/h/x.ab", SESSION_SECONDS, last_hour)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


# ---- files ----------


def test_the_policy_knows_the_node_and_whatever_is_refused() -> None:
    wanted = Policy(
        "demo",
        3,
        5,
        (TARGET, OTHER),
        (PolicyRule("t-*@h", "spiffe://demo/cli/*"),),
        denied=frozenset({"x@h"}),
        revoked=frozenset({"0a"}),
    )
    policy = shell_policy(wanted, TARGET)
    assert policy.peers == (TARGET,)
    assert (policy.rules, policy.denied, policy.revoked) == ((), frozenset({"x@h"}), frozenset({"0a"}))
    assert policy.connect == "none"
    served = Claim(Direction.OUT, (OTHER.identity,), name=TARGET.name, hidden=False)
    assert decide(policy, served, 1).verdict is Verdict.DENY


def test_the_policy_is_signed_with_a_key_that_is_used_once() -> None:
    """With the cluster's key it would be a policy that some node could be made to take."""
    first, second = files(fields()), files(fields())
    assert first["policy.term"] != second["policy.term"]
    assert first["guard.term"] != second["guard.term"]


def test_the_guard_is_a_shell_s() -> None:
    guard = files(fields())["guard.term"].decode()
    for entry in ("kind => shell", 'target => <<"a@127.0.0.1">>', 'proto_dist => "distsec"'):
        assert entry in guard
    assert "port =>" not in guard
    assert "floor =>" not in guard


def test_without_tls_there_is_no_certificate() -> None:
    made = files(fields(Carrier.INET_TCP))
    assert set(made) == {".erlang.cookie", "policy.term", "guard.term"}
    assert 'proto_dist => "inet_tcp"' in made["guard.term"].decode()


def test_the_family_follows_the_node_s_address() -> None:
    six = PolicyPeer("a@::1", "spiffe://demo/node/__1/a", Phase.OPEN, "::1", 9100)
    words = shell_words(fields(Carrier.INET_TLS, six))
    assert words[words.index("-proto_dist") + 1] == "inet6_tls"
    assert words[words.index("inet_dist_use_interface") + 1] == "{0,0,0,0,0,0,0,1}"


# ---- the command ----------


def test_no_word_is_secret() -> None:
    words = " ".join(shell_words(fields()) + attach.use_words(Use.LINES, "a", timeout_seconds=1, prompt=True))
    for content in files(fields()).values():
        assert content.decode() not in words


def test_it_neither_listens_nor_shows_itself() -> None:
    words = shell_words(fields())
    assert words[words.index("-dist_listen") + 1] == "false"
    assert "-hidden" in words
    assert words[words.index("-boot") + 1] == "no_dot_erlang"


@pytest.mark.parametrize(
    ("operator", "language"),
    [
        ({}, "C.UTF-8"),
        ({"LANG": "de_DE.UTF-8"}, "de_DE.UTF-8"),
        ({"LANG": "de_DE.utf8", "LC_ALL": ""}, "de_DE.utf8"),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, "C.UTF-8"),
        ({"LANG": "POSIX"}, "C.UTF-8"),
    ],
)
def test_the_language_is_the_operator_s_where_it_has_all_characters(
    operator: dict[str, str], language: str
) -> None:
    assert attach.environment("/d", operator, None)["LC_ALL"] == language


def test_of_the_operator_s_environment_nothing_else_is_taken() -> None:
    mine = {"ERL_FLAGS": "-setcookie x", "ERL_LIBS": "/x", "HOME": "/home/ann", "PATH": "/p", "TERM": "t"}
    made = attach.environment("/d", mine, "xterm")
    assert made == {
        "PATH": "/p",
        "HOME": "/d",
        "LC_ALL": "C.UTF-8",
        "ERL_CRASH_DUMP_SECONDS": "0",
        "TERM": "xterm",
    }
    assert attach.environment("/d", {}, None)["PATH"] == runtime.DEFAULT_PATH


@pytest.mark.parametrize("text", ["", " \n", "x" * (attach.MAX_EXPRESSION_BYTES + 1), "\udcff"])
def test_what_is_no_expression_is_refused_before_anybody_is_asked(text: str) -> None:
    with pytest.raises(UsageError):
        attach.check_expression(text)


# ---- the directory ----------


def record(token: str = "0123456789abcdef", **changed: object) -> ShellRecord:
    start_time = proc.start_time(os.getpid())
    assert start_time is not None
    given: dict[str, object] = {
        "token": token,
        "node": "a@127.0.0.1",
        "name": "distsec-shell-7@127.0.0.1",
        "identity": "spiffe://demo/shell/127.0.0.1/distsec-shell-7.ab",
        "operator": Operator(os.getpid(), 0, "root"),
        "start_time": start_time,
        "opened_at": int(NOW),
    }
    return ShellRecord.begin(**(given | changed))  # type: ignore[arg-type]


def test_a_directory_is_found_again_and_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    assert shell_directory.records(store) == []
    made = record()
    shell_directory.write(store, made, {"key.pem": b"KEY"})
    assert shell_directory.records(store) == [made]
    assert made.lives
    path = store.path("shells/0123456789abcdef")
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == {
        "shell.json": 0o600,
        "key.pem": 0o600,
    }
    shell_directory.remove(store, made.token)
    assert shell_directory.records(store) == []
    shell_directory.remove(store, made.token)


def test_a_process_that_is_another_by_now_does_not_live(tmp_path: Path) -> None:
    assert not record(start_time=1).lives
    assert record().lives


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"schema": 2}', b"\xff", b'{"schema": 1}'])
def test_a_directory_without_a_record_is_removed(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path / "state")
    store.create("shells/0123456789abcdef/shell.json", content)
    store.create("shells/fedcba9876543210/key.pem", b"KEY")
    assert shell_directory.records(store) == []
    assert list(store.path("shells").iterdir()) == []


def test_one_that_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "state")

    def full(relative: str, content: bytes) -> bool:
        if relative.endswith("key.pem"):
            raise StoreError("the disk is full")
        return created(relative, content)

    created = store.create
    monkeypatch.setattr(store, "create", full)
    with pytest.raises(StoreError):
        shell_directory.write(store, record(), {"trust.pem": b"T", "key.pem": b"KEY"})
    assert list(store.path("shells").iterdir()) == []


def test_nothing_but_directories_of_shells_is_ever_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.create("nodes/a/key.pem", b"KEY")
    for token in ("../nodes", "..", "", ".", "0123456789abcdef/../../nodes"):
        shell_directory.remove(store, token)
    assert store.read("nodes/a/key.pem") == b"KEY"


def test_a_name_that_is_no_token_is_left_and_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.create("shells/notes/shell.json", b"{}")
    assert shell_directory.records(store) == []
    assert store.exists("shells/notes/shell.json")


def test_the_optfile_that_the_guard_names_is_the_one_that_is_written() -> None:
    made = files(fields())
    assert f"/s/shells/0123/{render.OPTFILE}".encode() in made["guard.term"]
