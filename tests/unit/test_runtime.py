"""Which erl a command uses, and its release."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from distsec.beam import runtime
from distsec.beam.runtime import LIBRARIES, check_release, find_erl, find_libraries, find_program, inspect
from distsec.errors import RuntimeMissing
from distsec.model.cluster import OLDEST_RELEASE, PROVEN_RELEASES


def script(path: Path, content: str = "exit 1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return path


def installation(root: Path, release: str, version: str | None = None, erts: str = "15.2") -> Path:
    """The files of an OTP installation that tell its release; its erl only fails."""
    (root / f"erts-{erts}").mkdir(parents=True)
    (root / "releases" / release).mkdir(parents=True)
    (root / "releases" / "start_erl.data").write_text(f"{erts} {release}\n")
    if version is not None:
        (root / "releases" / release / "OTP_VERSION").write_text(version)
    return script(root / "bin" / "erl")


@pytest.fixture
def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/"}


# ---- releases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", sorted(PROVEN_RELEASES))
def test_a_release_of_the_test_suite_is_proven(release: int) -> None:
    assert check_release(release) == "proven"


@pytest.mark.parametrize("release", [26, 28, 30, 99])
def test_another_release_is_unproven(release: int) -> None:
    assert check_release(release) == "unproven"


def test_a_release_that_is_too_old_is_refused_and_the_way_out_named() -> None:
    with pytest.raises(RuntimeMissing, match=r"OTP 24 is too old: 25 is the oldest; install Erlang/OTP 25"):
        check_release(24)
    assert OLDEST_RELEASE == 25


# ---- finding erl ------------------------------------------------------------------------------------------


def test_finds_the_erl_of_the_path_that_the_node_gets(tmp_path: Path) -> None:
    erl = script(tmp_path / "bin" / "erl")
    elixir = script(tmp_path / "bin" / "elixir")
    environment = {"PATH": f"{tmp_path / 'nowhere'}:{tmp_path / 'bin'}"}
    assert find_erl(["erl", "-noinput"], environment, tmp_path) == erl
    assert find_erl([str(elixir), "app.exs"], environment, tmp_path) == erl
    assert find_erl([str(erl)], {"PATH": "/nonexistent"}, tmp_path) == erl


def test_a_command_that_may_bring_its_own_erts_is_not_guessed_about(tmp_path: Path) -> None:
    server = script(tmp_path / "rabbitmq-server")
    assert find_erl([str(server)], {"PATH": "/nonexistent"}, tmp_path) is None


def test_a_relative_program_is_looked_for_in_the_working_directory(tmp_path: Path) -> None:
    program = script(tmp_path / "rel" / "bin" / "app")
    assert find_program("rel/bin/app", {}, tmp_path) == program
    assert find_program("./app", {}, program.parent) == program.parent / "app"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("erl", "erlang-base"),
        ("elixir", "install Elixir"),
        ("my-app", "absolute path"),
        ("/nowhere/my-app", "does not exist"),
        ("/", "is no program"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(command: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissing, match=says) as caught:
        find_erl([command], {"PATH": str(tmp_path)}, tmp_path)
    assert caught.value.do and "\n" not in str(caught.value)


def test_elixir_without_erl_asks_for_erlang(tmp_path: Path) -> None:
    elixir = script(tmp_path / "elixir")
    with pytest.raises(RuntimeMissing, match="erl is not on the PATH"):
        find_erl([str(elixir)], {"PATH": str(tmp_path)}, tmp_path)


def test_a_file_that_is_not_executable_is_named_so(tmp_path: Path) -> None:
    program = script(tmp_path / "app")
    program.chmod(stat.S_IRUSR)
    with pytest.raises(RuntimeMissing, match="chmod"):
        find_program(str(program), {}, tmp_path)


# ---- reading its release ----------------------------------------------------------------------------------


def test_reads_the_release_from_the_files_and_runs_nothing(tmp_path: Path) -> None:
    found = inspect(installation(tmp_path, "27", "27.3.4.1\n"), {})
    assert (found.release, found.version, found.support) == (27, "27.3.4.1", "proven")


def test_an_erl_on_the_path_that_is_a_symlink_is_followed(tmp_path: Path) -> None:
    installation(tmp_path / "otp", "26", "26.2.5")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "erl").symlink_to(tmp_path / "otp" / "bin" / "erl")
    found = inspect(tmp_path / "bin" / "erl", {})
    assert (found.release, found.support) == (26, "unproven")


def test_a_script_elsewhere_names_its_root(tmp_path: Path) -> None:
    installation(tmp_path / "otp", "25", "25.2.3")
    erl = script(tmp_path / "bin" / "erl", f"ROOTDIR={tmp_path / 'otp'}\nexit 1")
    assert inspect(erl, {}).version == "25.2.3"


def test_a_release_without_its_version_file_is_shown_by_its_number(tmp_path: Path) -> None:
    assert inspect(installation(tmp_path, "29"), {}).version == "29"


def test_a_version_file_that_holds_anything_else_is_not_shown(tmp_path: Path) -> None:
    assert inspect(installation(tmp_path, "29", "29\x1b]0;owned\x07"), {}).version == "29"


def test_files_that_tell_nothing_lead_to_running_it_once(tmp_path: Path) -> None:
    erl = script(tmp_path / "bin" / "erl", "printf 28")
    found = inspect(erl, {"PATH": os.environ["PATH"]})
    assert (found.release, found.version, found.support) == (28, "28", "unproven")


def test_stale_files_of_an_erts_that_is_gone_are_not_believed(tmp_path: Path) -> None:
    erl = installation(tmp_path, "24")
    (tmp_path / "erts-15.2").rmdir()
    script(erl, "printf 27")
    assert inspect(erl, {"PATH": os.environ["PATH"]}).release == 27


@pytest.mark.parametrize("version", ["A" * 252, "a/" * 100, "\0"])
def test_what_the_files_name_and_no_path_can_be_is_not_believed(tmp_path: Path, version: str) -> None:
    erl = installation(tmp_path, "24")
    (tmp_path / "releases" / "start_erl.data").write_text(f"{version} 27")
    script(erl, "printf 27")
    assert inspect(erl, {"PATH": os.environ["PATH"]}).release == 27


def test_an_old_installation_is_refused_from_its_files(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissing, match="OTP 24 is too old"):
        inspect(installation(tmp_path, "24"), {})


@pytest.mark.parametrize("content", ["exit 1", "echo 'no such file'", "printf 12345678"])
def test_an_erl_that_does_not_tell_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(RuntimeMissing, match="does not tell"):
        inspect(script(tmp_path / "bin" / "erl", content), {"PATH": os.environ["PATH"]})


def test_an_erl_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ASK_DEADLINE_SECONDS", 0.2)
    with pytest.raises(RuntimeMissing, match="does not tell"):
        inspect(script(tmp_path / "bin" / "erl", "exec sleep 60"), {"PATH": os.environ["PATH"]})


def test_what_the_node_could_put_there_holds_nobody_up_and_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that its own user can write to is read and run as that user, by whoever starts the node."""
    monkeypatch.setattr(runtime, "ASK_DEADLINE_SECONDS", 50.0)
    erl = script(tmp_path / "bin" / "erl", f"ps -o sid= $$ >{tmp_path}/session; exec yes 27")
    (tmp_path / "releases").mkdir()
    os.mkfifo(tmp_path / "releases" / "start_erl.data")
    signal.alarm(60)  # a FIFO that is waited for
    try:
        began = time.monotonic()
        with pytest.raises(RuntimeMissing, match="does not tell"):
            inspect(erl, {"PATH": os.environ["PATH"]})
        assert time.monotonic() - began < 40, "it was not read to the end"
    finally:
        signal.alarm(0)
    assert int((tmp_path / "session").read_text()) != os.getsid(0), "it could type into our terminal"


