"""The output log: appending, rotating, a full disk, and a node that tampers with its own directory."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from distsec.beam.logs import OutputLog, Rotation
from distsec.errors import StoreError

MAX = 1000


@pytest.fixture
def log(tmp_path: Path) -> OutputLog:
    (tmp_path / "log").mkdir(mode=0o700)
    return OutputLog(tmp_path / "log" / "output.log", MAX)


def append(log: OutputLog, content: bytes) -> None:
    descriptor = log.open()
    os.write(descriptor, content)
    os.close(descriptor)


def copies(log: OutputLog) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in log.path.parent.iterdir() if path.name != log.path.name}


# ---- appending --------------------------------------------------------------------------------------------


def test_is_private_from_the_start_whatever_the_umask(log: OutputLog) -> None:
    before = os.umask(0)
    try:
        append(log, b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_a_log_that_was_wider_becomes_private(log: OutputLog) -> None:
    log.path.write_bytes(b"old\n")
    log.path.chmod(0o644)
    append(log, b"new\n")
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert log.path.read_bytes() == b"old\nnew\n"


def test_no_child_inherits_it_by_accident(log: OutputLog) -> None:
    descriptor = log.open()
    assert not os.get_inheritable(descriptor)
    assert os.get_blocking(descriptor)
    os.close(descriptor)


# ---- rotating ---------------------------------------------------------------------------------------------


def test_a_short_log_is_left_alone(log: OutputLog) -> None:
    assert log.rotate() is None
    append(log, b"x" * MAX)
    assert log.rotate() is None
    assert copies(log) == {}


def test_a_long_log_is_copied_and_its_writer_goes_on_at_the_beginning(log: OutputLog) -> None:
    writer = log.open()
    os.write(writer, b"a" * MAX + b"b")
    assert log.rotate() == Rotation(kept=MAX, lost=1)
    os.write(writer, b"after")
    os.close(writer)
    assert log.path.read_bytes() == b"after"
    assert copies(log) == {"output.log.1": b"a" * (MAX - 1) + b"b"}
    assert stat.S_IMODE((log.path.parent / "output.log.1").stat().st_mode) == 0o600


def test_of_a_log_that_grew_far_too_long_the_newest_is_kept(log: OutputLog) -> None:
    append(log, b"old" * MAX + b"n" * MAX)
    assert log.rotate() == Rotation(kept=MAX, lost=3 * MAX)
    assert copies(log) == {"output.log.1": b"n" * MAX}


def test_three_copies_are_kept_the_newest_first(log: OutputLog) -> None:
    for letter in b"abcde":
        append(log, bytes([letter]) * (MAX + 1))
        log.rotate()
    assert copies(log) == {
        "output.log.1": b"e" * MAX,
        "output.log.2": b"d" * MAX,
        "output.log.3": b"c" * MAX,
    }


def test_what_an_interrupted_rotation_left_is_replaced(log: OutputLog) -> None:
    append(log, b"x" * (MAX + 1))
    (log.path.parent / "output.log.new").write_bytes(b"half of it")
    log.rotate()
    assert copies(log) == {"output.log.1": b"x" * MAX}


def test_a_writer_that_never_pauses_loses_no_more_than_is_said(tmp_path: Path) -> None:
    log = OutputLog(tmp_path / "log" / "output.log", 64 * 1024)
    log.path.parent.mkdir()
    enough = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        descriptor = log.open()
        while not enough.is_set():
            written += os.write(descriptor, b"0123456789abcde\n")
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    rotations: list[Rotation] = []
    while len(rotations) < 5:
        if (rotation := log.rotate()) is not None:
            rotations.append(rotation)
    enough.set()
    writer.join()
    for name, content in copies(log).items():
        assert set(content.splitlines()[1:-1]) == {b"0123456789abcde"}, f"{name} has a hole"
    told = sum(rotation.kept + rotation.lost for rotation in rotations) + log.path.stat().st_size
    assert told <= written
    assert all(rotation.kept <= 2 * log.max_bytes for rotation in rotations)


# ---- a full disk ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> OutputLog:
    """A log on a file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs to mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    (disk / "log").mkdir()
    return OutputLog(disk / "log" / "output.log", 16 * 1024)


