"""The record of links: what agents tell adds to it, and what they lie takes nothing away."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsec.beam.contacts import contacts_document, load_contacts, save_contacts
from distsec.core.contacts import MAX_REMEMBERED, MAX_UNLISTED, ContactBook, PeerSeen
from distsec.core.taint import EVERYBODY, Contact, spread
from distsec.errors import StoreError
from distsec.pki.store import Store

DAY = 86_400


def listed(name: str, since: int = 0, serial: str | None = None) -> PeerSeen:
    return PeerSeen(name, True, f"spiffe://demo/{name}", serial, None, since)


def tool(number: int, since: int = 0, until: int = 10 * DAY, name: str = "") -> PeerSeen:
    return PeerSeen(
        name or f"cli-{number}@h", False, f"spiffe://demo/cli/{number}", f"{number:04x}", until, since
    )


def pairs(book: ContactBook) -> set[tuple[str, str]]:
    return {(each.one, each.other) for each in book.contacts()}


def test_a_pair_is_up_as_long_as_one_end_says_so() -> None:
    book = ContactBook()
    book.up("a", listed("b", since=90), 100)
    book.up("b", listed("a", since=91), 101)
    assert book.contacts() == (Contact("a", "b", 90, None),)
    book.down("a", listed("b", since=90), 200)
    assert book.contacts() == (Contact("a", "b", 90, None),)
    book.down("b", listed("a", since=91), 205)
    assert book.contacts() == (Contact("a", "b", 90, 205),)
    book.up("a", listed("b", since=300), 300)
    assert book.contacts() == (Contact("a", "b", 90, None),)  # the gap counts as linked


def test_a_snapshot_ends_what_it_does_not_name() -> None:
    book = ContactBook()
    book.up("a", listed("b"), 10)
    book.all_up("a", [listed("c", since=12)], 20)
    assert book.contacts() == (Contact("a", "b", 0, 20), Contact("a", "c", 12, None))
    book.gone("a", 30)
    assert book.contacts() == (Contact("a", "b", 0, 20), Contact("a", "c", 12, 30))


def test_an_end_that_is_all_that_was_heard_of_a_link_counts_as_a_link() -> None:
    book = ContactBook()
    book.down("a", listed("b", since=5), 20)
    assert book.contacts() == (Contact("a", "b", 5, 20),)


def test_a_node_that_denies_its_links_is_believed_by_nobody() -> None:
    book = ContactBook()
    book.up("honest", listed("liar"), 10)
    book.up("liar", listed("honest", since=99), 10)
    book.all_up("liar", [], 11)
    assert book.contacts() == (Contact("honest", "liar", 0, None),)


def test_a_clock_that_goes_back_hides_no_meeting() -> None:
    book = ContactBook()
    book.up("a", listed("b", since=1000), 1000)
    book.down("a", listed("b"), 1001)
    book.up("b", listed("c", since=500), 500)  # the host's clock is an hour behind now
    book.down("b", listed("c", since=500), 501)
    assert set(spread(book.contacts(), {"a"}, 0)) == {"a", "b", "c"}


def test_a_time_that_is_yet_to_come_is_now() -> None:
    book = ContactBook()
    book.up("a", listed("b", since=10**9), 100)
    assert book.contacts() == (Contact("a", "b", 100, None),)


def test_what_nobody_reports_any_more_ends_when_the_living_have_reported() -> None:
    book = ContactBook([Contact("a", "b", 1, None), Contact("b", "c", 1, None)], latest=50)
    book.up("a", listed("b", since=1), 60)
    book.settle(70)
    assert book.contacts() == (Contact("a", "b", 1, None), Contact("b", "c", 1, 70))


def test_tools_are_told_apart_by_their_certificate_whatever_they_call_themselves() -> None:
    book = ContactBook()
    for number in range(1000):
        book.up("a", tool(7, name=f"cli-{number}@h"), 10)
        book.down("a", tool(7, name=f"cli-{number}@h"), 10)
    assert pairs(book) == {("a", "spiffe://demo/cli/7")}
    assert book.keys("cli-999@h") == {"cli-999@h", "spiffe://demo/cli/7"}
    assert book.serials("spiffe://demo/cli/7") == ("0007",)


def test_more_strangers_than_can_be_told_apart_are_everybody() -> None:
    book = ContactBook()
    for number in range(MAX_UNLISTED + 10_000):
        book.up("a", tool(number), 100)
    assert len(book.contacts()) == MAX_UNLISTED + 1
    assert len(book.shown()) == MAX_UNLISTED
    assert ("*", "a") in pairs(book)
    book.up("b", tool(1), 100)  # and it costs nobody else
    assert ("b", "spiffe://demo/cli/1") in pairs(book)
    assert set(spread(book.contacts(), {"x"}, 0, {"a", "b", "x"})) >= {"a", "b", "x"}


def test_a_tool_whose_time_is_over_and_that_met_one_node_only_makes_room() -> None:
    book = ContactBook()
    for number in range(MAX_UNLISTED):
        book.up("a", tool(number, until=200), 100)
    book.up("b", tool(0, until=200), 100)
    for number in range(MAX_UNLISTED - 1):
        book.down("a", tool(number, until=200), 150)
    book.up("a", tool(1000, until=900), 300)
    # Left are the one that met b as well, the one that is up, the new one, and that there were more.
    last = MAX_UNLISTED - 1
    assert pairs(book) == {
        ("a", "spiffe://demo/cli/0"),
        ("b", "spiffe://demo/cli/0"),
        ("a", f"spiffe://demo/cli/{last}"),
        ("a", "spiffe://demo/cli/1000"),
        ("?a", "a"),
    }
    assert Contact("?a", "a", 0, 150) in book.contacts()
    assert "?a" in book.may_have_been()


def test_of_tools_that_have_made_room_nothing_is_kept() -> None:
    """Each of RabbitMQ's has a name of its own, for as long as the orchestrator runs."""
    book = ContactBook()
    for number in range(5 * MAX_UNLISTED):
        book.up("a", tool(number, until=number), number)
        book.down("a", tool(number, until=number), number)
    kept = [value for value in vars(book).values() if isinstance(value, Sized)]
    assert max(map(len, kept)) <= MAX_UNLISTED + 2