def test_files_and_a_run_tell_the_same_of_a_real_installation(otp: Any, environment: dict[str, str]) -> None:
    found = inspect(Path(otp.erl), environment)
    assert found.release == otp.release
    assert found.version.split(".")[0] == str(otp.release) and "." in found.version
    assert runtime._ask(Path(otp.erl), environment) == otp.release


# ---- libraries for a release that lacks them --------------------------------------------------------------


def library(directory: Path, name: str) -> str:
    ebin = directory / name / "ebin"
    ebin.mkdir(parents=True)
    (ebin / f"{name.partition('-')[0]}.app").touch()
    return str(ebin)


def test_the_newest_of_each_library_is_found(tmp_path: Path) -> None:
    for name in ("ssl-9.6.2", "ssl-10.9", "ssl-10.10", "crypto-5.1", "asn1-5.0.21", "public_key-1.13"):
        library(tmp_path, name)
    (tmp_path / "ssl-11.0/src").mkdir(parents=True)  # sources without code
    library(tmp_path, "ssl_extra-99")
    wanted = ("asn1-5.0.21", "crypto-5.1", "public_key-1.13", "ssl-10.10")
    assert find_libraries(tmp_path) == tuple(f"{tmp_path}/{name}/ebin" for name in wanted)


@pytest.mark.parametrize("missing", LIBRARIES)
def test_a_library_that_is_not_there_is_named(missing: str, tmp_path: Path) -> None:
    for name in LIBRARIES:
        if name != missing:
            library(tmp_path, f"{name}-1.0")
    with pytest.raises(RuntimeMissing, match=f"there is no {missing}; set otp_libraries"):
        find_libraries(tmp_path)


def test_a_directory_of_libraries_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissing, match="nowhere: there is no asn1"):
        find_libraries(tmp_path / "nowhere")
