"""What can be wrong beforehand: one line that says what, where and what to do; an exit code; nothing done."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from distsec.cli.group import COMMANDS
from tests.releases import OTPS, Otp
from tests.system.cluster import COMMAND, Cluster

NOBODY = 65534


@pytest.fixture(scope="module", params=OTPS[:1], ids=str)
def otp(request: pytest.FixtureRequest, agent_ebin: Path) -> Otp:
    """One release: no node is ever started here."""
    chosen: Otp = request.param
    return chosen


@pytest.fixture(scope="module")
def shared(otp: Otp, beams: Path) -> Iterator[Cluster]:
    with Cluster(otp, beams, ["a", "b"]) as made:
        made.init()
        yield made


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Two nodes, initialised, and nothing that runs. All of it is as it was when the test is over."""
    settings = copy.deepcopy(shared.settings)
    with TemporaryDirectory(prefix="ds") as place:
        backup = Path(place) / "backup"
        shutil.copytree(shared.directory, backup, symlinks=True)
        yield shared
        shutil.rmtree(shared.directory)
        shutil.copytree(backup, shared.directory, symlinks=True)
    shared.settings = settings


def everything(directory: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of what is below `directory`; times of directories left out."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        at = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(at.st_mode) else ""
        when = at.st_mtime_ns if stat.S_ISREG(at.st_mode) else 0
        found[str(path.relative_to(directory))] = (at.st_mode, at.st_uid, when, content)
    return found


def one_line(text: str) -> str:
    """The text, which is one line, and no traceback."""
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text


# ---- a configuration that is wrong -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wrong:
    """`old` in a good distsec.toml is replaced by `new`; the line that this leads to, as a pattern."""

    old: str
    new: str
    says: str


WRONG = {
    "broken TOML": Wrong("[cluster]", "[cluster", r"line 1: is no TOML: .*; correct it there"),
    "an unknown key": Wrong(
        'state_dir = "state"',
        'state_dir = "state"\non_exitt = "stop"',
        r"line 4: cluster\.on_exitt: is no key of this configuration; did you mean on_exit\?",
    ),
    "an unknown table": Wrong("[metrics]", "[metricks]", r"line \d+: metricks: .*; .*metrics\b"),
    "a bad node name": Wrong(
        'name = "b@127.0.0.1"', 'name = "b"', r"line \d+: nodes\[\d\]\.name: 'b' is no node name; .*name@host"
    ),
    "a name that SPIFFE cannot carry": Wrong(
        'name = "b@127.0.0.1"',
        'name = "b@höst"',
        r"nodes\[\d\]\.name: .*that a SPIFFE ID can carry; use letters",
    ),
    "a name that the file system cannot carry": Wrong(
        'name = "b@127.0.0.1"',
        f'name = "{"b" * 300}@127.0.0.1"',
        r"nodes\[\d\]\.name: .*; choose another name",
    ),
    "a duplicate node": Wrong(
        'name = "b@127.0.0.1"',
        'name = "a@127.0.0.1"',
        r"nodes\[\d\]\.name: a@127\.0\.0\.1 is already in \[\[nodes\]\]; give each node a name of its own",
    ),
    "an unset variable": Wrong(
        'name = "demo"', 'name = "${NO_SUCH_VARIABLE}"', r"line \d+: cluster\.name: .*NO_SUCH_VARIABLE"
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("command", ["run", "init"])
def test_a_wrong_configuration_is_named_and_changes_nothing(
    cluster: Cluster, what: str, command: str
) -> None:
    wrong = WRONG[what]
    good = cluster.config.read_text()
    assert good.count(wrong.old) == 1
    cluster.config.write_text(good.replace(wrong.old, wrong.new))
    before = everything(cluster.directory)
    done = cluster.distsec(command, *([str(cluster.directory)] if command == "init" else []), check=False)
    assert done.returncode == 78, done.stderr
    assert done.stdout == ""
    line = one_line(done.stderr)
    assert line.startswith(f"distsec: {cluster.config}: ")
    assert re.search(wrong.says, line), line
    assert everything(cluster.directory) == before


def test_all_that_is_wrong_is_said_at_once(cluster: Cluster) -> None:
    text = cluster.config.read_text()
    for what in ("an unknown key", "a duplicate node"):
        text = text.replace(WRONG[what].old, WRONG[what].new)
    cluster.config.write_text(text)
    done = cluster.distsec("run", check=False)
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 2


def test_whoever_only_asks_needs_no_more_of_the_file_than_where_the_state_is(cluster: Cluster) -> None:
    good = cluster.config.read_text()
    for what, code in (("a duplicate node", 3), ("an unknown key", 3), ("broken TOML", 78)):
        cluster.config.write_text(good.replace(WRONG[what].old, WRONG[what].new))
        done = cluster.distsec("status", check=False)
        assert done.returncode == code
        assert one_line(done.stderr)


def test_a_configuration_that_is_not_there(cluster: Cluster) -> None:
    done = cluster.distsec("run", "-c", str(cluster.directory / "other.toml"), check=False)
    assert done.returncode == 78
    assert str(cluster.directory / "other.toml") in one_line(done.stderr)


# ---- a machine that is not as it should be -----------------------------------------------------------------


def refused(cluster: Cluster, code: int, *says: str, command: str = "run") -> None:
    """`distsec run` ends with that code, one line that says all of this, and nothing changed.

    `command` is `init` for what concerns one node's key and certificate: that keeps no other from running
    (tests/system/test_renewal_life.py).
    """
    before = everything(cluster.directory)
    arguments = [command] if command == "run" else [command, str(cluster.directory)]
    done = cluster.distsec(*arguments, check=False)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    line = one_line("".join(f"{line}\n" for line in lines))
    assert "Traceback" not in done.stderr
    for text in ("; ", *says):
        assert text in line
    assert everything(cluster.directory) == before
    assert cluster.processes() == []


def all_run(cluster: Cluster, command: str) -> None:
    """One node alone that cannot be started keeps no other down: tests/system/test_held_port.py."""
    for name in cluster.names:
        cluster.table(name)["command"] = [command, "-noinput"]
    cluster.write()


@pytest.mark.parametrize("command", ["/no/such/erl", "erl-of-another-age"])
def test_there_is_no_erl_for_any_node(cluster: Cluster, command: str) -> None:
    all_run(cluster, command)
    refused(cluster, 72, command)


def test_erl_is_too_old(cluster: Cluster) -> None:
    root = cluster.directory / "otp24"
    for directory in ("bin", "erts-12.3.2.17", "releases/24"):
        (root / directory).mkdir(parents=True)
    (root / "releases" / "start_erl.data").write_text("12.3.2.17 24\n")
    (root / "releases" / "24" / "OTP_VERSION").write_text("24.3.4.17\n")
    erl = root / "bin" / "erl"
    erl.write_text("#!/bin/sh\nexit 1\n")
    erl.chmod(0o755)
    all_run(cluster, str(erl))
    refused(cluster, 72, "OTP 24 is too old: 25 is the oldest; install Erlang/OTP 25 or newer")


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "trust.pem", "agent.key"])
def test_a_key_that_cannot_be_read(cluster: Cluster, name: str) -> None:
    (cluster.node_directory("a") / name).write_bytes(b"no key\n")
    of_a_pair = name in {"key.pem", "certificate.pem"}
    refused(cluster, 73, f"nodes/a@127.0.0.1/{name}", command="init" if of_a_pair else "run")


def test_the_key_of_the_ca_is_damaged(cluster: Cluster) -> None:
    key = cluster.state / "ca" / "key.pem"
    key.write_bytes(key.read_bytes()[:60])
    (cluster.node_directory("b") / "certificate.pem").unlink()  # so that it is needed
    refused(cluster, 73, "ca/key.pem")


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("nodes/a@127.0.0.1/key.pem", 0o644),
        ("nodes/b@127.0.0.1", 0o755),
        ("ca/key.pem", 0o640),
        (".", 0o777),
        ("policy.overlay", 0o604),
    ],
)
def test_a_file_that_others_can_reach(cluster: Cluster, path: str, mode: int) -> None:
    if path == "policy.overlay":
        cluster.run()
        cluster.wait_running()
        assert cluster.orchestrator is not None
        cluster.distsec("stop", "--all")
        cluster.terminate()
        cluster.wait(lambda: not cluster.processes(), "the end of what its nodes have started, too")
    victim = (cluster.state / path).resolve()
    victim.chmod(mode)
    command = "init" if path.endswith("a@127.0.0.1/key.pem") else "run"
    refused(
        cluster, 73, f"{victim}: can be reached by other users (mode 0{mode:o})", "chmod", command=command
    )