def test_the_newest_serials_are_remembered() -> None:
    book = ContactBook()
    for number in range(20):
        book.up("a", listed("b", serial=f"{number:02x}"), number)
    book.up("a", listed("b", serial="NO SERIAL"), 30)
    assert book.serials("b") == tuple(f"{number:02x}" for number in range(20 - MAX_REMEMBERED, 20))


def test_a_liar_makes_nobody_forget_what_another_node_was_shown() -> None:
    book = ContactBook()
    book.up("honest", listed("far", serial="f1"), 1)
    for number in range(20):
        book.up("liar", listed("far", serial=f"e{number:03x}"), 2)
    assert "f1" in book.serials("far")
    assert len(book.serials("far")) == MAX_REMEMBERED + 1


def test_a_name_that_is_forgotten_may_have_been_of_whoever_showed_many() -> None:
    book = ContactBook()
    for number in range(MAX_REMEMBERED + 1):
        book.up("a", tool(7, name=f"cli-{number}@h"), 10)
    book.up("a", tool(8), 10)
    assert not book.knows("cli-0@h")
    assert book.knows("cli-8@h")
    assert book.may_have_been() == {"spiffe://demo/cli/7"}


def test_who_has_new_keys_is_linked_with_nobody() -> None:
    book = ContactBook()
    book.up("a", listed("b", serial="0a"), 1)
    book.up("b", listed("c"), 1)
    book.forget({"b"})
    assert (book.contacts(), book.serials("b")) == ((), ())
    book.up("a", listed("b", since=9), 9)
    assert book.contacts() == (Contact("a", "b", 9, None),)


def test_only_a_new_link_is_urgent() -> None:
    book = ContactBook()
    book.up("a", listed("b"), 1)
    assert (book.changed, book.urgent) == (True, True)
    book.changed = book.urgent = False
    book.up("b", listed("a"), 2)
    assert (book.changed, book.urgent) == (False, False)
    book.gone("a", 3)
    book.gone("b", 3)
    assert (book.changed, book.urgent) == (True, False)


# ---- any history, and any crash ----------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["up", "down", "gone", "crash"]), st.sampled_from("abcd"), st.sampled_from("abcd")
    ),
    max_size=40,
)


@settings(deadline=None)  # it writes to the disk
@given(EVENTS)
def test_no_meeting_is_ever_forgotten_whenever_the_orchestrator_is_killed(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, str, str]]
) -> None:
    """Each event one second after the other; what was urgent is saved at once, the rest never is."""
    store = Store(tmp_path_factory.getbasetemp() / "contacts")
    save_contacts(store, contacts_document(ContactBook()))
    book, truth = ContactBook(), set()
    up: set[tuple[str, str]] = set()
    for now, (what, one, other) in enumerate(events, 1):
        if what == "crash":
            book = load_contacts(store)
            for node, peer in up:
                book.up(node, listed(peer, since=now), now)  # hello; it may have come up again meanwhile
            book.settle(now)
        elif what == "gone":
            book.gone(one, now)
            up = {pair for pair in up if pair[0] != one}
        elif one != other and what == "up":
            book.up(one, listed(other, since=now), now)
            up.add((one, other))
        elif one != other:
            book.down(one, listed(other, since=now), now)
            up.discard((one, other))
        truth |= {(*sorted(pair), now) for pair in up}
        if book.urgent:
            save_contacts(store, contacts_document(book))
            book.urgent = False
    for one, other, when in truth:
        assert any(
            (each.one, each.other) == (one, other)
            and each.first <= when
            and (each.last is None or when <= each.last)
            for each in book.contacts()
        )


def test_the_record_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    book = ContactBook()
    book.up("a", listed("b", serial="0a"), 5)
    book.up("c", listed("b", serial="0a"), 5)
    book.up("d", listed("b", serial="0b"), 5)
    book.up("a", tool(1), 6)
    book.down("a", tool(1), 7)
    save_contacts(store, contacts_document(book))
    read = load_contacts(store)
    assert (read.contacts(), read.shown(), read.latest) == (book.contacts(), book.shown(), book.latest)
    assert not read.changed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema":2,"latest":1,"contacts":[],"peers":[]}',
        b'{"schema":1,"latest":-1,"contacts":[],"peers":[]}',
        b'{"schema":1,"latest":1,"contacts":[["a","b",1]],"peers":[]}',
        b'{"schema":1,"latest":1,"contacts":[["a","b","x",2]],"peers":[]}',
        b'{"schema":1,"latest":1,"contacts":[],"peers":[["a","0a",[],1]]}',
    ],
)
def test_a_damaged_record_is_an_error_and_never_an_empty_one(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path / "state")
    store.write("contacts.json", content)
    with pytest.raises(StoreError, match=r"contacts\.json: is damaged"):
        load_contacts(store)


def test_of_a_lost_record_everybody_may_have_met_everybody_so_far() -> None:
    book = ContactBook()
    book.unknown_until(["a", "b"], 100)
    assert EVERYBODY in {name for each in book.contacts() for name in (each.one, each.other)}
    assert set(spread(book.contacts(), {"x"}, 0, {"a", "b", "x"})) == {"a", "b", "x", EVERYBODY} - {EVERYBODY}
