"""scripts/install: into a root for an image, and in a booted machine that has no network."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.releases import ROOT
from tests.systemd.machine import SHARE, Machine, needed
from tests.systemd.service import Service
from tests.waiting import wait_until

INSTALL = str(ROOT / "scripts" / "install")
A, B, X = "a@127.0.0.1", "b@127.0.0.1", "x@127.0.0.1"
UNITS = "/usr/local/lib/systemd/system"


INSIDE = f"{SHARE}/scripts/install"


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INSTALL, *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def bare(agent_ebin: Path) -> Iterator[Machine]:
    """A machine that knows nothing of distsec but a checkout, in /share."""
    needed()
    machine = Machine()
    for part in ("config", "distsec", "scripts"):
        shutil.copytree(ROOT / part, machine.share / part)
    (machine.share / ".venv").symlink_to(ROOT / ".venv")
    with machine:
        yield machine


def steps(printed: str) -> dict[str, list[str]]:
    """What was made, kept, …: word → what stands behind it on those lines."""
    found: dict[str, list[str]] = {}
    for line in printed.splitlines():
        word, _, what = line.partition(" ")
        found.setdefault(word, []).append(what.strip())
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_nothing_to_a_service_to_a_second_cluster_to_nothing(bare: Machine) -> None:
    # a service, from the checkout and without a network
    first = steps(bare.run(INSIDE, "--node", A, "--node", B).stdout)
    assert "kept" not in first and "replaced" not in first
    assert first["next"] == ["systemctl enable --now distsec"]
    bare.run("systemctl", "enable", "--now", "distsec")
    one = Service(bare, nodes=(A, B))
    one.wait_well()
    assert bare.run("distsec", "status").returncode == 0  # on the PATH, and finds its configuration
    pids = one.pids()

    # again: nothing changes, and nothing of the operator's is overwritten
    config = "/etc/distsec/distsec.toml"
    bare.write(config, bare.run("cat", config).stdout + "# mine\n")
    key = bare.run("sha256sum", "/var/lib/distsec/ca/key.pem").stdout
    again = steps(bare.run(INSIDE).stdout)
    assert "made" not in again and "replaced" not in again and "next" not in again
    assert bare.run("tail", "-n", "1", config).stdout == "# mine\n"
    assert bare.run("stat", "-c", "%a %U %G", config).stdout == "640 root distsec\n"

    # an upgrade: it says what to do, and that leaves the nodes alone
    bare.run("sed", "-i", "s/^RestartSec=.*/RestartSec=9/", f"{UNITS}/distsec.service")
    bare.run(
        "bash",
        "-euc",
        "echo '# older' >>/usr/local/lib/distsec/lib/python3.*/site-packages/distsec/daemon.py",
    )
    upgraded = steps(bare.run(INSIDE).stdout)
    assert [what.split()[0] for what in upgraded["replaced"]] == [
        "/usr/local/lib/distsec",
        f"{UNITS}/distsec.service",
    ]
    assert upgraded["next"] == ["systemctl restart distsec   (the nodes stay up)"]
    assert bare.show("distsec", "RestartUSec") == "5s"
    bare.run("systemctl", "restart", "distsec")
    one.wait_well()
    assert one.pids() == pids

    # a second cluster beside it, under another user
    second = steps(bare.run(INSIDE, "--cluster", "two", "--node", X).stdout)
    assert "/etc/distsec/two.toml" in second["made"] and second["next"] == [
        "systemctl enable --now distsec@two"
    ]
    bare.run("systemctl", "enable", "--now", "distsec@two")
    two = Service(bare, "distsec@two.service", "/etc/distsec/two.toml", (X,))
    two.wait_well()
    one.wait_well()
    assert bare.run(
        "stat", "-c", "%U %a", "/var/lib/distsec", "/var/lib/distsec-two"
    ).stdout.splitlines() == [
        "distsec 700",
        "distsec-two 700",
    ]
    assert two.status()["cluster"] == "two"
    assert one.pids() == pids
    assert bare.run("runuser", "-u", "distsec", "--", "cat", "/etc/distsec/two.toml", check=False).returncode
    bare.run("systemctl", "stop", two.nodes_unit)
    assert one.is_well()

    # it is not removed under nodes that run, and then it is, but for what is the operator's
    refused = bare.run(INSIDE, "--uninstall", check=False)
    assert refused.returncode == 75 and "systemctl stop" in refused.stderr
    assert one.is_well()
    bare.run("systemctl", "stop", "distsec-nodes", "distsec-nodes@two", "distsec", "distsec@two")
    bare.shell(
        "mkdir /var/lib/distsec/nodes/g; chgrp games /var/lib/distsec/nodes/g; "
        "setpriv --reuid games --regid games --clear-groups sleep 600 >/dev/null 2>&1 & echo $! >/tmp/g"
    )
    owner = ("bash", "-euc", "stat -c %U /proc/$(cat /tmp/g)")  # root, until it has become that user
    wait_until(lambda: bare.run(*owner).stdout == "games\n", "a process of that user")
    refused = bare.run(INSIDE, "--uninstall", check=False)
    assert refused.returncode == 75 and "nodes of /var/lib/distsec still run" in refused.stderr
    bare.shell(
        "kill $(cat /tmp/g); while kill -0 $(cat /tmp/g) 2>/dev/null; do sleep 0.1; done; "
        "rmdir /var/lib/distsec/nodes/g"
    )
    removed = steps(bare.run(INSIDE, "--uninstall").stdout)
    assert [what.split()[0] for what in removed["kept"]] == [
        "/etc/distsec",
        "/var/lib/distsec",
        "/var/lib/distsec-two",
    ]
    find = (
        "find /usr/local /etc/systemd /etc/sysusers.d /etc/tmpfiles.d -name '*distsec*' 2>/dev/null || true"
    )
    assert bare.shell(find) == ""
    assert bare.run("sha256sum", "/var/lib/distsec/ca/key.pem").stdout == key
    assert "could not be found" in bare.run("systemctl", "status", "distsec", check=False).stderr

    # back, with what was kept
    bare.run(INSIDE)
    bare.run("systemctl", "start", "distsec")
    one.wait_well()
    assert bare.run("sha256sum", "/var/lib/distsec/ca/key.pem").stdout == key
    bare.run("systemctl", "stop", "distsec-nodes", "distsec")
    bare.run(INSIDE, "--uninstall", "--purge")
    assert bare.shell("ls -d /etc/distsec* /var/lib/distsec* /var/log/distsec* 2>/dev/null || true") == ""


@pytest.mark.slow
def test_drop_ins_are_links_that_go_with_the_rest_and_another_prefix_is_found_by_systemd(
    tmp_path: Path,
) -> None:
    needed()
    arguments = ("--root", str(tmp_path), "--prefix", "/opt/distsec")
    done = install(*arguments, "--users", "--rabbitmq", "--node", A, "--name", "shop")
    assert done.returncode == 0, done.stderr
    drop_ins = tmp_path / "etc/systemd/system/distsec.service.d"
    assert {path.name: str(path.readlink()) for path in drop_ins.iterdir()} == {
        name: f"/opt/distsec/share/distsec/systemd/{name}" for name in ("users.conf", "rabbitmq.conf")
    }
    unit = (tmp_path / "etc/systemd/system/distsec.service").read_text()
    assert "ExecStart=/opt/distsec/bin/distsec run -c /etc/distsec/distsec.toml" in unit
    generator = tmp_path / "etc/systemd/system-generators/distsec-addresses"
    assert generator.read_text().startswith("#!/opt/distsec/lib/distsec/bin/python -I\n")
    config = (tmp_path / "etc/distsec/distsec.toml").read_text()
    assert 'state_dir = "/var/lib/distsec"' in config and 'name = "shop"' in config and A in config
    launcher = (tmp_path / "opt/distsec/bin/distsec").resolve()
    assert launcher.read_text().startswith("#!/opt/distsec/lib/distsec/bin/python -I\n")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mode & 0o022]

    mine = drop_ins / "mine.conf"
    mine.write_text("[Service]\n")
    assert install(*arguments, "--uninstall").returncode == 0
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert {path for path in left if "distsec" in path} == {
        "etc/distsec/distsec.toml",
        "etc/systemd/system/distsec.service.d/mine.conf",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--nodes", A], 64, "no option --nodes"),
        (["--node"], 64, "wants a value"),
        (["--cluster", "Two"], 64, "--cluster"),
        (["--cluster", "../x"], 64, "--cluster"),
        (["--prefix", "usr"], 64, "absolute"),
        (["--purge"], 64, "--uninstall"),
        (["--wheel", "/no/such.whl"], 66, "no wheel"),
        (["--wheels", "/no/such"], 66, "no directory"),
        (["--python", "/no/such"], 72, "not there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_before_anything_is(
    tmp_path: Path, arguments: list[str], code: int, what: str
) -> None:
    done = install("--root", str(tmp_path), *arguments)
    assert done.returncode == code
    assert what in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_runs_nothing_of_where_it_is_run_and_makes_nothing_that_others_may_write(tmp_path: Path) -> None:
    """Root may stand in a directory of somebody else's, and have any umask."""
    here, root, ran = tmp_path / "here", tmp_path / "root", tmp_path / "ran"
    here.mkdir()
    for name in ("venv", "sysconfig", "pip", "json", "tomllib"):
        (here / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r}); raise SystemExit(1)")
    done = subprocess.run(
        [INSTALL, "--root", str(root), "--node", A],
        cwd=here,
        umask=0,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not ran.exists(), ran.read_text()
    assert done.returncode == 0, done.stderr
    open_to_all = [each for each in root.rglob("*") if not each.is_symlink() and each.stat().st_mode & 0o022]
    assert open_to_all == []


def test_a_purge_removes_the_clusters_that_there_are_and_nothing_that_is_called_alike(tmp_path: Path) -> None:
    state, etc = tmp_path / "var/lib", tmp_path / "etc/distsec"
    for name in ("distsec", "distsec-two", "distsec-backup"):
        (state / name).mkdir(parents=True)
        (tmp_path / "var/log" / name).mkdir(parents=True)
    etc.mkdir(parents=True)
    for name in ("distsec.toml", "two.toml"):
        (etc / name).touch()
    done = install("--root", str(tmp_path), "--uninstall", "--purge")
    assert done.returncode == 0, done.stderr
    assert [each.name for each in state.iterdir()] == ["distsec-backup"]
    assert [each.name for each in (tmp_path / "var/log").iterdir()] == ["distsec-backup"]
    assert not etc.exists() and "/var/lib/distsec-backup" in done.stdout


def test_a_node_name_that_is_none_leaves_no_configuration(tmp_path: Path) -> None:
    needed()
    done = install("--root", str(tmp_path), "--node", "nonsense")
    assert done.returncode == 64
    assert "nonsense" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
