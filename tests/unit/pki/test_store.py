"""The state directory under attack and bad luck: modes, owners, symlinks, full disks, crashes, races."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsec.errors import StoreError
from distsec.pki import files
from distsec.pki.store import Store

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
SOMEBODY_ELSE = 12345


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def everything_below(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277])
def test_directories_are_0700_and_files_0600_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        store = Store(tmp_path / "state")
        store.create("nodes/a@host/key.pem", b"key")
        store.write("nodes/a@host/dist.conf", b"conf")
        store.ensure_directory("nodes/a@host/log")
        with store.locked():
            pass
    for path in (tmp_path / "state", *(tmp_path / "state").rglob("*")):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_a_file_is_private_before_it_has_its_first_byte(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    write = os.write

    def looking(descriptor: int, content: bytes) -> int:
        found = os.fstat(descriptor)
        seen.append((stat.S_IMODE(found.st_mode), found.st_size))
        return write(descriptor, content)

    def tightening(descriptor: int, bits: int) -> None:
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077 == 0, "open to others for a moment"
        fchmod(descriptor, bits)

    fchmod = os.fchmod
    monkeypatch.setattr(os, "fchmod", tightening)
    monkeypatch.setattr(os, "write", looking)
    with umask(0):
        store.create("key.pem", b"key")
        store.write("key.pem", b"another")
    assert seen == [(0o600, 0), (0o600, 0)]


def test_create_never_replaces_and_says_so(store: Store) -> None:
    assert store.create("ca/key.pem", b"first") is True
    assert store.create("ca/key.pem", b"second") is False
    assert store.read("ca/key.pem") == b"first"


def test_write_replaces_all_of_the_content(store: Store) -> None:
    store.write("ports.json", b"a long first content")
    store.write("ports.json", b"short")
    assert store.read("ports.json") == b"short"
    assert store.exists("ports.json")
    assert not store.exists("other.json")
    assert not store.exists("no/such/directory")


def test_reading_what_is_not_there_is_an_error_with_a_way_out(store: Store) -> None:
    with pytest.raises(StoreError, match=r"ca/key\.pem: does not exist; run `distsec init`"):
        store.create("ca/other", b"")
        store.read("ca/key.pem")
    with pytest.raises(StoreError, match="nodes: does not exist"):
        store.read("nodes/key.pem")


@pytest.mark.parametrize("where", ["state", "state/ca", "state/ca/key.pem"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_symlink_anywhere_below_the_root_is_refused(tmp_path: Path, where: str, dangling: bool) -> None:
    target = tmp_path / "elsewhere"
    if not dangling:
        target.mkdir(mode=0o700)
        if where.endswith("key.pem"):
            target = target / "file"
            target.write_bytes(b"precious")
            target.chmod(0o600)
    link = tmp_path / where
    link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    (tmp_path / "state").chmod(0o700) if where != "state" else None
    if where.endswith("key.pem"):
        link.parent.chmod(0o700)
    link.symlink_to(target)
    before = everything_below(tmp_path)
    for attempt in (
        lambda: Store(tmp_path / "state").read("ca/key.pem"),
        lambda: Store(tmp_path / "state").write("ca/key.pem", b"new"),
    ):
        with pytest.raises(StoreError, match="is a symbolic link, which is refused"):
            attempt()
    assert everything_below(tmp_path) == before


def test_create_does_not_follow_a_symlink_that_lies_in_wait(store: Store, tmp_path: Path) -> None:
    store.ensure_directory("ca")
    (store.root / "ca/key.pem").symlink_to(tmp_path / "stolen")
    assert store.create("ca/key.pem", b"secret") is False
    assert not (tmp_path / "stolen").exists()


def test_symlinks_above_the_root_are_the_operators_own_business(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    Store(tmp_path / "link" / "state").write("file", b"x")
    assert (tmp_path / "real/state/file").read_bytes() == b"x"


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o601])
def test_a_private_file_that_others_can_reach_is_refused_with_the_command_to_run(
    store: Store, bits: int
) -> None:
    store.write("ca/key.pem", b"key")
    path = store.root / "ca/key.pem"
    path.chmod(bits)
    for attempt in (lambda: store.read("ca/key.pem"), lambda: store.write("ca/key.pem", b"other")):
        with pytest.raises(StoreError, match=f"mode 0{bits:o}") as caught:
            attempt()
        command = str(caught.value).rpartition("run: ")[2]
        assert command == f"chmod u=rw,go= {path}"
    subprocess.run(["sh", "-c", command], check=True)
    assert store.read("ca/key.pem") == b"key"


@pytest.mark.parametrize("directory", ["", "ca"])
def test_a_directory_that_others_can_enter_is_refused(store: Store, directory: str) -> None:
    store.write("ca/key.pem", b"key")
    (store.root / directory).chmod(0o750)
    with pytest.raises(StoreError, match=r"mode 0750.*chmod u=rwx,go= "):
        store.read("ca/key.pem")


@as_root
@pytest.mark.parametrize("what", ["", "ca", "ca/key.pem"])
def test_what_belongs_to_somebody_else_is_refused(store: Store, what: str) -> None:
    store.write("ca/key.pem", b"key")
    os.chown(store.root / what, SOMEBODY_ELSE, -1)
    for attempt in (lambda: store.read("ca/key.pem"), lambda: store.write("ca/key.pem", b"x")):
        with pytest.raises(StoreError, match=f"belongs to uid {SOMEBODY_ELSE}"):
            attempt()
    assert (store.root / "ca/key.pem").read_bytes() == b"key"


@as_root
def test_a_state_directory_of_another_user_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", SOMEBODY_ELSE, -1)
    with pytest.raises(StoreError, match="run as that user"):
        Store(tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


def test_a_named_pipe_in_place_of_a_file_does_not_hang(store: Store) -> None:
    store.ensure_directory("ca")
    os.mkfifo(store.root / "ca/key.pem", 0o600)
    for attempt in (lambda: store.read("ca/key.pem"), lambda: store.write("ca/key.pem", b"x")):
        with pytest.raises(StoreError, match="is not a regular file"):
            attempt()


def test_a_file_in_place_of_a_directory_is_an_error(store: Store) -> None:
    store.write("ca", b"")
    with pytest.raises(StoreError, match="ca: not a directory"):
        store.write("ca/key.pem", b"x")


def test_a_file_that_is_far_too_large_is_not_read_whole(store: Store) -> None:
    store.write("policy.overlay", b"")
    os.truncate(store.root / "policy.overlay", 1 << 40)
    with pytest.raises(StoreError, match="is larger than"):
        store.read("policy.overlay")


@given(st.text(max_size=20), st.sampled_from(["../{}", "a/../../{}", "/{}", "nodes/../..//{}"]))
def test_no_path_leads_out_of_the_state_directory(name: str, form: str) -> None:
    store = object.__new__(Store)
    store.root = Path("/nonexistent/state")
    for operation in (store.path, store.read, store.exists, store.ensure_directory):
        with pytest.raises(StoreError, match="leads out of the state directory"):
            operation(form.format(name))


# ---- bad luck
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    store.write("policy.overlay", b"old")
    before = everything_below(store.root)

    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    for attempt in (lambda: store.write("policy.overlay", b"new"), lambda: store.create("key.pem", b"new")):
        with pytest.raises(StoreError, match="the disk is full; nothing was changed; make room"):
            attempt()
    assert everything_below(store.root) == before


@pytest.mark.parametrize("form", ["private", "entrusted"])
def test_what_is_there_already_needs_no_room(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "state")
    store.write("nodes/a@h/trust.pem", b"content")
    if form == "entrusted":
        (tmp_path / "state/nodes/a@h").chmod(0o1770)
        (tmp_path / "state/nodes/a@h/trust.pem").chmod(0o640)
    path = tmp_path / "state/nodes/a@h/trust.pem"
    before = path.stat()[:4], path.stat().st_mtime_ns

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "_write_all", full)
    store.write("nodes/a@h/trust.pem", b"content")
    assert not store.create("nodes/a@h/trust.pem", b"another")
    assert (path.stat()[:4], path.stat().st_mtime_ns) == before
    for content in (b"contenT", b"content\n", b"conten", b""):
        with pytest.raises(StoreError, match="the disk is full"):
            store.write("nodes/a@h/trust.pem", content)
    assert path.read_bytes() == b"content"


def test_what_is_there_in_another_form_is_written_anew(store: Store, tmp_path: Path) -> None:
    store.write("file", b"content")
    path = store.path("file")
    path.chmod(0o400)
    store.write("file", b"content")
    assert path.stat().st_mode & 0o7777 == 0o600

    os.link(path, tmp_path / "another name")
    store.write("file", b"content")
    assert (path.stat().st_nlink, path.read_bytes()) == (1, b"content")

    path.chmod(0o644)
    with pytest.raises(StoreError, match="can be reached by other users"):
        store.write("file", b"content")


@as_root
def test_what_somebody_else_has_put_there_is_not_taken_for_ours(store: Store) -> None:
    store.write("file", b"content")
    os.chown(store.path("file"), SOMEBODY_ELSE, -1)
    with pytest.raises(StoreError, match="belongs to"):
        store.write("file", b"content")
    store.write("nodes/a@h/trust.pem", b"content")
    directory, path = store.path("nodes/a@h"), store.path("nodes/a@h/trust.pem")
    os.chown(directory, -1, SOMEBODY_ELSE)
    directory.chmod(0o1770)
    for uid, gid, mode in ((SOMEBODY_ELSE, SOMEBODY_ELSE, 0o640), (0, 0, 0o640), (0, SOMEBODY_ELSE, 0o600)):
        os.chown(path, uid, gid)
        path.chmod(mode)
        store.write("nodes/a@h/trust.pem", b"content")
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (os.geteuid(), SOMEBODY_ELSE, 0o640)


def test_a_disk_that_fills_in_the_middle_of_a_file_changes_nothing(store: Store) -> None:
    store.write("policy.overlay", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StoreError, match="nothing was changed"):
            store.write("policy.overlay", b"n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything_below(store.root) == {"policy.overlay": b"old"}


def test_short_writes_are_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:3]))
    store.write("policy.overlay", b"0123456789")
    assert store.read("policy.overlay") == b"0123456789"


STEPS = [
    (operation, call)
    for operation, last in (("write", "rename"), ("create", "link"))
    for call in ("fchmod", "write", "fsync", last)
]


@pytest.mark.parametrize(("operation", "call"), STEPS)
def test_a_writer_that_is_killed_changes_nothing_and_a_later_one_tidies_up(
    store: Store, operation: str, call: str
) -> None:
    """A child dies inside `call`, as by kill -9 or a power cut."""
    name = {"write": "policy", "create": "key.pem"}[operation]
    store.write("ca/policy", b"old")
    script = f"""
