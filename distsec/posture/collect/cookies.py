"""Measures cookies where they are read; from here on only measures go."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Final

from distsec.config.check_unbuilt import WELL_KNOWN_COOKIES
from distsec.posture.facts import CookieFact, Source

_SALT: Final = os.urandom(32)
"""Of this run, so that a digest is worth nothing to whoever reads a report."""

FLAG: Final = re.compile(rb"(?:^|[\s\0])-?-(?:setcookie|cookie|erlang-cookie)[\s\0]+([^\s\0]+)")
"""As erl, elixir and rabbitmqctl take a cookie; in arguments, and in variables that become arguments."""

VARIABLES: Final = frozenset(
    {"RELEASE_COOKIE", "ERLANG_COOKIE", "ERL_COOKIE", "NODE_COOKIE", "RABBITMQ_ERLANG_COOKIE", "COOKIE"}
    | {"EMQX_NODE__COOKIE", "EMQX_NODE_COOKIE", "VERNEMQ_DISTRIBUTED_COOKIE", "EJABBERD_COOKIE"}
    | {"ERLANG_COOKIE_SECRET", "DISTRIBUTION_COOKIE"}
)


def measure(
    cookie: bytes,
    *,
    source: Source,
    holder: str,
    place: str,
    age_seconds: float | None = None,
    encrypted: bool = False,
) -> CookieFact:
    """What may be told of a cookie."""
    return CookieFact(
        source=source,
        holder=holder,
        place=place,
        length=len(cookie),
        distinct=len(set(cookie)),
        well_known=cookie.decode("latin-1").lower() in WELL_KNOWN_COOKIES,
        digest=hashlib.blake2b(cookie, key=_SALT, digest_size=16).hexdigest(),
        age_seconds=age_seconds,
        encrypted=encrypted,
    )


def in_arguments(argv: bytes) -> list[bytes]:
    """Every cookie in a cmdline of /proc. `-setcookie Node Cookie` has two words, and both are taken."""
    found = []
    words = argv.split(b"\0")
    for at, word in enumerate(words):
        if word in {b"-setcookie", b"--cookie", b"--erlang-cookie"}:
            values = [each for each in words[at + 1 : at + 3] if each and not each.startswith((b"-", b"+"))]
            if values:
                with_node = word == b"-setcookie" and len(values) == 2 and b"@" in values[0]
                found.append(values[1] if with_node else values[0])
        elif b" " in word:
            found += [match[1].strip(b"'\"") for match in FLAG.finditer(word)]
    return [each for each in found if each]


def in_environment(environ: bytes) -> list[tuple[str, bytes]]:
    """(variable, cookie) of every one in an environ of /proc."""
    found = []
    for entry in environ.split(b"\0"):
        name, _, value = entry.partition(b"=")
        variable = name.decode("utf-8", "replace")
        if variable in VARIABLES and value:
            found.append((variable, value))
        else:
            found += [(variable, match[1].strip(b"'\"")) for match in FLAG.finditer(value)]
    return [(variable, cookie) for variable, cookie in found if cookie]
