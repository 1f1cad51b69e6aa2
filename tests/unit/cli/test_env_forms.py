"""What `distsec env` prints, read by what it is for: /bin/sh, and the parsers of the installed systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from distsec.cli.env import FORMS, docker_lines, env_file_lines, shell_lines, systemd_lines
from distsec.errors import CommandFailed

VALUES = {
    "SPACES": "  a  b ",
    "QUOTES": """ it's "both" `too` """,
    "PERCENT": "100% %h %% %",
    "BACKSLASH": r"\ \\ \n \x41 C:\dir\ ".strip(),
    "DOLLAR": "$HOME ${HOME} $$ $(id)",
    "UNICODE": "ü € 𝄞 e\u0301",
    "TAB": "a\tb",
    "HASH": "# not a comment; nor this",
    "ERL_AFLAGS": r"""-kernel a '{127,0,0,1}' b [{nodelay,true}] -pa "/a b/é" -x \"q\" """.strip(),
    "EMPTY": "",
}
SYSTEMD = Path("/lib/systemd/systemd")
GENERATOR = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")


def needs(program: Path) -> None:
    if not program.exists() or os.geteuid() != 0:
        reason = f"{program} or root is missing"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def environment_of_a_shell(script: str) -> dict[str, str]:
    raw = subprocess.run(
        ["/bin/sh", "-c", f"{script}\nexec env -0"],
        env={"PATH": os.environ["PATH"], "HOME": "/elsewhere"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    ).stdout
    found = dict(entry.split("=", 1) for entry in raw.decode().split("\0") if entry)
    return {name: found[name] for name in (*VALUES, "LINES") if name in found}


def test_a_shell_that_evaluates_it_has_every_byte() -> None:
    given = VALUES | {"LINES": "a\nb\n"}
    assert environment_of_a_shell("\n".join(shell_lines(given))) == given


def test_an_env_file_is_read_by_a_shell_alike(tmp_path: Path) -> None:
    given = VALUES | {"LINES": "a\nb\n"}
    path = tmp_path / "node.env"
    path.write_text("\n".join(env_file_lines(given)) + "\n")
    assert environment_of_a_shell(f"set -a; . {path}; set +a") == given


def test_an_env_file_is_read_by_systemds_own_parser(tmp_path: Path) -> None:
    """environment.d(5) is read by the parser of EnvironmentFile=, and expands variables besides."""
    needs(GENERATOR)
    # Its own output writes a tab as an escape that it would not read itself.
    given = {name: value for name, value in VALUES.items() if not {"$", "\t"} & set(value) and value}
    (tmp_path / "environment.d").mkdir()
    (tmp_path / "environment.d" / "node.conf").write_text("\n".join(env_file_lines(given)) + "\n")
    told = subprocess.run(
        [GENERATOR],
        env={"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert environment_of_a_shell(f"set -a\n{told}") == given


def test_a_units_lines_are_read_by_systemd_as_they_were_meant() -> None:
    needs(SYSTEMD)
    given = VALUES
    # nobody may not enter pytest's own
    directory = Path(tempfile.mkdtemp(prefix="distsec-units-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        unit = "[Service]\nExecStart=/bin/true\n" + "\n".join(FORMS["systemd"](given)) + "\n"
        (directory / "node.service").write_text(unit)
        (directory / "node.target").write_text("[Unit]\nWants=node.service\n")
        told = subprocess.run(
            [
                *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),  # it does not test as root
                *(SYSTEMD, "--test", "--system", "--no-pager", "--unit=node.target"),
            ],
            env={
                "SYSTEMD_UNIT_PATH": str(directory),
                "HOME": "/tmp",
                "XDG_RUNTIME_DIR": "/tmp",
                "PATH": os.environ["PATH"],
            },
            capture_output=True,
            timeout=60,
        )
    finally:
        shutil.rmtree(directory)
    if b"Failed to allocate manager object" in told.stderr and os.environ.get("CI") != "true":
        pytest.skip("systemd --test finds no cgroups here")
    found = re.findall(r"^\t\tEnvironment: (\w+)=(.*)$", told.stdout.decode(), re.MULTILINE)
    assert {name: value for name, value in found if name in given} == given, told.stderr.decode()


def test_what_a_form_cannot_hold_is_refused_and_not_changed() -> None:
    for form in ("systemd", "env-file"):
        with pytest.raises(CommandFailed, match="control character"):
            FORMS[form]({"X": "a\x1bb"})
    assert systemd_lines({"X": "a\nb"}) == ['Environment="X=a\\x0ab"']
    with pytest.raises(CommandFailed, match="line feed"):
        docker_lines({"X": "a\nb"})
    assert docker_lines({"X": ' "a" $b #c'}) == ['X= "a" $b #c'], "docker takes the line as it is"
