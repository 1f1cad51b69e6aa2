"""The files that a node is given before it starts: optfile, guard, cookies, policy document (pure). Its flags
are `beam.aflags`.

docs/state-files.md specifies the files. Nothing here reads, writes or signs: the caller passes values in and
stores what comes out. What cannot be carried faithfully is refused with a ConfigError: nothing starts.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from distsec.beam.erlang_text import Symbol, Term, erlang_atom, erlang_binary, erlang_term
from distsec.beam.tls_options import Role, refuse_illegal, tls_options
from distsec.errors import ConfigError, Problem
from distsec.model.cluster import Carrier, Epmd
from distsec.model.cookies import Cookies, CookieSet
from distsec.model.names import NodeName
from distsec.model.policy import Policy, PolicyPeer, PolicyRule
from distsec.model.secret import Secret

__all__ = [
    "checked_port",
    "cookie_file",
    "erlang_binary",
    "guard_file",
    "interface_term",
    "optfile",
    "policy_document",
    "proto_dist",
    "refused",
    "text_path",
]

OPTFILE: Final = "dist.conf"
CERTIFICATE: Final = "certificate.pem"
KEY: Final = "key.pem"
TRUST: Final = "trust.pem"

MAX_DOCUMENT_BYTES: Final = 512 * 1024
"""Of a policy document. A push carries it with a cookie for each peer, in one frame of at most 1 MiB."""

_COOKIE = re.compile(rb"[A-Za-z0-9]{32,255}")
"""Atoms of plain letters; distsec_guard:cookies/0 takes no default below 32 characters."""

_NO_EXTRAS: Final[Mapping[str, Term]] = MappingProxyType({})


def proto_dist(carrier: Carrier, address: str) -> str:
    """The value of `-proto_dist` for links carried by `carrier` from a listener at `address` (an IP literal).

    OTP's carriers have a name for IPv6 of their own; ours takes the family from the interface it listens on.
    Raises ConfigError for what is no IP literal, and for a carrier without TLS anywhere but on loopback.
    """
    ip = _interface(carrier, address)
    of_otp = carrier is not Carrier.DISTSEC
    return carrier.value.replace("inet_", "inet6_") if of_otp and ip.version == 6 else carrier.value


# ---- files -------------------------------------------------------------------------------------------------


def optfile(
    *,
    directory: str,
    extra_server: Mapping[str, Term] = _NO_EXTRAS,
    extra_client: Mapping[str, Term] = _NO_EXTRAS,
) -> bytes:
    """`dist.conf` of the node whose key, certificate and trust bundle are in the absolute `directory`.

    The same bytes for OTP 25 to 29. `extra_*` add to or replace options by name; what is illegal or weakens a
    link is refused with a ConfigError that names it (tls_options.refuse_illegal).
    """
    files = {
        "certfile": _path_octets(f"{directory}/{CERTIFICATE}"),
        "keyfile": _path_octets(f"{directory}/{KEY}"),
        "cacertfile": _path_octets(f"{directory}/{TRUST}"),
    }
    roles: list[str] = []
    for role, extra in ((Role.SERVER, extra_server), (Role.CLIENT, extra_client)):
        options = {**tls_options(role, **files), **extra}
        refuse_illegal(role, options)
        lines = ",\n   ".join(
            f"{{{erlang_atom(name)},{erlang_term(value)}}}" for name, value in options.items()
        )
        roles.append(f"{{{role},\n  [{lines}]}}")
    return _document(
        "% TLS of the Erlang distribution (ssl_dist_optfile). Written by distsec; changes are lost.",
        "[" + ",\n ".join(roles) + "].",
    )


def guard_file(
    *,
    cluster: str,
    node: NodeName,
    carrier: Carrier,
    directory: str,
    address: str,
    port: int,
    policy_key: bytes,
    optfile: bytes | None,
    epmd: Epmd = Epmd.NONE,
    floor: int | None = None,
) -> bytes:
    """`guard.term`: what must hold before the VM may listen. `policy_key` is the raw Ed25519 public key.

    `floor`: the lowest generation of a policy that the node may take; with one it also needs a `policy.mark`.

    `optfile` is the content of `dist.conf`; None exactly where the carrier has no TLS.
    """
    tls = carrier.encrypted
    if tls != (optfile is not None):
        raise refused(
            "security.distribution.carrier", f"{carrier} {'needs an' if tls else 'takes no'} optfile", ""
        )
    guard: dict[str, Term] = {
        "version": 1,
        "node": str(node).encode(),
        "cluster": cluster.encode(),
        "proto_dist": proto_dist(carrier, address),
        "optfile": _path_octets(f"{directory}/{OPTFILE}") if tls else None,
        "optfile_sha256": hashlib.sha256(optfile).hexdigest().encode() if optfile is not None else None,
        "interface": interface_term(carrier, address),
        "port": checked_port(port),
        "epmd": Symbol(epmd.value),
        "policy_key": base64.b64encode(policy_key),
        **({"floor": floor} if floor is not None else {}),
    }
    return _document(
        "% What must hold before this node may listen. Written by distsec; changes are lost.",
        f"{{distsec_guard, {_map(guard)}}}.",
    )


def cookie_file(cookies: CookieSet) -> bytes:
    """`cookie.term`: the node's default cookie, one for each peer by full name, and while they are rotated
    what it takes from who dials besides. The result is secret.
    """
    fields: dict[str, Term] = {
        "version": 1,
        "default": _cookie(cookies.current.default),
        "peers": _peer_cookies(cookies.current),
    }
    if cookies.step:  # the same bytes as ever where nothing was ever rotated
        fields["step"] = cookies.step
    if cookies.other is not None:
        fields["other_default"] = _cookie(cookies.other.default)
        fields["other_peers"] = _peer_cookies(cookies.other)
    return _document(
        "% Secret. Written by distsec; changes are lost.", f"{{distsec_cookies, {_map(fields)}}}."
    )


def _peer_cookies(cookies: Cookies) -> dict[Symbol | bytes, Term]:
    return {name.encode(): _cookie(cookies.peers[name]) for name in sorted(cookies.peers)}


def policy_document(policy: Policy, sign: Callable[[bytes], bytes]) -> bytes:
    """`policy.term`: the policy and, in its last line, `sign` (Ed25519) of every byte before that line.

    Equal policies give equal bytes. Raises ConfigError for one that a node would refuse, or that is too long.
    """
    fields: dict[str, Term] = {
        # What nodes of an earlier version would not refuse they are not to take for all that there is.
        "version": 2 if policy.revoked_identities else 1,
        "cluster": policy.cluster.encode(),
        "generation": policy.generation,
        "issued_at": policy.issued_at,
        "connect": Symbol(policy.connect),
        "require_identity": policy.require_identity,
        "peers": [_peer(peer) for peer in policy.peers],
        "rules": [_rule(rule) for rule in policy.rules],
        "denied": [name.encode() for name in sorted(policy.denied)],
        "revoked": [serial.encode() for serial in sorted(policy.revoked)],
        **(
            {"revoked_identities": [each.encode() for each in sorted(policy.revoked_identities)]}
            if policy.revoked_identities
            else {}
        ),
        **({"epochs": [(n.encode(), e) for n, e in policy.epochs]} if policy.epochs else {}),
    }
    if policy.connect not in ("mesh", "none"):
        raise refused("security.distribution.connect", "must be mesh or none", "")
    if policy.generation < 0:
        raise refused("policy.generation", "must not be negative", "")
    body = _document(
        f"%% The policy of cluster {erlang_binary(policy.cluster.encode())}, generation"
        f" {policy.generation:d}, issued {_utc(policy.issued_at)}.",
        "%% Written and signed by distsec. Nodes refuse it if a byte differs: use distsec allow and deny.",
        f"{{distsec_policy, {_map(fields)}}}.",
    )
    document = body + _document(f"{{signature, {erlang_binary(base64.b64encode(sign(body)))}}}.")
    if len(document) > MAX_DOCUMENT_BYTES:
        raise refused(
            "security.distribution.allowed_nodes",
            f"the policy has {len(document)} bytes, and {MAX_DOCUMENT_BYTES} are the most that nodes take",
            "list fewer nodes, or cover CLI names by rules",
        )
    return document


def _peer(peer: PolicyPeer) -> Term:
    if (peer.address is None) != (peer.port is None):
        raise refused("peers", f"{peer.name!a} has an address or a port alone", "give both or neither")
    return {
        Symbol("name"): peer.name.encode(),
        Symbol("identity"): peer.identity.encode(),
        Symbol("phase"): Symbol(peer.phase.value),
        Symbol("address"): None if peer.address is None else peer.address.encode(),
        Symbol("port"): None if peer.port is None else checked_port(peer.port),
    }


def _rule(rule: PolicyRule) -> Term:
    return {
        Symbol("pattern"): rule.pattern.encode(),
        Symbol("identity"): rule.identity.encode(),
        Symbol("max_live"): rule.max_live,
        Symbol("nodes"): [name.encode() for name in rule.nodes],
    }


def _cookie(cookie: Secret) -> bytes:
    value = cookie.reveal()
    if not _COOKIE.fullmatch(value):
        raise refused("cookie", "a cookie must be 32 to 255 letters and digits", "remove ca/cookie.secret")
    return value


def _map(fields: Mapping[str, Term]) -> str:
    """A map with a field a line; lists with an entry a line, since people read these files and diff them."""
    return "#{" + ",\n  ".join(f"{name} => {_lines(value)}" for name, value in fields.items()) + "}"


def _lines(value: Term) -> str:
    if isinstance(value, list) and value:
        return "[\n    " + ",\n    ".join(map(erlang_term, value)) + "]"
    return erlang_term(value)


def _document(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode("ascii")


def _utc(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"at {seconds:d}"


# ---- paths and addresses -----------------------------------------------------------------------------------


def text_path(path: str) -> str:
    """An absolute path, unchanged. Raises ConfigError for one that not every release and locale can use."""
    _path_octets(path)
    return path


def _path_octets(path: str) -> bytes:
    """The bytes of an absolute path that any release and locale can use; raises ConfigError for another."""
    do = "choose another directory for cluster.state_dir"
    if not path.startswith("/"):
        # A value that begins with - or + is read as a flag; ~ and relative paths mean another file in a node.
        raise refused("cluster.state_dir", f"{path[:80]!a} is no absolute path", do)
    if "\0" in path:
        raise refused("cluster.state_dir", f"{path[:80]!a} holds a NUL", do)
    try:
        octets = os.fsencode(path)
        octets.decode("utf-8")
    except UnicodeError:
        # In a UTF-8 locale init:get_argument/1 returns {error, …} in place of the string, on every release.
        raise refused(
            "cluster.state_dir", f"{path[:80]!a} is not UTF-8, which Erlang cannot read", do
        ) from None
    return octets


def _interface(carrier: Carrier, address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        raise refused(
            "nodes.address", f"{address[:80]!a} is no IP address", "write it as 127.0.0.1"
        ) from None
    if ip.version == 6 and ip.scope_id is not None:
        raise refused("nodes.address", f"{address[:80]!a} has a zone", "take %… out")
    if not carrier.encrypted and not ip.is_loopback:
        raise refused(
            "nodes.address", f"{address} is not on loopback, and {carrier} is not encrypted", "use TLS"
        )
    return ip


def interface_term(carrier: Carrier, address: str) -> Term:
    """`{127,0,0,1}`, or the eight groups of an IPv6 address."""
    ip = _interface(carrier, address)
    width = 1 if ip.version == 4 else 2
    return tuple(int.from_bytes(ip.packed[at : at + width]) for at in range(0, len(ip.packed), width))


def checked_port(port: int) -> int:
    """Raises ConfigError for what is no port."""
    if not 0 < port < 65_536:
        raise refused("nodes.port", f"{port} is no port", "use 1 to 65535")
    return port


def refused(key: str, what: str, do: str) -> ConfigError:
    """The error of what the configuration says at `key`; the caller names the file."""
    return ConfigError("", [Problem(key, 0, what, do)])
