"""Reads and writes `contacts.json`: who was linked with whom (docs/state-files.md)."""

from __future__ import annotations

import json
from typing import Any

from distsec.core.contacts import MAX_KEY, MAX_REMEMBERED, ContactBook, Shown
from distsec.core.taint import Contact
from distsec.errors import StoreError
from distsec.pki.store import MAX_FILE_BYTES, Store

__all__ = ["load_contacts", "save_contacts"]

_FILE = "contacts.json"
_SCHEMA = 1


def load_contacts(store: Store) -> ContactBook:
    """The book; an empty one where none was kept yet. Raises StoreError where it cannot be understood."""
    if not store.exists(_FILE):
        return ContactBook()
    try:
        document = json.loads(store.read(_FILE))
        if document["schema"] != _SCHEMA:
            raise ValueError("schema")
        contacts = [_contact(row) for row in document["contacts"]]
        shown = [each for row in document["peers"] for each in _shown(row)]
        return ContactBook(contacts, shown, _time(document["latest"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            "is damaged, so nobody can tell who was linked with whom", where=str(store.root / _FILE)
        ) from error


def save_contacts(store: Store, content: bytes) -> None:
    """Persists what `contacts_document` made. Raises StoreError."""
    store.write(_FILE, content)


def contacts_document(book: ContactBook) -> bytes:
    """The bytes of `book`. Raises StoreError where they are more than a file may have."""
    document = {
        "schema": _SCHEMA,
        "latest": book.latest,
        "contacts": [[each.one, each.other, each.first, each.last] for each in book.contacts()],
        "peers": [
            [key, what.serials, what.names, what.until, reporters]
            for (key, what), reporters in _alike(book).items()
        ],
    }
    content = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    if len(content) > MAX_FILE_BYTES:
        raise StoreError(f"the record of links would have {len(content)} bytes", where=_FILE)
    return content


def _contact(row: Any) -> Contact:
    one, other, first, last = row
    return Contact(_key(one), _key(other), _time(first), None if last is None else _time(last))


def _alike(book: ContactBook) -> dict[tuple[str, Shown], list[str]]:
    """Who tells the same of a peer; mostly all do, and a row for each would be a long file."""
    alike: dict[tuple[str, Shown], list[str]] = {}
    for key, reporter, what in book.shown():
        alike.setdefault((key, what), []).append(reporter)
    return alike


def _shown(row: Any) -> list[tuple[str, str, Shown]]:
    key, serials, names, until, *reporters = row
    what = Shown(_texts(serials), _texts(names), _time(until))
    if not reporters:  # as it was written before reporters were told apart
        return [(_key(key), "", what)]
    (told,) = reporters
    if not isinstance(told, list):
        raise TypeError("reporters")
    return [(_key(key), "" if reporter == "" else _key(reporter), what) for reporter in told]


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_REMEMBERED:
        raise TypeError("texts")
    return tuple(map(_key, value))


def _key(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_KEY:
        raise TypeError("key")
    return value


def _time(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("time")
    return value
