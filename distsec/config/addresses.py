"""IP addresses that something is to listen on or to be dialled at. Pure: nothing here is ever resolved."""

from __future__ import annotations

import ipaddress
import re

SAFE_BINDS = (
    "use 127.0.0.1 for this host only, the one private or VPN address that the peers use, or tailscale; "
    "--confirm-network, or confirm_network = true beside it, if every interface is meant"
)
"""What to do instead of listening everywhere."""

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
"""How it is written that every interface is meant; a confirmation must stand beside it (config.binding)."""

_WILDCARDS = frozenset({"*", "0", "any", "all"})
_LISTEN = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<plain>[^:\[\]]*)):(?P<port>[0-9]{1,5})")


class AddressInvalid(ValueError):
    """`what` is wrong with an address, and what to `do`."""

    def __init__(self, what: str, do: str) -> None:
        super().__init__(what)
        self.what = what
        self.do = do


def parse_address(text: str, whole: str | None = None) -> str:
    """One unicast IP address in its shortest form; `localhost` is 127.0.0.1.

    Raises AddressInvalid, which shows `whole`, the value that the address is a part of: who hides a value
    that must not be seen looks for all of it.
    """
    shown = ascii((whole or text)[:80])
    if text == "localhost":
        return "127.0.0.1"
    if text in _WILDCARDS:
        raise AddressInvalid(f"{shown} would listen on every interface", SAFE_BINDS)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise AddressInvalid(
            f"{shown} is no IP address (names are not resolved)", "write an IP address"
        ) from None
    mapped = getattr(address, "ipv4_mapped", None)
    if address.is_unspecified or (mapped and mapped.is_unspecified):
        raise AddressInvalid(f"{shown} would listen on every interface", SAFE_BINDS)
    if mapped:
        raise AddressInvalid(f"{shown} is an IPv4 address in IPv6 clothing", f"write {mapped}")
    if address.is_multicast or address == ipaddress.ip_address("255.255.255.255"):
        raise AddressInvalid(f"{shown} is not the address of one host", SAFE_BINDS)
    if address.version == 6 and (address.is_link_local or address.scope_id):
        # inet_dist_use_interface is a tuple of eight numbers: there is no place for the zone in it.
        raise AddressInvalid(
            f"{shown} means a host only together with a zone, which Erlang's distribution cannot be given",
            "use a global or a unique local address, or ::1",
        )
    return str(address)


def listening_address(text: str) -> str:
    """Like `parse_address`, of what is listened on: 0.0.0.0 and :: are passed on, for config.binding to
    judge. Raises AddressInvalid.
    """
    return text if text in EVERYWHERE else parse_address(text)


def parse_listen(text: str) -> tuple[str, int]:
    """`address:port`, IPv6 addresses in brackets; port 0: the system assigns one. `tailscale`, 0.0.0.0 and ::
    are passed on, for config.binding to judge. Raises AddressInvalid.
    """
    shown = ascii(text[:80])
    found = _LISTEN.fullmatch(text)
    if not found:
        raise AddressInvalid(
            f"{shown} is no address:port",
            'write it as "127.0.0.1:9911", an IPv6 address in brackets: "[::1]:9911"',
        )
    host = found["bracketed"] if found["plain"] is None else found["plain"]
    if not host:
        raise AddressInvalid(f"{shown} names no address and would listen on every interface", SAFE_BINDS)
    if (found["bracketed"] is not None) is not (":" in host):
        raise AddressInvalid(f"{shown} is no address:port", 'brackets are for IPv6 addresses: "[::1]:9911"')
    port = int(found["port"])
    if port > 65535:
        raise AddressInvalid(
            f"{shown} has a port above 65535", "use a port from 0 (assigned by the system) to 65535"
        )
    if host == "tailscale" or host in EVERYWHERE:
        return host, port
    return parse_address(host, text), port


def is_loopback(address: str) -> bool:
    """Whether `address` surely stays on this host; of a name other than `localhost` nobody knows."""
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_ipv6(address: str) -> bool:
    return ":" in address


def is_everywhere(address: str) -> bool:
    """Whether who listens on `address` listens on every interface."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False
