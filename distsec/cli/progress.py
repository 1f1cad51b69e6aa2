"""A line on stderr while something takes longer than a second; none where stderr is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_SECONDS = 1.0
_REDRAW_SECONDS = 0.2
_CLEAR = "\r\x1b[K"


@contextmanager
def waiting(what: str, so_far: Callable[[], str] = str) -> Iterator[None]:
    """Shows `what`, the seconds it has taken and what `so_far` says, until the block ends; then the line is
    gone again. `so_far` is called in another thread, and only where the line is shown."""
    if sys.stderr is None or not sys.stderr.isatty():  # None: whoever started us has closed it
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_draw, args=(what, so_far, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _draw(what: str, so_far: Callable[[], str], done: threading.Event) -> None:
    began = time.monotonic()
    if done.wait(PATIENCE_SECONDS):
        return
    while not done.wait(_REDRAW_SECONDS):
        sys.stderr.write(f"{_CLEAR}{what} … {time.monotonic() - began:.0f} s{so_far()}")
        sys.stderr.flush()
    sys.stderr.write(_CLEAR)
    sys.stderr.flush()
