"""What one value of the configuration may be: functions that check it and annotated types made of them. Pure.

Each function takes the value as TOML has it and returns it as the program wants it, or raises with a sentence
of its own. None passes everywhere: TOML has no null, so it stands for a value that was already complained
about.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

from distsec.config.addresses import AddressInvalid, listening_address, parse_address, parse_listen
from distsec.errors import NameInvalid
from distsec.model.cluster import Carrier, Epmd, Mode, OnExit, RestartPolicy
from distsec.model.names import NodeName, check_trust_domain

PROBLEM = "distsec_problem"
"""The type of every error raised here; its context has `what` and `do`."""

MAX_TEXT = 4096
"""Characters in one string: PATH_MAX (limits.h), and longer than any name or argument needs to be."""

LOWEST_PORT, HIGHEST_PORT = 1024, 65535
"""Ports that need no privilege."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")

E = TypeVar("E", bound=StrEnum)


def problem(what: str, do: str = "") -> PydanticCustomError:
    """The exception to raise about a value."""
    return PydanticCustomError(PROBLEM, "{what}", {"what": what, "do": do})


def text(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise problem("must be a text", "put it in quotes")
    if len(value) > MAX_TEXT:
        raise problem(f"is longer than {MAX_TEXT} characters", "shorten it")
    if "\x00" in value:
        raise problem("holds a NUL character, which no argument, path or variable can carry", "remove it")
    return value


def path(value: object) -> str | None:
    checked = text(value)
    if checked is None:
        return None
    if not checked or _CONTROLS.search(checked):
        raise problem(
            "must be a path without control characters",
            "write an absolute path, or one relative to this file",
        )
    if checked.startswith("~"):
        raise problem("~ is not expanded here", "write the whole path, or ${HOME}/…")
    return checked


def boolean(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise problem("must be true or false", "write it without quotes")


def whole(low: int, high: int) -> Callable[[object], int | None]:
    """A whole number from `low` to `high`."""

    def check(value: object) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise problem(f"must be a whole number from {low} to {high}")
        return value

    return check


def seconds(low: float, high: float) -> Callable[[object], float | None]:
    """A duration in seconds from `low` to `high`; `inf` and `nan`, which TOML has, are outside."""

    def check(value: object) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise problem(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return check


def one_of(kind: type[E]) -> Callable[[object], E | None]:
    """One of the values of an enumeration, by its text."""

    def check(value: object) -> E | None:
        if value is None:
            return None
        known = [str(member) for member in kind]
        if not isinstance(value, str):
            raise problem(f"must be one of {', '.join(known)}", "put it in quotes")
        if value not in known:
            near = difflib.get_close_matches(value.lower(), known, 1)
            do = f'did you mean "{near[0]}"?' if near else f"use one of {', '.join(known)}"
            raise problem(f"{value[:80]!a} is not known here", do)
        return kind(value)

    return check


def node_name(value: object) -> NodeName | None:
    checked = text(value)
    if checked is None:
        return None
    try:
        return NodeName.parse(checked)
    except NameInvalid as error:
        raise problem(error.what, error.do) from None


def pattern(value: object) -> str | None:
    """A CLI rule's name@host, whose name part may hold `*`."""
    checked = text(value)
    if checked is None:
        return None
    head, _, host = checked.partition("@")
    if "*" in host:
        raise problem(
            f"{checked[:80]!a} has a * in the host part", "write one rule for each host, by its exact name"
        )
    try:
        NodeName.parse(f"{head.replace('*', 'x')}@{host}")
    except NameInvalid as error:
        shown = ascii(checked[:80])
        raise problem(
            f"{shown} can match no node name", f"{error.do}; * may stand in the name part"
        ) from None
    return checked


def trust_domain(value: object) -> str | None:
    checked = text(value)
    if checked is None:
        return None
    try:
        return check_trust_domain(checked)
    except NameInvalid as error:
        raise problem(error.what, error.do) from None


def address(value: object) -> str | None:
    checked = text(value)
    if checked is None:
        return None
    try:
        return parse_address(checked)
    except AddressInvalid as error:
        raise problem(error.what, error.do) from None


def own_address(value: object) -> str | None:
    """What is listened on: see config.addresses.listening_address."""
    checked = text(value)
    if checked is None:
        return None
    try:
        return listening_address(checked)
    except AddressInvalid as error:
        raise problem(error.what, error.do) from None


def bind(value: object) -> str | None:
    """An address to listen on, or `tailscale`."""
    return "tailscale" if value == "tailscale" else own_address(value)


def listen(value: object) -> tuple[str, int] | bool | None:
    """(address, port), or False for "do not listen"."""
    if value is False or value == "":
        return False
    if value is True:
        raise problem("must be an address:port, or false", 'write it as "127.0.0.1:9911"')
    checked = text(value)
    if checked is None:
        return None
    try:
        return parse_listen(checked)
    except AddressInvalid as error:
        raise problem(error.what, error.do) from None


def port_range(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise problem("must be a list of two ports, the first and the last", "such as [9100, 9155]")
    for bound in value:
        if isinstance(bound, bool) or not isinstance(bound, int) or not LOWEST_PORT <= bound <= HIGHEST_PORT:
            raise problem(f"must be two ports from {LOWEST_PORT} to {HIGHEST_PORT}", "such as [9100, 9155]")
    first, last = value
    if first > last:
        raise problem(f"the first port, {first}, is above the last, {last}", f"write [{last}, {first}]")
    return first, last


class VerifyMode(StrEnum):
    VERIFY_PEER = "verify_peer"
    VERIFY_NONE = "verify_none"


class Connect(StrEnum):
    MESH = "mesh"
    NONE = "none"


class RuleKind(StrEnum):
    CLI = "cli"  # names that command-line tools make up: hidden, inbound
    NODE = "node"  # by what certificate listed nodes are known


class Permission(StrEnum):
    """Of `[[security.rbac.roles]]`."""

    READ = "read"
    WRITE = "write"
    POLL = "poll"
    SYNC = "sync"
    REPORT = "report"
    ADMIN = "admin"


Text = Annotated[str | None, PlainValidator(text)]
Path = Annotated[str | None, PlainValidator(path)]
Flag = Annotated[bool | None, PlainValidator(boolean)]
Port = Annotated[int | None, PlainValidator(whole(LOWEST_PORT, HIGHEST_PORT))]
Address = Annotated[str | None, PlainValidator(address)]
OwnAddress = Annotated[str | None, PlainValidator(own_address)]
Bind = Annotated[str | None, PlainValidator(bind)]
Name = Annotated[NodeName | None, PlainValidator(node_name)]
Pattern = Annotated[str | None, PlainValidator(pattern)]
TrustDomain = Annotated[str | None, PlainValidator(trust_domain)]
Listen = Annotated[tuple[str, int] | bool | None, PlainValidator(listen)]
PortRange = Annotated[tuple[int, int] | None, PlainValidator(port_range)]
Deadline = Annotated[float | None, PlainValidator(seconds(0.1, 3600))]
ModeField = Annotated[Mode | None, PlainValidator(one_of(Mode))]
CarrierField = Annotated[Carrier | None, PlainValidator(one_of(Carrier))]
EpmdField = Annotated[Epmd | None, PlainValidator(one_of(Epmd))]
OnExitField = Annotated[OnExit | None, PlainValidator(one_of(OnExit))]
RestartField = Annotated[RestartPolicy | None, PlainValidator(one_of(RestartPolicy))]
VerifyField = Annotated[VerifyMode | None, PlainValidator(one_of(VerifyMode))]
ConnectField = Annotated[Connect | None, PlainValidator(one_of(Connect))]
RuleKindField = Annotated[RuleKind | None, PlainValidator(one_of(RuleKind))]
PermissionField = Annotated[Permission | None, PlainValidator(one_of(Permission))]
