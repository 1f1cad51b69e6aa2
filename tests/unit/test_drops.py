"""Files that somebody else puts into a node's directory: read with care, and noticed at once."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from distsec.beam.drops import INCOMING, DirectoryWatch, DropFault, read_drop

NOTICE_SECONDS = 10.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "incoming"
    found.mkdir(0o700)
    return found


def put(directory: Path, name: str, content: bytes = b"x", mode: int = 0o600) -> Path:
    path = directory / name
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_both_files_are_read_and_the_key_does_not_show(directory: Path) -> None:
    put(directory, "key.pem", b"the key")
    put(directory, "certificate.pem", b"the certificate", 0o644)  # everybody may read a certificate
    drop = read_drop(directory)
    assert drop.fault is None
    assert drop.key is not None
    assert (drop.key.reveal(), drop.certificate) == (b"the key", b"the certificate")
    assert "the key" not in repr(drop)
    assert not drop.empty


def test_a_stamp_stays_until_a_file_is_touched(directory: Path) -> None:
    put(directory, "key.pem")
    put(directory, "certificate.pem")
    stamp = read_drop(directory).stamp
    assert read_drop(directory).stamp == stamp
    os.utime(directory / "certificate.pem", ns=(1, 1))
    assert read_drop(directory).stamp != stamp


def test_nothing_and_half_of_it_are_told_apart(directory: Path, tmp_path: Path) -> None:
    assert read_drop(directory).empty
    assert read_drop(tmp_path / "not there").empty
    put(directory, "certificate.pem")
    drop = read_drop(directory)
    assert (drop.fault, drop.what, drop.empty) == (DropFault.INCOMPLETE, "key.pem missing", False)


def symbolic_link(path: Path) -> None:
    target = path.parent.parent / "target"
    target.write_bytes(b"x")
    path.symlink_to(target)


def directory_in_its_place(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # sun_path is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def readable_key(path: Path) -> None:
    put(path.parent, path.name, mode=0o640)


@pytest.mark.parametrize("make", [symbolic_link, directory_in_its_place, fifo, unix_socket, readable_key])
def test_what_is_no_private_file_of_ours_is_not_read(directory: Path, make: Callable[[Path], None]) -> None:
    make(directory / "key.pem")
    put(directory, "certificate.pem")
    drop = read_drop(directory)
    assert drop.fault is DropFault.UNSAFE_FILE
    assert drop.what.startswith("key.pem")
    assert drop.key is None


def test_a_certificate_that_others_may_write_is_not_read(directory: Path) -> None:
    put(directory, "key.pem")
    put(directory, "certificate.pem", mode=0o666)
    assert read_drop(directory).fault is DropFault.UNSAFE_FILE


def test_a_directory_that_others_may_enter_holds_nothing_that_is_read(directory: Path) -> None:
    put(directory, "key.pem")
    put(directory, "certificate.pem")
    directory.chmod(0o755)
    assert read_drop(directory).fault is DropFault.UNSAFE_FILE


def test_a_directory_that_is_a_symbolic_link_is_not_followed(directory: Path, tmp_path: Path) -> None:
    put(directory, "key.pem")
    put(directory, "certificate.pem")
    (tmp_path / "link").symlink_to(directory)
    assert read_drop(tmp_path / "link").fault is DropFault.UNSAFE_FILE


def test_more_than_a_chain_can_have_is_not_read(directory: Path) -> None:
    put(directory, "key.pem")
    put(directory, "certificate.pem", b"x" * (64 * 1024 + 1))
    drop = read_drop(directory)
    assert (drop.fault, drop.certificate) == (DropFault.TOO_LARGE, None)


# ---- inotify ----------------------------------------------------------------------------------------------


class Noticed:
    """What a DirectoryWatch has called back with."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[Path | None] = asyncio.Queue()
        self.watch = DirectoryWatch(self.seen.put_nowait)

    async def next(self) -> Path | None:
        async with asyncio.timeout(NOTICE_SECONDS):
            return await self.seen.get()


def write_in_place(directory: Path) -> None:
    put(directory, "key.pem", b"new")


def rename_over(directory: Path) -> None:
    put(directory, "aside", b"new").rename(directory / "certificate.pem")


def remove(directory: Path) -> None:
    (directory / "certificate.pem").unlink()


def link(directory: Path) -> None:
    (directory / INCOMING).symlink_to("elsewhere")


@pytest.mark.asyncio
@pytest.mark.parametrize("change", [write_in_place, rename_over, remove, link])
async def test_a_change_of_the_names_that_count_is_noticed(
    directory: Path, change: Callable[[Path], None]
) -> None:
    put(directory, "certificate.pem")
    noticed = Noticed()
    try:
        assert noticed.watch.watch(directory)
        put(directory, "policy.mark")  # the node writes that all the time
        change(directory)
        assert await noticed.next() == directory
        put(directory, "probes.json")
        put(directory, "key.pem")
        assert await noticed.next() == directory
        assert noticed.seen.empty()
    finally:
        noticed.watch.close()


@pytest.mark.asyncio
async def test_a_directory_that_is_made_anew_can_be_watched_anew(directory: Path) -> None:
    noticed = Noticed()
    try:
        assert noticed.watch.watch(directory)
        directory.rmdir()
        assert not noticed.watch.watch(directory)
        directory.mkdir(0o700)
        assert noticed.watch.watch(directory)
        put(directory, "key.pem")
        assert await noticed.next() == directory
    finally:
        noticed.watch.close()


@pytest.mark.asyncio
async def test_no_link_is_followed_to_a_directory_that_is_to_be_watched(
    directory: Path, tmp_path: Path
) -> None:
    noticed = Noticed()
    try:
        (tmp_path / "link").symlink_to(directory)
        assert not noticed.watch.watch(tmp_path / "link")
    finally:
        noticed.watch.close()
