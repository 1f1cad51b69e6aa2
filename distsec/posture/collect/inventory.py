"""Every file below the state directory, those that are known by name first.

Nodes write there, and what one of them writes must not keep a look from what is another's: each part (the CA,
each managed node, the rest) has a bound of its own, and what is known by name is looked at before any
directory is listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

from distsec.pki import forms
from distsec.pki.account import Account
from distsec.posture.collect.reading import fact, read, walk
from distsec.posture.facts import FileFact, Role, Unlisted

_SECRET_NAMES: Final = frozenset({"cookie.term", "cookie.next", "next.pem"})
_SECRET_ENDINGS: Final = (".key", ".secret", ".sealed", "key.pem")

# docs/state-files.md has them all.
_OF_STATE: Final = (
    *("ca", "nodes", "shells", "policy.overlay", "contacts.json", "ports.json", "lock"),
    *("orchestrator.json", "stopped.json", "rolled_back.json", "control.sock"),
)
_OF_CA: Final = (
    *("key.pem", "key.sealed", "certificate.pem", "chain.pem", "imported.json", "crl.pem"),
    *("revocations.json", "policy.key", "cookie.secret", "cookie.next", "cookie.rotation", "rotation.json"),
    *("pending", "issued", "next", "old", "witness.pem", "pairs"),
)
_OF_NODE: Final = (
    *("key.pem", "agent.key", "cookie.term", "next.pem", "certificate.pem", "trust.pem"),
    *("dist.conf", "policy.term", "policy.mark", "guard.term", "guard.refused", "agent.sock", "run.json"),
    *("start.json", "taken.json"),
    *("probes.json", "log", "log/output.log", "incoming", "incoming/key.pem", "incoming/certificate.pem"),
)


@dataclass(slots=True)
class Inventory:
    """`unlisted`: where there was more than is looked at."""

    files: list[FileFact] = field(default_factory=list)
    unlisted: list[Unlisted] = field(default_factory=list)


def take(state: Path, nodes: Sequence[str], root: FileFact, accounts: Mapping[str, Account]) -> Inventory:
    """Of `state`, which is `root`, and all below it. `nodes`: the names of those that are managed;
    `accounts`: whom they run as, of those with a user of their own.
    """
    found, seen, trusted = Inventory(), set[Path](), frozenset({root.uid})
    found.files.append(_with_rules(root, Path(), accounts))
    parts = [state / "ca", *(state / "nodes" / name for name in nodes)]

    def look(path: Path, part: Path) -> None:
        if path not in seen and (status := fact(path, _role(path, state), trusted)) is not None:
            seen.add(path)
            status = replace(status, part=str(part))
            found.files.append(_with_rules(status, path.relative_to(state), accounts))

    for part, path in _known(state, nodes):
        look(path, part)
    for part in [*parts, state]:
        paths, overrun = walk(part, leave=frozenset(parts) - {part})
        for path in paths:
            look(path, part)
        if overrun is not None:
            found.unlisted.append(Unlisted(str(part), str(overrun)))
    return found


def _with_rules(status: FileFact, path: Path, accounts: Mapping[str, Account]) -> FileFact:
    """As pki.forms has it where nodes have users of their own. `path`: below the state directory.

    A way that may be passed through shows nothing, whoever has users: systemd makes the state directory one
    again (StateDirectoryMode=0711 of users.conf) with every command that it runs for the unit, a reload, too.
    """
    parts = PurePosixPath(path)
    if forms.is_way(parts):
        return replace(status, allowed=forms.WAY_MODE & 0o077)
    account = accounts.get(parts.parts[1]) if len(parts.parts) > 1 and parts.parts[0] == forms.NODES else None
    if account is None:
        return status
    inside = str(PurePosixPath(*parts.parts[2:]))
    if inside in forms.SAID_BY_NODE or inside not in (*_OF_NODE, "."):  # what the node itself has made
        own = status.uid == account.uid
        return replace(status, trusted=status.trusted | {account.uid}, allowed=0o7777 if own else 0)
    allowed = 0
    if forms.may_be_entrusted(parts):
        allowed = forms.ENTRUSTED_MODE & 0o077
    elif inside in forms.READ_BY_NODE:
        allowed = forms.READABLE_MODE & 0o077
    elif inside == forms.AGENT_SOCKET:
        allowed = 0o060
    return replace(status, allowed=allowed) if status.gid == account.gid else status


def _known(state: Path, nodes: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """(part, path) of what is known by its name."""
    ca = state / "ca"
    yield from ((state, state / name) for name in _OF_STATE)
    yield from ((ca, place / name) for place in (ca, ca / "next", ca / "old") for name in _OF_CA)
    for node in nodes:
        directory = state / "nodes" / node
        yield state, directory
        yield from ((directory, directory / name) for name in _OF_NODE)
        yield from ((ca, ca / "pairs" / f"{node}.pem"), (ca, ca / "pending" / f"{node}.key"))


def _role(path: Path, state: Path) -> Role:
    """By its name, and of PEM by what it holds: a pair on its way has a key in it too."""
    secret = path.name in _SECRET_NAMES or path.name.endswith(_SECRET_ENDINGS)
    if not secret and path.suffix == ".pem":
        secret = b"PRIVATE KEY-----" in (read(path).content or b"")
    if not secret:
        return Role.PRIVATE
    return Role.CA_SECRET if path.relative_to(state).parts[0] == "ca" else Role.SECRET
