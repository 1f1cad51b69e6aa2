"""Node names, the identities that go with them, and the directory each is kept in.

A node name is `name@host`. Erlang takes `[0-9A-Za-z_-]+` before the @ (net_kernel:valid_name_head/1) and almost
anything after it; SPIFFE takes letters, digits, `.`, `-` and `_` in a path segment (SPIFFE-ID, section 2.2). The
intersection is what is accepted here: a host is a DNS name, an IPv4 or an IPv6 literal. An IPv6 literal's `:` is
written `_` in the identity, which no host name holds, so the encoding is reversible.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from distsec.errors import NameInvalid

MAX_NAME_BYTES = 255
"""The longest atom (MAX_ATOM_CHARACTERS in erts/emulator/beam/atom.h), and NAME_MAX of Linux file systems."""

_HEAD = re.compile(r"[0-9A-Za-z_-]{1,64}")
_HOST = re.compile(r"(?=.{1,180}\Z)[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?(\.[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?)*")
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
                f"{shown}: the part after the @ must be a host name or an IP address that a SPIFFE ID can carry",
                do="use letters, digits, dots and hyphens",
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
        """The host as an IP literal, or None where it is a DNS name."""
        try:
            return str(ipaddress.ip_address(self.host))
        except ValueError:
            return None

    def identity(self, trust_domain: str) -> str:
        """The SPIFFE ID of this node: `spiffe://<trust domain>/node/<host>/<name>`."""
        return f"spiffe://{trust_domain}/node/{self.host.replace(':', '_')}/{self.head}"


def _is_ipv6(host: str) -> bool:
    try:
        return "%" not in host and ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def check_trust_domain(text: str) -> str:
    """Returns `text` if it can be the trust domain of a SPIFFE ID (SPIFFE-ID, section 2.1), else raises NameInvalid."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise NameInvalid(
            f"{ascii(text[:80])} cannot be a cluster name",
            do="use 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit (it becomes the SPIFFE trust domain)",
        )
    return text


def glob_matches(pattern: str, name: str) -> bool:
    """Whether `name` (name@host) fits `pattern`, whose name part may hold `*`; the host is compared exactly.

    `*` stands for any run of characters before the @, never for the @ itself or a part of the host.
    """
    pattern_head, _, pattern_host = pattern.partition("@")
    head, at, host = name.partition("@")
    if not at or not head or host != pattern_host or "@" in host:
        return False
    expression = ".*".join(re.escape(piece) for piece in pattern_head.split("*"))
    return re.fullmatch(expression, head, re.DOTALL) is not None
