"""`distsec init`: what it writes, keeps and adds, what it says, and that bad input changes nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from distsec.cli.init import command
from distsec.cli.initialise import default_name
from distsec.config.edit import with_nodes
from distsec.config.load import load
from distsec.errors import ConfigError, DistsecError, NameInvalid, StoreError, UsageError
from distsec.model.cluster import Carrier, Mode
from distsec.model.names import NodeName, check_trust_domain
from distsec.pki import files


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISTSEC_SECURITY_MODE", "SERVICERADAR_SECURITY_MODE", "DISTSEC_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short path: a Unix socket below it must fit into 107 bytes, which pytest's own would not leave room
    for.
    """
    path = Path(tempfile.mkdtemp(prefix="distsec-"))
    yield path
    shutil.rmtree(path)


def init(*arguments: object) -> Result:
    """What the command prints; its errors as they are raised."""
    result = CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)
    if result.exception:
        raise result.exception
    return result


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_directory_becomes_a_cluster_of_three_that_loads(tmp_path: Path) -> None:
    result = init(tmp_path / "My Cluster!")
    spec = load(tmp_path / "My Cluster!/distsec.toml", {})
    assert spec.name == "my-cluster"
    assert [str(node.name) for node in spec.nodes] == [
        "poller@127.0.0.1",
        "agent@127.0.0.1",
        "sync@127.0.0.1",
    ]
    assert spec.allowed_nodes == tuple(node.name for node in spec.nodes)
    assert (spec.mode, spec.carrier) == (Mode.PRODUCTION, Carrier.DISTSEC)
    assert (Path(spec.state_dir) / "nodes/poller@127.0.0.1/key.pem").exists()
    assert f"next: distsec run -c '{tmp_path}/My Cluster!/distsec.toml'" in result.stdout


def test_name_nodes_and_mode_are_taken_and_a_doubled_node_is_one(tmp_path: Path) -> None:
    init(
        tmp_path / "x",
        "--name",
        "demo",
        "--node",
        "a@host",
        "--node",
        "b@host",
        "--node",
        "a@host",
        "--mode",
        "hybrid",
    )
    spec = load(tmp_path / "x/distsec.toml", {})
    assert (spec.name, spec.mode) == ("demo", Mode.HYBRID)
    assert [str(node.name) for node in spec.nodes] == ["a@host", "b@host"]
    assert "# Who may link." in (tmp_path / "x/distsec.toml").read_text()


