"""Giving a node's directory to the user that the node runs as, and taking it back.

What the node itself has said is taken over first. Then the directory is closed (0700), so that nobody else
changes anything in it; each file gets its form (`pki.forms`), on open descriptors; at the end the directory
opens to its new group. Its own mode and group are the record of what was done: whoever is killed in between
leaves it closed, and the next start goes on. A directory that is in its form already is never closed: a node
may be running in it.

Nothing of another user is ever given away: of what the old one said, the content is written anew. Nor is a
file of ours that has a second name: where fs.protected_hardlinks is off a node can link any file that it can
name into its directory, and what is called `guard.term` there may be the policy of all.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Final

from distsec.pki import files, forms
from distsec.pki.account import Account, acting_as
from distsec.pki.files import Form

CRASH_DUMP: Final = "erl_crash.dump"
MAX_SAID_BYTES: Final = 4096

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def hand_over(node: int, log: int, root: Path, parts: PurePosixPath, account: Account | None) -> bool:
    """`node` and `log`: the open directories, the former at `parts` below `root`. True: it was another's
    before. Raises OSError, and StoreError for a file that has a second name.
    """
    group = None if account is None else account.gid
    moves = forms.group_of(parts, os.fstat(node)) != group
    for name in forms.SAID_BY_NODE:  # first: it is read as its owner, to whom the directory is still open
        with contextlib.suppress(FileNotFoundError):
            _say_anew(node, name, forms.form_of(parts / name, group, account))
    if moves:
        os.fchmod(node, forms.DIRECTORY_MODE)
    for name in forms.READ_BY_NODE:
        _give_file(node, root / parts / name, forms.form_of(parts / name, group, account))
    with contextlib.suppress(FileNotFoundError):
        _give_socket(node, forms.AGENT_SOCKET, group)
    if moves:
        _set_crash_dump_aside(log, account)
    for directory in (log, node):
        _give_directory(directory, group)
    return moves


def open_way(directory: int) -> None:
    """A node with a user of its own may pass through."""
    if stat.S_IMODE(os.fstat(directory).st_mode) != forms.WAY_MODE:
        os.fchmod(directory, forms.WAY_MODE)


def close_way(directory: int) -> None:
    """Nobody may."""
    if stat.S_IMODE(os.fstat(directory).st_mode) != forms.DIRECTORY_MODE:
        os.fchmod(directory, forms.DIRECTORY_MODE)


def _give_directory(directory: int, group: int | None) -> None:
    wanted = forms.DIRECTORY_MODE if group is None else forms.ENTRUSTED_MODE
    found = os.fstat(directory)
    if stat.S_IMODE(found.st_mode) == wanted and group in {None, found.st_gid}:
        return
    os.fchmod(directory, forms.DIRECTORY_MODE)
    if group is not None:
        os.fchown(directory, -1, group)
        os.fchmod(directory, wanted)


def _give_file(directory: int, path: Path, form: Form) -> None:
    """A file of ours gets its form; whatever else has that name is left for who writes it next."""
    try:
        descriptor = os.open(path.name, _OPEN, dir_fd=directory)
    except OSError:
        return
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077 and mode != forms.READABLE_MODE:
            return  # somebody else has opened it to others: who reads it next says so
        if mode != form.mode or form.gid not in {None, found.st_gid}:
            if found.st_nlink != 1:  # whoever was killed while he made it has left a second name, too
                files.remove_leftovers(directory)
            if os.fstat(descriptor).st_nlink != 1:
                raise forms.linked(path)
            files.give(descriptor, form)
    finally:
        os.close(descriptor)


def _say_anew(directory: int, name: str, form: Form) -> None:
    """A file that the node writes itself, with its content, as a new one of its new owner's."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    owner = os.geteuid() if form.uid is None else form.uid
    if not stat.S_ISREG(found.st_mode) or found.st_uid == owner:
        return
    if found.st_nlink != 1:  # a hard link: it may be anybody's file
        files.move_aside(directory, name)
        return
    speaker = None
    if found.st_uid not in {0, os.geteuid()}:
        speaker = Account(f"uid {found.st_uid}", found.st_uid, found.st_gid)
    try:
        with acting_as(speaker):
            content = _content(directory, name, found)
    except Exception:  # whatever it is, it is not worth a start: it is made anew
        content = None
    if content is None:
        files.move_aside(directory, name)
    else:
        files.force(directory, name, content, form)


def _content(directory: int, name: str, expected: os.stat_result) -> bytes | None:
    descriptor = os.open(name, _OPEN, dir_fd=directory)
    try:
        found = os.fstat(descriptor)
        same = (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino)
        content = os.read(descriptor, MAX_SAID_BYTES + 1) if same else b""
    finally:
        os.close(descriptor)
    return content if 0 < len(content) <= MAX_SAID_BYTES else None


def _give_socket(directory: int, name: str, group: int | None) -> None:
    """The agent's socket, where one of ours is there: in a sticky directory nobody else can replace it."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        return
    os.chmod(name, 0o600, dir_fd=directory)
    if group is not None:
        os.chown(name, -1, group, dir_fd=directory, follow_symlinks=False)
        os.chmod(name, 0o660, dir_fd=directory)


def _set_crash_dump_aside(log: int, account: Account | None) -> None:
    """The emulator cannot replace one of another user's."""
    owner = os.geteuid() if account is None else account.uid
    with contextlib.suppress(OSError):
        if os.stat(CRASH_DUMP, dir_fd=log, follow_symlinks=False).st_uid != owner:
            os.rename(CRASH_DUMP, f"{CRASH_DUMP}.1", src_dir_fd=log, dst_dir_fd=log)
