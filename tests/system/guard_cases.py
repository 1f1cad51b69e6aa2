"""The ways in which a node's own flags reach its emulator, and the flags that take the guard out of force."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.system.cluster import CARRIER, Cluster


@dataclass(frozen=True, slots=True)
class Case:
    """`flag` is what the operator must be told; `words` are what a node is given, `way` is how.

    `boots`: whether an emulator is started at all, or the flag is found before that.
    """

    flag: str
    words: tuple[str, ...]
    way: str
    boots: bool = False

    @property
    def head(self) -> str:
        """A node name of its own."""
        last = self.words[-1].rpartition("/")[2].partition("@")[0].replace("_", "-").replace(".", "-")
        return f"{self.flag.strip('-').replace('_', '-')}-{last}-{self.way}".replace(" ", "-")

    def __str__(self) -> str:
        return self.head


TCP = ("-proto_dist", "inet_tcp")
AGAIN = ("-proto_dist", CARRIER)
STOCK = ("-proto_dist", "inet_tls")
OPTFILE = ("-ssl_dist_optfile", "/nowhere/own.conf")
OPT = ("-ssl_dist_opt", "server_verify", "verify_none")
COOKIE = ("-setcookie", "shown_to_all")
NAME = ("-name", "other@127.0.0.1")
SNAME = ("-sname", "other")
NO_EPMD = ("-no_epmd",)
STOCK_RESOLVER = ("-epmd_module", "erl_epmd")
RESOLVER_AND_TCP = ("-epmd_module", "distsec_test_epmd", *TCP)

CASES = (
    *(Case(words[0], words, "command") for words in (TCP, COOKIE, NO_EPMD)),
    *(Case(words[0], words, "args-file") for words in (AGAIN, OPTFILE)),
    *(Case(words[0], words, "ERL-FLAGS") for words in (OPT, SNAME)),
    *(Case(words[0], words, "ERL-ZFLAGS") for words in (NAME, TCP)),
    *(
        Case(words[0], words, "wrapper", boots=True)
        for words in (TCP, AGAIN, OPTFILE, OPT, COOKIE, NAME, SNAME, NO_EPMD)
    ),
    *(Case(words[0], words, "vm-args", boots=True) for words in (TCP, STOCK, OPTFILE)),
    *(Case(words[0], words, "release-flags", boots=True) for words in (STOCK_RESOLVER, RESOLVER_AND_TCP)),
)
"""Every flag at least once, every way at least twice."""


def give(cluster: Cluster, case: Case) -> None:
    """Changes the configuration of the node `case.head` so that it is given the words in that way."""
    WAYS[case.way](cluster, case)


def wrap(cluster: Cluster, name: str, *lines: str) -> None:
    """Puts a shell script in place of a node's command; it ends by what `lines` exec."""
    script = cluster.directory / f"{name}.sh"
    script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    script.chmod(0o755)
    cluster.table(name)["command"] = [str(script)]


def command_line(cluster: Cluster, name: str, *words: str) -> str:
    """A node's command, as a shell has it, with `words` behind it."""
    return shlex.join([*cluster.table(name)["command"], *words])


def _command(cluster: Cluster, case: Case) -> None:
    cluster.table(case.head)["command"] += case.words


def _args_file(cluster: Cluster, case: Case) -> None:
    """Named by a relative path, which is seen from where the node is started: beside the configuration."""
    file = _vm_args(cluster, case)
    cluster.table(case.head)["command"] += ["-args_file", file.name]


def _variable(variable: str) -> Callable[[Cluster, Case], None]:
    def set_it(cluster: Cluster, case: Case) -> None:
        cluster.table(case.head)["environment"] = {variable: " ".join(case.words)}

    return set_it


def _wrapper(cluster: Cluster, case: Case) -> None:
    wrap(cluster, case.head, "exec " + command_line(cluster, case.head, *case.words))


def _wrapped_vm_args(cluster: Cluster, case: Case) -> None:
    """As the start script of a release does."""
    file = _vm_args(cluster, case)
    wrap(cluster, case.head, "exec " + command_line(cluster, case.head, "-args_file", str(file)))


def _release_flags(cluster: Cluster, case: Case) -> None:
    """ERL_OTP<release>_FLAGS come before ERL_AFLAGS, so the resolver that they name wins."""
    variable = f"ERL_OTP{cluster.otps[case.head].release}_FLAGS"
    flags = shlex.quote(" ".join(case.words))
    line = f"{variable}={flags} ERL_EPMD_PORT=1 exec {command_line(cluster, case.head)}"
    wrap(cluster, case.head, f"export {variable} ERL_EPMD_PORT", line)


def _vm_args(cluster: Cluster, case: Case) -> Path:
    file = cluster.directory / f"{case.head}.args"
    file.write_text(f"# flags of the release\n+P 65536\n{' '.join(case.words)}\n")
    return file


WAYS: Mapping[str, Callable[[Cluster, Case], None]] = {
    "command": _command,
    "args-file": _args_file,
    "ERL-FLAGS": _variable("ERL_FLAGS"),
    "ERL-ZFLAGS": _variable("ERL_ZFLAGS"),
    "wrapper": _wrapper,
    "vm-args": _wrapped_vm_args,
    "release-flags": _release_flags,
}
