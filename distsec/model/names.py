"""Node names, the identities that go with them, and the directory each is kept in.

A node name is `name@host`. Erlang takes `[0-9A-Za-z_-]+` before the @ (net_kernel:valid_name_head/1) and
almost anything after it; SPIFFE takes letters, digits, `.`, `-` and `_` in a path segment (SPIFFE-ID, section
2.2). The intersection is what is accepted here: a host is a DNS name, an IPv4 or an IPv6 literal. An IPv6
literal's `:` is written `_` in the identity, which no host name holds, so the encoding is reversible.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from distsec.errors import NameInvalid

MAX_NAME_BYTES = 255
"""The longest atom (MAX_ATOM_CHARACTERS in erts/emulator/beam/atom.h), and NAME_MAX of Linux file systems."""

_HEAD = re.compile(r"[0-9A-Za-z_-]{1,64}")
_HOST = re.compile(
    r"(?=.{1,180}\Z)[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?(\.[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?)*"
)
_DOTTED_NUMBER = re.compile(r"(.*\.)(0[xX][0-9a-fA-F]*|[0-9]+)")
"""A host whose last label is a number: inet_aton(3), and so a resolver, reads `127.1` as an address."""
_TRUST_DOMAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True, order=True)
class NodeName:
    """`name@host`, checked. Build it with `NodeName.parse`."""

    head: str
    host: str

    @classmethod
    def parse(cls, text: str) -> NodeName:
        """Reads `name@host`. Raises NameInvalid with the reason and the way out."""
        head, at, host = text.partition("@")
        shown = ascii(text[:80])
        if not at or not head or not host:
            raise NameInvalid(f"{shown} is no node name", do="write it as name@host")
        if head in {".", ".."} or head.startswith("-") or not _HEAD.fullmatch(head):
            raise NameInvalid(
                f"{shown}: the part before the @ must be 1 to 64 of A-Z a-z 0-9 _ - and not begin with -",
                do="choose another name",
            )
        if not (_HOST.fullmatch(host) or _is_ipv6(host)):
            raise NameInvalid(
                f"{shown}: the part after the @ must be a host name or IP address that a SPIFFE ID can carry",
                do="use letters, digits, dots and hyphens",
            )
        if _DOTTED_NUMBER.fullmatch(host) and _ip(host) is None:
            raise NameInvalid(
                f"{shown}: the part after the @ looks like an IPv4 address and is none",
                do="write all four numbers, each from 0 to 255 and without leading zeros",
            )
        if len(text) > MAX_NAME_BYTES:
            raise NameInvalid(f"{shown} is longer than {MAX_NAME_BYTES} bytes", do="choose a shorter name")
        return cls(head, host)

    def __str__(self) -> str:
        return f"{self.head}@{self.host}"

    @property
    def long(self) -> bool:
        """Whether Erlang needs `-name` (a dot or a colon in the host) rather than `-sname`."""
        return "." in self.host or ":" in self.host

    @property
    def ip(self) -> str | None:
        """The host as an IP literal in its shortest form, or None where it is a DNS name."""
        return _ip(self.host)

    def identity(self, trust_domain: str) -> str:
        """The SPIFFE ID of this node: `spiffe://<trust domain>/node/<host>/<name>`."""
        return f"spiffe://{trust_domain}/node/{self.host.replace(':', '_')}/{self.head}"


def _ip(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _is_ipv6(host: str) -> bool:
    return "%" not in host and ":" in (_ip(host) or "")


def check_trust_domain(text: str) -> str:
    """Returns `text` if it can be a SPIFFE trust domain (SPIFFE-ID, section 2.1), else raises NameInvalid."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise NameInvalid(
            f"{text[:80]!a} cannot be a cluster name",
            do="use 1 to 63 of a-z 0-9 . _ - beginning with a letter or digit (a SPIFFE trust domain)",
        )
    return text


def is_claimable(name: str) -> bool:
    """Whether a peer's claimed `name` is looked at any further: name@host of visible ASCII, not too long.

    All names of a policy are such; node names with more in them are not compared with anything.
    """
    head, _, host = name.partition("@")
    visible = all("!" <= character <= "~" for character in name)
    return visible and len(name) <= MAX_NAME_BYTES and bool(head and host) and "@" not in host


def glob_matches(pattern: str, name: str) -> bool:
    """Whether `name` (name@host) fits `pattern`, whose name part may hold `*`; the host is compared exactly.

    `*` stands for any run of characters before the @, never for the @ itself or a part of the host.
    """
    pattern_head, _, pattern_host = pattern.partition("@")
    head, at, host = name.partition("@")
    if not at or not head or not host or host != pattern_host or "@" in host:
        return False
    return _star_matches(pattern_head, head)


def _star_matches(pattern: str, text: str) -> bool:
    """`*` is any run of characters. Linear, where a regular expression of many `.*` would backtrack."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    *middle, last = rest
    if not text.startswith(first):
        return False
    position = len(first)
    for piece in middle:  # the leftmost fit of each piece leaves the most room for those after it
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return len(text) - position >= len(last) and text.endswith(last)