import os, sys
from pathlib import Path
from distsec.pki.store import Store
store = Store(Path(sys.argv[1]))
os.{call} = lambda *a, **k: os._exit(9)
store.{operation}("ca/{name}", b"new")
"""
    died = subprocess.run([sys.executable, "-c", script, str(store.root)], check=False)
    assert died.returncode == 9
    assert store.read("ca/policy") == b"old"
    assert not store.exists("ca/key.pem")
    assert any(path.name.startswith(files.TEMPORARY_PREFIX) for path in (store.root / "ca").iterdir())
    store.write("ca/policy", b"newer")
    assert [path.name for path in (store.root / "ca").iterdir()] == ["policy"]


def test_a_temporary_file_that_is_still_being_written_is_left_alone(store: Store) -> None:
    store.ensure_directory("ca")
    busy = store.root / "ca" / f"{files.TEMPORARY_PREFIX}0123"
    with busy.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        store.write("ca/policy", b"x")
        assert busy.exists()
    store.write("ca/policy", b"y")
    assert not busy.exists()


def test_of_many_that_create_the_same_file_exactly_one_wins(store: Store) -> None:
    wins: list[bytes] = []
    start = threading.Barrier(8)

    def race(content: bytes) -> None:
        start.wait()
        if store.create("ca/key.pem", content):
            wins.append(content)

    threads = [threading.Thread(target=race, args=(b"%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.read("ca/key.pem")] == wins
    assert sorted(path.name for path in (store.root / "ca").iterdir()) == ["key.pem"]


def test_readers_see_the_old_or_the_new_content_and_nothing_between(store: Store) -> None:
    contents = {b"a" * 40_000, b"b" * 90_000}
    store.write("policy", b"a" * 40_000)
    done = threading.Event()

    def keep_writing() -> None:
        for content in [*contents] * 30:
            store.write("policy", content)
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    reads = 0
    while not done.is_set() or not reads:
        assert store.read("policy") in contents
        reads += 1
    writer.join()


def test_the_lock_is_for_one_at_a_time_and_waiting_ends(store: Store) -> None:
    with (
        store.locked(),
        pytest.raises(StoreError, match="another distsec is changing this state directory"),
        Store(store.root).locked(wait_seconds=0.0),
    ):
        pytest.fail("two held the lock")
    with store.locked(wait_seconds=0.0):
        pass


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter; pytest's own cannot be."""
    path = Path(tempfile.mkdtemp(prefix="distsec-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@as_root
def test_works_for_an_ordinary_user_and_names_what_that_user_may_not(open_directory: Path) -> None:
    """Root passes every permission check, so the refusals are looked at from a child that is not root."""
    home = open_directory / "home"
    home.mkdir()
    os.chown(home, SOMEBODY_ELSE, SOMEBODY_ELSE)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = b"crashed"
        try:
            os.setgroups([])
            os.setgid(SOMEBODY_ELSE)
            os.setuid(SOMEBODY_ELSE)
            Store(home / "state").create("ca/key.pem", b"key")
            try:
                Store(open_directory / "state")
            except StoreError as error:
                outcome = str(error).encode()
        finally:
            os.write(writing, outcome)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(child, 0)
    assert answer.startswith(f"{open_directory / 'state'}: permission denied; run as the owner"), answer
    assert mode(home / "state/ca/key.pem") == 0o600


def test_a_file_is_removed_and_one_that_is_not_there_is_not_missed(store: Store) -> None:
    store.write("nodes/a/next.pem", b"x")
    assert store.remove("nodes/a/next.pem")
    assert not store.exists("nodes/a/next.pem")
    assert not store.remove("nodes/a/next.pem")
    assert not store.remove("nodes/nobody/next.pem")


def test_way_is_made_by_moving_a_directory_and_removing_what_is_no_file(store: Store, tmp_path: Path) -> None:
    store.write("nodes/a/cookie", b"x")
    assert not store.make_way("nodes/a/cookie")
    assert not store.make_way("nodes/a/nothing")
    store.path("nodes/a/key.pem").symlink_to(tmp_path)
    os.mkfifo(store.path("nodes/a/trust.pem"))
    (store.path("nodes/a/next.pem") / "below").mkdir(parents=True)
    for name in ("key.pem", "trust.pem", "next.pem"):
        assert store.make_way(f"nodes/a/{name}")
        assert not store.exists(f"nodes/a/{name}")
    left = sorted(each.name[:17] for each in store.path("nodes/a").iterdir())
    assert left == [".distsec-spoiled-", "cookie"]
    assert next(store.path("nodes/a").glob(".distsec-spoiled-*/below")).is_dir()
    assert tmp_path.is_dir()


def test_of_a_symbolic_link_the_link_is_removed_and_of_a_directory_nothing(
    store: Store, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"x")
    store.ensure_directory("nodes/a/log")
    store.path("nodes/a/key.pem").symlink_to(target)
    assert store.remove("nodes/a/key.pem")
    assert target.read_bytes() == b"x"
    with pytest.raises(StoreError):
        store.remove("nodes/a/log")
    assert store.path("nodes/a/log").is_dir()