def test_the_configuration_is_private_and_so_is_the_state(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        init(tmp_path / "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "x/distsec.toml").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "x/state").stat().st_mode & 0o777 == 0o700


def test_a_second_run_changes_no_byte_and_says_so(tmp_path: Path) -> None:
    first = init(tmp_path / "x")
    before = contents(tmp_path)
    second = init(tmp_path / "x", "--name", "x", "--node", "poller@127.0.0.1", "--mode", "production")
    assert contents(tmp_path) == before
    rows = [re.split(r"\s{2,}", line) for line in second.stdout.splitlines() if line.startswith("/")]
    assert {what for _, what in rows} == {"kept"}
    assert {
        what for line in first.stdout.splitlines() if line.startswith("/") for what in line.split()[1:]
    } == {"made"}
    assert [path for path, _ in rows] == [
        str(tmp_path / "x" / path)
        for path in (
            "distsec.toml",
            "state/ca",
            "state/nodes/agent@127.0.0.1",
            "state/nodes/poller@127.0.0.1",
            "state/nodes/sync@127.0.0.1",
            "state/ports.json",
        )
    ]


def test_what_was_lost_is_made_again_and_named(tmp_path: Path) -> None:
    init(tmp_path / "x", "--node", "a@host")
    (tmp_path / "x/state/nodes/a@host/dist.conf").unlink()
    assert re.search(r"nodes/a@host +made dist\.conf; kept key\.pem, ", init(tmp_path / "x").stdout)


def test_a_node_is_added_to_an_existing_configuration_with_its_comments(tmp_path: Path) -> None:
    init(tmp_path / "x", "--node", "a@host")
    config = tmp_path / "x/distsec.toml"
    config.chmod(0o640)
    edited = (
        config.read_text().replace('"a@host",\n', '"a@host",  # the first\n').replace("#connect", "connect")
    )
    config.write_text(edited)
    before = contents(tmp_path / "x/state")
    result = init(tmp_path / "x", "--node", "b@host", "--node", "a@host")
    spec = load(config, {})
    assert [str(node.name) for node in spec.nodes] == ["a@host", "b@host"]
    assert list(map(str, spec.allowed_nodes)) == ["a@host", "b@host"]
    added = set(config.read_text().splitlines()) - set(edited.splitlines())
    assert added == {'  "b@host",', 'name = "b@host"'}
    assert set(edited.splitlines()) - set(config.read_text().splitlines()) == set()
    assert config.stat().st_mode & 0o777 == 0o640
    after = contents(tmp_path / "x/state")
    assert {path for path in before if before[path] != after[path]} == {"ports.json"}
    assert "distsec.toml" in result.stdout
    assert "extended" in result.stdout


def test_a_configuration_behind_a_symlink_is_changed_where_it_is(tmp_path: Path) -> None:
    init(tmp_path / "x", "--node", "a@host")
    (tmp_path / "x/distsec.toml").rename(tmp_path / "kept.toml")
    (tmp_path / "x/distsec.toml").symlink_to(tmp_path / "kept.toml")
    init(tmp_path / "x", "--node", "b@host")
    assert (tmp_path / "x/distsec.toml").is_symlink()
    assert 'name = "b@host"' in (tmp_path / "kept.toml").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        '[cluster]\nname = "demo"',
        '[security]\nmode = "production"\n',
        '[security.distribution]\nallowed_nodes = ["z@h"] # all\n[metrics]\nlisten = false\n',
        'nodes = [{name = "z@h"}]\n',
        'security.distribution.allowed_nodes = [\n"z@h" # one\n]\n',
        'security = {distribution = {allowed_nodes = ["z@h"]}}\n',
    ],
)
def test_nodes_can_be_added_to_any_layout(tmp_path: Path, text: str) -> None:
    path = tmp_path / "distsec.toml"
    path.write_text(text)
    known = load(path, {}).nodes
    init(tmp_path, "--node", "a@h")
    spec = load(path, {})
    assert [str(node.name) for node in spec.nodes] == [*(str(node.name) for node in known), "a@h"]
    assert "a@h" in map(str, spec.allowed_nodes)
    assert all(comment in path.read_text() for comment in re.findall("#.*", text))


@pytest.mark.parametrize(
    "text", ["nodes = 7", "security = 1", "security.distribution.allowed_nodes = 'x'", "= ="]
)
def test_what_cannot_be_added_to_says_what_to_add_by_hand(text: str) -> None:
    name = NodeName.parse("a@h")
    with pytest.raises(
        ConfigError, match=r"^/x: cannot be added to without upsetting it; add a@h to it by hand$"
    ):
        with_nodes(text, [name], [name], ("erl",), "/x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo", "demo"),
        ("My Demo", "my-demo"),
        ("...", "distsec"),
        ("é", "distsec"),
        ("-x-", "x"),
        ("a" * 99, "a" * 63),
    ],
)
def test_the_default_name_is_one_that_a_cluster_can_have(tmp_path: Path, name: str, expected: str) -> None:
    assert check_trust_domain(default_name(tmp_path / name)) == expected


