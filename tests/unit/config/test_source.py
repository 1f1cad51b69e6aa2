"""Which files are read at all: the file decides which commands run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distsec.config import source
from distsec.config.source import MAX_BYTES, read_source
from distsec.errors import ConfigError, Problem


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "distsec.toml"
    path.write_text('[cluster]\nname = "demo"\n')
    path.chmod(0o644)
    return path


def refusal(path: Path) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read_source(path)
    assert str(caught.value).startswith(f"{path}: ")
    (problem,) = caught.value.problems
    assert problem.do
    return problem


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400])
def test_reads_a_file_that_not_everybody_can_write(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_source(file) == '[cluster]\nname = "demo"\n'


def test_follows_a_symlink_to_such_a_file(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    assert read_source(link)


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o777])
def test_refuses_a_file_that_everybody_can_write(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert "everybody may write to it" in refusal(file).what


def test_refuses_a_file_of_another_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(file, 65534, -1)
    else:
        monkeypatch.setattr(source.os, "geteuid", lambda: 65534)
    assert "belongs to another user" in refusal(file).what


def test_takes_a_file_of_root(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list(file.stat())
    fields[4] = 0  # st_uid
    monkeypatch.setattr(source.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(source.os, "fstat", lambda descriptor: os.stat_result(fields))
    assert read_source(file)


def test_refuses_a_file_in_a_directory_where_everybody_can_replace_it(file: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert "everybody may replace it" in refusal(file).what
    tmp_path.chmod(0o1777)  # sticky, as /tmp is: only the owner replaces a file
    assert read_source(file)


def test_refuses_a_symlink_into_such_a_directory(file: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.toml").symlink_to(file)
    tmp_path.chmod(0o777)
    assert "everybody may replace it" in refusal(inner / "link.toml").what
    tmp_path.chmod(0o700)


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.toml").what == "there is no such file"
    assert refusal(tmp_path / "no" / "such" / "directory").what == "there is no such file"
    assert "NUL" in refusal(Path("a\x00b")).what


def test_refuses_a_file_it_may_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0)
    if os.geteuid() == 0:  # root reads everything, so say it for the system

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(source.os, "open", refuse)
    assert refusal(file).what == "cannot be opened: Permission denied"


def test_refuses_a_directory_and_names_the_file_in_it(tmp_path: Path) -> None:
    problem = refusal(tmp_path)
    assert problem.what == "is a directory"
    assert problem.do == f"name the file in it, such as {tmp_path}/distsec.toml"


def test_refuses_a_named_pipe_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").what == "is not a regular file"


def test_refuses_a_file_that_is_too_large(file: Path) -> None:
    file.write_bytes(b"#" * MAX_BYTES)
    assert read_source(file)
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    assert refusal(file).what == "is larger than 1048576 bytes"


def test_names_the_line_that_is_not_utf8(file: Path) -> None:
    file.write_bytes(b"# one\n# two\nname = '\xff'\n")
    problem = refusal(file)
    assert (problem.what, problem.line) == ("is not UTF-8", 3)
