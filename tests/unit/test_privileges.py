"""The users that nodes may run as, and what is refused of them."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path

import pytest

from distsec.beam import privileges
from distsec.errors import ConfigError, PermissionRefused
from distsec.pki.account import Account, account_of_uid, find_account, home_of
from tests.unit.fake_machine import cluster_spec, node_spec

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may switch users")

A = Account("alice", 54321, 54331, (54331,))
B = Account("bob", 54322, 54332, (54332,))


def test_a_user_that_no_node_can_run_as_is_said_with_its_key() -> None:
    own = pwd.getpwuid(os.geteuid()).pw_name
    spec = cluster_spec(node_spec("a", user="nobody-of-that-name"), node_spec("b"), node_spec("c", user=own))
    with pytest.raises(ConfigError) as refused:
        privileges.node_accounts(spec)
    first, second = refused.value.problems
    assert (first.key, first.what) == ("nodes[0].user", "there is no user nobody-of-that-name on this host")
    assert second.key == "nodes[2].user"


def test_root_its_group_and_the_orchestrators_own_are_unfit() -> None:
    daemon = find_account("daemon")
    assert daemon is not None
    node = node_spec("a", user="daemon")
    assert privileges.unfit(node, 0, 0) is None
    for uid, gid in ((daemon.uid, 0), (0, daemon.gid)):
        wrong = privileges.unfit(node, uid, gid)
        assert wrong is not None and "the orchestrator's own user, or of its group" in wrong[0]
    wrong = privileges.unfit(replace(node, user="root"), 500, 500)
    assert wrong is not None and "is root" in wrong[0]


def test_no_user_at_all_needs_no_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "missing_capabilities", lambda: ["CAP_SETUID"])
    assert privileges.node_accounts(cluster_spec(node_spec("a"))) == {}
    with pytest.raises(PermissionRefused, match=r"may not switch users \(lacks CAP_SETUID\)"):
        privileges.node_accounts(cluster_spec(node_spec("a", user="daemon")))


@as_root
def test_root_lacks_nothing_and_finds_the_accounts() -> None:
    assert privileges.missing_capabilities() == []
    found = privileges.node_accounts(cluster_spec(node_spec("a", user="daemon"), node_spec("b")))
    assert found == {"a@127.0.0.1": find_account("daemon")}


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (B, []),
        (replace(B, uid=A.uid, name="alice"), ["the same user alice"]),
        (replace(B, gid=A.gid), ["users of one group"]),
        (replace(B, groups=(B.gid, A.gid)), ["users of one group"]),
    ],
)
def test_two_nodes_of_one_user_or_group_are_told_of(other: Account, shared: list[str]) -> None:
    lines = list(privileges.shared({"a@h": A, "b@h": other}))
    assert len(lines) == len(shared)
    assert all(
        line.startswith("a@h and b@h") and what in line for line, what in zip(lines, shared, strict=True)
    )


def test_who_else_is_in_the_group_of_a_node_is_known() -> None:
    daemon = find_account("daemon")
    assert daemon is not None
    assert privileges.others_in_group(daemon) == []
    assert "daemon" in privileges.others_in_group(replace(daemon, name="another"))


@as_root
def test_a_directory_that_is_closed_to_a_user_is_named(tmp_path: Path) -> None:
    daemon = find_account("daemon")
    assert daemon is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_bytes(b"")
    with pytest.raises(PermissionRefused, match=r"the user daemon of a@h cannot get at .*chmod o"):
        privileges.check_reach(daemon, "a@h", closed / "file")
    privileges.check_reach(daemon, "a@h", Path("/etc/passwd"))


def test_a_home_that_is_not_its_own_is_no_home() -> None:
    own = account_of_uid(os.geteuid())
    assert home_of(own) == own.home
    assert home_of(replace(own, home="/nowhere")) is None
    if os.geteuid() == 0:
        assert home_of(replace(own, uid=1, gid=1, home="/usr/sbin")) is None


def test_a_user_that_the_host_has_forgotten_is_its_number() -> None:
    assert account_of_uid(54321) == Account("uid 54321", 54321, 54321, (54321,))
    assert find_account("no\0body") is None
