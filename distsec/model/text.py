"""The one escaper for text from elsewhere: node names, DNs, OTP strings, application output.

Whatever a peer or a managed node chose is passed through `escape` before it is printed, logged or put on a
page. It is then plain, printable and bounded; it is still *text* and never markup (rich: `Text`, not a
markup string).
"""

from __future__ import annotations

import unicodedata

DEFAULT_LIMIT = 255
"""Characters kept of a remote text; node names, the longest that matters, have at most 255."""

_BIDI_AND_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that are never shown as they are: controls, format (bidi) characters, surrogates,
unassigned.
"""


def escape(text: str | bytes, limit: int = DEFAULT_LIMIT) -> str:
    """Printable form of remote `text`, at most about `limit` characters of it; idempotent on what it
    returns whole.

    Bytes are read as UTF-8, what is not UTF-8 as `\\xNN`. Controls, bidi and other invisible characters
    become `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`. A text that is cut ends in `…`.
    """
    if isinstance(text, bytes):
        text = text[: limit * 4 + 4].decode("utf-8", "backslashreplace")
    cut = len(text) > limit
    out = "".join(map(_escape_character, text[:limit]))
    return out + "…" if cut else out


def _escape_character(character: str) -> str:
    if " " <= character <= "~":
        return character
    if unicodedata.category(character) not in _BIDI_AND_INVISIBLE:
        return character
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
