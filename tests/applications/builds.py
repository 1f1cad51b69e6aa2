"""Releases, built once a session by the tools of their own world: mix, rebar3, and what Gleam would write."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.releases import Otp

SOURCES = Path(__file__).resolve().parent / "sources"
BUILD_SECONDS = 400
HOST_ERLANG = Path("/usr/lib/erlang")
"""Debian's, which rebar3 is made for; the trees of scripts/otp lack libraries that it loads (inets, …)."""


def need(program: str) -> str:
    """Where a program is. CI has all of them; elsewhere its absence skips the test."""
    found = shutil.which(program)
    if found is None:
        assert os.environ.get("CI") != "true", f"{program} is missing, and CI has it"
        pytest.skip(f"{program} is not installed")
    return found


def bin_of(otp: Otp) -> str:
    """The directory that its `erl` and `escript` are in."""
    return str(Path(otp.erl).parent)


def root_of(otp: Otp) -> Path:
    """The ROOTDIR of an installation."""
    return next(
        parent for parent in Path(otp.erl).resolve().parents if (parent / "releases/start_erl.data").exists()
    )


def libraries(otp: Otp) -> str:
    """Its `lib` directory."""
    return str(root_of(otp) / "lib")


@dataclass(frozen=True, slots=True)
class Builds:
    """Makes what is asked for, in `directory`, and keeps it."""

    directory: Path

    def mix(self, otp: Otp, *, ssl: bool, erts: bool) -> Path:
        """The directory of a release of `ledger`."""
        mix = need("mix")
        made = self.directory / f"mix-{otp}{'-ssl' if ssl else ''}{'-erts' if erts else ''}"
        if not made.exists():
            work = self._copy("ledger", made.name)
            words = {True: "yes", False: "no"}
            self._run(
                [mix, "release", "--quiet", "--path", f"{made}.new"],
                work,
                otp,
                MIX_ENV="prod",
                LEDGER_SSL=words[ssl],
                LEDGER_ERTS=words[erts],
            )
            Path(f"{made}.new").rename(made)
        return made

    def rebar3(self, otp: Otp, profile: str, vm_args: Path) -> Path:
        """The directory of a release of `tally`; `profile` as in its rebar.config: whole, small or bare."""
        made = self.directory / f"rebar3-{otp}-{profile}"
        if not made.exists():
            work = self._copy("tally", made.name)
            shutil.copy(vm_args, work)
            self._rebar3(otp, work, "release", profile=profile)
            (work / f"_build/{profile}/rel/tally").rename(made)
        return made

    def rebar3_upgrade(self, otp: Otp, vm_args: Path) -> tuple[Path, Path]:
        """A release of `tally` 0.1.0 with ERTS and ssl; the tarball that makes 0.2.0 of it while it runs."""
        old, new = self.directory / f"rebar3-{otp}-old", self.directory / f"tally-0.2.0-{otp}.tar.gz"
        if not new.exists():
            work = self._copy("tally", f"{otp}-upgrade")
            shutil.copy(vm_args, work)
            made = work / "_build/whole/rel/tally"
            self._rebar3(otp, work, "release")
            shutil.copytree(made, old, symlinks=True)
            for path in ("rebar.config", "src/tally.app.src", "src/tally.erl"):
                text = (work / path).read_text().replace("0.1.0", "0.2.0")
                (work / path).write_text(text.replace("{reply, Sum, Sum}", "{reply, {now, Sum}, Sum}"))
            self._rebar3(otp, work, "compile")
            change = '[{"0.1.0", [{load_module, tally}]}]'
            (work / "_build/whole/lib/tally/ebin/tally.appup").write_text(f'{{"0.2.0", {change}, {change}}}.')
            self._rebar3(otp, work, "release")
            self._rebar3(otp, work, "relup", "-n", "tally", "-v", "0.2.0", "-u", "0.1.0")
            self._rebar3(otp, work, "tar")
            (made / "tally-0.2.0.tar.gz").rename(new)
        return old, new

    def _rebar3(self, otp: Otp, work: Path, *task: str, profile: str = "whole") -> None:
        command = [f"{bin_of(otp)}/escript", need("rebar3"), "as", profile, *task]
        self._run(command, work, otp, ERL_LIBS=str(self._borrowed(otp)))

    def shipment(self, otp: Otp) -> Path:
        """What `gleam export erlang-shipment` would leave in build/erlang-shipment."""
        made = self.directory / f"shipment-{otp}"
        if not made.exists():
            source, work = SOURCES / "greeter", Path(f"{made}.new")
            ebin = work / "greeter/ebin"
            ebin.mkdir(parents=True)
            self._run([otp.erlc, "-o", str(ebin), *map(str, sorted(source.glob("*.erl")))], work, otp)
            shutil.copy(source / "greeter.app", ebin)
            shutil.copy(source / "entrypoint.sh", work)
            work.rename(made)
        return made

    def _copy(self, name: str, kind: str) -> Path:
        work = self.directory / f"source-{kind}"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(SOURCES / name, work)
        return work

    def _borrowed(self, otp: Otp) -> Path:
        """The libraries of the host's Erlang that this one lacks; rebar3 loads them and puts none in."""
        directory = self.directory / f"borrowed-{otp}"
        directory.mkdir(exist_ok=True)
        own = {path.parent.name.partition("-")[0] for path in root_of(otp).glob("lib/*/ebin")}
        for path in HOST_ERLANG.glob("lib/*"):
            link = directory / path.name
            if path.name.partition("-")[0] not in own and not link.is_symlink():
                link.symlink_to(path)
        return directory

    def _run(self, command: list[str], directory: Path, otp: Otp, **variables: str) -> None:
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        done = subprocess.run(
            command,
            cwd=directory,
            env={
                "HOME": str(home),
                "PATH": os.pathsep.join((bin_of(otp), os.environ["PATH"])),
                "LANG": "C.UTF-8",
                **variables,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
