"""Reads a policy document back: what it refuses, and nothing else of it. Pure.

Only a document that our own key has signed is looked at, so what is read is what `render.policy_document`
wrote. It is the proof of a generation: who merely claims to have a higher one proves nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from distsec.core.wanted import Recovered
from distsec.errors import StoreError

_SIGNATURE = re.compile(rb'\n\{signature, <<"([A-Za-z0-9+/=]{1,128})">>\}\.\n?\Z')
_TEXT = re.compile(r'<<"([\x20-\x7e]*?)">>')
_EPOCH = re.compile(r'\{<<"([\x20-\x7e]*?)">>,(\d{1,18})\}')
_NUMBER = r"(\d{1,18})"


def read_document(document: bytes, verifies: Callable[[bytes, bytes], bool], cluster: str) -> Recovered:
    """What the policy `document` of `cluster` refuses. `verifies(signature, message)`: our own key's.

    Raises StoreError where it is not signed by that key, of another cluster, or not what this program writes.
    """
    found = _SIGNATURE.search(document)
    if found is None:
        raise StoreError("is no policy document")
    body = document[: found.start() + 1]
    try:
        signature = base64.b64decode(found[1], validate=True)
    except (binascii.Error, ValueError):
        raise StoreError("its signature cannot be read") from None
    if not verifies(signature, body):
        raise StoreError("is not signed with the policy key of this cluster")
    text = body.decode("ascii", "replace")
    if _one(r'cluster => <<"([\x20-\x7e]*?)">>', text) != cluster:
        raise StoreError("is the policy of another cluster")
    return Recovered(
        generation=int(_one(f"generation => {_NUMBER}", text)),
        issued_at=int(_one(f"issued_at => {_NUMBER}", text)),
        denied=frozenset(_TEXT.findall(_list("denied", text))),
        revoked=frozenset(_TEXT.findall(_list("revoked", text))),
        revoked_identities=frozenset(_TEXT.findall(_list("revoked_identities", text, "[]"))),
        epochs=tuple((name, int(epoch)) for name, epoch in _EPOCH.findall(_list("epochs", text, "[]"))),
    )


def _one(pattern: str, text: str) -> str:
    """The field of the outermost map: those stand at the beginning of a line, indented by two."""
    found = re.findall(rf"^  {pattern},?\}}?", text, re.MULTILINE)
    if len(found) != 1:
        raise StoreError("is not what this program writes")
    value: str = found[0]
    return value


def _list(name: str, text: str, default: str | None = None) -> str:
    found = re.findall(rf"^  {name} => \[(.*?)\](?:,|\}}\)?)", text, re.MULTILINE | re.DOTALL)
    if not found and default is not None:
        return default
    if len(found) != 1:
        raise StoreError("is not what this program writes")
    value: str = found[0]
    return value