def test_a_symbolic_link_in_place_of_a_key(cluster: Cluster) -> None:
    key = cluster.node_directory("a") / "key.pem"
    key.rename(cluster.directory / "key.pem")
    key.symlink_to(cluster.directory / "key.pem")
    refused(cluster, 73, f"{key}: is a symbolic link, which is refused", command="init")


def test_a_state_directory_of_another_user(cluster: Cluster) -> None:
    if os.geteuid() == 0:
        os.chown(cluster.state, NOBODY, NOBODY)
        owner = NOBODY
    else:
        cluster.settings["cluster"]["state_dir"] = "/usr"
        cluster.write()
        owner = 0
    refused(cluster, 73, f"belongs to uid {owner}, not to you (uid {os.geteuid()})")


# ---- init --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--node", "b"], 65, "'b' is no node name; write it as name@host"),
        (["--node", "b@hö"], 65, "that a SPIFFE ID can carry"),
        (["--node", "../b@host"], 65, "the part before the @"),
        (["--name", "Not A Name"], 65, "cannot be a cluster name; use 1 to 63 of"),
        (["--mode", "careless"], 64, "careless"),
    ],
)
def test_init_refuses_names_before_it_makes_anything(
    cluster: Cluster, arguments: list[str], code: int, says: str
) -> None:
    fresh = cluster.directory / "fresh"
    done = cluster.distsec("init", str(fresh), *arguments, check=False)
    assert done.returncode == code
    assert says in one_line(done.stderr)
    assert not fresh.exists()


