"""Keeps a program that root starts as somebody else from typing into root's terminal.

ioctl(TIOCSTI) puts characters into the input of the terminal that a process is controlled by, as if they had
been typed there: root's shell would run them when the program has ended. A node can run code in a tool or
shell that is linked with it, so a hostile one would be root. Kernels from 6.2 on can be told to refuse it
(dev.tty.legacy_tiocsti); here a filter of system calls does (seccomp(2)), for good and for all that the
program starts. What it may do else is left as it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import termios
from struct import Struct
from typing import Final

from distsec.errors import PermissionRefused

TIOCLINUX: Final = 0x541C
"""Of the console: pastes a selection (asm-generic/ioctls.h)."""

_IOCTLS: Final = (16, 0x4000_0202, 54, 29)
"""The number of ioctl(2): x86-64, x32; i386, arm, ppc and s390; arm64, riscv and loongarch. A number that
is another call's elsewhere matters only with just these values as its second argument.
"""

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K (linux/filter.h)
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000  # linux/seccomp.h
_NUMBER_AT: Final = 0  # struct seccomp_data
_REQUEST_AT: Final = 24 if sys.byteorder == "little" else 28  # the low half of the second argument
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38

_instruction = Struct("=HBBI").pack
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_typing() -> None:
    """From here on, for this process and all below it. As root; else it can also gain no privileges any more.

    Raises PermissionRefused where the kernel cannot do it.
    """
    code = _code()
    program = _Program(len(code) // 8, code)
    for attempt in range(2):
        if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0:
            return
        if attempt == 0:  # without CAP_SYS_ADMIN, as in a container
            _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    raise PermissionRefused(
        "what runs as another user could not be kept from typing into this terminal"
        f" ({os.strerror(ctypes.get_errno()).lower()})",
        do="let seccomp through, or run this as that user",
    )


def _code() -> bytes:
    """Both of the two requests lead to the numbers of ioctl, and each of those to the refusal."""
    requests = [termios.TIOCSTI, TIOCLINUX]
    lines = [_instruction(_LOAD, 0, 0, _REQUEST_AT)]
    for left, request in zip(range(len(requests) - 1, -1, -1), requests, strict=True):
        lines.append(_instruction(_EQUAL, left + 1, 0, request))
    lines += [_instruction(_RETURN, 0, 0, _ALLOW), _instruction(_LOAD, 0, 0, _NUMBER_AT)]
    for left, number in zip(range(len(_IOCTLS) - 1, -1, -1), _IOCTLS, strict=True):
        lines.append(_instruction(_EQUAL, left + 1, 0, number))
    lines += [_instruction(_RETURN, 0, 0, _ALLOW), _instruction(_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(lines)
