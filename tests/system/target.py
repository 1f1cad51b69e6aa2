"""A release as it is shipped: with ERTS, libraries, boot script, sys.config and vm.args of its own.

Made by systools, started as relx's and mix's scripts do: by erlexec, with `-mode embedded`.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.releases import Otp
from tests.system.intruder import string

MAKE_SECONDS = 180

_MAKE = """
Version = fun(App) -> ok = case application:load(App) of {{error, {{already_loaded, _}}}} -> ok; R -> R end,
                      {{ok, V}} = application:get_key(App, vsn), {{App, V}} end,
ok = file:set_cwd({directory}),
Rel = {{release, {{"shipped", "1"}}, {{erts, erlang:system_info(version)}},
       [Version(App) || App <- [{applications}]]}},
ok = file:write_file("shipped.rel", io_lib:format("~p.~n", [Rel])),
ok = systools:make_script("shipped", [silent, no_warn_sasl]) =:= error andalso halt(1) orelse ok,
case systools:make_tar("shipped", [silent, {{erts, code:root_dir()}}]) of
    error -> halt(1); {{error, _, _}} -> halt(1); _ -> halt(0)
end.
"""

_START = """\
#!/bin/sh
ROOTDIR=$(cd "$(dirname "$0")/.." && pwd)
BINDIR=$ROOTDIR/{erts}/bin
EMU=beam
PROGNAME=shipped
export ROOTDIR BINDIR EMU PROGNAME
exec "$BINDIR/erlexec" -boot "$ROOTDIR/releases/1/start" -mode embedded \\
    -config "$ROOTDIR/releases/1/sys" -args_file "$ROOTDIR/releases/1/vm.args" "$@"
"""


def ship(otp: Otp, directory: Path, applications: Sequence[str]) -> Path:
    """Makes a release of `applications` (with kernel and stdlib) in `directory`; returns what starts it."""
    built, shipped = directory / "built", directory / "shipped"
    built.mkdir(parents=True)
    expression = _MAKE.format(directory=string(str(built)), applications=", ".join(applications))
    made = subprocess.run(
        [otp.erl, "-boot", "no_dot_erlang", "-noinput", "-eval", expression],
        env={"HOME": str(directory), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=MAKE_SECONDS,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    with tarfile.open(built / "shipped.tar.gz") as archive:
        archive.extractall(shipped, filter="fully_trusted")
    (shipped / "releases/1/sys.config").write_text("[{kernel, [{logger_level, notice}, {shipped, true}]}].\n")
    (shipped / "releases/1/vm.args").write_text("# flags of the release\n+P 65536\n-shipped yes\n")
    (erts,) = shipped.glob("erts-*")
    program = shipped / "bin/shipped"
    program.parent.mkdir(exist_ok=True)
    program.write_text(_START.format(erts=erts.name))
    program.chmod(0o755)
    return program