# ---- bad input
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--node", "nobody"], NameInvalid, "'nobody' is no node name; write it as name@host"),
        (["--node", "a@h_x"], NameInvalid, "that a SPIFFE ID can carry"),
        (["--node", "a/b@h"], NameInvalid, "before the @ must be"),
        (["--node", "é@h"], NameInvalid, r"'\\xe9@h'"),
        (["--node", f"{'a' * 65}@h"], NameInvalid, "1 to 64"),
        (["--name", "UPPER"], NameInvalid, "cannot be a cluster name"),
        (["--name", ""], NameInvalid, "cannot be a cluster name"),
        (["--node", "a@host", "--node", "b@host.example"], ConfigError, "never connect"),
        (["--node", "a@192.0.2.1", "--mode", "development"], ConfigError, "loopback"),
    ],
)
def test_bad_input_makes_nothing(
    tmp_path: Path, arguments: list[str], error: type[DistsecError], message: str
) -> None:
    with pytest.raises(error, match=message):
        init(tmp_path / "x", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_mode_that_the_environment_contradicts_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTSEC_SECURITY_MODE", "development")
    with pytest.raises(ConfigError, match="DISTSEC_SECURITY_MODE"):
        init(tmp_path / "x", "--mode", "production")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "other"], "this is cluster 'x', and a cluster's name stays"),
        (["--mode", "development"], r"the mode is production; change \[security\] mode in the file"),
    ],
)
def test_what_an_existing_cluster_contradicts_is_an_error(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    init(tmp_path / "x")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=message):
        init(tmp_path / "x", *arguments)
    assert contents(tmp_path) == before


def test_a_broken_configuration_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "distsec.toml").write_text("[cluster\n")
    with pytest.raises(ConfigError, match=r"line 1: is no TOML"):
        init(tmp_path)
    assert contents(tmp_path) == {"distsec.toml": b"[cluster\n"}


def test_a_cluster_that_was_renamed_in_the_file_keeps_its_ca_and_is_refused(tmp_path: Path) -> None:
    init(tmp_path / "x")
    config = tmp_path / "x/distsec.toml"
    config.write_text(config.read_text().replace('name = "x"', 'name = "y"'))
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r"is the CA of cluster 'x', not of 'y'; put the old name back"):
        init(tmp_path / "x")
    assert contents(tmp_path) == before


def test_a_state_directory_that_is_a_symlink_is_refused_and_no_configuration_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "x/state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"state: is a symbolic link"):
        init(tmp_path / "x")
    assert contents(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    init(tmp_path / "x", "--node", "a@h")
    os.chown(tmp_path / "x/state", 12345, -1)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="belongs to uid 12345"):
        init(tmp_path / "x", "--node", "b@h")
    os.chown(tmp_path / "x/state", 0, -1)
    os.chown(tmp_path / "x/distsec.toml", 12345, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        init(tmp_path / "x", "--node", "b@h")
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_a_run_that_a_later_one_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the nth file, for every n."""
    create = files.create_new
    countdown = 0

    def until_full(directory: int, name: str, content: bytes, *more: Any) -> bool:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(directory, name, content, *more)

    monkeypatch.setattr(files, "create_new", until_full)
    for left in range(14):
        target = tmp_path / f"x{left}"
        countdown = left
        with pytest.raises(
            StoreError, match=r"the disk is full; nothing was changed|no space left on device"
        ) as caught:
            init(target, "--name", "demo", "--node", "a@h")
        assert "\n" not in str(caught.value)
        assert not (target / "distsec.toml").exists()
        keys = {path: content for path, content in contents(target).items() if "key" in path}
        countdown = 1000
        init(target, "--name", "demo", "--node", "a@h")
        assert contents(target).items() >= keys.items()
        assert len(contents(target)) == 17


def test_runs_at_the_same_time_agree_on_every_key(tmp_path: Path) -> None:
    # Each waits for those before it, however long these take on a busy machine.
    patient = "from distsec.pki.store import Store; Store.locked.__wrapped__.__defaults__ = (60.0,)"
    script = f"{patient}; from distsec.cli.init import command; command()"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sum(bool(re.search(r"state/ca +made", output)) for output in outputs) == 1
    before = contents(tmp_path)
    init(tmp_path / "x")
    assert contents(tmp_path) == before


def test_no_secret_is_printed(tmp_path: Path) -> None:
    result = init(tmp_path / "x", "--node", "a@h")
    printed = result.output
    for path, content in contents(tmp_path / "x/state").items():
        if path.endswith(("key.pem", ".key", ".secret", "cookie.term")):
            assert not any(line in printed for line in content.decode().splitlines() if len(line) > 20)
