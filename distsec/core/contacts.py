"""Who was linked with whom, first and last seen: the memory behind `deny --compromised`.

Pure: what agents report comes in, times are arguments (Unix seconds). The supervisor keeps the book on disk
(`beam.contacts`). An agent may lie, so its word adds to the book and never takes from it, each reporter has a
bound of its own, and what is beyond a bound counts as a link with everybody: more is re-keyed, never less.

A pair is up as long as one of its two ends says so. Peers are told apart by `PeerSeen.key`: a listed node by
its name; who fits a rule only (command-line tools, whose names are made up) by the identity in its
certificate. What a peer has shown is kept for each reporter: a liar makes no other forget.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from distsec.core.taint import EVERYBODY, Contact

MAX_UNLISTED = 64
"""Unlisted peers that are told apart for each node; an identity that is used up makes room (`_make_room`)."""

MAX_REMEMBERED = 8
"""Serials and names that are remembered of one peer, the newest that each node tells of."""

FORGOTTEN = "?"
"""Before a node's name: in place of the unlisted peers that it was linked with and that made room."""

MAX_KEY = 512
"""Characters of a key: node names have at most 255, what is read of an identity 512 (beam.reading)."""

_SERIAL = re.compile(r"[0-9a-f]{1,40}")

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """A peer as a link shows it. `listed`: by its exact name. Times are Unix seconds."""

    name: str
    listed: bool
    identity: str | None
    serial: str | None
    not_after: int | None
    since: int

    @property
    def key(self) -> str:
        return (self.name if self.listed else self.identity or self.name)[:MAX_KEY]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a peer has shown to one node so far, oldest first; `until`: when the last of its certificates
    expires.
    """

    serials: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    until: int = 0


class ContactBook:
    """Build it empty, or from what was saved; then `settle` once the nodes that live have reported."""

    def __init__(
        self, contacts: Iterable[Contact] = (), shown: Iterable[tuple[str, str, Shown]] = (), latest: int = 0
    ) -> None:
        self._pairs: dict[Pair, Contact] = {}
        self._shown: defaultdict[str, dict[str, Shown]] = defaultdict(dict)  # key → reporter → what
        for key, reporter, what in shown:
            self._shown[key][reporter] = what
        self._met: Counter[str] = Counter()  # key → pairs that it is in
        self._strangers: defaultdict[str, set[str]] = defaultdict(set)  # node → its unlisted peers
        self._reporters: defaultdict[Pair, set[str]] = defaultdict(set)
        self._latest = latest
        self.changed = False
        """Whether it differs from what was saved; whoever saves it sets it back."""
        self.urgent = False
        """Whether a pair is in it that is not saved as linked: lost, it would be forgotten. A pair that is
        saved as linked and is no longer is only remembered for longer than it need be."""
        for contact in contacts:
            self._put(contact)
        self.changed = False

    # ---- what agents report

    def up(self, node: str, peer: PeerSeen, now: float) -> None:
        """`node` says that it is linked with `peer`, since `peer.since`."""
        moment = self._moment(now)
        pair = self._pair_for(node, peer, moment)
        if EVERYBODY not in pair:
            self._remember(node, peer)
        since = min(max(0, peer.since), moment)
        known = self._pairs.get(pair)
        if known is None:
            self._put(Contact(*pair, first=since), urgent=True)
        elif known.last is not None or since < known.first:
            self._put(replace(known, first=min(known.first, since), last=None), urgent=True)
        self._reporters[pair].add(node)

    def down(self, node: str, peer: PeerSeen, now: float) -> None:
        """`node` says that its link with `peer` has ended. It counts as seen where it was not known."""
        moment = self._moment(now)
        pair = _sorted(node, peer.key)
        if pair not in self._pairs:
            pair = self._pair_for(node, peer, moment)
            self.up(node, peer, now)
        self._end(node, pair, moment)

    def all_up(self, node: str, peers: Iterable[PeerSeen], now: float) -> None:
        """A snapshot: `node` is linked with these and with nobody else."""
        moment = self._moment(now)
        stated = set()
        for peer in peers:
            self.up(node, peer, now)
            stated.add(self._pair_for(node, peer, moment))
        for pair in [pair for pair, who in self._reporters.items() if node in who and pair not in stated]:
            self._end(node, pair, moment)

    def gone(self, node: str, now: float) -> None:
        """Its process has ended."""
        self.all_up(node, (), now)

    def settle(self, now: float) -> None:
        """Nobody reports any longer what was open in a book that was read: it ends, now at the latest."""
        moment = self._moment(now)
        for pair, contact in tuple(self._pairs.items()):
            if contact.last is None and not self._reporters.get(pair):
                self._put(replace(contact, last=moment))

    def unknown_until(self, nodes: Iterable[str], now: float) -> None:
        """The record is lost: each of `nodes` may have been linked with anybody until now."""
        moment = self._moment(now)
        for node in nodes:
            self._put(Contact(*_sorted(node, EVERYBODY), first=0, last=moment), urgent=True)

    def forget(self, names: Collection[str]) -> None:
        """These have new keys and no process of before: what they were linked with taints nobody any more."""
        for pair in [pair for pair in self._pairs if pair[0] in names or pair[1] in names]:
            self._delete(pair)
        for name in names:
            self.changed = self._shown.pop(name, None) is not None or self.changed

    # ---- what it knows

    @property
    def latest(self) -> int:
        """Its own clock, which does not go back when the host's does."""
        return self._latest

    def contacts(self) -> tuple[Contact, ...]:
        return tuple(self._pairs.values())

    def shown(self) -> tuple[tuple[str, str, Shown], ...]:
        """(key, the node that tells of it, what it has shown there)."""
        return tuple((key, node, what) for key, told in self._shown.items() for node, what in told.items())

    def serials(self, key: str) -> tuple[str, ...]:
        """Of the certificates that this peer has shown lately, whoever tells of them."""
        told = self._shown.get(key, {}).values()
        return tuple(dict.fromkeys(serial for what in told for serial in what.serials))

    def keys(self, name: str) -> frozenset[str]:
        """What a peer of that name is kept under."""
        return frozenset({name, *(key for key, node, what in self.shown() if name in what.names)})

    def knows(self, name: str) -> bool:
        """Whether any link of a peer of that name is remembered as one of its."""
        return any(self._met[key] > 0 for key in self.keys(name))

    def may_have_been(self) -> frozenset[str]:
        """Under which keys an unlisted peer may be kept whose name is no longer remembered: who has shown as
        many names as are remembered, and who made room.
        """
        full = {key for key, _, what in self.shown() if len(what.names) >= MAX_REMEMBERED}
        return frozenset(full | {key for key in self._met if key.startswith(FORGOTTEN) and self._met[key]})

    # ---- inside

    def _moment(self, now: float) -> int:
        self._latest = max(self._latest, int(now))
        return self._latest

    def _put(self, contact: Contact, *, urgent: bool = False) -> None:
        pair = contact.one, contact.other
        if pair not in self._pairs:
            self._met.update(pair)
            for node, peer in (pair, pair[::-1]):
                if any(what.names for what in self._shown.get(peer, {}).values()):
                    self._strangers[node].add(peer)
        self._pairs[pair] = contact
        self.changed = True
        self.urgent = self.urgent or urgent

    def _delete(self, pair: Pair) -> None:
        del self._pairs[pair]
        self._reporters.pop(pair, None)
        for key in pair:
            self._met[key] -= 1
            if not self._met[key]:
                del self._met[key]  # else it is kept for every peer that there ever was
        for node, peer in (pair, pair[::-1]):
            if (strangers := self._strangers.get(node)) is not None:
                strangers.discard(peer)
        self.changed = True

    def _end(self, node: str, pair: Pair, moment: int) -> None:
        who = self._reporters.get(pair, set())
        who.discard(node)
        if not who:
            self._reporters.pop(pair, None)
        contact = self._pairs.get(pair)
        if contact is not None and contact.last is None and not who:
            self._put(replace(contact, last=moment))

    def _pair_for(self, node: str, peer: PeerSeen, moment: int) -> Pair:
        """What this link is kept under: an unlisted peer too many is everybody."""
        pair = _sorted(node, peer.key)
        if peer.listed or pair in self._pairs:
            return pair
        if len(self._strangers[node]) >= MAX_UNLISTED and not self._make_room(node, moment):
            return _sorted(node, EVERYBODY)
        return pair

    def _make_room(self, node: str, moment: int) -> bool:
        """Forgets who can carry nothing on: linked with this node alone, no longer, certificate expired. That
        this node had such peers, and when, stays.
        """
        used_up = [
            peer
            for peer in self._strangers[node]
            if self._met[peer] == 1
            and self._pairs[_sorted(node, peer)].last is not None
            and 0 < max((what.until for what in self._shown[peer].values()), default=0) < moment
        ]
        for peer in used_up:
            gone, pair = self._pairs[_sorted(node, peer)], _sorted(node, f"{FORGOTTEN}{node}"[:MAX_KEY])
            known = self._pairs.get(pair, gone)
            last = max(known.last or 0, gone.last or 0)
            self._put(Contact(*pair, first=min(known.first, gone.first), last=last))
            self._delete(_sorted(node, peer))
            del self._shown[peer]
        return bool(used_up)

    def _remember(self, node: str, peer: PeerSeen) -> None:
        known = self._shown.get(peer.key, {}).get(node, Shown())
        serial = peer.serial if peer.serial is not None and _SERIAL.fullmatch(peer.serial) else None
        after = Shown(
            _newest(known.serials, serial),
            () if peer.listed else _newest(known.names, peer.name[:MAX_KEY]),
            max(known.until, peer.not_after or 0),
        )
        if after != known:
            self._shown[peer.key][node] = after
            self.changed = True


def _newest(known: tuple[str, ...], value: str | None) -> tuple[str, ...]:
    if value is None or (known and known[-1] == value):
        return known
    return (*(each for each in known if each != value), value)[-MAX_REMEMBERED:]


def _sorted(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)