def test_init_on_a_full_disk_leaves_what_was_there_and_can_be_repeated(cluster: Cluster) -> None:
    (cluster.node_directory("b") / "key.pem").unlink()
    (cluster.node_directory("b") / "certificate.pem").unlink()
    before = everything(cluster.directory)
    done = on_a_full_disk(cluster, "init", str(cluster.directory))
    assert done.returncode == 73
    assert "the disk is full; nothing was changed; make room and run it again" in one_line(done.stderr)
    after = everything(cluster.directory)
    assert {path: after[path] for path in before} == before
    cluster.distsec("init", str(cluster.directory))
    assert (cluster.node_directory("b") / "key.pem").read_bytes()

    fresh = cluster.directory / "fresh"
    done = on_a_full_disk(cluster, "init", str(fresh))
    assert done.returncode == 73
    assert "the disk is full" in one_line(done.stderr)
    assert not (fresh / "distsec.toml").exists()
    cluster.distsec("init", str(fresh))


def on_a_full_disk(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where no file can have more than 16 bytes: EFBIG, which is handled as ENOSPC is."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cluster.directory,
        env=cluster.environment(PYTHONDONTWRITEBYTECODE="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16)),
    )


# ---- nobody answers, wrong usage ---------------------------------------------------------------------------


def test_status_says_that_nobody_answers(cluster: Cluster) -> None:
    for arguments in (["status"], ["status", "--json"]):
        done = cluster.distsec(*arguments, check=False)
        assert done.returncode == 3
        assert done.stdout == ""
        assert f"{cluster.state}/control.sock" in one_line(done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "a@127.0.0.1"],
        ["stop", "--all"],
        ["allow", "b@127.0.0.1"],
        ["deny", "b@127.0.0.1"],
        ["events"],
    ],
    ids=" ".join,
)
def test_other_commands_say_so_too(cluster: Cluster, arguments: list[str]) -> None:
    done = cluster.distsec(*arguments, check=False)
    assert done.returncode == 69
    assert done.stdout == ""
    assert f"{cluster.state}/control.sock" in one_line(done.stderr)


USAGE = [[name, "--no-such-option"] for name in COMMANDS] + [
    ["statsu"],
    ["--no-such-option"],
    ["init"],
    ["allow"],
    ["deny"],
    ["start"],
    ["stop", "--all", "a@127.0.0.1"],
    ["status", "--json", "--watch"],
    ["status", "superfluous"],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage_is_64_and_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 64
    assert done.stdout == ""
    assert re.fullmatch(r"distsec.*: .*--help`", one_line(done.stderr).strip())


def test_a_mistyped_command_is_guessed(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "statsu"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "did you mean status?" in done.stderr