@pytest.fixture(autouse=True)
def _unmounted(tmp_path: Path) -> object:
    yield
    if (tmp_path / "disk").is_mount():
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_on_a_full_disk_old_copies_make_room_for_the_newest(small_disk: OutputLog) -> None:
    for letter in b"abcd":
        append(small_disk, bytes([letter]) * (16 * 1024 + 1))
        assert small_disk.rotate() == Rotation(kept=16 * 1024, lost=1)
    found = copies(small_disk)
    assert found["output.log.1"] == b"d" * 16 * 1024
    assert "output.log.3" not in found


def test_on_a_disk_with_no_room_at_all_the_log_is_truncated_without_a_copy(small_disk: OutputLog) -> None:
    (small_disk.path.parent / "application").write_bytes(b"x" * 40 * 1024)
    append(small_disk, b"x" * (20 * 1024))
    assert small_disk.rotate() == Rotation(kept=0, lost=20 * 1024)
    assert small_disk.path.stat().st_size == 0
    assert set(copies(small_disk)) == {"application"}


def test_a_disk_without_room_for_even_a_name_still_has_its_log_truncated(
    log: OutputLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, b"x" * (MAX + 1))
    really = os.open

    def full(path: object, flags: int, *more: object, **named: object) -> int:
        if str(path).endswith(".new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", full)
    assert log.rotate() == Rotation(kept=0, lost=MAX + 1)
    assert log.path.stat().st_size == 0


# ---- a node that owns the directory and tampers with it ---------------------------------------------------


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the orchestrator that a node would like to see overwritten, chmodded or copied."""
    path = tmp_path / "precious"
    path.write_bytes(b"p" * (2 * MAX))
    path.chmod(0o640)
    return path


def untouched(precious: Path) -> bool:
    return precious.read_bytes() == b"p" * (2 * MAX) and stat.S_IMODE(precious.stat().st_mode) == 0o640


@pytest.mark.parametrize("way", ["symlink_to", "hardlink_to"])
def test_a_link_in_place_of_the_log_is_refused(log: OutputLog, precious: Path, way: str) -> None:
    getattr(log.path, way)(precious)
    for use in (log.open, log.rotate):
        with pytest.raises(StoreError, match="link"):
            use()
    assert untouched(precious)


def test_a_symlink_in_place_of_the_directory_is_refused(tmp_path: Path, log: OutputLog) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    log.path.parent.rmdir()
    log.path.parent.symlink_to(elsewhere)
    for use in (log.open, log.rotate):
        with pytest.raises(StoreError, match="directory"):
            use()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_no_regular_file_is_refused_without_waiting(log: OutputLog, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(log.path)
    else:
        log.path.mkdir()
    for use in (log.open, log.rotate):
        with pytest.raises(StoreError):
            use()


def test_links_in_place_of_the_copies_lead_nowhere(log: OutputLog, precious: Path) -> None:
    for name in ("output.log.new", "output.log.1", "output.log.2", "output.log.3"):
        (log.path.parent / name).symlink_to(precious)
    append(log, b"x" * (MAX + 1))
    assert log.rotate() == Rotation(kept=MAX, lost=1)
    newest = log.path.parent / "output.log.1"
    assert not newest.is_symlink() and newest.read_bytes() == b"x" * MAX
    assert untouched(precious)


@pytest.mark.parametrize("name", ["output.log.new", "output.log.1", "output.log.2"])
def test_a_directory_in_place_of_a_copy_makes_way_and_is_kept(log: OutputLog, name: str) -> None:
    (log.path.parent / name).mkdir()
    (log.path.parent / name / "precious").write_bytes(b"x")
    append(log, b"x" * (MAX + 1))
    assert log.rotate() == Rotation(kept=MAX, lost=1)
    assert (log.path.parent / "output.log.1").read_bytes() == b"x" * MAX
    assert [path.read_bytes() for path in log.path.parent.glob("*/precious")] == [b"x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_log_of_another_user_is_refused(log: OutputLog) -> None:
    log.path.write_bytes(b"x")
    os.chown(log.path, 65534, 65534)
    with pytest.raises(StoreError, match="uid 65534"):
        log.open()


def test_a_log_without_its_directory_is_refused(log: OutputLog) -> None:
    log.path.parent.rmdir()
    with pytest.raises(StoreError, match="directory"):
        log.open()
