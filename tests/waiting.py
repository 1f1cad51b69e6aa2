"""Waiting for a condition with a deadline: what tests do in place of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02

_never = threading.Event()


def wait_until(
    condition: Callable[[], T | None], what: str, seconds: float = 15.0, poll_seconds: float = POLL_SECONDS
) -> T:
    """Calls `condition` until it returns something true, and returns that.

    Raises AssertionError that names `what` was waited for, and the last value, after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {seconds:g} s for {what}; last seen: {value!r}")
        _never.wait(poll_seconds)
