"""What systemd's own tools say of the units, sysusers.d, tmpfiles.d and the generator; nothing is booted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from distsec.errors import ConfigError, NotAcknowledged, PortInUse, StoreError, UsageError
from tests.releases import ROOT
from tests.systemd.machine import needed

CONFIG = ROOT / "config"
UNITS = ("distsec.service", "distsec-nodes.service", "distsec@.service", "distsec-nodes@.service")
DROP_INS = ("users.conf", "rabbitmq.conf", "rabbitmq-user.conf")
MOST_EXPOSED = 1.5
MOST_EXPOSED_SWITCHING = 2.0
"""The capabilities that it is for, and the system calls that go with them, are worth 0.7 (docs/adr/0022)."""

UNAVOIDABLE = {
    # one cluster, one user: what is not as tight as it could be, and why
    "PrivateNetwork=",  # it is about the network
    "RestrictAddressFamilies=~AF_(INET|INET6)",
    "RestrictAddressFamilies=~AF_UNIX",
    "IPAddressDeny=",  # all but loopback and what the configuration names
    "PrivateUsers=",  # the next orchestrator looks into the nodes of this one
    "ProtectProc=",  # it looks up who asks for something
    "ProcSubset=",  # os_mon and the boot id
    "RootDirectory=/RootImage=",
    "DeviceAllow=",  # the clock, to read: ProtectClock=
}
OF_SWITCHING = UNAVOIDABLE | {
    "AmbientCapabilities=",
    "CapabilityBoundingSet=~CAP_SET(UID|GID|PCAP)",
    "CapabilityBoundingSet=~CAP_(CHOWN|FSETID|SETFCAP)",
    "CapabilityBoundingSet=~CAP_KILL",
    "SystemCallFilter=~@privileged",  # @setuid and @chown are among them
}
OF_DROP_INS = {("rabbitmq.conf",): {"SystemCallFilter=~@resources"}}  # it binds its schedulers


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the host's own units, ours, and the programs that these name."""
    needed()
    place = tmp_path_factory.mktemp("root")
    own = place / "usr/lib/systemd/system"
    shutil.copytree("/lib/systemd/system", own, symlinks=True)
    for unit in UNITS:
        shutil.copy(CONFIG / "systemd" / unit, own)
    (place / "usr/bin").mkdir()
    for program in ("distsec", "kill"):
        (place / "usr/bin" / program).touch(0o755)
    for name in ("bin", "lib"):
        (place / name).symlink_to(f"usr/{name}")
    return place


@contextlib.contextmanager
def with_drop_ins(root: Path, unit: str, names: Sequence[str]) -> Iterator[None]:
    directory = root / "etc/systemd/system" / f"{unit}.d"
    directory.mkdir(parents=True)
    for name in names:
        shutil.copy(CONFIG / "systemd" / name, directory)
    yield
    shutil.rmtree(directory)


def names(value: object) -> str:
    return value if isinstance(value, str) else "+".join(value) if isinstance(value, tuple) else ""


VARIANTS = [
    *((unit, ()) for unit in UNITS),
    ("distsec.service", ("users.conf",)),
    ("distsec@.service", ("users.conf",)),
    ("distsec.service", ("rabbitmq.conf", "rabbitmq-user.conf")),
    ("distsec.service", ("rabbitmq.conf", "users.conf")),
]


