"""What is in the wheel, that it is the same whoever makes it, and that its Erlang part can be made again."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hatch_build
from distsec import __version__
from distsec.beam import agent
from distsec.errors import RuntimeMissing
from distsec.model.cluster import OLDEST_RELEASE
from tests.packaging.made import MAKE_SECONDS, build_environment, done
from tests.releases import OTPS, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # what is made once may take long


def test_the_wheel_has_the_agent_compiled_and_as_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        built = archive.read("distsec/agent/ebin/.built").split()
        application = archive.read("distsec/agent/ebin/distsec.app").decode()
    sources = {path.stem for path in (ROOT / "erlang/src").glob("*.erl")}
    assert sources
    assert {Path(name).stem for name in names if name.endswith(".beam")} == sources
    assert {f"distsec/agent/src/{name}.erl" for name in sources} < names
    assert int(built[1]) == min(otp.release for otp in OTPS)
    assert f'{{vsn, "{__version__}"}}' in application


def test_the_wheel_carries_examples_manual_and_completions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = f"distsec-{__version__}.data/data/share"
    wanted = {
        "distsec/py.typed",
        f"{data}/distsec/config/demo/distsec.toml",
        f"{data}/distsec/config/systemd/distsec.service",
        f"{data}/man/man1/distsec-run.1",
        f"{data}/man/man5/distsec.toml.5",
        f"{data}/bash-completion/completions/distsec",
        f"{data}/zsh/site-functions/_distsec",
        f"{data}/fish/vendor_completions.d/distsec.fish",
    }
    assert wanted - names == set()
    configuration = {str(path.relative_to(ROOT)) for path in (ROOT / "config").rglob("*") if path.is_file()}
    assert {f"{data}/distsec/{name}" for name in configuration} - names == set()


def test_nothing_in_the_wheel_names_the_machine_that_made_it(wheel: Path, packages: Path) -> None:
    places = [str(place).encode() for place in (ROOT, packages, Path(sys.prefix))]
    with zipfile.ZipFile(wheel) as archive:
        telling = [
            name for name in archive.namelist() if any(place in archive.read(name) for place in places)
        ]
    assert telling == []


def test_the_wheel_is_the_same_bytes_when_it_is_made_from_the_sdist_elsewhere(
    wheel: Path, packages: Path, tmp_path: Path
) -> None:
    (sdist,) = packages.glob("*.tar.gz")
    done(
        *(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            sdist,
        ),
        environment=build_environment(),
        seconds=MAKE_SECONDS,
    )
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {n: one.getinfo(n).CRC for n in one.namelist()} == {
            n: other.getinfo(n).CRC for n in other.namelist()
        }
    assert again.read_bytes() == wheel.read_bytes()


def test_the_sdist_builds_what_needs_no_compiled_files_of_ours(packages: Path) -> None:
    (sdist,) = packages.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert [name for name in names if name.endswith((".beam", ".pyc", ".built"))] == []
    assert f"distsec-{__version__}/erlang/src/distsec_dist.erl" in names


def test_whoever_audits_makes_the_same_modules_from_the_wheels_sources(wheel: Path, tmp_path: Path) -> None:
    """By the command of docs/install.md."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (line,) = re.findall(r"^erlc .*$", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    ebin, again = tmp_path / "distsec/agent/ebin", tmp_path / "again"
    again.mkdir()
    words = shlex.split(line.replace("/tmp/again", str(again)))
    words = [
        build_environment()["ERLC"],
        *words[1:-1],
        *sorted(map(str, Path(tmp_path / "distsec/agent/src").glob(words[-1]))),
    ]
    relative = [Path(word).name if word.endswith(".erl") else word for word in words]
    subprocess.run(relative, cwd=tmp_path / "distsec/agent/src", check=True, timeout=MAKE_SECONDS)
    beams = sorted(path.name for path in ebin.glob("*.beam"))
    assert len(beams) > 20
    assert [name for name in beams if (again / name).read_bytes() != (ebin / name).read_bytes()] == []


def test_the_build_hook_knows_the_oldest_release() -> None:
    assert hatch_build.OLDEST_RELEASE == OLDEST_RELEASE


def test_an_agent_of_a_newer_compiler_is_named_before_an_older_node_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_directory", lambda: tmp_path)
    agent.check_agent(25)  # nobody noted what it was compiled with
    (tmp_path / agent.BUILT).write_text("0123abc 27\n")
    agent.check_agent(27)
    with pytest.raises(
        RuntimeMissing, match=r"compiled with OTP 27, which OTP 25 cannot load; .*published wheel"
    ):
        agent.check_agent(25)


def test_only_the_oldest_compiler_makes_what_is_published(tmp_path: Path) -> None:
    """A checkout with a compiler of a newer release, seen from the command that makes the packages."""
    checkout = tmp_path / "checkout"
    for name in ("scripts/package", "distsec/agent/ebin/.built"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / "scripts/package").write_bytes((ROOT / "scripts/package").read_bytes())
    (checkout / "distsec/agent/ebin/.built").write_text("0123abc 27\n")
    (checkout / "scripts/build-agent").write_text("#!/bin/sh\n")
    (checkout / "scripts/build-agent").chmod(0o755)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (checkout / ".venv/bin/python").chmod(0o755)
    ended = subprocess.run(
        ["bash", checkout / "scripts/package", "--out", tmp_path / "out"],
        env={**build_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=MAKE_SECONDS,
    )
    assert ended.returncode == 72
    assert ended.stderr == (
        "scripts/package: the agent was compiled with OTP 27;"
        f" let ERLC name the erlc of OTP {OLDEST_RELEASE}, or say --any-otp\n"
    )
