"""Who may read and change keys, cookies and what leads to them. Pure."""

from __future__ import annotations

import posixpath
import shlex
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from distsec.posture.facts import Facts, FileFact, Kind, Role, Unlisted
from distsec.posture.finding import Code, Finding, Severity

_SECRETS = frozenset({Role.SECRET, Role.CA_SECRET})
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_FOREIGN_WRITE = stat.S_IWGRP | stat.S_IWOTH

TOLD_ALIKE: Final = 10
"""Findings of one kind in one part of the state that are told each for itself."""


def judge(facts: Facts) -> Iterator[Finding]:
    alike: dict[tuple[str, Severity, Code], list[tuple[FileFact, Finding]]] = {}
    for fact in facts.files:
        for finding in _file(fact):
            kind = (fact.part or fact.path, finding.severity, finding.code)
            alike.setdefault(kind, []).append((fact, finding))
    for found in alike.values():
        yield from (finding for _, finding in found[:TOLD_ALIKE])
        if len(found) > TOLD_ALIKE:
            yield _others(found[TOLD_ALIKE:])
    yield from map(_unlisted, facts.unlisted)


def _file(fact: FileFact) -> Iterator[Finding]:
    if fact.role is Role.PARENT:
        yield from _parent(fact)
    elif fact.kind is Kind.SYMLINK:
        yield from _symlink(fact)
    else:
        yield from _owner(fact)
        yield from _mode(fact)
        yield from _kind(fact)


def _others(found: Sequence[tuple[FileFact, Finding]]) -> Finding:
    """One for all: whoever may write in a directory must not drown what else there is to say."""
    first, finding = found[0]
    return Finding.of(
        finding.severity,
        finding.code,
        what=f"{len(found)} more of the kind, the first of them {first.path}: {finding.what}",
        where=posixpath.commonpath([posixpath.dirname(fact.path) for fact, _ in found]),
        fix=f"see who put them there; for each: {finding.fix}",
    )


def _unlisted(unlisted: Unlisted) -> Finding:
    return Finding.of(
        Severity.MEDIUM,
        Code.TOO_MANY_FILES,
        what=f"holds too many files: of {unlisted.part} not all were looked at, but for those of distsec",
        where=unlisted.directory,
        fix="see who filled it, and empty it; then: distsec check",
    )


def _symlink(fact: FileFact) -> Iterator[Finding]:
    """Below the state directory only: others' files are looked at where their symlinks lead."""
    if fact.role in {Role.PRIVATE, *_SECRETS}:
        yield Finding.of(
            Severity.HIGH,
            Code.FILE_SYMLINK,
            what="is a symbolic link, which distsec refuses: what it reads may be changed elsewhere",
            where=fact.path,
            fix="put the real file or directory there",
        )


def _kind(fact: FileFact) -> Iterator[Finding]:
    if fact.kind is Kind.OTHER or (fact.kind is not Kind.FILE and fact.role in _SECRETS):
        yield Finding.of(
            Severity.HIGH,
            Code.FILE_KIND,
            what="is no regular file",
            where=fact.path,
            fix=f"see who put it there, then: rm {shlex.quote(fact.path)}",
        )


def _owner(fact: FileFact) -> Iterator[Finding]:
    if fact.uid not in fact.trusted:
        wanted = sorted(fact.trusted)
        yield Finding.of(
            Severity.HIGH,
            Code.FILE_OWNER,
            what=f"belongs to uid {fact.uid}, who may change it at any time",
            where=fact.path,
            fix=f"chown {wanted[-1]} {shlex.quote(fact.path)}",
        )


def _mode(fact: FileFact) -> Iterator[Finding]:
    path, mode = shlex.quote(fact.path), f"mode {fact.mode:04o}"
    if fact.kind is Kind.DIRECTORY:
        yield from _directory(fact)
    elif fact.role in _SECRETS and fact.opened & _GROUP_AND_OTHERS:
        yield _exposed(fact)
    elif fact.opened & _FOREIGN_WRITE and fact.role is not Role.PRIVATE:
        yield Finding.of(
            Severity.CRITICAL,
            Code.FILE_WRITABLE,
            what=f"{_who(fact.opened & _FOREIGN_WRITE)} may change it ({mode})",
            where=fact.path,
            fix=f"chmod go-w {path}, and see what it holds",
        )
    elif fact.role is Role.PRIVATE and fact.opened & _GROUP_AND_OTHERS:
        yield Finding.of(
            Severity.MEDIUM,
            Code.FILE_EXPOSED,
            what=f"{_who(fact.opened)} may read or change it ({mode}); distsec refuses such a file",
            where=fact.path,
            fix=f"chmod go= {path}",
        )


def _exposed(fact: FileFact) -> Finding:
    """A secret that is open to others; only a directory above it keeps them from it where it is sheltered."""
    path, mode = shlex.quote(fact.path), f"mode {fact.mode:04o}"
    if fact.sheltered:
        return Finding.of(
            Severity.MEDIUM,
            Code.SECRET_EXPOSED,
            what=f"a secret that a directory above it alone keeps from {_who(fact.opened)} ({mode})",
            where=fact.path,
            fix=f"chmod 0600 {path}",
        )
    worst = fact.role is Role.CA_SECRET or fact.opened & stat.S_IRWXO
    return Finding.of(
        Severity.CRITICAL if worst else Severity.HIGH,
        Code.SECRET_EXPOSED,
        what=f"a secret that {_who(fact.opened)} may read ({mode})",
        where=fact.path,
        fix=f"chmod 0600 {path}, and replace the secret: somebody may have read it",
    )


def _directory(fact: FileFact) -> Iterator[Finding]:
    if fact.role is Role.SHARED:
        return
    path, mode = shlex.quote(fact.path), f"mode {fact.mode:04o}"
    if fact.opened & _FOREIGN_WRITE:
        yield Finding.of(
            Severity.CRITICAL,
            Code.DIRECTORY_WRITABLE,
            what=f"{_who(fact.opened & _FOREIGN_WRITE)} may replace the files in it ({mode})",
            where=fact.path,
            fix=f"chmod u=rwx,go= {path}, and see what it holds",
        )
    elif fact.opened & _GROUP_AND_OTHERS:
        yield Finding.of(
            Severity.MEDIUM,
            Code.DIRECTORY_EXPOSED,
            what=f"{_who(fact.opened)} may look into it ({mode}); distsec refuses such a directory",
            where=fact.path,
            fix=f"chmod u=rwx,go= {path}",
        )


def _parent(fact: FileFact) -> Iterator[Finding]:
    """Who may rename a directory on the way may put another in its place; the sticky bit forbids that."""
    path = shlex.quote(fact.path)
    if fact.mode & stat.S_IWOTH and not fact.mode & stat.S_ISVTX:
        yield Finding.of(
            Severity.HIGH,
            Code.PARENT_REPLACEABLE,
            what=f"everybody may replace what is in it (mode {fact.mode:04o})",
            where=fact.path,
            fix=f"chmod o-w {path}",
        )
    elif fact.uid not in fact.trusted:
        yield Finding.of(
            Severity.HIGH,
            Code.PARENT_REPLACEABLE,
            what=f"uid {fact.uid}, to whom it belongs, may replace what is in it",
            where=fact.path,
            fix=f"chown root {path}, or move what is in it",
        )


def _who(mode: int) -> str:
    return "everybody on this host" if mode & stat.S_IRWXO else "its group"