@pytest.mark.parametrize(("unit", "drop_ins"), VARIANTS, ids=names)
def test_verify_has_nothing_to_say(root: Path, unit: str, drop_ins: tuple[str, ...]) -> None:
    with with_drop_ins(root, unit, drop_ins):
        done = subprocess.run(
            ["systemd-analyze", "verify", f"--root={root}", unit.replace("@.", "@two.")],
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_would_have_said_something(root: Path) -> None:
    """It ends with 0 all the same, so the test above reads what it prints."""
    place = root / "etc/systemd/system/distsec.service.d"
    place.mkdir(parents=True)
    (place / "wrong.conf").write_text("[Service]\nNoSuchKey=1\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "distsec.service"], capture_output=True, text=True
    )
    shutil.rmtree(place)
    assert done.returncode == 0
    assert "NoSuchKey" in done.stderr


@pytest.mark.parametrize(("unit", "drop_ins"), VARIANTS, ids=names)
def test_exposure_is_as_low_as_it_can_be(root: Path, unit: str, drop_ins: tuple[str, ...]) -> None:
    analyze = ["systemd-analyze", "security", "--offline=true", f"--root={root}", "--no-pager"]
    with with_drop_ins(root, unit, drop_ins):
        unit = unit.replace("@.", "@two.")
        found = subprocess.run([*analyze, "--json=short", unit], capture_output=True, text=True, check=True)
        text = subprocess.run([*analyze, unit], capture_output=True, text=True, check=True).stdout
    open_still = {entry["name"] for entry in json.loads(found.stdout) if entry["exposure"]}
    overall = re.search(r"exposure level for \S+: (\d+\.\d)", text)  # a face follows, which may be ":-)"
    assert overall is not None, text
    level = float(overall.group(1))
    switching = "users.conf" in drop_ins
    more = OF_DROP_INS.get(drop_ins[:1], set())
    assert open_still <= (OF_SWITCHING if switching else UNAVOIDABLE) | more
    assert level <= (MOST_EXPOSED_SWITCHING if switching else MOST_EXPOSED) + (
        0.1 if more and switching else 0
    )


def test_an_instance_differs_from_the_one_unit_in_its_names_alone() -> None:
    """Whoever changes one of the two changes both."""
    for unit in ("distsec", "distsec-nodes"):
        one = keys(CONFIG / "systemd" / f"{unit}.service")
        many = keys(CONFIG / "systemd" / f"{unit}@.service")
        plain = [
            line.replace("distsec.toml", "%i.toml")
            .replace("distsec.service", "distsec@%i.service")
            .replace("distsec-nodes.service", "distsec-nodes@%i.service")
            for line in one
        ]
        differing = {line.partition("=")[0] for line in set(plain) ^ set(many)}
        assert differing <= {
            *("Description", "User", "Group", "LoadCredential"),
            *("StateDirectory", "RuntimeDirectory", "LogsDirectory"),
        }
        assert [line.partition("=")[0] for line in plain] == [line.partition("=")[0] for line in many]


@pytest.mark.parametrize("unit", ["distsec.service", "distsec@.service"])
def test_what_may_pass_is_tried_again_for_ever_and_what_will_not_is_not(unit: str) -> None:
    settings = dict(line.split("=", 1) for line in keys(CONFIG / "systemd" / unit))
    assert settings["Restart"] == "on-failure"
    assert settings["StartLimitIntervalSec"] == "0"
    assert "StartLimitBurst" not in settings
    assert 1 <= int(settings["RestartSec"]) <= 30
    final = {int(code) for code in settings["RestartPreventExitStatus"].split()}
    assert final == {UsageError.exit_code, ConfigError.exit_code}
    assert final.isdisjoint({StoreError.exit_code, PortInUse.exit_code, NotAcknowledged.exit_code})


def keys(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]


def test_sysusers_and_tmpfiles_make_the_user_and_hand_it_the_configuration(tmp_path: Path) -> None:
    needed()
    (tmp_path / "etc/distsec").mkdir(parents=True)
    (tmp_path / "etc/distsec/distsec.toml").touch(0o600)
    for tool, arguments in (("sysusers", []), ("tmpfiles", ["--create"])):
        done = subprocess.run(
            [f"systemd-{tool}", f"--root={tmp_path}", *arguments, str(CONFIG / f"{tool}.d/distsec.conf")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    user = (tmp_path / "etc/passwd").read_text().strip().split(":")
    assert (user[0], user[5], user[6]) == ("distsec", "/var/lib/distsec", "/usr/sbin/nologin")
    found = (tmp_path / "etc/distsec/distsec.toml").stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 0, int(user[3]))
    assert (tmp_path / "etc/credstore").stat().st_mode & 0o777 == 0o700


# ---- the generator

DOCUMENT = """\
[security.distribution]
allowed_nodes = ["a@127.0.0.1", "b@10.0.0.2", "c@host.example", "d@2001:db8::7"]
[[security.distribution.rules]]
names = ["cli-*@10.0.0.3"]
[[nodes]]
name = "a@127.0.0.1"
[[nodes]]
name = "e@host.example"
address = "10.0.0.4"
[[peers]]
name = "f@elsewhere"
address = "10.0.0.10"
"""


def generated(tmp_path: Path, **files: str) -> dict[str, str]:
    """What the generator wrote: path below its directory → content."""
    etc, out = tmp_path / "etc", tmp_path / "out"
    etc.mkdir()
    for name, text in files.items():
        (etc / f"{name}.toml").write_text(text)
    done = subprocess.run(
        [str(CONFIG / "systemd/distsec-addresses"), str(out), str(out), str(out)],
        env={**os.environ, "DISTSEC_ETC": str(etc)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.conf")}


def test_the_generator_opens_the_addresses_of_nodes_and_peers(tmp_path: Path) -> None:
    (written,) = generated(tmp_path, distsec=DOCUMENT).items()
    assert written[0] == "distsec.service.d/50-addresses.conf"
    assert written[1].splitlines()[1:] == [
        "[Unit]",
        f"SourcePath={tmp_path}/etc/distsec.toml",
        "[Service]",
        *(f"IPAddressAllow={address}" for address in ("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.10")),
        "IPAddressAllow=2001:db8::7",
    ]


def test_the_generator_serves_every_cluster_and_no_file_that_is_none(tmp_path: Path) -> None:
    files = generated(tmp_path, two=DOCUMENT, **{"No Unit": DOCUMENT, "x" * 30: DOCUMENT})
    assert list(files) == ["distsec@two.service.d/50-addresses.conf"]


@pytest.mark.parametrize(
    "text",
    [
        "[cluster\n",
        "[security]\ndistribution = 7\n" + "nodes = 3\n",
        'nodes = ["x", 7]\npeers = {}\n',
        '[[peers]]\naddress = "10.0.0.1\\nExecStart=/bin/evil"\n',
        '[[peers]]\naddress = "0.0.0.0"\n[[nodes]]\nname = "a@::"\naddress = "${HOST}"\n',
        "#" * (1 << 20) + '\n[[peers]]\naddress = "10.0.0.1"\n',
    ],
    ids=["no TOML", "other types", "other lists", "a line break", "no address", "too large"],
)
def test_the_generator_opens_nothing_for_what_it_does_not_understand(tmp_path: Path, text: str) -> None:
    for content in generated(tmp_path, distsec=text).values():
        assert "IPAddressAllow" not in content
        assert "Exec" not in content
