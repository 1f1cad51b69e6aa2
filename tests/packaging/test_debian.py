"""The Debian package: what is in it, and what installing, upgrading, removing and purging it do, in a copy of
this machine that is thrown away (an overlay of / in a mount namespace).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from distsec import __version__
from tests.packaging.made import done, need
from tests.releases import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # what is made once may take long

SECONDS = 900.0


@pytest.fixture(scope="module")
def contents(package: Path) -> dict[str, str]:
    """Path → mode and owner."""
    rows = [line.split(maxsplit=5) for line in done("dpkg-deb", "-c", package).splitlines()]
    return {row[5].removeprefix("."): f"{row[0]} {row[1]}" for row in rows}


def field(package: Path, name: str) -> str:
    return done("dpkg-deb", "-f", package, name).strip()


def test_its_version_is_the_programs_and_it_wants_the_python_that_it_is_compiled_for(package: Path) -> None:
    assert field(package, "Version").startswith(f"{__version__}-1~")
    depends = field(package, "Depends")
    minor = sys.version_info[1]
    assert f"python3 (>= 3.{minor}~), python3 (<< 3.{minor + 1}~)" in depends
    for name in ("asn1", "crypto", "public-key", "ssl"):
        assert f"erlang-{name} | esl-erlang" in depends
    assert done("dpkg-deb", "-I", package, "conffiles").split() == ["/etc/distsec/distsec.toml"]


def test_files_are_where_debian_has_them_and_roots_alone_to_change(contents: dict[str, str]) -> None:
    wanted = {
        "/usr/bin/distsec": "-rwxr-xr-x root/root",
        "/etc/distsec/distsec.toml": "-rw-r--r-- root/root",
        "/usr/lib/systemd/system/distsec.service": "-rw-r--r-- root/root",
        "/usr/lib/systemd/system/distsec@.service": "-rw-r--r-- root/root",
        "/usr/lib/systemd/system-generators/distsec-addresses": "-rwxr-xr-x root/root",
        "/usr/lib/sysusers.d/distsec.conf": "-rw-r--r-- root/root",
        "/usr/lib/tmpfiles.d/distsec.conf": "-rw-r--r-- root/root",
        "/usr/share/man/man1/distsec-run.1.gz": "-rw-r--r-- root/root",
        "/usr/share/man/man5/distsec.toml.5.gz": "-rw-r--r-- root/root",
        "/usr/share/bash-completion/completions/distsec": "-rw-r--r-- root/root",
        "/usr/share/zsh/vendor-completions/_distsec": "-rw-r--r-- root/root",
        "/usr/share/doc/distsec/install.md": "-rw-r--r-- root/root",
        "/usr/lib/distsec/distsec/agent/ebin/distsec_dist.beam": "-rw-r--r-- root/root",
    }
    assert {path: contents.get(path) for path in wanted} == wanted
    writable = [path for path, mode in contents.items() if mode[0] != "l" and "w" in (mode[5], mode[8])]
    assert writable == []
    assert [path for path in contents if "/bin/" in path and path.startswith("/usr/lib/distsec")] == []


def test_nothing_in_it_names_the_machine_that_made_it(package: Path, tmp_path: Path) -> None:
    done("dpkg-deb", "-x", package, tmp_path)
    places = [str(place).encode() for place in (ROOT, package.parent.parent)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 1000
    telling = [str(path) for path in files if any(place in path.read_bytes() for place in places)]
    assert telling == []


@pytest.fixture(scope="module")
def life(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Chapter → what was said in it, of one life of the package. Its processes end with their namespace."""
    need(all(map(shutil.which, ("unshare", "ip", "erl"))), "unshare, ip and erl")
    work, here = tmp_path_factory.mktemp("overlay"), Path(__file__).parent
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "sh"]
    script, life = here / "debian_overlay.sh", here / "debian_life.sh"
    text = done(*words, script, ROOT, package, work, life, seconds=SECONDS)
    chapters = [part.partition("\n") for part in text.split("== ")[1:]]
    return {title: body.splitlines() for title, _, body in chapters}


def test_it_installs_and_starts_nothing(life: dict[str, list[str]]) -> None:
    assert life["install"][-1] == (
        "distsec: write your nodes into /etc/distsec/distsec.toml, then: systemctl enable --now distsec"
    )
    assert life["state"] == [
        "640 root:distsec",
        "/var/lib/distsec",
        f"distsec {__version__}",
        "/usr/share/man/man1/distsec-run.1.gz",
        "/usr/share/man/man5/distsec.toml.5.gz",
    ]


def test_its_user_runs_a_guarded_node_with_it(life: dict[str, list[str]]) -> None:
    assert life["run"] == ["RUNNING"]


def test_an_upgrade_ends_and_restarts_nothing_and_keeps_the_configuration(life: dict[str, list[str]]) -> None:
    assert life["upgrade"][-2:] == ["both run on", "1"]


def test_a_removal_keeps_keys_and_configuration(life: dict[str, list[str]]) -> None:
    assert life["remove"][-2:] == ["/etc/distsec/distsec.toml", "/var/lib/distsec/ca/key.pem"]


def test_a_purge_says_what_it_removes_and_keeps_what_a_node_still_runs_with(
    life: dict[str, list[str]],
) -> None:
    assert life["purge with a node"][-1] == "/var/lib/distsec/ca/key.pem"
    assert life["purge"][-1] == "distsec: removed /var/lib/distsec with the CA's key and every node's"
    assert "end" in life
