"""The state directory of a node that runs as a user of its own: who may do what, moves, interruptions, and
what that user puts in the place of our files.

The user is made up; `acting_as` has the kernel say what it may do.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distsec.beam.unix_socket import listen
from distsec.errors import StoreError
from distsec.pki import files, forms
from distsec.pki.account import Account, acting_as, may_replace
from distsec.pki.store import Store
from tests.unit.descriptors import closed_what_is_left, open_descriptors

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

NODE = "nodes/a@host"
OURS = ("run.json", "next.pem", "probes.json")
ALICE = Account("alice", 54321, 54331, (54331,))
BOB = Account("bob", 54322, 54332, (54332,))


@pytest.fixture
def store() -> Iterator[Store]:
    # Not pytest's own directory, into which no other user can look.
    directory = Path(tempfile.mkdtemp(prefix="ds", dir="/tmp"))
    directory.chmod(0o711)
    store = Store(directory / "state")
    store.ensure_directory(f"{NODE}/log")
    store.ensure_directory("ca")
    for name in (*forms.READ_BY_NODE, *OURS):
        store.write(f"{NODE}/{name}", name.encode())
    store.write(f"{NODE}/policy.mark", b"distsec_mark 1 7\n")
    yield store
    shutil.rmtree(directory)


def entrusted(store: Store, account: Account | None) -> bool:
    store.accounts = {} if account is None else {NODE: account}
    return store.entrust(NODE, account)


def shape(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def place(store: Store, name: str = ".") -> Path:
    return store.path(NODE) / name


# ---- acting as somebody ------------------------------------------------------------------------------------


def test_acting_as_somebody_opens_what_that_user_may_open_in_this_thread_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    go, other = threading.Event(), list[bytes]()

    def read() -> None:
        go.wait(5)
        other.append(secret.read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    with acting_as(ALICE):
        with pytest.raises(PermissionError):
            secret.open("rb").close()
        go.set()
        thread.join()
        with acting_as(BOB), pytest.raises(PermissionError):
            secret.open("rb").close()
    assert other == [b"x"] and secret.read_bytes() == b"x"


def test_acting_as_somebody_ends_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), acting_as(ALICE):
        print(1 / 0)
    (tmp_path / "mine").write_bytes(b"")
    assert (tmp_path / "mine").stat().st_uid == 0


@pytest.mark.parametrize(
    ("owner", "group", "mode", "replaceable"),
    [
        (0, 0, 0o755, False),
        (ALICE.uid, 0, 0o755, True),
        (0, ALICE.gid, 0o775, True),
        (0, ALICE.gid, 0o755, False),
        (0, 0, 0o777, True),
        (0, 0, 0o1777, False),
    ],
)
def test_who_may_replace_a_program(owner: int, group: int, mode: int, replaceable: bool) -> None:
    directory = Path(tempfile.mkdtemp(prefix="ds", dir="/tmp"))
    (directory / "erl").write_bytes(b"")
    os.chown(directory, owner, group)
    directory.chmod(mode)
    assert may_replace(ALICE, directory / "erl") is replaceable
    assert may_replace(ALICE, directory / "none")
    shutil.rmtree(directory)


# ---- the form ----------------------------------------------------------------------------------------------


def test_a_node_reads_what_is_for_it_and_nothing_else(store: Store) -> None:
    assert entrusted(store, ALICE)
    assert not entrusted(store, ALICE), "the second time there is nothing to do"
    for directory in (place(store), place(store, "log")):
        assert shape(directory) == (0o1770, 0, ALICE.gid)
    assert (shape(store.root)[0], shape(store.path("nodes"))[0]) == (0o711, 0o711)
    assert shape(store.path("ca"))[0] == 0o700
    assert shape(place(store, "policy.mark")) == (0o600, ALICE.uid, ALICE.gid)
    with acting_as(ALICE):
        for name in forms.READ_BY_NODE:
            assert place(store, name).read_bytes() == name.encode()
            with pytest.raises(PermissionError):
                place(store, name).open("r+b")
        for name in OURS:
            with pytest.raises(PermissionError):
                place(store, name).open("rb")
    with acting_as(BOB), pytest.raises(PermissionError):
        place(store, "key.pem").open("rb")


def test_a_node_makes_files_beside_ours_and_replaces_none_of_them(store: Store) -> None:
    entrusted(store, ALICE)
    with acting_as(ALICE):
        place(store, "mine").write_bytes(b"x")
        place(store, "log/erl_crash.dump").write_bytes(b"x")
        place(store, "policy.mark.new").write_bytes(b"distsec_mark 1 8\n")
        place(store, "policy.mark.new").rename(place(store, "policy.mark"))
        for name in ("key.pem", "run.json"):
            for attempt in (
                lambda name=name: place(store, "mine").rename(place(store, name)),
                lambda name=name: place(store, name).rename(place(store, "x")),
                lambda name=name: place(store, name).unlink(),
            ):
                with pytest.raises(PermissionError):
                    attempt()
    assert store.read(f"{NODE}/policy.mark") == b"distsec_mark 1 8\n"


def test_what_is_written_later_has_its_form_before_it_holds_a_byte(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrusted(store, ALICE)
    seen: list[tuple[int, int, int]] = []
    write = files._write_all

    def looked_at(descriptor: int, content: bytes) -> None:
        found = os.fstat(descriptor)
        seen.append((stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid))
        write(descriptor, content)

    monkeypatch.setattr(files, "_write_all", looked_at)
    store.write(f"{NODE}/key.pem", b"new")
    store.write(f"{NODE}/run.json", b"new")
    store.write(f"{NODE}/policy.mark", b"distsec_mark 1 9\n")
    store.write("policy.overlay", b"{}")
    assert seen == [(0o640, 0, ALICE.gid), (0o600, 0, 0), (0o600, ALICE.uid, ALICE.gid), (0o600, 0, 0)]
    assert store.read(f"{NODE}/policy.mark") == b"distsec_mark 1 9\n"


def test_who_may_not_give_files_away_leaves_them_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrusted(store, ALICE)

    def refused(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fchown", refused)
        store.write(f"{NODE}/key.pem", b"new")
    assert shape(place(store, "key.pem")) == (0o600, 0, 0)
    assert store.read(f"{NODE}/key.pem") == b"new"
    store.entrust(NODE, ALICE)
    assert shape(place(store, "key.pem")) == (0o640, 0, ALICE.gid)


@pytest.mark.parametrize("mode", [0o770, 0o750, 0o1777, 0o3770, 0o1771])
def test_another_mode_than_that_of_a_node_is_refused(store: Store, mode: int) -> None:
    entrusted(store, ALICE)
    place(store).chmod(mode)
    with pytest.raises(StoreError, match="can be reached by other users"):
        store.read(f"{NODE}/key.pem")


def test_only_directories_of_nodes_may_be_anybody_elses(store: Store) -> None:
    for relative in ("ca", "nodes/a@host/incoming", "nodes/a@host/log/x"):
        path = store.ensure_directory(relative)
        os.chown(path, 0, ALICE.gid)
        path.chmod(0o1770)
        with pytest.raises(StoreError, match="can be reached by other users"):
            store.write(f"{relative}/x", b"")


def test_a_file_that_is_wider_than_its_form_is_refused(store: Store) -> None:
    entrusted(store, ALICE)
    for mode, gid in ((0o660, ALICE.gid), (0o644, ALICE.gid), (0o640, BOB.gid)):
        os.chown(place(store, "key.pem"), 0, gid)
        place(store, "key.pem").chmod(mode)
        with pytest.raises(StoreError, match="can be reached by other users"):
            store.read(f"{NODE}/key.pem")


# ---- moving ------------------------------------------------------------------------------------------------


def everything(store: Store) -> dict[str, tuple[int, int, int]]:
    return {str(path.relative_to(store.root)): shape(path) for path in store.root.rglob("*")}


def test_a_directory_moves_from_one_user_to_another_and_back(store: Store) -> None:
    private = everything(store)
    entrusted(store, ALICE)
    with acting_as(ALICE):
        place(store, "log/erl_crash.dump").write_bytes(b"of alice")
        place(store, "mine").write_bytes(b"of alice")
    assert entrusted(store, BOB)
    assert store.read(f"{NODE}/policy.mark") == b"distsec_mark 1 7\n"
    with acting_as(ALICE):
        for name in ("key.pem", "policy.mark", "mine"):
            with pytest.raises(PermissionError):
                place(store, name).open("rb")
    with acting_as(BOB):
        assert place(store, "key.pem").read_bytes() == b"key.pem"
        place(store, "log/erl_crash.dump").write_bytes(b"of bob")
    assert place(store, "log/erl_crash.dump.1").read_bytes() == b"of alice"
    assert entrusted(store, None)
    store.close_way()
    after = everything(store)
    assert {path: kept[:2] for path, kept in after.items() if path in private} == {
        path: kept[:2] for path, kept in private.items()
    }
    assert store.read(f"{NODE}/policy.mark") == b"distsec_mark 1 7\n"


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(("before", "after"), [(None, ALICE), (ALICE, BOB), (ALICE, None)])
def test_a_move_that_is_killed_anywhere_leaves_it_closed_and_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch, before: Account | None, after: Account | None
) -> None:
    entrusted(store, before)
    wanted: dict[str, tuple[int, int, int]] | None = None
    for steps in range(500):
        entrusted(store, before)
        left, closed_from = steps, False
        with monkeypatch.context() as patched:

            def counted(real: Callable[..., object]) -> Callable[..., object]:
                def call(*arguments: object, **how: object) -> object:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise _Killed
                    return real(*arguments, **how)

                return call

            for name in ("fchmod", "fchown", "chown", "chmod", "rename", "unlink", "link"):
                patched.setattr(os, name, counted(getattr(os, name)))
            try:
                entrusted(store, after)
                done = True
            except _Killed:
                done = False
        closed_from = shape(place(store))[0] == 0o700
        if not done:
            held = group_of(store)
            assert closed_from or held in {gid(before), gid(after)}
            if held is not None and held == gid(after):  # it is open to the new one: then nothing is left
                assert all(shape(place(store, name))[2] == held for name in forms.READ_BY_NODE)
            entrusted(store, after)
        found = {path: kept for path, kept in everything(store).items() if files.TEMPORARY_PREFIX not in path}
        wanted = wanted or found
        assert {path: kept[:2] for path, kept in found.items()} == {
            path: kept[:2] for path, kept in wanted.items()
        }
        assert store.read(f"{NODE}/policy.mark") == b"distsec_mark 1 7\n"
        if done:
            assert steps > 3
            return
    pytest.fail("it never came to an end")


def gid(account: Account | None) -> int | None:
    return None if account is None else account.gid


def group_of(store: Store) -> int | None:
    return store.group(NODE)


def test_nothing_of_another_user_is_given_away_in_a_move(store: Store) -> None:
    entrusted(store, ALICE)
    secret = store.root.parent / "secret"
    secret.write_bytes(b"of a third user")
    os.chown(secret, 777, 777)
    place(store, "policy.mark").unlink()
    os.link(secret, place(store, "policy.mark"))  # fs.protected_hardlinks may be off
    place(store, "guard.refused").symlink_to(secret)
    entrusted(store, BOB)
    assert secret.stat().st_uid == 777 and not place(store, "policy.mark").exists()
    assert shape(secret)[1:] == (777, 777)


@pytest.mark.parametrize("before", [ALICE, BOB], ids=["its own", "of another before"])
def test_a_file_of_ours_that_a_node_has_linked_in_is_given_to_nobody(store: Store, before: Account) -> None:
    store.write("policy.overlay", b"the policy of all")
    entrusted(store, before)
    place(store, "guard.term").unlink()
    os.link(store.path("policy.overlay"), place(store, "guard.term"))  # fs.protected_hardlinks may be off
    with pytest.raises(StoreError, match="has another name besides") as refusal:
        entrusted(store, ALICE)
    assert str(place(store, "guard.term")) in str(refusal.value)
    assert shape(store.path("policy.overlay")) == (0o600, 0, 0)
    place(store, "guard.term").unlink()
    entrusted(store, ALICE)
    assert shape(place(store, "key.pem")) == (0o640, 0, ALICE.gid)


def test_the_second_name_of_an_interrupted_write_is_no_link_of_somebody_else(store: Store) -> None:
    os.link(place(store, "key.pem"), place(store, f"{files.TEMPORARY_PREFIX}0"))
    place(store, "policy.mark").unlink()  # nothing is written before the key has its form
    entrusted(store, ALICE)
    assert shape(place(store, "key.pem")) == (0o640, 0, ALICE.gid)


# ---- what the node puts in the place of ours ---------------------------------------------------------------


def plant_symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def plant_directory(path: Path) -> None:
    path.mkdir()
    (path / "x").write_bytes(b"")
    path.chmod(0o000)


def plant_file(path: Path) -> None:
    path.write_bytes(bytes(5 * 1024 * 1024))


def plant_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"x")
    os.link(other, path)


PLANTS = [plant_symlink, os.mkfifo, plant_socket, plant_directory, plant_file, plant_link]


@pytest.mark.parametrize("plant", PLANTS)
def test_what_a_node_puts_in_the_place_of_our_files_is_never_read_and_makes_way(
    store: Store, plant: Callable[[Path], None]
) -> None:
    entrusted(store, ALICE)
    passwd = Path("/etc/passwd").read_bytes()
    for name in ("run.json", "key.pem"):
        path = place(store, name)
        path.unlink()
        with acting_as(ALICE):
            plant(path)
        with pytest.raises(StoreError):
            store.read(f"{NODE}/{name}")
        store.write(f"{NODE}/{name}", b"ours")
        assert store.read(f"{NODE}/{name}") == b"ours" and path.stat().st_uid == 0
        path.unlink()
        place(store, "other").unlink(missing_ok=True)
        with acting_as(ALICE):
            plant(path)
        assert store.create(f"{NODE}/{name}", b"ours again")
        assert store.read(f"{NODE}/{name}") == b"ours again"
        place(store, "other").unlink(missing_ok=True)
    with acting_as(ALICE):
        plant(place(store, "incoming"))
    assert shape(store.ensure_directory(f"{NODE}/incoming")) == (0o700, 0, 0)
    place(store, "other").unlink(missing_ok=True)
    with acting_as(ALICE):
        plant(place(store, "taken.json"))
    store.discard(f"{NODE}/taken.json")
    assert not os.path.lexists(place(store, "taken.json"))
    assert Path("/etc/passwd").read_bytes() == passwd


@pytest.mark.parametrize("plant", PLANTS)
def test_a_mark_that_is_no_file_of_the_node_is_not_read(store: Store, plant: Callable[[Path], None]) -> None:
    entrusted(store, ALICE)
    place(store, "policy.mark").unlink()
    with acting_as(ALICE):
        plant(place(store, "policy.mark"))
    if plant is plant_link:
        assert store.read(f"{NODE}/policy.mark") == b"x"  # its own, whatever it holds
    else:
        with pytest.raises(StoreError):
            store.read(f"{NODE}/policy.mark")
    entrusted(store, BOB)  # nothing of it keeps a move from ending
    store.write(f"{NODE}/policy.mark", b"distsec_mark 1 9\n")
    assert store.read(f"{NODE}/policy.mark") == b"distsec_mark 1 9\n"


def test_a_place_that_is_taken_again_and_again_is_won(store: Store) -> None:
    entrusted(store, ALICE)
    target, stop = place(store, "probes.json"), threading.Event()
    target.unlink()

    def take_it() -> None:
        with acting_as(ALICE):
            while not stop.is_set():
                for step in (target.mkdir, target.rmdir):
                    try:
                        step()
                    except OSError:
                        continue

    thread = threading.Thread(target=take_it)
    thread.start()
    try:
        for number in range(30):
            store.write(f"{NODE}/probes.json", b"%d" % number)
            assert store.read(f"{NODE}/probes.json") == b"%d" % number
            target.unlink()
    finally:
        stop.set()
        thread.join()


def test_a_directory_that_takes_the_name_of_a_temporary_file_costs_neither_the_write_nor_a_descriptor(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node sees its name in the directory, and makes one as soon as the file has gone from there: one in
    eight writes failed so, each with a descriptor that was never closed.
    """
    entrusted(store, ALICE)
    rename = os.rename

    def raced(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        with acting_as(ALICE):
            os.mkdir(source, dir_fd=src_dir_fd)

    monkeypatch.setattr(os, "rename", raced)
    before = closed_what_is_left()
    for number in range(3):
        store.write(f"{NODE}/policy.term", b"%d" % number)
        assert store.read(f"{NODE}/policy.term") == b"%d" % number
    assert open_descriptors() == before


def test_what_becomes_a_directory_meanwhile_is_discarded_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrusted(store, ALICE)
    place(store, "taken.json").write_bytes(b"")
    unlink, races = os.unlink, [True]

    def raced(name: str, *, dir_fd: int) -> None:
        if races:
            races.pop()
            unlink(name, dir_fd=dir_fd)
            with acting_as(ALICE):
                os.mkdir(name, dir_fd=dir_fd)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", raced)
    store.discard(f"{NODE}/taken.json")
    assert not store.exists(f"{NODE}/taken.json") and not races
    store.discard(f"{NODE}/taken.json")
    store.discard("nodes/nobody@host/taken.json")


@pytest.mark.parametrize("plant", [None, *PLANTS])
def test_the_agents_socket_is_for_the_group_whatever_was_in_its_place(
    store: Store, plant: Callable[[Path], None] | None
) -> None:
    entrusted(store, ALICE)
    path = place(store, forms.AGENT_SOCKET)
    if plant is not None:
        with acting_as(ALICE):
            plant(path)
    listening = listen(path, gid=ALICE.gid)
    try:
        assert shape(path) == (0o660, 0, ALICE.gid)
        for account, may in ((ALICE, True), (BOB, False)):
            with socket.socket(socket.AF_UNIX) as client, acting_as(account):
                if may:
                    client.connect(str(path))
                else:
                    with pytest.raises(PermissionError):
                        client.connect(str(path))
        with acting_as(ALICE), pytest.raises(PermissionError):
            path.unlink()
    finally:
        listening.close()
    assert not path.exists()


def test_a_socket_for_a_group_wants_the_directory_of_that_group(store: Store) -> None:
    for account in (None, BOB):
        entrusted(store, account)
        with pytest.raises(StoreError, match="ours alone"):
            listen(place(store, forms.AGENT_SOCKET), gid=ALICE.gid)


def test_a_node_that_fills_its_directory_makes_our_writes_no_slower(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrusted(store, ALICE)
    looked: list[str] = []
    monkeypatch.setattr(files, "_remove_if_abandoned", lambda directory, name: looked.append(name))
    with acting_as(ALICE):
        for number in range(3000):
            os.mkfifo(place(store, f"{files.TEMPORARY_PREFIX}{number}"))
    store.write(f"{NODE}/probes.json", b"{}")
    assert 0 < len(looked) <= 1000


def test_a_directory_in_a_files_place_is_not_already_that_file_and_costs_no_descriptor(
    tmp_path: Path,
) -> None:
    (tmp_path / "x").mkdir()
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        before = closed_what_is_left()
        assert not files.is_already(directory, "x", b"", files.Form(0o755))
        assert open_descriptors() == before
    finally:
        os.close(directory)
