"""Waiting for a condition with a deadline: what tests do in place of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 60.0
"""For what takes a moment on a machine that does nothing else, and is done by one that does."""

_never = threading.Event()


class OutOfTime(AssertionError):
    """What was waited for did not come."""


def wait_until(
    condition: Callable[[], T | None],
    what: str,
    seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> T:
    """Calls `condition` until it returns something true, and returns that.

    Raises OutOfTime that names `what` was waited for, and the last value, after `seconds`. The last look
    begins after these: it may be this process that stood still.
    """
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if late:
            raise OutOfTime(f"waited {seconds:g} s for {what}; last seen: {value!r}")
        _never.wait(poll_seconds)
