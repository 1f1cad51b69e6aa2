"""What `distsec check` says of nodes with users of their own: the modes that they need are no finding, and
everything beyond them is.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from distsec.beam import privileges
from distsec.pki.account import Account, find_account
from distsec.pki.store import Store
from distsec.posture.collect import gather
from distsec.posture.finding import Code
from tests.posture.planted import A, B, Planted, told

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

USERS = {A: "daemon", B: "games"}


def configure(clean: Planted, users: dict[str, str]) -> None:
    """Gives the nodes these users, and their directories to them."""
    store = Store(clean.state)
    for name, user in users.items():
        name_user(clean, name, user)
        if (account := find_account(user)) is not None:
            store.entrust(f"nodes/{name}", account)


def name_user(clean: Planted, name: str, user: str) -> None:
    head = f'name = "{name}"\n'
    clean.config.write_text(clean.config.read_text().replace(head, f'{head}user = "{user}"\n', 1))


@pytest.fixture
def users(clean: Planted, monkeypatch: pytest.MonkeyPatch) -> Planted:
    monkeypatch.setattr(gather, "links_protected", lambda: True)  # whatever this host does
    configure(clean, USERS)
    return clean


def account(name: str) -> Account:
    found = find_account(USERS[name])
    assert found is not None
    return found


def test_nodes_with_users_of_their_own_are_as_they_should_be(users: Planted) -> None:
    own = users.node() / "Mnesia.a"
    own.mkdir()
    os.chown(own, account(A).uid, account(A).gid)
    own.chmod(0o755)
    assert told(users.check()) == set()
    assert Code.SHARED_UID not in {each.code for each in users.check()}


def test_a_way_that_may_be_passed_through_is_no_finding_whoever_has_users(clean: Planted) -> None:
    """As systemd makes it for a unit that may switch users."""
    for way in (clean.state, clean.state / "nodes"):
        way.chmod(0o711)
    assert told(clean.check()) == set()
    clean.state.chmod(0o751)
    assert told(clean.check()) == {Code.DIRECTORY_EXPOSED}
    clean.state.chmod(0o711)
    clean.node().chmod(0o711)
    assert told(clean.check()) == {Code.DIRECTORY_EXPOSED}


def key_for_everybody(users: Planted) -> None:
    (users.node() / "key.pem").chmod(0o644)


def key_of_another_group(users: Planted) -> None:
    os.chown(users.node() / "key.pem", 0, account(B).gid)


def directory_for_everybody(users: Planted) -> None:
    users.node().chmod(0o1777)


def record_of_the_node(users: Planted) -> None:
    (users.node() / "run.json").write_bytes(b"{}")
    (users.node() / "run.json").chmod(0o600)
    os.chown(users.node() / "run.json", account(A).uid, account(A).gid)


def ca_for_the_group(users: Planted) -> None:
    os.chown(users.state / "ca", 0, account(A).gid)
    (users.state / "ca").chmod(0o750)


@pytest.mark.parametrize(
    ("plant", "code"),
    [
        (key_for_everybody, Code.SECRET_EXPOSED),
        (key_of_another_group, Code.SECRET_EXPOSED),
        (directory_for_everybody, Code.DIRECTORY_WRITABLE),
        (record_of_the_node, Code.FILE_OWNER),
        (ca_for_the_group, Code.DIRECTORY_EXPOSED),
    ],
)
def test_more_than_they_need_is_found(users: Planted, plant: Callable[[Planted], None], code: Code) -> None:
    plant(users)
    assert told(users.check()) == {code}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({A: "daemon", B: "daemon"}, Code.NODE_USER_SHARED),
        ({A: "nobody-of-that-name"}, Code.NODE_USER_UNFIT),
        ({A: "root"}, Code.NODE_USER_UNFIT),
    ],
)
def test_users_that_keep_nothing_apart_are_found(clean: Planted, given: dict[str, str], code: Code) -> None:
    fit = {name: user for name, user in given.items() if user == "daemon"}
    configure(clean, fit)
    for name in given.keys() - fit.keys():
        name_user(clean, name, given[name])
    assert told(clean.check()) == {code}


def test_a_host_on_which_anybody_links_anything_is_found(
    users: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "links_protected", lambda: False)
    assert told(users.check()) == {Code.HARDLINKS_UNPROTECTED}
    users.edit(lambda text: "".join(line for line in text.splitlines(True) if not line.startswith("user = ")))
    assert Code.HARDLINKS_UNPROTECTED not in told(users.check())


def test_somebody_else_in_the_group_of_a_node_is_found(
    users: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "others_in_group", lambda account: ["mallory"])
    found = [each for each in users.check() if each.code is Code.NODE_USER_SHARED]
    assert [each.what.partition(" ")[0] for each in found] == ["mallory", "mallory"]
