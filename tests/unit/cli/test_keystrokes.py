"""What root becomes for a tool or a shell, at a real terminal: it cannot type there."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from tests.releases import ROOT

INSIDE = """
import errno, fcntl, json, os, sys, termios
from distsec.cli.keystrokes import TIOCLINUX
from distsec.cli.shell import become_user

become_user({"uid": 1, "gid": 1})


def tried(request):
    try:
        fcntl.ioctl(0, request, b"x")
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]


told = {"uid": os.geteuid(), "typing": tried(termios.TIOCSTI), "pasting": tried(TIOCLINUX)}
told["size"] = os.get_terminal_size(0).columns
if (child := os.fork()) == 0:
    os._exit(tried(termios.TIOCSTI) != "EPERM")
told["child"] = os.waitpid(child, 0)[1]
print(json.dumps(told), file=sys.stderr)
"""


def test_a_program_of_another_user_cannot_type_into_roots_terminal() -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("it takes root")
        pytest.skip("it takes root")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", sys.executable, "-c", INSIDE],
            cwd=ROOT,
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=60,
            check=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    told = json.loads(done.stderr)
    assert told == {"uid": 1, "typing": "EPERM", "pasting": "EPERM", "size": 0, "child": 0}
