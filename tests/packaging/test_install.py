"""An installation from the wheel alone, where nothing of the checkout can be reached: it runs a cluster, and
without Erlang it says what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsec import __version__
from tests.packaging.made import Installed, build_environment, done, need, run
from tests.releases import ROOT, Otp
from tests.system.cluster import RUNNING_SECONDS, STOP_SECONDS, free_ports
from tests.system.processes import end_all
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # what is made once may take long

NODE = "a@127.0.0.1"


@pytest.fixture(autouse=True)
def root() -> None:
    need(os.geteuid() == 0 and shutil.which("unshare") is not None, "root with unshare(1)")


@pytest.fixture
def place() -> Iterator[Path]:
    """Somewhere that is no checkout; short, for the sockets in it. Whatever runs there is ended."""
    directory = Path(tempfile.mkdtemp(prefix="dsp", dir="/tmp"))
    try:
        yield directory
    finally:
        end_all(directory)
        shutil.rmtree(directory)


def environment(place: Path, path: str) -> dict[str, str]:
    return {"HOME": str(place), "PATH": path, "LANG": "C.UTF-8"}


def make_cluster(installed: Installed, place: Path, variables: dict[str, str]) -> None:
    """One node, on free ports, that ends with its orchestrator."""
    done(*installed.words("init", place, "--node", NODE), environment=variables, cwd=place)
    config = place / "distsec.toml"
    text = config.read_text()
    for old, new in (
        ('on_exit = "leave"', 'on_exit = "stop"'),
        ('listen = "127.0.0.1:9911"', "listen = false"),
        ("#port = 9100\n# ", f"port = {free_ports(1)[0]}\n# "),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config.write_text(text)


def test_an_installation_from_the_wheel_runs_a_guarded_node(
    installed: Installed, place: Path, otp: Otp
) -> None:
    variables = environment(place, f"{Path(otp.erl).parent}:/usr/bin:/bin")
    make_cluster(installed, place, variables)
    with (place / "log").open("wb") as log:
        orchestrator = subprocess.Popen(
            installed.words("run"), cwd=place, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

    def status() -> dict[str, object]:
        assert orchestrator.poll() is None, (place / "log").read_text()
        answer = run(*installed.words("status", "--json"), environment=variables, cwd=place)
        nodes = json.loads(answer.stdout)["nodes"] if answer.returncode == 0 else [{}]
        return dict(nodes[0])

    def running() -> dict[str, object] | None:
        node = status()
        return node if node.get("state") == "RUNNING" else None

    node = wait_until(running, "RUNNING", RUNNING_SECONDS, poll_seconds=0.2)
    assert (node["otp"], node["agent"]) == (str(otp.release), "connected")
    arguments = Path(f"/proc/{node['pid']}/cmdline").read_text().split("\0")
    assert str(installed.package / "agent" / "ebin") in arguments
    assert [word for word in arguments if word.startswith(str(ROOT))] == []
    orchestrator.send_signal(signal.SIGTERM)
    assert orchestrator.wait(STOP_SECONDS) == 0


def test_an_installation_knows_its_version_and_has_its_manual_and_examples(installed: Installed) -> None:
    assert done(*installed.words("--version")) == f"distsec {__version__}\n"
    assert (installed.share / "man/man1/distsec-run.1").is_file()
    assert (installed.share / "distsec/config/demo/distsec.toml").is_file()
    assert (installed.package / "agent/src/distsec_dist.erl").is_file()
    typed = "import distsec.cli.group, sys; sys.exit(0 if distsec.__file__.startswith(sys.argv[1]) else 1)"
    done(installed.venv / "bin/python", "-I", "-c", typed, installed.venv)


def test_without_erlang_it_looks_and_says_what_is_missing_to_run(installed: Installed, place: Path) -> None:
    programs = place / "bin"
    programs.mkdir()
    for name in ("sh", "mount", "unshare"):
        (programs / name).symlink_to(shutil.which(name) or name)
    variables = environment(place, str(programs))
    make_cluster(installed, place, variables)

    def said(*arguments: str) -> tuple[int, str, str]:
        ended = run(*installed.words(*arguments), environment=variables, cwd=place)
        return ended.returncode, ended.stdout, ended.stderr

    assert said("--help")[0] == 0
    code, _, error = said("run")
    assert code == 72
    assert error.splitlines()[-1].startswith(
        f"distsec: erl is not on the PATH {programs}; install Erlang/OTP 25 or newer (Debian: apt-get install"
    )
    code, _, error = said("status")
    assert code == 3
    assert "no orchestrator answers" in error or "distsec run" in error
    code, text, error = said("check", "--json")
    assert code in {0, 1, 2}, error
    assert json.loads(text)["schema"] == 1


def test_the_sdist_wants_erlc_and_says_so(packages: Path, tmp_path: Path) -> None:
    (sdist,) = packages.glob("*.tar.gz")
    words = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist)
    ended = run(sys.executable, *words, environment=build_environment(ERLC="/nonexistent/erlc"))
    assert ended.returncode != 0
    told = ended.stdout + ended.stderr
    assert (
        "there is no /nonexistent/erlc; install Erlang (on Debian: erlang-base, erlang-dev), or set ERLC"
        in told
    )
    assert "a wheel without it is of no use" in told
    with contextlib.suppress(StopIteration):
        pytest.fail(f"made all the same: {next(tmp_path.glob('*.whl'))}")
