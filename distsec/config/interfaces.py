"""Which addresses this host has, asked of the kernel (rtnetlink(7), RTM_GETADDR), which resolves nothing."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

_GETADDR, _NEWADDR, _DONE, _ERROR = 22, 20, 3, 2  # linux/rtnetlink.h, linux/netlink.h
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER, _ADDRESS, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBI"), struct.Struct("=HH")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2  # linux/if_addr.h; of a point-to-point link the first is the other end's
_RECEIVE_BYTES = 64 * 1024
_MOST_MESSAGES = 1000
_SECONDS = 5.0


def addresses_here() -> tuple[str, ...] | None:
    """Every unicast address of every interface, in their shortest form, those of loopback and of one link
    included. None: the kernel does not say (netlink is shut out by a sandbox).
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(_SECONDS)
            kernel.send(_HEADER.pack(_HEADER.size + 4, _GETADDR, _REQUEST_DUMP, 1, 0) + bytes(4))
            found: dict[str, None] = {}
            for _ in range(_MOST_MESSAGES):
                data = kernel.recv(_RECEIVE_BYTES)
                for kind, body in _messages(data):
                    if kind in (_DONE, _ERROR):
                        return None if kind == _ERROR else tuple(found)
                    if kind == _NEWADDR and (address := _address(body)):
                        found[address] = None
    except OSError:
        pass
    return None


def is_here(address: str) -> bool:
    """Whether `address` is one of this host's."""
    here = addresses_here()
    if here is not None:
        return str(ipaddress.ip_address(address)) in here or _is_loopback_4(address)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return False
            raise OSError(error.errno, os.strerror(error.errno or 0)) from None
    return True


def _is_loopback_4(address: str) -> bool:
    """All of 127.0.0.0/8 is this host's, though one address of it is on `lo`."""
    parsed = ipaddress.ip_address(address)
    return parsed.version == 4 and parsed.is_loopback


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _address(body: bytes) -> str | None:
    family, *_ = _ADDRESS.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    raw = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    try:
        return None if raw is None else str(ipaddress.ip_address(raw))
    except ValueError:
        return None
