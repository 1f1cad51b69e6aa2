"""A secret that does not show itself: not in repr, str, f-strings, tracebacks or JSON."""

from __future__ import annotations

import hmac


class Secret:
    """Wraps secret bytes. `reveal()` is the one way to them, so that a search for it finds every use."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The secret itself. Call it where the bytes leave the program, not earlier."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")
