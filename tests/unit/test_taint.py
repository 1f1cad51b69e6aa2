"""Whom a compromised node may have reached: against a search over all paths, and never fewer than that."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from distsec.core.taint import EVERYBODY, Contact, spread

NAMES = "abcde"
TIMES = st.integers(0, 12)


@st.composite
def contact(draw: st.DrawFn, names: str = NAMES) -> Contact:
    one, other = draw(st.permutations(sorted(names)))[:2]
    first = draw(TIMES)
    last = draw(st.none() | st.integers(first, 14))
    return Contact(one, other, first, last)


CONTACTS = st.lists(contact(), max_size=9)


def by_search(contacts: list[Contact], source: str, since: float) -> dict[str, float]:
    """All simple paths, each walked in time; no shortest-path trick."""
    earliest = {source: since}

    def walk(name: str, time: float, visited: frozenset[str]) -> None:
        earliest[name] = min(time, earliest.get(name, math.inf))
        for each in contacts:
            if name not in (each.one, each.other):
                continue
            other = each.other if each.one == name else each.one
            last = math.inf if each.last is None else each.last
            if other not in visited and time <= last:
                walk(other, max(time, each.first), visited | {other})

    walk(source, since, frozenset({source}))
    return earliest


@given(CONTACTS, st.sampled_from(NAMES), TIMES)
def test_finds_what_a_search_over_all_paths_finds(contacts: list[Contact], source: str, since: int) -> None:
    assert spread(contacts, {source}, since) == by_search(contacts, source, since)


@given(CONTACTS, contact(), st.sampled_from(NAMES), TIMES)
def test_a_contact_more_or_a_longer_one_never_clears_anybody(
    contacts: list[Contact], more: Contact, source: str, since: int
) -> None:
    before, after = spread(contacts, {source}, since), spread([*contacts, more], {source}, since)
    assert all(after[name] <= time for name, time in before.items())


@given(CONTACTS, st.sampled_from(NAMES), TIMES, TIMES)
def test_who_is_tainted_later_taints_no_more(
    contacts: list[Contact], source: str, since: int, later: int
) -> None:
    early, late = sorted((since, since + later))
    assert set(spread(contacts, {source}, late)) <= set(spread(contacts, {source}, early))


@given(CONTACTS, contact(), st.sampled_from(NAMES), TIMES)
def test_a_node_whose_contacts_cannot_be_told_apart_is_linked_with_everybody(
    contacts: list[Contact], lost: Contact, source: str, since: int
) -> None:
    names = frozenset(NAMES)
    unknown = [*contacts, Contact(lost.one, EVERYBODY, lost.first, lost.last)]
    spelled = [
        *contacts,
        *(Contact(lost.one, name, lost.first, lost.last) for name in names - {lost.one}),
    ]
    assert spread(unknown, {source}, since, names) == spread(spelled, {source}, since)


def test_time_runs_one_way() -> None:
    story = [Contact("a", "b", 1, 2), Contact("b", "c", 5, 6)]
    assert spread(story, {"a"}, 0) == {"a": 0, "b": 1, "c": 5}
    assert spread(story, {"c"}, 0) == {"c": 0, "b": 5}  # a was linked with b before c was
    assert spread(story, {"a"}, 3) == {"a": 3}


def test_links_that_touch_in_the_same_second_count_as_overlapping() -> None:
    story = [Contact("a", "b", 1, 5), Contact("b", "c", 3, 5), Contact("c", "d", 5, 5)]
    assert spread(story, {"a"}, 5) == {"a": 5, "b": 5, "c": 5, "d": 5}
