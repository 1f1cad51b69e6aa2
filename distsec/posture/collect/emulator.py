"""What the arguments of an emulator say about its distribution. Pure.

erlexec puts the contents of every args_file, vm.args and ERL_*FLAGS into them, so nothing is hidden there
but what a boot script or a `.config` file sets. Values are taken as `init` does: the words behind a flag up
to the next one; of a flag that is given twice all are kept.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from distsec.beam.erlang_text import Symbol
from distsec.posture.consult import ConsultError, consult

EMULATOR: Final = re.compile(r"beam(\.\w+)*")
"""The base name of argv[0] (erts/etc/common/erlexec.c)."""

_DIST_OPT: Final = re.compile(r"(server|client)_([a-z_]+)")
_LITERAL: Final = frozenset(
    {"verify", "secure_renegotiate", "reuse_sessions", "fail_if_no_peer_cert", "crl_check"}
)
_NUMBERS: Final = frozenset({"depth", "hibernate_after"})


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags, by name without the first `-`, with all occurrences of each; a cookie without its value."""

    all: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict, repr=False)

    def first(self, name: str) -> str | None:
        """The first word of the first occurrence, which is the one that `init` and kernel look at."""
        occurrences = self.all.get(name)
        return occurrences[0][0] if occurrences and occurrences[0] else None

    def count(self, name: str) -> int:
        return len(self.all.get(name, ()))

    def words(self, name: str) -> tuple[str, ...]:
        return tuple(word for occurrence in self.all.get(name, ()) for word in occurrence)

    @property
    def node(self) -> str | None:
        return self.first("name") or self.first("sname")

    @property
    def distributed(self) -> bool:
        """Whether it listens, or could: a node without a name never does."""
        return self.node is not None and self.first("dist_listen") != "false"

    @property
    def carrier(self) -> str:
        return self.first("proto_dist") or "inet_tcp"

    @property
    def encrypted(self) -> bool:
        return not self.carrier.endswith("_tcp")

    @property
    def optfile(self) -> str | None:
        return self.first("ssl_dist_optfile")

    @property
    def inline_options(self) -> dict[str, dict[str, Any]]:
        """`-ssl_dist_opt` as options by role (inet_tls_dist:ssl_options/2)."""
        roles: dict[str, dict[str, Any]] = {"server": {}, "client": {}}
        words = self.words("ssl_dist_opt")
        for name, value in zip(words[::2], words[1::2], strict=False):
            found = _DIST_OPT.fullmatch(name)
            if found:
                roles[found[1]][found[2]] = _inline_value(found[2], value)
        return roles

    def kernel(self, key: str) -> Any:
        """A parameter of kernel from the command line, as a term; None where it is not given or no term."""
        for occurrence in self.all.get("kernel", ()):
            for name, value in zip(occurrence[::2], occurrence[1::2], strict=False):
                if name == key:
                    return _term(value)
        return None

    @property
    def configurations(self) -> tuple[str, ...]:
        """The `.config` files, as they are named (application_controller: with or without the ending)."""
        return self.words("config")


def parse(argv: Sequence[str]) -> Flags:
    """The flags of an emulator's arguments, argv[0] included."""
    found: dict[str, list[list[str]]] = {}
    current: list[str] | None = None
    for word in argv[1:]:
        if word == "-extra":
            break
        if word == "--":
            current = None
        elif len(word) > 1 and word[0] == "-":
            found.setdefault(word[1:], []).append([])
            current = None if word == "-setcookie" else found[word[1:]][-1]
        elif word[:1] == "+":
            current = None
        elif current is not None:
            current.append(word)
    return Flags({name: tuple(map(tuple, each)) for name, each in found.items()})


def interface(term: Any) -> str | None:
    """An address as `inet_dist_use_interface` has it, as a literal."""
    if isinstance(term, tuple) and len(term) in {4, 8} and all(type(each) is int for each in term):
        try:
            if len(term) == 4:
                return str(ipaddress.ip_address(bytes(term)))
            return str(ipaddress.ip_address(b"".join(each.to_bytes(2) for each in term)))
        except (ValueError, OverflowError):
            return None
    return None


def kernel_of(configuration: bytes, key: str) -> Any:
    """A parameter of kernel in a `.config` file. None where it is not there or the file cannot be read."""
    try:
        terms = consult(configuration)
    except ConsultError:
        return None
    for entry in terms[0] if terms and isinstance(terms[0], list) else ():
        if isinstance(entry, tuple) and entry[:1] == (Symbol("kernel"),) and isinstance(entry[-1], list):
            for pair in entry[-1]:
                if isinstance(pair, tuple) and len(pair) == 2 and pair[0] == Symbol(key):
                    return pair[1]
    return None


def _term(text: str) -> Any:
    try:
        return consult(text.encode() + b".")[0]
    except (ConsultError, IndexError, UnicodeEncodeError):
        return None


def _inline_value(name: str, value: str) -> Any:
    if value in {"true", "false"}:
        return value == "true"
    if name in _LITERAL:
        return Symbol(value)
    return int(value) if name in _NUMBERS and value.isdecimal() and len(value) < 10 else value
